# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Finds the scans to predict: what fine-tuning takes, without the labels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundle.data import FoundVolume, find_scans
from bundle.data.dataset_json import PARTS, check_part
from bundle.data.find import VOLUME_SUFFIXES
from bundle.data.lists import find_unlabelled
from bundle.data.names import without_ending
from bundle.data.safe_names import name_results
from bundle.errors import UserError

__all__ = ["find_scans_to_predict", "list_items", "list_scans"]

_CHANNEL = re.compile(r"_(\d{4})$")  # nnU-Net's number of the channel


def list_scans(
    dataset_dir: str | os.PathLike[str],
    *,
    channels: int = 1,
    include: Sequence[str] | str = (),
    where: str = "",
    part: str = "all",
    hash_names: bool = False,
    files: Callable[[str], Iterable[Path]] = lambda _: (),
    written: Callable[[], Iterable[Path]] = tuple,
) -> list[FoundVolume]:
    """The scans of `find_scans_to_predict`, each under the name that its results have.

    Args:
        dataset_dir: as for `find_scans_to_predict`.
        channels: as for `find_scans_to_predict`.
        include: as for `find_scans_to_predict`.
        where: as for `find_scans_to_predict`.
        part: as for `find_scans_to_predict`.
        hash_names: a digest of the path instead of the path.
        files: what will be written under a name; none of it is a file that is read.
        written: gives what an earlier run has written, which are no scans.

    Returns:
        Scans whose names are paths below a folder of results, without an ending: see `bundle.data.result_names`.
    """
    found = find_scans_to_predict(dataset_dir, channels=channels, include=include, where=where, part=part)
    return name_results(found, hash_names=hash_names, files=files, written=written())


def list_items(dataset_dir: str | os.PathLike[str], *, channels: int = 1) -> list[dict[str, Any]]:
    """The scans of `find_scans_to_predict`, for `bundle.inference.LoadImageAsTrainedd`; label maps are left out.

    Args:
        dataset_dir: as for `find_scans_to_predict`.
        channels: as for `find_scans_to_predict`.

    Returns:
        For each scan what `bundle.data.FoundVolume.to_item` gives, and `filename`: a path below `dataset_dir` after
        which MONAI's `SaveImaged` names the result.

    Raises:
        UserError: if nothing is there to be segmented.
    """
    scans = list_scans(dataset_dir, channels=channels)
    found = [scan for scan in scans if not any(scan.left_out)]
    if not found:
        raise UserError(f"--dataset_dir {os.fspath(dataset_dir)} holds label maps only: give a folder of scans")
    return [{**scan.to_item(), "filename": os.fspath(Path(dataset_dir, f"{scan.name}.nii.gz"))} for scan in found]


def find_scans_to_predict(
    dataset_dir: str | os.PathLike[str],
    *,
    channels: int = 1,
    include: Sequence[str] | str = (),
    where: str = "",
    part: str = "all",
) -> list[FoundVolume]:
    """Finds scans, with all of their channels.

    Args:
        dataset_dir: one file; a folder of NIfTI, NRRD or FreeSurfer files and DICOM series, with its subfolders, whose
            label maps are left out; the index of a folder; or an MSD-style json, with or without labels.
        channels: images per scan. With more than one, the files `<case>_0000`, `<case>_0001`, ... of a folder are the
            channels of one scan; a json lists them under `image`; a NIfTI file with a fourth axis holds them.
        include: patterns of paths below the folder that are scans in spite of their looks.
        where: a condition on the columns of an index.
        part: of a json: training, validation, test or all; "auto": `test` if the json has such a list, else all.

    Raises:
        UserError: if nothing is found, a list cannot be used, or one is asked for where there is no json.
    """
    path = Path(dataset_dir)
    if path.is_file() and path.name.lower().endswith(VOLUME_SUFFIXES):
        if check_part(part) in PARTS:
            raise UserError(
                f"--part {part} needs a json that lists it, and --dataset_dir {path} is a file: give the json"
            )
        return [FoundVolume(name=path.name, files=(str(path),))]
    if path.is_file() and path.suffix == ".json":
        return sorted(find_unlabelled(path, check_part(part)), key=lambda volume: volume.name)
    found = find_scans(path, include, part=part, where=where)
    return found if channels == 1 else _with_channels(found)


def _with_channels(found: Sequence[FoundVolume]) -> list[FoundVolume]:
    """Joins the files of a case that are numbered from _0000 on."""
    cases: dict[str, list[FoundVolume]] = {}
    for volume in found:
        stem = without_ending(volume.name)
        is_file = len(volume.files) == 1 and not volume.left_out[0]
        cases.setdefault(_CHANNEL.sub("", stem) if is_file else volume.name, []).append(volume)
    return sorted((volume for case in cases.items() for volume in _joined(*case)), key=lambda volume: volume.name)


def _joined(case: str, volumes: Sequence[FoundVolume]) -> list[FoundVolume]:
    numbers = [match and int(match[1]) for match in (_CHANNEL.search(without_ending(v.name)) for v in volumes)]
    if len(volumes) < 2 or numbers != list(range(len(volumes))):
        return list(volumes)
    first, *others = volumes
    ending = first.name[len(without_ending(first.name)) :]
    return [replace(first, name=f"{case}{ending}", channels=tuple(other.files for other in others))]
