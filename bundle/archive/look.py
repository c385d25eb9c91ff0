# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Looks at the files of an archive: those that are new or have changed are opened, by several processes."""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from bundle.archive.dicom_files import dicom_record
from bundle.archive.pool import Pool
from bundle.archive.records import Record, Salt
from bundle.archive.volume_files import volume_record
from bundle.data.file_parts import holds_a_volume
from bundle.data.files import scan_folders
from bundle.data.index.database import get, put
from bundle.data.names import name_digest
from bundle.data.printable import printable

__all__ = ["Looked", "look_at_files"]

logger = logging.getLogger(__name__)

#: files that a process opens in one go
_CHUNK = 100
#: what is read is kept after so many files or seconds, whichever comes first
_BATCH_FILES, _BATCH_SECONDS = 5000, 5.0
#: endings of headers whose voxels lie in another file
_HEADERS = (b"hdr", b"mhd", b"nhdr")
#: headers that are known by their digest without asking the index
_KNOWN_HEADERS = 50_000


@dataclass(frozen=True)
class Chunk:
    """Files of a folder that are to be opened: each with its size and its time of change."""

    folder: int
    path: str
    files: tuple[tuple[bytes, int, int], ...]


@dataclass
class Looked:
    """What has happened to the files since the last time.

    Attributes:
        seen: files that are there.
        opened: those of them that were opened.
        removed: files that are not there any more.
        kinds: of the opened ones, how many of each kind.
        locked: folders that cannot be opened, and links that lead nowhere.
    """

    seen: int = 0
    opened: int = 0
    removed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    locked: list[Path] = field(default_factory=list)


def read_chunk(chunk: Chunk, salt: Salt) -> tuple[Chunk, list[Record]]:
    """What a process does with a chunk."""
    return chunk, [_record(Path(chunk.path, os.fsdecode(name)), stamp, salt) for name, *stamp in chunk.files]


def _record(path: Path, stamp: Sequence[int], salt: Salt) -> Record:
    size, changed = stamp
    try:
        return (volume_record if holds_a_volume(path) else dicom_record)(path, (size, changed), salt)
    except OSError:
        return Record(os.fsencode(path.name), -1, changed, "locked")


def look_at_files(
    connection: sqlite3.Connection, root: Path, pool: Pool, salt: Salt, *, hash_names: bool = False
) -> Looked:
    """Brings the table of files up to date, in batches: what is done stays done if the process is killed.

    Args:
        connection: to the index.
        root: of the archive.
        pool: of the processes that open files.
        salt: of the index.
        hash_names: as for `update_index`.
    """
    looked, writer = Looked(), _Writer(connection)
    number = int(get(connection, "look") or 0) + 1
    with tqdm(desc="looking at files", unit=" files") as bar:
        chunks = _chunks(connection, root, number, looked, writer, bar)
        dead = partial(_dead, root=root if hash_names else None)
        for chunk, records in pool.run(partial(read_chunk, salt=salt), chunks, split=_split, dead=dead):
            writer.keep(chunk.folder, records)
            looked.opened += len(records)
            looked.kinds.update(record.kind for record in records)
    writer.forget_folders(number, looked)
    put(connection, "look", str(number))
    put(connection, "locked", json.dumps([os.fsencode(os.path.relpath(path, root)).hex() for path in looked.locked]))
    writer.commit()
    return looked


def _chunks(
    connection: sqlite3.Connection, root: Path, number: int, looked: Looked, writer: _Writer, bar: tqdm[None]
) -> Iterator[Chunk]:
    """The files to open, folder by folder; what is gone from a folder is forgotten on the way."""
    for folder, files in scan_folders(root, looked.locked):
        key = writer.folder(os.path.relpath(folder, os.fsencode(root)), number)
        rows = connection.execute("SELECT name, size, changed FROM files WHERE folder = ?", (key,))
        found, known = set(files), set(rows.fetchall())
        changed = {name for name, *_ in found ^ known}
        stems = {name[: dot.start()] for name in changed for dot in re.finditer(rb"\.", name)}
        new = sorted(file for file in found if file[0] in changed or _is_header_of(file[0], stems))
        gone = changed.difference(name for name, *_ in found)
        looked.seen += len(files)
        bar.update(len(files))
        looked.removed += len(gone)
        writer.forget(key, gone)
        for start in range(0, len(new), _CHUNK):
            yield Chunk(key, os.fsdecode(folder), tuple(new[start : start + _CHUNK]))


def _is_header_of(name: bytes, stems: Collection[bytes]) -> bool:
    """Whether a file is the header of voxels that lie beside it, under one of these names."""
    stem, _, ending = name.rpartition(b".")
    return ending.lower() in _HEADERS and stem in stems


def _split(chunk: Chunk) -> list[Chunk]:
    return [replace(chunk, files=(file,)) for file in chunk.files]


def _dead(chunk: Chunk, root: Path | None) -> tuple[Chunk, list[Record]]:
    """Of a file that ends the process which reads it; the log has a digest of its path below the root, if given."""
    (name, size, changed), *_ = chunk.files
    path = Path(chunk.path, os.fsdecode(name))
    called = printable(path.name) if root is None else name_digest(printable(str(path.relative_to(root))))
    logger.warning("%s ends the process that reads it: it is left out", called)
    if not holds_a_volume(path):
        return chunk, [Record(name, size, changed, "damaged")]
    header = {"format": "", "channels": 1, "shape": None, "spacing": None, "notes": [], "content": ""}
    header |= {"fault": "ends the process that reads it", "remedy": "copy it again or leave it out"}
    record = Record(name, size, changed, "volume", series=os.urandom(8), header=json.dumps(header))
    return chunk, [record]


class _Writer:
    """Writes to the tables of folders, headers and files, and commits now and then."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._headers: dict[str, int] = {}
        self._since, self._count = time.monotonic(), 0
        connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self.connection.execute("COMMIT")

    def folder(self, path: bytes, number: int) -> int:
        """The number of a folder, which was seen in this look."""
        statement = (
            "INSERT INTO folders (path, look) VALUES (?, ?) ON CONFLICT (path) DO UPDATE SET look = excluded.look "
            "RETURNING id"
        )
        return int(self.connection.execute(statement, (path, number)).fetchall()[0][0])

    def keep(self, folder: int, records: Sequence[Record]) -> None:
        """Puts records in place of those that the files had; their series are to be grouped again."""
        self._pend(folder, [record.name for record in records])
        rows = []
        for one in records:
            header = None if one.header is None else self._header(one.header)
            stamp = one.name, one.size, one.changed
            rows.append((folder, *stamp, one.kind, one.series, header, one.instance, one.position, one.number))
        self.connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        touched = {(record.series,) for record in records if record.series is not None}
        self.connection.executemany("INSERT OR IGNORE INTO pending VALUES (?)", touched)
        self._count += len(records)
        if self._count >= _BATCH_FILES or time.monotonic() - self._since > _BATCH_SECONDS:
            self.connection.execute("COMMIT")
            self.connection.execute("BEGIN IMMEDIATE")
            self._since, self._count = time.monotonic(), 0

    def forget(self, folder: int, names: Collection[bytes]) -> None:
        """Removes files that are gone; their series are to be grouped again."""
        if names:
            self._pend(folder, names)
            statement = "DELETE FROM files WHERE folder = ? AND name = ?"
            self.connection.executemany(statement, [(folder, name) for name in names])

    def forget_folders(self, number: int, looked: Looked) -> None:
        """Removes the folders that this look has not seen."""
        for (folder,) in self.connection.execute("SELECT id FROM folders WHERE look != ?", (number,)).fetchall():
            rows = self.connection.execute("SELECT name FROM files WHERE folder = ?", (folder,)).fetchall()
            self.forget(folder, [name for (name,) in rows])
            looked.removed += len(rows)
            self.connection.execute("DELETE FROM folders WHERE id = ?", (folder,))

    def _pend(self, folder: int, names: Collection[bytes]) -> None:
        statement = (
            "INSERT OR IGNORE INTO pending SELECT series FROM files WHERE folder = ? AND name = ? AND series NOT NULL"
        )
        self.connection.executemany(statement, [(folder, name) for name in names])

    def _header(self, text: str) -> int:
        if text not in self._headers:
            if len(self._headers) >= _KNOWN_HEADERS:
                self._headers.clear()
            digest = Salt(b"")(text, 16)
            self.connection.execute("INSERT OR IGNORE INTO headers (digest, text) VALUES (?, ?)", (digest, text))
            found = self.connection.execute("SELECT id FROM headers WHERE digest = ?", (digest,)).fetchone()
            self._headers[text] = int(found[0])
        return self._headers[text]
