# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Groups the files of an index to volumes, anew those of the series that files came to or went from."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from bundle.archive.pool import Pool
from bundle.archive.records import SliceRow
from bundle.archive.series import SeriesTask, Volume, file_volume, series_volumes
from bundle.data.printable import printable

__all__ = ["group_files"]

logger = logging.getLogger(__name__)

_BATCH_SECONDS = 5.0
_ROWS = """
SELECT folders.path, files.name, files.kind, headers.text, files.instance, files.position, files.number
FROM files JOIN folders ON folders.id = files.folder JOIN headers ON headers.id = files.header
WHERE files.series = ? ORDER BY folders.path, files.name
"""
_NEW = """
INSERT INTO volumes (series, folder, first, channels, content, whole, fault, fault_remedy, tag, name, site, format,
    modality, patient, files, megabytes, columns, rows, slices, spacing_x, spacing_y, spacing_z, usable, problem,
    remedy, notes, duplicate_of)
VALUES (?, ?, ?, ?, ?, '', ?, ?, ?, '', '', ?, '', ?, ?, 0, ?, ?, ?, ?, ?, ?, 0, '', '', ?, '')
"""


def group_files(connection: sqlite3.Connection, root: Path, pool: Pool) -> int:
    """Groups the series that are pending, in batches: what is done stays done if the process is killed.

    Returns:
        How many series were pending.
    """
    pending = [series for (series,) in connection.execute("SELECT series FROM pending").fetchall()]
    connection.execute("BEGIN IMMEDIATE")
    since = time.monotonic()
    results = pool.run(_volumes, _tasks(connection, root, pending), split=lambda task: [task], dead=_dead)
    for series, volumes in tqdm(results, desc="grouping series", total=len(pending), disable=not pending):
        _replace(connection, root, series, volumes)
        if time.monotonic() - since > _BATCH_SECONDS:
            connection.execute("COMMIT")
            connection.execute("BEGIN IMMEDIATE")
            since = time.monotonic()
    connection.execute("COMMIT")
    return len(pending)


def _tasks(
    connection: sqlite3.Connection, root: Path, pending: Sequence[bytes]
) -> Iterator[SeriesTask | tuple[bytes, list[Volume]]]:
    """What is to be grouped; the volume of a file needs no work."""
    for series in pending:
        rows = connection.execute(_ROWS, (series,)).fetchall()
        slices, volumes = [], []
        for folder, name, kind, header, instance, position, number in rows:
            file = str(Path(root, os.fsdecode(folder), os.fsdecode(name)))
            if kind == "volume":
                volumes.append(file_volume(series, str(root), file, header))
            else:
                slices.append(SliceRow(file, header, instance, position, number))
        yield SeriesTask(series, str(root), tuple(slices)) if slices else (series, volumes)


def _volumes(task: SeriesTask | tuple[bytes, list[Volume]]) -> tuple[bytes, list[Volume]]:
    return (task.series, series_volumes(task)) if isinstance(task, SeriesTask) else task


def _dead(task: SeriesTask | tuple[bytes, list[Volume]]) -> tuple[bytes, list[Volume]]:
    """Of a series that ends the process which groups it."""
    assert isinstance(task, SeriesTask)
    files = tuple(row.file for row in task.rows)
    folder = os.path.relpath(os.path.commonpath([str(Path(file).parent) for file in files]), task.root)
    volume = Volume(task.series, folder, files, "DICOM")
    volume.fault, volume.remedy = "ends the process that reads it", "copy it again or leave it out"
    return task.series, [volume]


def _replace(connection: sqlite3.Connection, root: Path, series: bytes, volumes: Sequence[Volume]) -> None:
    """Puts the volumes of a series in place of those that it had."""
    connection.execute("DELETE FROM volume_files WHERE volume IN (SELECT id FROM volumes WHERE series = ?)", (series,))
    connection.execute("DELETE FROM volumes WHERE series = ?", (series,))
    for one in volumes:
        relative = [os.path.relpath(file, root) for file in one.files]
        places = [os.path.split(path) for path in relative]
        row = connection.execute(
            _NEW,
            (
                series, os.fsencode(one.folder), os.fsencode(min(relative)), one.channels, one.content,
                printable(one.fault), one.remedy, one.modality, one.format, one.patient, len(one.files),
                *(one.shape or (None,) * 3), *(one.spacing or (None,) * 3), "; ".join(one.notes),
            ),
        )  # fmt: skip
        folders = {folder: _folder(connection, folder) for folder in {folder for folder, _ in places}}
        connection.executemany(
            "INSERT INTO volume_files VALUES (?, ?, ?, ?)",
            [(row.lastrowid, k, folders[folder], os.fsencode(name)) for k, (folder, name) in enumerate(places)],
        )
        connection.execute(
            "UPDATE volumes SET megabytes = (SELECT round(sum(f.size) / 1e6, 3) FROM volume_files v JOIN files f "
            "ON f.folder = v.folder AND f.name = v.name WHERE v.volume = volumes.id) WHERE id = ?",
            (row.lastrowid,),
        )
    connection.execute("DELETE FROM pending WHERE series = ?", (series,))


def _folder(connection: sqlite3.Connection, path: str) -> int:
    found = connection.execute("SELECT id FROM folders WHERE path = ?", (os.fsencode(path or "."),)).fetchone()
    return int(found[0])
