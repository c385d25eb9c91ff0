# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The order of the series that share a folder, by which they are numbered: that of their UIDs, which no index keeps."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.archive.pool import Pool
from bundle.data.dicom.slices import Slice, read_slice

__all__ = ["order_series"]


def order_series(
    connection: sqlite3.Connection, volumes: Sequence[Mapping[str, Any]], root: Path, pool: Pool
) -> dict[tuple[bytes, bytes], int]:
    """The place of each series among those of its folder, by the folder and the series' digest.

    One file of each series is read, and the order is kept, so that it is read again only where a folder has got or lost
    a series.

    Args:
        connection: to the index.
        volumes: those of DICOM, by the columns of the index.
        root: of the archive.
        pool: of the processes that open files.
    """
    folders: dict[bytes, dict[bytes, bytes]] = defaultdict(dict)
    for volume in volumes:
        folders[volume["folder"]].setdefault(volume["series"], volume["first"])
    shared = {folder: series for folder, series in folders.items() if len(series) > 1}
    known = {folder: [bytes.fromhex(one) for one in json.loads(text)] for folder, text in _rows(connection)}
    stale = {folder: series for folder, series in shared.items() if set(known.get(folder, ())) != series.keys()}
    tasks = [
        (folder, [(digest, str(Path(root, os.fsdecode(file)))) for digest, file in series.items()])
        for folder, series in stale.items()
    ]
    known.update(pool.run(_in_order, tasks, split=lambda task: [task], dead=_by_name))
    rows = [(folder, json.dumps([one.hex() for one in known[folder]])) for folder in stale]
    connection.executemany("INSERT OR REPLACE INTO orders VALUES (?, ?)", rows)
    return {(folder, digest): place for folder in shared for place, digest in enumerate(known[folder])}


def _rows(connection: sqlite3.Connection) -> list[tuple[bytes, str]]:
    # an index that was made before there were orders lacks the table
    connection.execute(
        "CREATE TABLE IF NOT EXISTS orders (folder BLOB PRIMARY KEY, series TEXT NOT NULL) WITHOUT ROWID"
    )
    return connection.execute("SELECT folder, series FROM orders").fetchall()


_Task = tuple[bytes, list[tuple[bytes, str]]]


def _in_order(task: _Task) -> tuple[bytes, list[bytes]]:
    """The digests of the series of a folder, sorted as `bundle.data.dicom.find_dicom` sorts them."""
    folder, series = task
    names = []
    for digest, file in series:
        found = read_slice(Path(file))
        name = found.series if isinstance(found, Slice) else ""
        names.append((name or str(Path(file).parent), file, digest))
    return folder, [digest for *_, digest in sorted(names)]


def _by_name(task: _Task) -> tuple[bytes, list[bytes]]:
    """Where a file ends the process that reads it."""
    folder, series = task
    return folder, [digest for digest, _ in sorted(series, key=lambda one: one[1])]
