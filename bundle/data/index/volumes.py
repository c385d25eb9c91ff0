# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The volumes of an index, for a run that starts from it."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from bundle.data.dicom.slices import DAMAGED, UNREADABLE
from bundle.data.found_volume import FoundVolume, other_objects
from bundle.data.index.condition import chosen
from bundle.data.index.database import COLUMNS, get, judged, open_to_read, root_folder
from bundle.errors import UserError

__all__ = ["indexed_volumes"]

logger = logging.getLogger(__name__)

_FILES = """
SELECT v.volume, folders.path, v.name FROM volume_files v JOIN folders ON folders.id = v.folder
ORDER BY v.volume, v.place
"""


def indexed_volumes(file: str | os.PathLike[str], where: str = "", *, others: bool = False) -> list[FoundVolume]:
    """The volumes of an archive as `bundle.data.find_volumes` gives them, from the archive's index.

    No file of the archive is looked at. Each volume has the columns of the index. What the index knows to be unusable,
    and all but the first of equal volumes, is left out with the reason. What an update has still to judge, or had when
    it was killed, is not in the list; the log says how many these are.

    Args:
        file: of the index.
        where: a condition on the columns, such as "modality == 'CT' and slices > 60"; "" takes all.
        others: whether to list DICOM objects that are no images, too; not with a condition.

    Raises:
        UserError: if the index cannot be used, no volume of it is judged, the condition is none, or it fits no volume.
    """
    with open_to_read(Path(file)) as connection:
        root = root_folder(connection)
        wanted, waiting = judged(connection)
        if waiting:
            _tell_waiting(Path(file), len(wanted), waiting)
        if where:
            wanted = chosen(connection, where, wanted)
        files = dict(_files(connection, root, wanted))
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM volumes").fetchall()
        found = [_volume(row, files[row["id"]]) for row in rows if row["id"] in wanted]
        if others and not where:
            found += other_objects(_objects(connection, root), root)
    return found


def _tell_waiting(file: Path, held: int, waiting: int) -> None:
    told = f"{file} is being updated, or its update was stopped: {waiting} series or volume(s) are not judged yet"
    remedy = "wait for it, or run configs/index.yaml with the same --dataset_dir again, it goes on"
    if not held:
        raise UserError(f"{told}, and there are no others; {remedy}")
    logger.warning("%s and are left out; %s", told, remedy)


def _files(connection: sqlite3.Connection, root: Path, wanted: set[int]) -> Iterator[tuple[int, tuple[str, ...]]]:
    folders: dict[bytes, str] = {}
    for volume, rows in groupby(connection.execute(_FILES), key=itemgetter(0)):
        if volume not in wanted:
            continue
        names = []
        for _, folder, name in rows:
            if folder not in folders:
                folders[folder] = str(Path(root, os.fsdecode(folder)))
            names.append(f"{folders[folder]}{os.sep}{os.fsdecode(name)}")
        yield volume, tuple(names)


def _volume(row: Mapping[str, Any], files: tuple[str, ...]) -> FoundVolume:
    left_out = (row["fault"], row["fault_remedy"])
    if row["duplicate_of"]:
        left_out = (row["problem"], row["remedy"])
    return FoundVolume(
        name=row["name"],
        files=files,
        modality=row["modality"],
        group=row["patient"],
        left_out=left_out,
        columns={name: row[name] for name in COLUMNS},
    )


def _objects(connection: sqlite3.Connection, root: Path) -> dict[tuple[Path, str], int]:
    rows = connection.execute(
        "SELECT folders.path AS path, headers.text AS text, count(*) AS files FROM files "
        "JOIN folders ON folders.id = files.folder JOIN headers ON headers.id = files.header "
        "WHERE files.kind = 'object' GROUP BY files.folder, files.header"
    )
    found = {(Path(root, os.fsdecode(row["path"])), row["text"]): row["files"] for row in rows}
    damaged = connection.execute(
        "SELECT folders.path AS path, count(*) AS files FROM files JOIN folders ON folders.id = files.folder "
        "WHERE files.kind = 'damaged' GROUP BY files.folder"
    )
    found |= {(Path(root, os.fsdecode(row["path"])), DAMAGED): row["files"] for row in damaged}
    closed = connection.execute(
        "SELECT folders.path AS path, files.name AS name FROM files JOIN folders ON folders.id = files.folder "
        "WHERE files.kind = 'locked'"
    )
    places = [Path(root, os.fsdecode(row["path"]), os.fsdecode(row["name"])) for row in closed]
    places += [Path(root, os.fsdecode(bytes.fromhex(path))) for path in json.loads(get(connection, "locked") or "[]")]
    return found | {(place, UNREADABLE): 1 for place in places}
