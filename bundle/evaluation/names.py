# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which prediction belongs to which scan: by name, whoever made the prediction."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from bundle.data import FoundVolume
from bundle.data.names import name_digest, without_ending
from bundle.data.safe_names import inside, result_names
from bundle.evaluation.tables import read_table

__all__ = ["case_name", "match_names", "skipped_reasons"]

_CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net's number of the channel
_WORD = re.compile(r"[_-](?:seg|segmentation|pred|prediction|mask|label)$", re.IGNORECASE)


def case_name(volume: FoundVolume, *, hashed: bool = False) -> str:
    """What a case is called in tables: the scan's name without its ending, or a digest of its name."""
    return name_digest(volume.name) if hashed else inside(without_ending(_normal(volume.name)))


def match_names(volumes: Sequence[FoundVolume], predictions: Sequence[str]) -> list[str | None]:
    """For each scan the name of its prediction.

    A prediction may have the name that a prediction of these scans gives it, the scan's name below the data set's
    folder, its digest, the name of its label map, its last part, or the name of the scan's folder; nnU-Net's channel
    number and the ending may be missing, and a word such as `_seg` may come behind. More of a name goes before less of
    it. A name that several scans share, or several predictions, decides nothing, also where some of them are taken.

    Args:
        volumes: the scans.
        predictions: their names, all different.

    Returns:
        One of `predictions`, or None, for each scan.
    """
    found: list[str | None] = [None] * len(volumes)
    left = list(predictions)
    results = result_names(volumes, files=lambda _: ())
    keys = [[own, *_keys(volume)] for own, volume in zip(results, volumes, strict=True)]
    for shorten in (_normal, _stem, _last_of_stem, _without_word, lambda name: _last_part(_without_word(name))):
        for level in range(len(keys[0]) if keys else 0):
            # of all, also of those that have found each other: what two of them are called tells nobody apart
            names = _unique({prediction: shorten(prediction) for prediction in predictions})
            wanted = _unique({index: levels[level] for index, levels in enumerate(keys)})
            for name, index in wanted.items():
                if name and found[index] is None and names.get(name) in left:
                    found[index] = names[name]
                    left.remove(names[name])
    return found


def skipped_reasons(volumes: Sequence[FoundVolume], predictions: Path) -> dict[str, str]:
    """Why a prediction skipped scans, by their names, as the `predictions.csv` of its folder says.

    Args:
        volumes: the scans.
        predictions: the folder.
    """
    table = predictions / "predictions.csv"
    rows = read_table(table) if table.is_file() else []
    reasons = {row["scan"]: row["skipped"] for row in rows if row.get("scan") and row.get("skipped")}
    names = match_names(volumes, [*reasons])
    return {volume.name: reasons[name] for volume, name in zip(volumes, names, strict=True) if name is not None}


def _last_of_stem(prediction: str) -> str:
    return _last_part(_stem(prediction))


def _without_word(prediction: str) -> str:
    """Without what programs put behind a scan's name, such as MONAI's `_seg`."""
    return _WORD.sub("", _stem(prediction))


def _unique(names: Mapping[Any, str]) -> dict[str, Any]:
    """What has each name, where one alone has it."""
    count = Counter(names.values())
    return {name: key for key, name in names.items() if count[name] == 1}


def _keys(volume: FoundVolume) -> list[str]:
    """Names that a prediction of a scan may have, the most telling first."""
    name = without_ending(_normal(volume.name))
    label = volume.annotations.get("label")
    of_label = without_ending(Path(label).name) if isinstance(label, str) else ""
    folder = str(PurePosixPath(name).parent)
    last = _last_part(name)
    return [
        name,
        inside(name),
        name_digest(volume.name),
        _CHANNEL.sub("", name),
        of_label,
        last,
        _CHANNEL.sub("", last),
        "" if folder == "." else folder,
        "" if folder == "." else _last_part(folder),
    ]


def _normal(name: str) -> str:
    return posixpath.normpath(name) if name else name


def _stem(name: str) -> str:
    return without_ending(_normal(name))


def _last_part(name: str) -> str:
    return PurePosixPath(name).name
