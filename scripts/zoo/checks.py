# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The Model Zoo's assertions about a bundle's folder: the list, and running it.

docs/how-to/release_to_the_model_zoo.md explains each. A check is a generator of what is wrong; one
that yields nothing holds.
"""

from __future__ import annotations

import enum
import functools
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["NotChecked", "Release", "Result", "Status", "check", "known_ids", "run_checks"]

_MODULES = ("file_checks", "metadata_checks", "config_checks", "network_checks")
_ORDER = "FNVMCBSR"


class NotChecked(Exception):
    """Raised by a check that cannot tell; says why."""


class Status(enum.Enum):
    """What came of a check."""

    OK = "ok"
    WRONG = "WRONG"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Release:
    """A folder to be checked.

    Args:
        path: the folder; its name is the bundle's.
        repository: where the schema, the tests and the settings of the linter are.
        model_info: the zoo's list of published bundles, if it is at hand.
        with_weights: False if the folder was made without weights on purpose.
    """

    path: Path
    repository: Path
    model_info: Path | None = None
    with_weights: bool = True

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self.path.name

    @functools.cached_property
    def metadata(self) -> dict[str, Any]:
        """configs/metadata.json."""
        content: dict[str, Any] = json.loads((self.path / "configs/metadata.json").read_text())
        return content

    @functools.cached_property
    def files(self) -> list[Path]:
        """All files."""
        return sorted(file for file in self.path.rglob("*") if file.is_file())

    @functools.cached_property
    def texts(self) -> dict[str, str]:
        """The content of all text files, line ends as they are, by their paths in the folder."""
        suffixes = {".py", ".md", ".json", ".yaml", ".yml", ".txt", ".sh", ".conf", ".toml", ".patch", ""}
        chosen = (file for file in self.files if file.suffix in suffixes)
        return {self.relative(file): file.read_bytes().decode() for file in chosen}

    def relative(self, file: Path) -> str:
        """A file's path in the folder."""
        return file.relative_to(self.path).as_posix()

    def published(self) -> list[str]:
        """The names with versions of the bundles in the zoo.

        Raises:
            NotChecked: if the list is not at hand.
        """
        if self.model_info is None:
            raise NotChecked("needs the zoo's models/model_info.json: --model_info")
        return list(json.loads(self.model_info.read_text()))


@dataclass(frozen=True)
class Result:
    """What came of one check: the remark says what is wrong, or why it was not checked."""

    id: str
    title: str
    status: Status
    remark: str = ""


Check = Callable[[Release], Iterator[str]]
CHECKS: dict[str, tuple[str, Check]] = {}


def check(name: str) -> Callable[[Check], Check]:
    """Registers a check under its assertion's id; the first line of its docstring is what it asserts."""

    def register(function: Check) -> Check:
        assert name not in CHECKS
        assert function.__doc__ is not None
        CHECKS[name] = (function.__doc__.splitlines()[0].rstrip("."), function)
        return function

    return register


def known_ids() -> list[str]:
    """The ids of all assertions, in the order of docs/how-to/release_to_the_model_zoo.md."""
    for module in _MODULES:
        importlib.import_module(module)  # registers its checks
    return sorted(CHECKS, key=lambda name: (_ORDER.index(name[0]), int(name[1:])))


def run_checks(release: Release, ids: list[str] | None = None) -> list[Result]:
    """Runs all checks, or those named; a check that fails itself counts as wrong."""
    return [_run(release, name) for name in known_ids() if ids is None or name in ids]


def _run(release: Release, name: str) -> Result:
    title, function = CHECKS[name]
    try:
        problems = list(function(release))
    except NotChecked as reason:
        return Result(name, title, Status.NOT_CHECKED, str(reason))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        problems = [f"{type(error).__name__}: {' '.join(str(error).split())}"]  # such as a file or key that lacks
    if problems:
        return Result(name, title, Status.WRONG, "; ".join(problems))
    return Result(name, title, Status.OK)
