# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which files a volume lies in: some formats keep the header in one and the voxels in another, or in several."""

from __future__ import annotations

import os
from pathlib import Path

from nibabel.filename_parser import TypesFilenamesError, types_filenames

from bundle.data.header_texts import read_text_header

__all__ = ["all_files", "holds_a_volume", "voxel_files"]

#: files that hold one volume each; `bundle.data.find` knows them by this name, too
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh")
_TEXT = (".nrrd", ".nhdr", ".mha", ".mhd")
_PAIR = (("image", ".img"), ("header", ".hdr"))


def holds_a_volume(path: Path) -> bool:
    """Whether a file's name says that it holds one volume, or is the header of a NIfTI or Analyze pair."""
    return path.name.lower().endswith(SUFFIXES) or _image_of_pair(path) is not None


def voxel_files(file: str | os.PathLike[str]) -> list[Path]:
    """The files that hold a volume's voxels, or a DICOM slice's: most often the file itself."""
    path = Path(file)
    if path.suffix.lower() in _TEXT:
        return read_text_header(str(path)).voxel_files()
    image = _image_of_pair(path)
    return [path if image is None else image]


def all_files(file: str | os.PathLike[str]) -> list[Path]:
    """The file itself, and those of the voxels that are there, if they are others."""
    path = Path(file)
    return [path, *(voxels for voxels in voxel_files(path) if voxels != path and voxels.exists())]


def _image_of_pair(path: Path) -> Path | None:
    """The image that nibabel reads for a header, if there is one: it looks for `.IMG` beside `.HDR`."""
    if path.suffix.lower() != ".hdr":
        return None
    try:
        image = Path(types_filenames(str(path), _PAIR)["image"])
    except TypesFilenamesError:
        return None
    return image if image.exists() else None
