# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The errors a user can act on, and how the command line shows them: as one line, without a traceback."""

from __future__ import annotations

import os
import sys
from types import TracebackType

__all__ = ["UserError", "VolumeError", "install_excepthook", "user_error_in"]


class UserError(ValueError):
    """Something the user gave is wrong: says what, in which file or option, and what to do, in one line."""


class VolumeError(UserError):
    """One volume cannot be used. A run skips it and lists it in its report.

    Args:
        path: the file or folder of the volume, as the user knows it.
        problem: what is wrong with it.
        remedy: what the user can do about it.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str, remedy: str) -> None:
        self.path, self.problem, self.remedy = os.fspath(path), problem, remedy
        super().__init__(f"{self.path}: {problem}; {remedy}")

    def __reduce__(self) -> tuple[type[VolumeError], tuple[str, str, str]]:
        # the default pickles only the joined message, and then a data-loading worker could not send the error back
        return type(self), (self.path, self.problem, self.remedy)


def user_error_in(error: BaseException | None) -> UserError | None:
    """The `UserError` behind `error`: MONAI's config parser wraps what a component raises once per level."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, UserError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def install_excepthook() -> None:
    """Ends the program with one line on a `UserError`; any other error, or BUNDLE_DEBUG=1, keeps its traceback."""
    previous = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        user_error = user_error_in(error)
        if user_error is None or os.environ.get("BUNDLE_DEBUG") == "1":
            previous(kind, error, trace)
        else:
            print(f"error: {user_error}", file=sys.stderr)

    sys.excepthook = show
