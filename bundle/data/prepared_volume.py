# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A volume that is ready to be loaded, and one that cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bundle.data.printable import printable
from bundle.errors import UserError, VolumeError, user_error_in
from bundle.stores.store import Crop, DamagedVolumeError, Store

__all__ = ["ChangedFilesError", "PreparedVolume", "SkippedVolume", "skipped_because"]

logger = logging.getLogger(__name__)

#: what is kept with a volume's tensors, for the run and not for the network
_NOT_LOADED = ("notes", "content", "other_values")


@dataclass(frozen=True)
class PreparedVolume:
    """A volume whose tensors are in a store.

    Attributes:
        name: its path below the dataset's folder.
        store: where its tensors are.
        key: under which they are there.
        modality: "CT" or "MR".
        size: voxels per axis, padding included.
        padded: whether the volume was smaller than the crop.
        group: volumes of one group stay on one side of the split.
        part: "training" or "validation" where a data list tells, else "".
        notes: what the reader left out or resampled, or "".
        fingerprint: by which its file is recognised, or "".
        content: a digest of the bytes of its files, and of its labels; it does not change where the files move.
        ending: what its file's name ends in, such as ".nii.gz"; "" for DICOM.
        columns: what else is known of it, by name, to balance the draws by: "folder" is the first one in its path; all
            columns of an index.
        again: prepares the volume again, for a store that finds it damaged; None where that cannot be done.
    """

    name: str
    store: Store
    key: str
    modality: str
    size: tuple[int, ...]
    padded: bool = False
    group: str = ""
    part: str = ""
    notes: str = ""
    fingerprint: str = ""
    content: str = ""
    ending: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    again: Callable[[], None] | None = field(default=None, compare=False, repr=False)

    def load(self, crop: Crop | None = None, keys: Collection[str] | None = None) -> dict[str, Any]:
        """The tensors: `image` float32, `foreground` and `valid` uint8, ``[C, D, H, W]``, `spacing` ``[3]`` in mm, ...

        A volume that is damaged on the disk is prepared again first.

        Args:
            crop: the part to read, a slice of voxels for each axis; None reads the whole volume.
            keys: names of the tensors to read, where they are there; None reads all that a network may need.

        Raises:
            UserError: if it is damaged and cannot be prepared again.
            VolumeError: if a file that the store reads itself, such as a preprocessed case, is gone.
        """
        with self._named():
            try:
                tensors = self.store.read(self.key, crop, keys)
            except DamagedVolumeError as error:
                self.prepare_again(error)
                tensors = self.store.read(self.key, crop, keys)
        asked = set(keys or ())
        return {name: value for name, value in tensors.items() if name not in _NOT_LOADED or name in asked}

    def look(self, keys: Collection[str]) -> Mapping[str, Any]:
        """Tensors to look at some places of, ``tensor[:, place, place, place]``: only these places may be read.

        A place may raise a `DamagedVolumeError`.
        """
        with self._named():
            return self.store.look(self.key, keys)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What a store says is wrong with the volume gets the volume's name: a store does not know it."""
        try:
            yield
        except VolumeError as error:
            raise VolumeError(self.name, error.problem, error.remedy) from error

    def prepare_again(self, damage: DamagedVolumeError) -> None:
        """Prepares the volume again.

        Raises:
            UserError: if that cannot be done.
        """
        logger.warning("%s: preparing it again", damage)
        remedy = "start again, which prepares it or says what is wrong with its files"
        if self.again is None:
            raise UserError(f"{damage}: {remedy}") from damage
        try:
            self.again()
        except ChangedFilesError as error:
            raise UserError(
                f"{damage}, and the files of the volume have changed since the run began: put them back and resume, or "
                "start another run"
            ) from error
        except Exception as error:
            reason = type(error).__name__  # its text might name a patient
            raise UserError(f"{damage}, and cannot be prepared again ({reason}): {remedy}") from error


class ChangedFilesError(Exception):
    """The files of a volume hold something else than when the run began."""


class SkippedVolume(NamedTuple):
    """A volume that the run does without, and why."""

    name: str
    problem: str
    remedy: str


def skipped_because(name: str, error: Exception) -> SkippedVolume:
    """What to tell the user of a volume whose reading or preparation has raised `error`."""
    return SkippedVolume(*map(printable, _skipped(name, error)))


def _skipped(name: str, error: Exception) -> tuple[str, str, str]:
    known = user_error_in(error)
    if isinstance(known, VolumeError):
        return name, known.problem, known.remedy
    if isinstance(error, FileNotFoundError):
        file = Path(error.filename or name).name
        lacks = "does not exist" if file == Path(name).name else f"lacks {file}, which does not exist"
        return name, lacks, "correct the data list or put the file there"
    root: BaseException = error  # MONAI wraps what a transform raises
    while root.__cause__ is not None:
        root = root.__cause__
    return name, f"cannot be prepared ({type(root).__name__}: {root})", "inspect it or leave it out"
