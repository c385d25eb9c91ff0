# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A volume that was found on disk, however it was found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from bundle.data.dicom import DAMAGED, UNREADABLE
from bundle.data.printable import printable
from bundle.errors import VolumeError

__all__ = ["BY_NAME", "FoundVolume", "other_objects"]

#: what a group begins with that a path tells: another folder may hold another person of that path
BY_NAME = "by name: "

#: a folder of a subject, or a file of one, in BIDS; a word such as sub-cortical has no digit
_SUBJECT = re.compile(r"(sub-(?=[a-z]*\d)[a-z\d]+)(?:$|[_.])", re.IGNORECASE)
#: folders of BIDS in which the subjects are those of the data set above
_SAME_SUBJECTS = {"derivatives", "rawdata", "sourcedata"}


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
            Where nothing else tells, the subject of a path in BIDS, such as
            `sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz`.
        part: "training", "validation" or "test" where a json tells, else "".
        annotations: what a data list says of it for fine-tuning, such as the file of its label map.
        channels: the file, or the files of the DICOM series, of each further image of the same grid.
        left_out: why the volume is not used, and what to do about it; two empty texts if it is used.
        columns: what an index says of it, by the names of the index's columns; no transform gets it.
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
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", printable(self.name))
        object.__setattr__(self, "group", self.group or _subject(self.name))

    def to_item(self) -> dict[str, Any]:
        """What transforms are given: `image`, a list of files, `name`, `modality`, and what else is known.

        Raises:
            VolumeError: if the volume is left out.
        """
        problem, remedy = self.left_out
        if problem:
            raise VolumeError(self.name, problem, remedy)
        item = {**self.annotations, "image": list(self.files), "name": self.name, "modality": self.modality}
        if self.channels:
            item["channels"] = [list(files) for files in self.channels]
        if self.from_folder:
            item["from_folder"] = True
        return item


def _subject(name: str) -> str:
    """The path of the subject that a volume's path names as BIDS does, or ""."""
    parts = PurePosixPath(name).parts
    for number, part in enumerate(parts):
        is_file = number == len(parts) - 1
        if (found := _SUBJECT.match(part)) and (is_file or found[1] == part):
            above = parts[: next((n for n in range(number) if parts[n].lower() in _SAME_SUBJECTS), number)]
            return BY_NAME + "/".join((*above, found[1]))
    return ""


def other_objects(found: Mapping[tuple[Path, str], int], root: Path) -> Iterator[FoundVolume]:
    """A line of the report for each modality that is neither CT nor MR, for what cannot be opened, what is damaged."""
    modalities: dict[str, list[tuple[Path, int]]] = {}
    for (folder, modality), count in sorted(found.items()):
        modalities.setdefault(modality, []).append((folder, count))
    for modality, places in modalities.items():
        files, more = sum(count for _, count in places), len(places) - 1
        where = root.name if places[0][0] == root else str(places[0][0].relative_to(root))
        elsewhere = f", some in {more} other {'place' if modality == UNREADABLE else 'folder'}(s)" if more else ""
        left_out = (f"{files} DICOM file(s) with no image of CT or MR{elsewhere}", "nothing is to be done")
        if modality == UNREADABLE:
            problem = f"{files} file(s), folder(s) or link(s) that cannot be opened{elsewhere}"
            left_out = (problem, "correct their permissions or remove them")
        elif modality == DAMAGED:
            left_out = (f"{files} DICOM file(s) that are empty or cut off{elsewhere}", "copy them again or remove them")
        yield FoundVolume(f"{where} ({modality})", (), left_out=left_out)
