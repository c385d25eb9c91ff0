# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Finds the cases of an nnU-Net data set: preprocessed ones, or scans whose channels are files of their own."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bundle.data.found_volume import FoundVolume
from bundle.data.nnunet.arrays import case_files
from bundle.data.nnunet.plan import Plan
from bundle.data.scans import find_scans

__all__ = ["find_cases", "preprocessed_folder"]

logger = logging.getLogger(__name__)

#: what nnU-Net puts behind the name of a case: the number of the channel
_CHANNEL = re.compile(r"_(\d{4})(?=(\.[A-Za-z]+)+$)")


def find_cases(
    dataset_dir: str | os.PathLike[str], *, plan: Plan, include: Sequence[str] | str = ()
) -> list[FoundVolume]:
    """The cases of a data set.

    Args:
        dataset_dir: nnU-Net's folder of preprocessed cases, or the data set's folder in `nnUNet_preprocessed` that
            holds it; else as for `bundle.data.find_scans`, where ``<case>_0000.nii.gz``, ``<case>_0001.nii.gz``, ...
            are the channels of one case.
        plan: says how many channels a case has.
        include: as for `find_scans`.

    Raises:
        UserError: as `find_scans`.
    """
    folder = preprocessed_folder(dataset_dir, plan)
    if folder is not None:
        if plan.data_identifier and folder.name != plan.data_identifier:
            logger.warning(
                "%s is taken as it is, but the plan's %s is preprocessed into %s: see that they belong together",
                folder,
                plan.configuration,
                plan.data_identifier,
            )
        return [FoundVolume(file.name, (str(file),), plan.modality) for file in case_files(folder).values()]
    scans = find_scans(dataset_dir, include)
    return _by_case(scans, plan.channels) if plan.channels > 1 else scans


def preprocessed_folder(dataset_dir: str | os.PathLike[str], plan: Plan) -> Path | None:
    """The folder of preprocessed cases that `dataset_dir` is or holds; None if it is something else."""
    root = Path(dataset_dir)
    for folder in (root / plan.data_identifier, root):
        if folder.is_dir() and case_files(folder):
            return folder
    return None


def _by_case(scans: Sequence[FoundVolume], channels: int) -> list[FoundVolume]:
    cases: dict[str, dict[int, FoundVolume]] = {}
    others = []
    for scan in scans:
        match = _CHANNEL.search(scan.name)
        if match is None or scan.left_out[0]:
            others.append(scan)  # several channels in one file, or no scan
        else:
            cases.setdefault(scan.name[: match.start()] + scan.name[match.end() :], {})[int(match[1])] = scan
    return sorted([*others, *(_case(name, found, channels) for name, found in cases.items())], key=lambda one: one.name)


def _case(name: str, found: dict[int, FoundVolume], channels: int) -> FoundVolume:
    if sorted(found) != list(range(channels)):
        there = ", ".join(f"_{number:04d}" for number in sorted(found))
        reason = f"has the channels {there}, and the plan wants {channels}"
        return replace(next(iter(found.values())), name=name, left_out=(reason, "put all channels into one folder"))
    first, *more = (found[number] for number in range(channels))
    return replace(first, name=name, channels=tuple(one.files for one in more))
