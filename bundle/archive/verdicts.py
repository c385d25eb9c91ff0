# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What an index says of its volumes as a whole: names, modalities of a json, label maps, duplicates, what is usable."""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bundle.archive.order import order_series
from bundle.archive.pool import Pool
from bundle.archive.series import whole_content
from bundle.data.dicom.folders import Series, numbered
from bundle.data.index.database import volume_paths
from bundle.data.label_maps import label_map_by_path
from bundle.data.printable import printable
from bundle.data.scans import json_channel, nearest_json

__all__ = ["give_verdicts"]

_SET = ("name", "site", "modality", "usable", "problem", "remedy", "duplicate_of")
#: in which equal volumes agree, before all of their voxels are compared
_SAME = ("content", "modality", "columns", "rows", "slices")


def give_verdicts(connection: sqlite3.Connection, root: Path, pool: Pool) -> None:
    """Sets the columns of the volumes that depend on other volumes or other files, in one step."""
    connection.row_factory = sqlite3.Row
    try:
        volumes = [dict(row) for row in connection.execute("SELECT * FROM volumes ORDER BY folder, first, id")]
    finally:
        connection.row_factory = None
    before = {volume["id"]: tuple(volume[name] for name in _SET) for volume in volumes}
    _name(volumes, root, connection, pool)
    json_above = cache(nearest_json)
    for volume in volumes:
        volume["site"] = printable(Path(os.fsdecode(volume["first"])).parts[0]) if b"/" in volume["first"] else ""
        file = Path(root, os.fsdecode(volume["first"]))
        volume["problem"], volume["remedy"], volume["duplicate_of"] = *_problem(volume), ""
        volume["modality"] = volume["tag"]
        if volume["format"] != "DICOM":
            volume["modality"], _, left_out = json_channel(json_above(file.parent, root), volume["name"])
            if left_out[0] and not volume["problem"]:
                volume["problem"], volume["remedy"] = left_out
    volumes.sort(key=lambda volume: volume["name"])
    whole = _mark_duplicates(connection, volumes, root, pool)
    for volume in volumes:
        volume["usable"] = int(not volume["problem"])
    changed = [v for v in volumes if tuple(v[name] for name in _SET) != before[v["id"]]]
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("UPDATE volumes SET whole = ? WHERE id = ?", whole)
    connection.executemany(
        f"UPDATE volumes SET {', '.join(f'{name} = ?' for name in _SET)} WHERE id = ?",  # noqa: S608 - fixed names
        [(*(volume[name] for name in _SET), volume["id"]) for volume in changed],
    )
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('complete', '1')")
    connection.execute("COMMIT")


def _name(volumes: Sequence[dict[str, Any]], root: Path, connection: sqlite3.Connection, pool: Pool) -> None:
    """Names volumes as `bundle.data.find_volumes` does."""
    series = [volume for volume in volumes if volume["format"] == "DICOM"]
    places = order_series(connection, series, root, pool)
    series.sort(key=lambda volume: (places.get((volume["folder"], volume["series"]), 0), volume["id"]))
    for volume in volumes:
        volume["name"] = printable(os.fsdecode(volume["first"]))
    found = [Series(Path(root, os.fsdecode(v["folder"])), (str(v["id"]),), "", "") for v in series]
    names = {one.files[0]: name for name, one in numbered(found, root)}
    for volume in series:
        volume["name"] = printable(names[str(volume["id"])])


def _problem(volume: dict[str, Any]) -> tuple[str, str]:
    if volume["fault"]:
        return volume["fault"], volume["fault_remedy"]
    if volume["format"] != "DICOM" and (kind := label_map_by_path(volume["name"])):
        return f"{kind[0]}: no scan", f"if it is a scan, add --include \"['{kind[1]}']\""
    if volume["channels"] > 1:
        shape = " x ".join(str(volume[name]) for name in ("columns", "rows", "slices", "channels"))
        return f"is a 4D series ({shape})", "split it into 3D volumes"
    return "", ""


def _mark_duplicates(
    connection: sqlite3.Connection, volumes: Sequence[dict[str, Any]], root: Path, pool: Pool
) -> list[tuple[str, int]]:
    """Marks all but the first of equal volumes; gives the digests that were made for it, by the volumes' numbers."""
    alike: dict[tuple[object, ...], list[dict[str, Any]]] = defaultdict(list)
    for volume in volumes:
        if not volume["problem"] and volume["content"]:
            alike[tuple(volume[name] for name in _SAME)].append(volume)
    unsure = {v["id"]: v for group in alike.values() if len(group) > 1 for v in group if not v["whole"]}
    tasks = ((number, volume_paths(connection, root, number)) for number in unsure)
    made = list(pool.run(_whole, tasks, split=lambda task: [task], dead=lambda task: (task[0], "")))
    for number, digest in made:
        unsure[number]["whole"] = digest
    for group in alike.values():
        first: dict[str, str] = {}
        for volume in group if len(group) > 1 else ():
            name = first.setdefault(volume["whole"] or f"unknown {volume['id']}", volume["name"])
            if name != volume["name"]:
                volume["problem"], volume["remedy"] = f"holds the same voxels as {name}", "remove one of the two"
                volume["duplicate_of"] = name
    return [(digest, number) for number, digest in made]


def _whole(task: tuple[int, list[str]]) -> tuple[int, str]:
    return task[0], whole_content(task[1])
