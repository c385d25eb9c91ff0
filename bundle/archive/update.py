# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Makes the index of an archive, or brings it up to date."""

from __future__ import annotations

import logging
import os
import secrets
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bundle.archive.group import group_files
from bundle.archive.look import look_at_files
from bundle.archive.pool import Pool
from bundle.archive.records import Salt
from bundle.archive.verdicts import give_verdicts
from bundle.data.index.database import create_or_open, get, put
from bundle.errors import UserError

__all__ = ["Update", "update_index"]

logger = logging.getLogger(__name__)

_SHORTEST_SALT = 8


@dataclass(frozen=True)
class Update:
    """What `update_index` has done.

    Attributes:
        files: that the archive has.
        opened: files that are new or have changed.
        removed: files that are gone.
        kinds: of the opened ones, how many of each kind.
        series: that were grouped anew.
    """

    files: int
    opened: int
    removed: int
    kinds: Counter[str]
    series: int

    @property
    def changed(self) -> bool:
        """Whether the archive was another one the last time."""
        return bool(self.opened or self.removed or self.series)


def update_index(
    file: str | os.PathLike[str],
    dataset_dir: str | os.PathLike[str],
    *,
    processes: int = 2,
    salt_file: str | os.PathLike[str] | None = None,
    hash_names: bool = False,
) -> Update:
    """Makes the index of an archive, or brings it up to date.

    Only files that are new, or whose size or time of change is another one, are opened. A kill loses at most the last
    seconds; the next run goes on. One process at a time may do this with an index; others may read it meanwhile,
    without the volumes that have no verdict yet.

    Args:
        file: of the index, made if it is missing.
        dataset_dir: folder of the archive.
        processes: that open files; 0: none beside this one.
        salt_file: a file with a secret, by which patients and images are digested; the index then does not hold it.
            None: the index holds a random one.
        hash_names: whether the log has digests of paths instead of names. The index itself holds the paths.

    Raises:
        UserError: if there is no such folder, the index is of another folder, or was made with another secret.

    Example:
        >>> import tempfile, nibabel, numpy
        >>> from bundle.archive import update_index
        >>> folder = tempfile.TemporaryDirectory()
        >>> voxels = numpy.arange(4 * 5 * 6, dtype=numpy.int16).reshape(4, 5, 6)
        >>> nibabel.save(nibabel.Nifti1Image(voxels, numpy.eye(4)), f"{folder.name}/scan.nii")
        >>> update_index(f"{folder.name}/.index.sqlite", folder.name, processes=0).opened
        1
    """
    file, root = Path(file), Path(os.path.abspath(dataset_dir))  # noqa: PTH100 - links in the path stay as they are
    if not root.is_dir():
        raise UserError(f"--dataset_dir {dataset_dir} is no folder: give the folder of an archive")
    import pydicom.filereader  # noqa: F401, PLC0415 - once here, so that the processes share it

    salt = _prepare(file, root, salt_file)
    pool = Pool(processes)
    try:
        with closing(create_or_open(file)) as connection:
            looked = look_at_files(connection, root, pool, salt, hash_names=hash_names)
            series = group_files(connection, root, pool)
            give_verdicts(connection, root, pool)
            if looked.opened or looked.removed:
                unused = "DELETE FROM headers WHERE id NOT IN (SELECT header FROM files WHERE header NOT NULL)"
                connection.execute(unused)
    finally:
        pool.close()
    if count := looked.kinds["locked"] + len(looked.locked):
        logger.warning("left out %d file(s), folder(s) or link(s) that cannot be opened: correct them", count)
    if count := looked.kinds["damaged"]:
        logger.warning("left out %d DICOM file(s) that are empty or cut off: copy them again", count)
    return Update(looked.seen, looked.opened, looked.removed, looked.kinds, series)


def _prepare(file: Path, root: Path, salt_file: str | os.PathLike[str] | None) -> Salt:
    """Makes the index if it is missing, compares the folder and the secret, and gives the salt."""
    given = None if salt_file is None else _read_salt(Path(salt_file))
    with closing(create_or_open(file)) as connection:
        where = os.fsencode(root).hex()
        if not get(connection, "root"):
            key = given or secrets.token_bytes(32)
            connection.execute("BEGIN IMMEDIATE")
            put(connection, "root", where)
            put(connection, "salt", "" if given else key.hex())
            put(connection, "salt_check", Salt(key).text("check"))
            connection.execute("COMMIT")
        if get(connection, "root") != where:
            before = os.fsdecode(bytes.fromhex(get(connection, "root")))
            raise UserError(
                f"{file} is the index of {before}, not of {root}: give another --output_dir, or that folder"
            )
        key = given or bytes.fromhex(get(connection, "salt"))
        if not key or Salt(key).text("check") != get(connection, "salt_check"):
            raise UserError(f"{file} was made with another secret: give that --salt_file, or another --output_dir")
    return Salt(key)


def _read_salt(file: Path) -> bytes:
    try:
        key = file.read_bytes().strip()
    except OSError as error:
        raise UserError(f"--salt_file {file} cannot be read ({error.strerror}): give a file with a secret") from error
    if not _SHORTEST_SALT <= len(key) <= 64:
        raise UserError(
            f"--salt_file {file} holds {len(key)} bytes: give a secret of {_SHORTEST_SALT} to 64, such as one of "
            '"openssl rand -hex 32"'
        )
    return key
