# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""One process at a time writes into a run's folder."""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import logging
import os
import socket
from pathlib import Path

from bundle.errors import UserError

__all__ = ["LOCK", "lock_folder", "release_folders"]

logger = logging.getLogger(__name__)

#: the file in a folder that tells who writes there
LOCK = ".lock"
#: by folder: the open lock file, the process that opened it, and whether it made the folder
_held: dict[Path, tuple[int, int, bool]] = {}


def lock_folder(folder: Path, *, made: bool = False) -> None:
    """Takes the folder for this process, until it ends or `release_folders`; makes the folder if it is missing.

    The lock is one of the system (`fcntl.lockf` on the file `.lock`), which a process loses however it ends. So what a
    killed one leaves is no lock, and its loading workers hold none. The file says who holds it. A process may take a
    folder again that it holds. Where the file system knows no locks, a warning says so.

    Args:
        folder: of the run.
        made: whether this process has made the folder, and may remove it if nothing was written there.

    Raises:
        UserError: if another process holds it, or it cannot be a folder.
    """
    key = folder.resolve()
    if key in _held:
        return
    made = made or not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
        raise UserError(f"--output_dir {folder} is a file, lies below one, or cannot be made there: give a folder"
                        ) from error  # fmt: skip
    handle = _open_lock(folder)
    if handle is not None:
        _held[key] = (handle, os.getpid(), made)


def _open_lock(folder: Path) -> int | None:
    """The locked file; None where the file system knows no locks."""
    file = folder / LOCK
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        error.filename = os.fspath(folder)
        raise
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
        os.close(handle)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"{folder} is being written by another process ({holder or 'which has just started'}): wait until it "
                "ends, stop it, or give another --output_dir"
            ) from None
        logger.warning("%s cannot be locked (%s): start one process at a time there", folder, error.strerror)
        return None
    if not file.exists() or os.fstat(handle).st_ino != file.stat().st_ino:
        os.close(handle)  # its holder has just released and removed it
        return _open_lock(folder)
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle


def release_folders() -> None:
    """Gives the folders free that this process holds, and removes those that it made and wrote nothing into."""
    for folder, (handle, process, made) in list(_held.items()):
        if process != os.getpid():
            continue  # a forked process holds nothing
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()  # before the lock goes, so that it is nobody else's
            if made and not any(folder.iterdir()):
                folder.rmdir()
        os.close(handle)
        del _held[folder]


atexit.register(release_folders)
