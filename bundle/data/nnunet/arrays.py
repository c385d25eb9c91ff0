# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The images in nnU-Net's preprocessed folders, read where they are: `.b2nd`, `.npz`, and `.npy` beside the latter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SUFFIXES", "case_files", "open_array", "read_part"]

#: of the files that hold a case, the one that nnU-Net prefers first
SUFFIXES = (".b2nd", ".npz")


def case_files(folder: Path) -> dict[str, Path]:
    """The file of each preprocessed case in a folder, by the case's name; label maps beside images are none."""
    found: dict[str, Path] = {}
    for suffix in SUFFIXES:
        names = {file.stem: file for file in sorted(folder.glob(f"*{suffix}"))}
        for name, file in names.items():
            if not (name.endswith("_seg") and name.removesuffix("_seg") in names):
                found.setdefault(name, file)
    return found


def open_array(file: str | os.PathLike[str]) -> Any:
    """The images of a case, ``[C, D, H, W]``: an array of which a slice is read when it is asked for.

    Of an `.npz` the `.npy` is taken that nnU-Net unpacks beside it; without one the whole image is read.

    Raises:
        OSError: if it cannot be read; `ValueError`, `RuntimeError` and `KeyError` also mean that.
    """
    path = Path(file)
    if path.suffix == ".b2nd":
        import blosc2  # noqa: PLC0415 - needed for these folders alone

        # memory maps of blosc2 fail on Windows; one thread: the loader has its own processes
        mapped = {} if os.name == "nt" else {"mmap_mode": "r"}
        return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, **mapped)
    if (unpacked := path.with_suffix(".npy")).is_file():
        return np.load(unpacked, mmap_mode="r")
    with np.load(path) as archive:
        return archive["data"]


def read_part(array: Any, part: Sequence[slice]) -> np.ndarray:
    """Float32 ``[C, d, h, w]``: all channels of a part of what `open_array` gave.

    Args:
        array: of a case.
        part: a slice of voxels for each axis, within the array.
    """
    place = (slice(None), *part)
    return np.array(array[place], dtype=np.float32, order="C")  # a copy: a mapped file cannot be written
