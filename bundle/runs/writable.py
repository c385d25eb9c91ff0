# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A folder to write to, or one line that says why there is none."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bundle.errors import UserError

__all__ = ["make_folder"]


def make_folder(folder: str | os.PathLike[str], option: str) -> Path:
    """Makes a folder that an option names. Call it before anything costly is done for it.

    Args:
        folder: with those above it, where they are missing.
        option: as the user writes it, for the message.

    Raises:
        UserError: if it cannot be made, or not be written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{option} {folder} cannot be written ({error.strerror}): give another folder") from error
    return Path(folder)
