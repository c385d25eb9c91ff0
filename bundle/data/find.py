# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Finds volumes: in a folder of NIfTI or NRRD files, in a tree of DICOM series, or in an MSD-style json."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle.data.dataset_json import first_modality, list_entries, modality_named, read_json
from bundle.data.printable import printable, shortened
from bundle.errors import UserError, VolumeError

if TYPE_CHECKING:
    import pydicom

__all__ = ["VOLUME_SUFFIXES", "FoundVolume", "find_listed", "find_volumes", "modality_named", "volume_files"]

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_TAGS = ["Modality", "PatientID", "StudyInstanceUID", "Rows"]
_MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR"}


@dataclass(frozen=True)
class FoundVolume:
    """A volume on disk, not read yet.

    Attributes:
        name: its path below the dataset's folder, numbered where a folder holds several DICOM series; what cannot be
            shown, such as a line break, is an escape in it.
        files: its file, or the files of its DICOM series in the order of their positions.
        modality: "CT" or "MR" as the DICOM tag or the json says, or "" if they do not.
        group: volumes of one group stay on one side of the train/validation split. For DICOM, a digest of the
            patient, or of the study where the patient was removed; it lives in memory only, neither logged nor stored.
        part: "training" or "validation" where a json tells, else "".
        annotations: what a data list says of it for fine-tuning, such as the file of its label map.
        channels: the file, or the files of the DICOM series, of each further image of the same grid.
        left_out: why the volume is not used, and what to do about it; two empty texts if it is used.
        from_folder: whether the file lies in a folder of scans and nobody named it: `ReadVolumed` then refuses it if it
            looks like a label map.
    """

    name: str
    files: tuple[str, ...]
    modality: str = ""
    group: str = ""
    part: str = ""
    annotations: Mapping[str, Any] = field(default_factory=dict)
    channels: tuple[tuple[str, ...], ...] = ()
    left_out: tuple[str, str] = ("", "")
    from_folder: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", printable(self.name))

    def to_item(self) -> dict[str, Any]:
        """What transforms are given: `image`, a list of files, `name`, `modality`, and what else is known.

        Raises:
            VolumeError: if the volume is left out.
        """
        problem, remedy = self.left_out
        if problem:
            raise VolumeError(self.name, f"{problem}: no scan", remedy)
        item = {**self.annotations, "image": list(self.files), "name": self.name, "modality": self.modality}
        if self.channels:
            item["channels"] = [list(files) for files in self.channels]
        if self.from_folder:
            item["from_folder"] = True
        return item


def find_volumes(dataset_dir: str | os.PathLike[str]) -> list[FoundVolume]:
    """All volumes of a dataset, sorted by name.

    Args:
        dataset_dir: a folder, searched with its subfolders, or an MSD-style json: lists `training` and, optionally,
            `validation`, of paths or of objects with `image` and optionally `modality`; paths are relative to it.

    Raises:
        UserError: if there is no such folder or file, it holds no volume, or the json cannot be used.
    """
    root = Path(dataset_dir)
    if root.is_file() and root.suffix == ".json":
        volumes = _from_json(root)
    elif root.is_dir():
        volumes = [*_image_files(root), *_dicom_series(root)]
    elif root.is_file():
        raise UserError(f"--dataset_dir {root} is a file: give its folder, or a json that lists volumes")
    else:
        volumes = []
    if not volumes:
        missing = (
            "does not exist" if not root.exists() else "holds no NIfTI or NRRD file and no DICOM series of CT or MR"
        )
        raise UserError(
            f"--dataset_dir {root} {missing}: give a folder of volumes, or fetch the default ones with "
            '"python scripts/fetch_data.py"'
        )
    return sorted(volumes, key=lambda volume: volume.name)


def volume_files(root: Path) -> list[Path]:
    """The files in a folder and its subfolders that hold one volume each, by their names; hidden ones are left out."""
    files = (path for path in root.rglob("*") if path.name.lower().endswith(VOLUME_SUFFIXES) and path.is_file())
    return sorted(path for path in files if not _hidden(path, root))


def _image_files(root: Path) -> Iterator[FoundVolume]:
    for path in volume_files(root):
        yield FoundVolume(name=str(path.relative_to(root)), files=(str(path),))


def _dicom_series(root: Path, prefix: str = "") -> Iterator[FoundVolume]:
    """The series in a folder and below it, named by their path from it after `prefix`."""
    folders = (Path(folder) for folder, _, _ in os.walk(root))
    for folder in folders:
        if _hidden(folder, root) or not any(_looks_like_dicom(path) for path in _first_files(folder)):
            continue
        import itk  # noqa: PLC0415 - large, and needed for DICOM only

        names = itk.GDCMSeriesFileNames.New(UseSeriesDetails=False, Recursive=False, Directory=str(folder))
        series = []
        for uid in names.GetSeriesUIDs():
            files = tuple(names.GetFileNames(uid))
            header = _image_header(files[0])
            if header is not None:
                series.append((files, header))
        for number, (files, header) in enumerate(series, start=1):
            name = root.name if folder == root and not prefix else str(Path(prefix, folder.relative_to(root)))
            yield FoundVolume(
                name=name if len(series) == 1 else f"{name} (series {number})",
                files=files,
                modality=_MODALITIES.get(str(header.get("Modality", "")), ""),
                group=_digest(header),
            )


def _image_header(file: str) -> pydicom.Dataset | None:
    """The header of a CT or MR image; None for a report, a plan, a segmentation, a dose, a PET or another object."""
    import pydicom  # noqa: PLC0415 - needed for DICOM only
    from pydicom.errors import InvalidDicomError  # noqa: PLC0415

    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
    except (InvalidDicomError, OSError, EOFError):
        return None
    # an anonymiser may have emptied the tag: such an image stays, and its intensities tell
    return header if "Rows" in header and header.get("Modality") in (*_MODALITIES, "", None) else None


def _digest(header: pydicom.Dataset) -> str:
    person = str(header.get("PatientID") or header.get("StudyInstanceUID") or "")
    return hashlib.sha256(person.encode()).hexdigest() if person else ""


def _first_files(folder: Path) -> list[Path]:
    """A few files of a folder: enough to see whether it is one of DICOM slices."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file())
    return [path for path in files if not path.name.lower().endswith((*VOLUME_SUFFIXES, ".json", ".txt"))][:20]


def _looks_like_dicom(path: Path) -> bool:
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _from_json(path: Path) -> list[FoundVolume]:
    volumes: list[FoundVolume] = []
    remedy = "name the volumes as in an MSD dataset.json"
    content = read_json(path)
    for name, part, listed in list_entries(path, content, remedy):
        entry = {"image": listed} if isinstance(listed, str) else listed
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise UserError(
                f"--dataset_dir {path} lists {shortened(entry)} in {name!r}: give a path or {{'image': path}}"
            )
        modality = modality_named(entry.get("modality")) or first_modality(content)
        volumes += find_listed(path.parent / entry["image"], entry["image"], modality=modality, part=part)
    return volumes


def find_listed(
    file: Path,
    name: str,
    *,
    modality: str = "",
    part: str = "",
    group: str = "",
    annotations: Mapping[str, Any] | None = None,
) -> list[FoundVolume]:
    """What an entry of a data list names: a file, or a folder with DICOM series.

    Args:
        file: the entry's file or folder.
        name: what the list calls it.
        modality: as the list says, or "".
        part: as the list says, or "".
        group: as the list says, or "".
        annotations: what the list says of it besides.
    """
    entry = FoundVolume(name, (), modality, group, part, annotations or {})
    if not is_folder(file):
        return [replace(entry, files=(str(file),))]
    series = [
        replace(
            entry, name=found.name, files=found.files, modality=modality or found.modality, group=group or found.group
        )
        for found in _dicom_series(file, prefix=name)
    ]
    return series or [entry]  # reading it says what is wrong


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; what cannot be a path, such as a name that is too long, is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
