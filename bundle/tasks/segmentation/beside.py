# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Finds volumes whose label maps lie beside them, as in a folder of one case each, or in one of all."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from bundle.data.find import volume_files
from bundle.data.found_volume import FoundVolume
from bundle.data.names import without_ending
from bundle.errors import UserError

__all__ = ["LABEL_WORD", "find_beside", "log_once"]

logger = logging.getLogger(__name__)

_WORDS = "(?:seg|segmentation|label|labels|labelmap|mask|gt)"
#: what programs put behind a scan's name, such as 3D Slicer's `-label` and `.seg`
LABEL_WORD = re.compile(rf"[._-]{_WORDS}$", re.IGNORECASE)
_WORD_ALONE = re.compile(_WORDS, re.IGNORECASE)


def find_beside(root: Path, modality: str = "") -> list[FoundVolume]:
    """The volumes in a folder and its subfolders that have a label map beside them.

    `a_seg.nii.gz` is that of `a.nii.gz`, or else of all images `a_...`, such as `a_t1.nii.gz` and `a_t2.nii.gz`, which
    are the channels of one volume, by their names. In a subfolder a map may be called by the word alone, as
    `case_1/mask.nii.gz`, and is that of all images there.

    Args:
        root: the folder.
        modality: of all, or "".

    Raises:
        UserError: if a scan has two label maps, or cases have channels of different names.
    """
    folders: dict[Path, list[Path]] = {}
    for path in volume_files(root):
        folders.setdefault(path.parent, []).append(path)
    cases = [case for folder, files in folders.items() for case in _cases(files, alone=folder != root).items()]
    labelled = [(label, images) for label, images in cases if images]
    if labelled:
        _tell_of_channels(root, labelled)
        _tell_of_unused(root, sum(map(len, folders.values())), cases)
    return [
        FoundVolume(
            name=str(images[0].relative_to(root)),
            files=(str(images[0]),),
            modality=modality,
            annotations={"label": str(label)},
            channels=tuple((str(image),) for image in images[1:]),
        )
        for label, images in labelled
    ]


def _cases(files: Sequence[Path], *, alone: bool) -> dict[Path, list[Path]]:
    """The images of each label map in one folder; none, if there are none."""
    labels: dict[str, Path] = {}
    images: dict[Path, str] = {}
    for path in files:
        stem = without_ending(path.name)
        case = "" if alone and _WORD_ALONE.fullmatch(stem) else LABEL_WORD.sub("", stem)
        if case == stem:
            images[path] = stem
        elif labels.setdefault(case, path) != path:
            raise UserError(
                f"{path.parent} holds {labels[case].name} and {path.name}, two label maps of one scan: keep one there, "
                "or list the volumes in a json"
            )
    found = {}
    for case in sorted(labels, key=len, reverse=True):  # an image belongs to the longest name that it begins with
        own = [path for path, stem in images.items() if stem == case]
        own = own or [path for path, stem in images.items() if re.match(rf"{re.escape(case)}[._-]", stem) or not case]
        found[labels[case]] = sorted(own)
        for path in own:
            del images[path]
    return found


def _tell_of_channels(root: Path, cases: Sequence[tuple[Path, Sequence[Path]]]) -> None:
    """Says in which order the channels are; refuses cases of which some would have others."""
    kinds: dict[tuple[str, ...], Path] = {}
    for label, images in cases:
        case = LABEL_WORD.sub("", without_ending(label.name))
        kinds.setdefault(tuple(without_ending(image.name).removeprefix(case) for image in images), label)
    if max(map(len, kinds)) == 1:
        return
    if len(kinds) > 1:
        (one, first), (other, second), *_ = kinds.items()
        raise UserError(
            f"{first} has the images {', '.join(one)} beside it, and {second} has {', '.join(other)}: give each case "
            "the same channels, or list the volumes in a json"
        )
    order = ", ".join(next(iter(kinds)))
    log_once(logging.INFO, root, f"the images beside each label map are its channels, in this order: {order}")


def _tell_of_unused(root: Path, files: int, cases: Sequence[tuple[Path, Sequence[Path]]]) -> None:
    alone = sum(not images for _, images in cases)
    unlabelled = files - len(cases) - sum(len(images) for _, images in cases)
    for count, text in ((alone, "label maps have no image"), (unlabelled, "volumes have no label map")):
        if count:
            log_once(logging.WARNING, root, f"{count} {text} beside them in {root.name}: they are not used")


@functools.cache
def log_once(level: int, _: Path, text: str) -> None:
    """Volumes are looked for several times: one line for a folder is enough. It may not name a file."""
    logger.log(level, text)
