# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Whether a resumed run has the volumes that it was trained on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from bundle.data import PreparedVolume
from bundle.errors import UserError
from bundle.runs import RunFolder
from bundle.runs.checkpoint import peek

__all__ = ["SplitVolumes", "check_same_volumes", "earlier_split", "report_changes", "volume_digests"]

logger = logging.getLogger(__name__)

_SHOWN = 20


class SplitVolumes(Protocol):
    """What `VolumeSet` has of one."""

    @property
    def training(self) -> Sequence[PreparedVolume]:
        """Volumes to train on."""

    @property
    def validation(self) -> Sequence[PreparedVolume]:
        """Volumes to validate on."""


def volume_digests(volumes: SplitVolumes) -> dict[str, str]:
    """For each volume of each part its name, and a digest of part, name, modality and size, and one of its content.

    The checkpoint keeps the digests only, so it tells no names. The folder is not part of them: data may move.
    """
    parts = {"training": volumes.training, "validation": volumes.validation}
    return {f"{_digest(part, v)}-{v.content}": v.name for part, held in parts.items() for v in held}


def _digest(part: str, volume: PreparedVolume) -> str:
    told = repr((part, volume.name, volume.modality, list(volume.size)))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def check_same_volumes(checkpoint: Path, saved: Sequence[str], present: dict[str, str]) -> None:
    """Compares the volumes with those that a checkpoint was trained on.

    Args:
        checkpoint: its file, for the message.
        saved: its digests.
        present: from `volume_digests`.

    Raises:
        UserError: if a volume is new, changed, missing or on the other side of the split.
    """
    new, gone = _changes(saved, present)
    if not new and not gone:
        return
    examples = f", such as {new[0]}" if new else ""
    raise UserError(
        f"{checkpoint} was trained on other data ({len(new)} of these {len(present)} volumes are new or changed"
        f"{examples}; {gone} of its {len(saved)} are missing): resume with the same --dataset_dir, give "
        "--volumes_may_change True to go on with these, or leave --resume out to start a new run"
    )


def report_changes(checkpoint: Path, saved: Sequence[str], present: dict[str, str]) -> None:
    """Logs how the volumes differ from those that a checkpoint was trained on: the first new ones by name.

    Args:
        checkpoint: its file, for the message.
        saved: its digests.
        present: from `volume_digests`.
    """
    new, gone = _changes(saved, present)
    for name in new[:_SHOWN]:
        logger.warning("new or changed since %s, or on the other side of the split: %s", checkpoint, name)
    if new or gone:
        total = (
            "of these %d volumes %d are new, changed or on the other side of the split; of the %d before %d are gone"
        )
        logger.warning(total, len(present), len(new), len(saved), gone)


def earlier_split(
    *, run_folder: RunFolder | str, volumes_may_change: bool = False
) -> Callable[[PreparedVolume], str] | None:
    """The part of the split that each volume had when the run's last checkpoint was written.

    So a resume with other volumes validates on none that it was trained on.

    Args:
        run_folder: of the run, which may be resumed, or of one that is evaluated.
        volumes_may_change: False needs no such part: the same volumes have the same split.

    Returns:
        The part of a volume, "" for a new one; None where there is no checkpoint to tell it.
    """
    if not volumes_may_change:
        return None
    folder = run_folder if isinstance(run_folder, RunFolder) else RunFolder(Path(run_folder), resumed=True)
    digests = peek(folder.last_checkpoint, "volumes") if folder.resumed else None
    if not digests:
        return None
    known = {digest.split("-")[0] for digest in digests}

    def part(volume: PreparedVolume) -> str:
        return next((part for part in ("training", "validation") if _digest(part, volume) in known), "")

    return part


def _changes(saved: Sequence[str], present: dict[str, str]) -> tuple[list[str], int]:
    """The names of the volumes that are not among the saved ones, and how many of those are not present."""
    if not any("-" in digest for digest in saved):  # of an older version, without the content
        present = {digest.split("-")[0]: name for digest, name in present.items()}
    known = set(saved)
    return [name for digest, name in present.items() if digest not in known], len(known - present.keys())
