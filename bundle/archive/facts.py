# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What an index holds, counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundle.data.found_volume import FoundVolume
from bundle.data.index.database import COLUMNS, judged, open_to_read, root_folder, volume_paths
from bundle.data.names import name_digest, pseudonymous_text

__all__ = ["AXES", "count_volumes", "read_volumes"]

#: columns of sizes and of spacings, and what the axes are called
AXES = {"columns": "spacing_x", "rows": "spacing_y", "slices": "spacing_z"}
_SHARES = (5, 25, 50, 75, 95)
_TOLD = ("problem", "remedy", "notes")  # what may quote a path
_LONGEST = 200  # names in the json, of each kind


def read_volumes(index: Path, *, hash_names: bool = False) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The volumes with a verdict by the columns of an index, with their numbers (`id`), and the facts about the files.

    Args:
        index: its file.
        hash_names: whether names are digests of the paths.
    """
    with open_to_read(index) as connection:
        names = ["id", *COLUMNS]
        rows = connection.execute(f"SELECT {', '.join(names)} FROM volumes ORDER BY name")  # noqa: S608 - fixed names
        held, _ = judged(connection)
        volumes = [dict(zip(names, row, strict=True)) for row in rows if row[0] in held]
        kinds = dict(connection.execute("SELECT kind, count(*) FROM files GROUP BY kind").fetchall())
        objects = connection.execute(
            "SELECT headers.text, count(*) FROM files JOIN headers ON headers.id = files.header "
            "WHERE files.kind = 'object' GROUP BY headers.text"
        ).fetchall()
        root = root_folder(connection)
        if hash_names:
            for volume in volumes:
                told = any(volume[text] for text in _TOLD)
                _hash_names(volume, volume_paths(connection, root, volume["id"]) if told else [])
        files = {"all": sum(kinds.values()), **kinds, "objects": dict(objects)}
        about = {"archive": "" if hash_names else str(root), "files": files}
    return volumes, about


def _hash_names(volume: dict[str, Any], files: Sequence[str]) -> None:
    """Puts digests in place of all that comes from paths."""
    found, other = FoundVolume(volume["name"], tuple(files)), volume["duplicate_of"]
    volume["name"] = name_digest(volume["name"])
    volume["site"] = name_digest(volume["site"]) if volume["site"] else ""
    volume["duplicate_of"] = name_digest(other) if other else ""
    for text in _TOLD:
        told = volume[text].replace(other, volume["duplicate_of"]) if other else volume[text]
        volume[text] = pseudonymous_text(told, found)


def count_volumes(volumes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts about volumes: how many of what, their sizes and spacings, what is left out and why, duplicates."""
    usable = [volume for volume in volumes if volume["usable"]]
    left_out = [volume for volume in volumes if not volume["usable"]]
    duplicates = [volume for volume in volumes if volume["duplicate_of"]]
    return {
        "usable": len(usable),
        "left_out": len(left_out),
        "patients": len({volume["patient"] for volume in usable if volume["patient"]}),
        "without_patient": sum(not volume["patient"] for volume in usable),
        "megabytes": round(sum(volume["megabytes"] for volume in usable), 1),
        "voxels": sum(_voxels(volume) for volume in usable),
        "modality": _counted(volume["modality"] or "not known" for volume in usable),
        "format": _counted(volume["format"] for volume in usable),
        "site": _counted(volume["site"] or "." for volume in usable),
        "sizes": {name: _spread([volume[name] for volume in usable]) for name in AXES},
        "spacings": {name: _spread([volume[name] for volume in usable]) for name in AXES.values()},
        "reasons": _counted(_kind(volume["problem"]) for volume in left_out),
        "noted": _counted(_kind(note) for volume in usable for note in volume["notes"].split("; ") if note),
        "duplicates": {volume["name"]: volume["duplicate_of"] for volume in duplicates[:_LONGEST]},
        "duplicate_volumes": len(duplicates),
    }


def _voxels(volume: Mapping[str, Any]) -> int:
    return int(volume["columns"] * volume["rows"] * volume["slices"])


def _counted(values: Any) -> dict[str, int]:
    counts = Counter(values).most_common()
    named = dict(counts[:_LONGEST])
    if more := counts[_LONGEST:]:
        named["others"] = sum(count for _, count in more)
    return named


def _kind(problem: str) -> str:
    """A reason without its numbers and names, so that equal ones are counted together."""
    kind = re.sub(r"(voxels as|images in|map) .*", r"\1 ...", problem) if problem.startswith("holds") else problem
    return re.sub(r"(?<!\w)\d[\d.]*(?!\w)", "n", re.sub(r"\(.*\)", "(...)", kind))


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Percentiles, by their numbers."""
    if not values:
        return {}
    found = np.percentile(values, (0, *_SHARES, 100))
    return {str(share): round(float(value), 4) for share, value in zip((0, *_SHARES, 100), found, strict=True)}
