# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads the json of a dataset, in the style of the Medical Segmentation Decathlon (MSD)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.errors import UserError

__all__ = [
    "PARTS",
    "channel_of",
    "check_part",
    "choose_part",
    "first_modality",
    "group_named",
    "is_neither",
    "list_entries",
    "modality_named",
    "read_json",
]

#: the lists of a json, in their order; what is for testing is in no training and no validation
PARTS = ("training", "validation", "test")

_MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR"}
#: what a channel may be called that is neither; a name that says nothing, such as T1, is looked at in the voxels
_NEITHER = {"PET", "PT", "SUV", "SPECT", "NM", "US", "ULTRASOUND", "XA", "CR", "DX", "MG", "DOSE"}
#: nnU-Net's names of the channels of a case end so
_CHANNEL = re.compile(r"_(\d{4})$")


def modality_named(name: object) -> str:
    """What a list or a tag says, as "CT" or "MR", or "" if it says nothing known."""
    return _MODALITIES.get(str(name or "").upper(), "")


def group_named(value: object) -> str:
    """The patient that a list names, by a text or a number, of which 0 is one; "" if it says none."""
    return "" if value is None else str(value).strip()


def is_neither(name: str) -> bool:
    """Whether the name of a channel says that it is neither CT nor MR."""
    return name.upper() in _NEITHER


def first_modality(content: Mapping[str, Any]) -> str:
    """What MSD's `modality` and nnU-Net's `channel_names` say of the first channel, such as {"0": "CT"}."""
    return modality_named(channel_of(content)[0])


def channel_of(content: Mapping[str, Any], stem: str = "") -> tuple[str, str]:
    """What a dataset's json calls the channel that a file holds, and the case that the channel is of.

    Args:
        content: of the json.
        stem: the file's name without its ending; of several channels nnU-Net's `case_0001` holds the second.

    Returns:
        The name of the channel, "" where there is none, and the case, "" where a file is a case by itself.
    """
    channels = content.get("modality") or content.get("channel_names")
    if not isinstance(channels, Mapping):
        return str(channels or ""), ""
    number = _CHANNEL.search(stem)
    if len(channels) < 2 or number is None:
        return str(channels.get("0") or ""), ""
    return str(channels.get(str(int(number[1]))) or ""), stem[: number.start()]


def read_json(file: Path) -> Mapping[str, Any]:
    """The content of a dataset's json.

    Raises:
        UserError: if it cannot be read, or is no object.
    """
    try:
        content = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"--dataset_dir {file} is no readable json ({error}): correct or replace it") from error
    if not isinstance(content, Mapping):
        raise UserError(
            f"--dataset_dir {file} is not the json of a dataset, it has no list 'training': name the volumes as in an "
            "MSD dataset.json"
        )
    return content


def check_part(part: str) -> str:
    """`part` itself, if it is one that `--part` takes.

    Raises:
        UserError: if it is not.
    """
    if part not in ("", "auto", "all", *PARTS):
        raise UserError(f"--part {part!r} is not known: choose auto, training, validation, test or all")
    return part


def choose_part(part: str, content: Mapping[str, Any], wanted: Sequence[str] = ()) -> str:
    """The part that `auto` means: `test` if the json lists volumes for it, else `all`; another one is itself.

    Args:
        part: as for `list_entries`, or "auto".
        content: of the json.
        wanted: keys that an entry must have. The `test` of the MSD has images without labels: it is none then.
    """
    test = content.get("test")
    if check_part(part) != "auto":
        return part
    usable = isinstance(test, list) and all(
        not wanted or (isinstance(entry, Mapping) and all(key in entry for key in wanted)) for entry in test
    )
    return "test" if test and usable else "all"


def list_entries(file: Path, content: Mapping[str, Any], remedy: str, part: str = "") -> Iterator[tuple[str, str, Any]]:
    """The entries of the lists `training`, `validation` and `test`, of which `training` alone must be there.

    Args:
        file: of the content.
        content: of the file.
        remedy: what to list, for the message where there is no such list.
        part: the list to read; "all" reads every one, "" those that a training sees: all but `test`.

    Yields:
        The name of the list, the part of the split ("" for training if nothing is listed for validation), and the
        entry.

    Raises:
        UserError: if the lists are missing or no lists.
    """
    names = {"": PARTS[:2], "all": PARTS}.get(check_part(part), (part,))
    required = names[0]
    if not isinstance(content.get(required), list):
        raise UserError(f"--dataset_dir {file} has no list {required!r}: {remedy}")
    if not isinstance(content.get("validation") or [], list):
        raise UserError(f"--dataset_dir {file} has a 'validation' that is no list: list its volumes or remove it")
    has_split = bool(content.get("validation"))
    for name in names:
        listed = content.get(name)
        for entry in listed if isinstance(listed, list) else []:
            yield name, name if has_split or name == "test" else "", entry
