# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Files that appear whole or not at all: a kill in the middle of a write leaves the old file as it was."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["free_path", "remove_leftovers", "replace_file", "writing_into"]

#: ".<name>.<process>-<machine><random>.tmp<extension>", as `_temporary` makes it
_LEFTOVER = re.compile(r"\..+\.(\d{1,7})-([0-9a-f]{8})[0-9a-f]{8}\.tmp(\.\w+)?")
#: seconds without a change after which a temporary file of another machine counts as left over
_ABANDONED = 600
_swept: set[Path] = set()


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path in the folder of `path`, and moves it to `path` when the block ends without an error.

    The folder is made if it is missing. The data is on the disk (fsync) before the name points at it. The file gets the
    permissions that the user's umask leaves. The first file in a folder also removes what killed processes left there.

    Raises:
        OSError: if the folder cannot be written, or its disk is full; it names the folder.

    Example:
        >>> with replace_file("run/summary.md") as temporary:
        ...     _ = temporary.write_text("done")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if (folder := path.parent.absolute()) not in _swept:
        _swept.add(folder)
        remove_leftovers(folder)
    temporary = _temporary(path)
    try:
        with writing_into(path.parent):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Lets the error of a write name the folder: where a disk is full, or its folder gone, the system names no file.

    The writers of torch and NumPy raise errors of their own from it, which are passed on as they are.
    """
    try:
        yield
    except Exception as error:
        if not folder.is_dir():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), os.fspath(folder)) from error
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno is not None and cause.filename is None:
                cause.filename = os.fspath(folder)
            cause = cause.__cause__ or cause.__context__
        raise


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Removes the temporary files of `replace_file` whose process has ended.

    Of a process on another machine, or in another container, it cannot be told whether it lives: its file goes when it
    was not changed for ten minutes.

    Returns:
        What was removed.
    """
    removed = []
    with contextlib.suppress(OSError):  # cleaning is no reason to end a run
        for file in Path(folder).iterdir():
            if (match := _LEFTOVER.fullmatch(file.name)) and _is_left_over(file, int(match[1]), match[2]):
                file.unlink(missing_ok=True)
                removed.append(file)
    return removed


def _is_left_over(file: Path, process: int, machine: str) -> bool:
    if machine != _machine():
        return time.time() - file.stat().st_mtime > _ABANDONED
    try:
        os.kill(process, 0)  # sends nothing, only looks
    except ProcessLookupError:
        return True
    except OSError:
        return False  # somebody else's process, which lives
    return False


def _temporary(path: Path) -> Path:
    """Makes an empty file in the folder of `path`. The kernel applies the umask, as to every new file."""
    name = f".{path.name[:160]}.{os.getpid()}-{_machine()}{secrets.token_hex(4)}.tmp{path.suffix}"
    temporary = path.with_name(name)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        error.filename = os.fspath(path.parent)  # the temporary name would tell nobody anything
        raise
    return temporary


def _machine() -> str:
    """Eight digits that tell in which space of process numbers this process lives: machine and container."""
    try:
        space = os.fspath(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return f"{zlib.crc32(f'{socket.gethostname()} {space}'.encode()):08x}"


def free_path(path: str | os.PathLike[str]) -> Path:
    """`path` itself if nothing is there, else the first free one of `name_2.ext`, `name_3.ext`, ..."""
    path = Path(path)
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.stem}_{number}{path.suffix}"), number + 1
    return candidate
