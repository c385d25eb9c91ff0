# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The file of an index: its tables, and how it is opened.

The file is one of SQLite with a rollback journal. A write-ahead log would need memory that all processes share, which a
network mount does not give. Each process opens the file for itself.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bundle.errors import UserError

__all__ = [
    "COLUMNS",
    "SUFFIX",
    "create_or_open",
    "get",
    "is_index",
    "judged",
    "open_to_read",
    "put",
    "root_folder",
    "volume_paths",
]

SUFFIX = ".sqlite"
#: of the tables and of what digests are made from; an index of another version is made again
_VERSION = 2
#: seconds to wait for another process that is writing
_PATIENCE = 60.0
#: what is known of each volume, by the name that a condition uses
COLUMNS = {
    "name": "TEXT",
    "site": "TEXT",
    "format": "TEXT",
    "modality": "TEXT",
    "patient": "TEXT",
    "files": "INTEGER",
    "megabytes": "REAL",
    "columns": "INTEGER",
    "rows": "INTEGER",
    "slices": "INTEGER",
    "spacing_x": "REAL",
    "spacing_y": "REAL",
    "spacing_z": "REAL",
    "usable": "INTEGER",
    "problem": "TEXT",
    "remedy": "TEXT",
    "notes": "TEXT",
    "duplicate_of": "TEXT",
}
_TABLES = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE folders (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, look INTEGER NOT NULL);
CREATE TABLE headers (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, text TEXT NOT NULL);
CREATE TABLE files (
    folder INTEGER NOT NULL, name BLOB NOT NULL, size INTEGER NOT NULL, changed INTEGER NOT NULL, kind TEXT NOT NULL,
    series BLOB, header INTEGER, instance BLOB, position BLOB, number INTEGER, PRIMARY KEY (folder, name)
) WITHOUT ROWID;
CREATE INDEX files_by_series ON files (series) WHERE series IS NOT NULL;
CREATE INDEX files_by_kind ON files (kind) WHERE kind NOT IN ('slice', 'volume', 'other');
CREATE TABLE pending (series BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE volumes (
    id INTEGER PRIMARY KEY, series BLOB NOT NULL, folder BLOB NOT NULL, first BLOB NOT NULL,
    channels INTEGER NOT NULL, content TEXT NOT NULL, whole TEXT NOT NULL, fault TEXT NOT NULL,
    fault_remedy TEXT NOT NULL, tag TEXT NOT NULL,
    {", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())}
);
CREATE INDEX volumes_by_series ON volumes (series);
CREATE TABLE volume_files (
    volume INTEGER NOT NULL, place INTEGER NOT NULL, folder INTEGER NOT NULL, name BLOB NOT NULL,
    PRIMARY KEY (volume, place)
) WITHOUT ROWID;
"""


def is_index(path: str | os.PathLike[str]) -> bool:
    """Whether a path names the file of an index."""
    return Path(path).suffix == SUFFIX and Path(path).is_file()


def create_or_open(file: Path) -> sqlite3.Connection:
    """The index to write to; it is made, readable by its owner alone, where there is none.

    Raises:
        UserError: if the file is no index, or cannot be written.
    """
    is_new = not file.exists()
    if is_new:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
    with _explained(file):
        connection = sqlite3.connect(file, timeout=_PATIENCE, isolation_level=None)
        if is_new or not _tables(connection):
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT;")
        _check(connection, file)
    return connection


@contextmanager
def open_to_read(file: Path) -> Iterator[sqlite3.Connection]:
    """An index that was complete once, for reading; all that is read is of one moment.

    An update may be under way, or may have been killed: `judged` tells which volumes are to be read.

    Raises:
        UserError: if the file is no index, is damaged, or was never completed.
    """
    with _explained(file), closing(_connect(file)) as connection:
        _check(connection, file)
        if get(connection, "complete") != "1":
            raise UserError(
                f"{file} is not complete: run configs/index.yaml with the same --dataset_dir again, it goes on"
            )
        connection.execute("PRAGMA query_only = ON")
        connection.execute("BEGIN")
        yield connection


def get(connection: sqlite3.Connection, key: str) -> str:
    """A fact about the index, or ""."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return "" if row is None else str(row[0])


def put(connection: sqlite3.Connection, key: str, value: str) -> None:
    """Sets a fact about the index."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def judged(connection: sqlite3.Connection) -> tuple[set[int], int]:
    """The numbers of the volumes whose verdict holds, and how many series or volumes wait for one.

    An update that runs, or that was killed, leaves volumes without a name, and series that are to be grouped anew.
    """
    held = connection.execute("SELECT id FROM volumes WHERE name != '' AND series NOT IN (SELECT series FROM pending)")
    waiting = "SELECT count(*) FROM (SELECT series FROM pending UNION SELECT series FROM volumes WHERE name = '')"
    return {number for (number,) in held}, int(connection.execute(waiting).fetchone()[0])


def root_folder(connection: sqlite3.Connection) -> Path:
    """The folder of the archive."""
    return Path(os.fsdecode(bytes.fromhex(get(connection, "root"))))


def indexed_folder(file: Path) -> Path:
    """The folder of the archive that a complete index is of.

    Raises:
        UserError: as `open_to_read`.
    """
    with open_to_read(file) as connection:
        return root_folder(connection)


def volume_paths(connection: sqlite3.Connection, root: Path, volume: int) -> list[str]:
    """The files of a volume, in their order."""
    rows = connection.execute(
        "SELECT folders.path, v.name FROM volume_files v JOIN folders ON folders.id = v.folder "
        "WHERE v.volume = ? ORDER BY v.place",
        (volume,),
    )
    return [str(Path(root, os.fsdecode(folder), os.fsdecode(name))) for folder, name in rows]


def _connect(file: Path) -> sqlite3.Connection:
    """To a file that may have to be repaired after a kill, which needs the right to write; else to read only."""
    for mode in ("rw", "ro"):
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True, timeout=_PATIENCE)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            if mode == "ro":
                raise
        else:
            break
    return connection


def _tables(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def _check(connection: sqlite3.Connection, file: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != _VERSION or not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'volumes'").fetchone():
        raise UserError(f"{file} is no index, or one of another version: remove it, or give another --output_dir")


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{file} cannot be used as an index ({error}): make it again with configs/index.yaml, after removing it if "
            "it is damaged"
        ) from error
