# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads lists of labelled volumes: json in the style of the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundle.data.find import FoundVolume, find_listed, modality_named
from bundle.errors import UserError

__all__ = ["modality_of_all", "read_json", "volumes_of"]


def volumes_of(listed: Path, wanted: tuple[str, ...]) -> list[FoundVolume]:
    """The volumes that a json lists under `training` and `validation`.

    Args:
        listed: the json; paths in it are relative to its folder.
        wanted: keys that every entry must have beside `image`; they become the volume's annotations.

    Raises:
        UserError: if the list cannot be used.
    """
    content = read_json(listed)
    if not isinstance(content.get("training"), list):
        raise UserError(f"--dataset_dir {listed} has no list 'training': list objects with image, {', '.join(wanted)}")
    if not isinstance(content.get("validation") or [], list):
        raise UserError(f"--dataset_dir {listed} has a 'validation' that is no list: list its volumes or remove it")
    has_split = bool(content.get("validation"))
    volumes: list[FoundVolume] = []
    for part in ("training", "validation"):
        for entry in content.get(part) or []:
            if not isinstance(entry, Mapping) or any(key not in entry for key in ("image", *wanted)):
                raise UserError(f"{listed} lists {entry!r} in {part!r}: give objects with image, {', '.join(wanted)}")
            annotations: dict[str, Any] = {key: entry[key] for key in wanted}
            if wanted == ("label",):
                annotations["label"] = str(listed.parent / _paths(entry["label"], listed)[0])
            image, *others = _paths(entry["image"], listed)
            channels = [find_listed(listed.parent / other, other)[0].files for other in others]
            found = find_listed(
                listed.parent / image,
                image,
                modality=modality_named(entry.get("modality")) or modality_of_all(content),
                part=part if has_split else "",
                group=str(entry.get("group", "")),
                annotations=annotations,
            )
            volumes += [replace(volume, channels=tuple(channels)) for volume in found]
    return volumes


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
        raise UserError(f"--dataset_dir {file} is not the json of a dataset: give an object with a list 'training'")
    return content


def modality_of_all(content: Mapping[str, Any]) -> str:
    """What MSD's `modality` and nnU-Net's `channel_names` say of the first channel, such as {"0": "CT"}."""
    channels = content.get("modality") or content.get("channel_names")
    return modality_named(channels.get("0") if isinstance(channels, Mapping) else channels)


def _paths(value: object, listed: Path) -> list[str]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise UserError(f"{listed} lists {value!r} where a path belongs: give one, or a list of them as channels")
    return paths
