# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads the json of a dataset, in the style of the Medical Segmentation Decathlon (MSD)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bundle.errors import UserError

__all__ = ["first_modality", "list_entries", "modality_named", "read_json"]

_MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR"}


def modality_named(name: object) -> str:
    """What a list or a tag says, as "CT" or "MR", or "" if it says nothing known."""
    return _MODALITIES.get(str(name or "").upper(), "")


def first_modality(content: Mapping[str, Any]) -> str:
    """What MSD's `modality` and nnU-Net's `channel_names` say of the first channel, such as {"0": "CT"}."""
    channels = content.get("modality") or content.get("channel_names")
    return modality_named(channels.get("0") if isinstance(channels, Mapping) else channels)


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


def list_entries(file: Path, content: Mapping[str, Any], remedy: str) -> Iterator[tuple[str, str, Any]]:
    """The entries of the lists `training` and, if there is one, `validation`.

    Args:
        file: of the content.
        content: of the file.
        remedy: what to list, for the message where there is no list `training`.

    Yields:
        The name of the list, the part of the split ("" if nothing is listed for validation), and the entry.

    Raises:
        UserError: if the lists are missing or no lists.
    """
    if not isinstance(content.get("training"), list):
        raise UserError(f"--dataset_dir {file} has no list 'training': {remedy}")
    if not isinstance(content.get("validation") or [], list):
        raise UserError(f"--dataset_dir {file} has a 'validation' that is no list: list its volumes or remove it")
    has_split = bool(content.get("validation"))
    for name in ("training", "validation"):
        for entry in content.get(name) or []:
            yield name, name if has_split else "", entry
