# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The errors a user can act on, and how the command line shows them: as one line, without a traceback."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
from types import FrameType, TracebackType

__all__ = ["PREEMPTED", "Preempted", "Terminated", "UserError", "VolumeError", "install_excepthook", "user_error_in"]

#: exit code of a training that was told to end and has written its checkpoint: EX_TEMPFAIL of sysexits.h, "try again"
PREEMPTED = 75


class UserError(ValueError):
    """Something the user gave is wrong: says what, in which file or option, and what to do, in one line."""


class VolumeError(UserError):
    """One volume cannot be used. A run skips it and lists it in its report.

    Args:
        path: the file or folder of the volume, as the user knows it.
        problem: what is wrong with it.
        remedy: what the user can do about it.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str, remedy: str) -> None:
        self.path, self.problem, self.remedy = os.fspath(path), problem, remedy
        super().__init__(f"{self.path}: {problem}; {remedy}")

    def __reduce__(self) -> tuple[type[VolumeError], tuple[str, str, str]]:
        # the default pickles only the joined message, and then a data-loading worker could not send the error back
        return type(self), (self.path, self.problem, self.remedy)


#: what the machine refuses: by number of the error, what it means and what to do
_REFUSALS = {
    errno.EACCES: "permission is denied: change the permissions, or give another --output_dir or --cache_dir",
    errno.EPERM: "the operation is not permitted: change the permissions, or give another --output_dir or --cache_dir",
    errno.EROFS: "the disk is read-only: give another --output_dir or --cache_dir",
    errno.ENOSPC: "the disk is full: make room, or give another --output_dir or --cache_dir",
    errno.EDQUOT: "the quota is used up: make room, or give another --output_dir or --cache_dir",
    errno.EFBIG: "a file may not be as large as that here: raise the limit (ulimit -f), or give another disk",
    errno.EIO: "the disk reports an error: look at it, or give another --output_dir or --cache_dir",
    errno.ESTALE: "the folder is gone: look for its disk, or give another --output_dir or --cache_dir",
}
#: PyTorch passes on what a loading process raises as one text, with all tracebacks, which may name anything
_PASSED_ON = re.compile(r"Caught \w+ in .+\.\nOriginal Traceback ")
_SAID = re.compile(rf"^{re.escape(__name__)}\.(?:UserError|VolumeError): (.+?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
_HANDLES = "this process may not open more files: raise the limit with ulimit -n 65536, or lower --num_workers"
#: errors of libraries that the user can act on, known by their words
_KNOWN = (
    (
        r"Expected more than 1 value per channel when training",
        (
            "BatchNorm has one value per channel in training: raise --batch_size or --crop_size, or choose another "
            "norm, such as instance"
        ),
    ),
    (
        (
            r"DataLoader worker .* is killed by signal: Bus error|[Uu]nable to (mmap|allocate|write).*shared memory|"
            r"insufficient shared memory"
        ),
        (
            "the loading processes have too little shared memory (/dev/shm): enlarge it (docker run --shm-size 8g), or "
            "give --num_workers 0"
        ),
    ),
    (r"Too many open files|received 0 items of ancdata", _HANDLES),
    (
        r"iostream error|inline_container.*unexpected pos",  # torch's own writer, which does not say more
        (
            "a file cannot be written to its end: make room on the disk, raise the limit (ulimit -f), or give another "
            "--output_dir or --cache_dir"
        ),
    ),
)


def user_error_in(error: BaseException | None) -> UserError | None:
    """The `UserError` behind `error`: MONAI's config parser wraps what a component raises once per level.

    Of one that a loading process has raised, PyTorch's tracebacks are taken off. Where there is none, it is made for
    what a library or the machine has refused and the user can act on: permissions, space, shared memory, the number of
    open files, BatchNorm with a single value.
    """
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        if _PASSED_ON.match(str(error)) and (said := _SAID.findall(str(error))):
            return UserError(said[-1].strip())  # the last one is the one that was raised
        if isinstance(error, UserError):
            return error
        chain.append(error)
        error = error.__cause__ or error.__context__
    return next((known for one in reversed(chain) if (known := _explain(one)) is not None), None)


def _explain(error: BaseException) -> UserError | None:
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return UserError(_HANDLES)
    if isinstance(error, OSError) and error.errno in _REFUSALS and error.filename:
        return UserError(f"{os.fsdecode(error.filename)}: {_REFUSALS[error.errno]}")
    if isinstance(error, (RuntimeError, ValueError, OSError)):
        text = str(error)
        return next((UserError(said) for pattern, said in _KNOWN if re.search(pattern, text, re.DOTALL)), None)
    return None


class Terminated(KeyboardInterrupt):
    """A scheduler, or a user, has sent SIGTERM or SIGUSR1."""


class Preempted(Terminated):
    """The same in a training, which has finished its step and written its checkpoint; the text says so.

    It ends the program with the exit code `PREEMPTED`.
    """


def install_excepthook() -> None:
    """Ends the program with one line on a `UserError`, on Ctrl-C, and on SIGTERM and SIGUSR1.

    Any other error, or BUNDLE_DEBUG=1, keeps its traceback.
    """
    previous = sys.excepthook
    for number in (signal.SIGTERM, signal.SIGUSR1):
        _end_as_an_interrupt(number)

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        user_error = user_error_in(error)
        if isinstance(error, Preempted):
            if str(error):  # of several processes the first one says it
                print(error, file=sys.stderr)
            raise SystemExit(PREEMPTED)
        if os.environ.get("BUNDLE_DEBUG") != "1" and isinstance(error, KeyboardInterrupt):
            what = "terminated" if isinstance(error, Terminated) else "interrupted"
            going_on = "a training goes on from its last complete epoch with --resume, all else with the same command"
            print(f"{what}: {going_on}", file=sys.stderr)
        elif user_error is None or os.environ.get("BUNDLE_DEBUG") == "1":
            previous(kind, error, trace)
        else:
            print(f"error: {user_error}", file=sys.stderr)

    sys.excepthook = show


def _end_as_an_interrupt(number: signal.Signals) -> None:
    """Lets handlers write what is to be written when the process is told to end; not in its child processes."""
    process = os.getpid()

    def end(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a signal's handler
        if os.getpid() == process:
            raise Terminated
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if threading.current_thread() is threading.main_thread() and signal.getsignal(number) is signal.SIG_DFL:
        signal.signal(number, end)
