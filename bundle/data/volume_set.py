# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Prepares every volume once, keeps the result on disk, and splits the volumes into training and validation."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bundle.data.found_volume import FoundVolume
from bundle.data.names import name_digest, pseudonymous_text
from bundle.data.preparation import Preparation, prepare_all
from bundle.data.prepared_volume import PreparedVolume, SkippedVolume
from bundle.data.scans import find_scans
from bundle.data.split import check_fold, join_copies, split_volumes
from bundle.errors import UserError
from bundle.ranks import is_distributed, this_rank, world_size
from bundle.stores.open_store import open_store
from bundle.stores.store import Store

__all__ = ["VolumeSet", "hashed", "listed_by_one", "prepare_together", "prepare_usable"]

logger = logging.getLogger(__name__)

#: volumes that are asked for the size of their voxels, at most
_ASKED = 200


class VolumeSet:
    """The volumes of a dataset, prepared and split.

    Each volume goes through `transform` once; the result is kept in a store under a key made from its files, their
    size and time of change, and all settings of the transforms, so nothing stale is ever used. A volume that fails is
    left out, and listed in `skipped`. Under torchrun the processes share the work.

    Of each modality, `val_fraction` of the volumes, at least one if there are two, are for validation; volumes of one
    patient stay together. With `val_fraction` 0 validation runs on the training volumes. With `folds` each volume is
    validated in one of the folds; they do not depend on the seed. What a data list has for a test is left out.

    Args:
        dataset_dir: as for `find_scans`.
        transform: from `image` (a list of files), `name` and `modality`, and `channels` (lists of files) where a volume
            has several images, to plain tensors.
        cache_dir: folder of a store that is given by name.
        val_fraction: share of volumes for validation, unless a data list names them.
        seed: of the split.
        workers: volumes prepared at a time; in processes, if there is much to prepare.
        memory_gb: that these processes together may take; None sets no bound.
        find: what finds the volumes; their annotations are handed to `transform` under their own names.
        hash_names: from here on a volume's name is `name_digest` of it; `transform` still gets the name itself.
        store: where prepared volumes are kept: "blosc2", which compresses, or "plain", or a
            `Store`.
        folds: number of folds of a cross-validation; `val_fraction`, and the lists of a data list, are then not used.
        fold: which of them to validate, from 0.
        earlier: as for `split_volumes`.

    Attributes:
        training: volumes to train on.
        validation: volumes to validate on.
        skipped: volumes that cannot be used.

    Raises:
        UserError: if there is nothing to train on, or nothing to validate on, or fewer patients than folds; or if the
            store takes no more, as where a disk is full.

    Example:
        Two small volumes are prepared, and one of them is held out for validation.

        >>> import tempfile, nibabel, numpy
        >>> from monai.transforms import Compose
        >>> from bundle.data import Foregroundd, Modalityd, NormalizeByModalityd, PadToCropd, ReadVolumed
        >>> from bundle.data import ToPlainTensorsd, VolumeSet
        >>> folder = tempfile.TemporaryDirectory()
        >>> for seed, name in enumerate(("one", "two")):
        ...     voxels = numpy.zeros((24, 24, 24), dtype=numpy.float32)
        ...     voxels[4:20, 4:20, 4:20] = numpy.random.default_rng(seed).normal(500, 50, (16, 16, 16))
        ...     nibabel.save(nibabel.Nifti1Image(voxels, numpy.eye(4)), f"{folder.name}/{name}.nii")
        >>> steps = [ReadVolumed(), Modalityd(), Foregroundd(), NormalizeByModalityd()]
        >>> prepare = Compose([*steps, PadToCropd(spatial_size=(32, 32, 16)), ToPlainTensorsd()])
        >>> volumes = VolumeSet(dataset_dir=folder.name, transform=prepare, cache_dir=f"{folder.name}/.cache")
        >>> volumes.summary
        {'training': {'CT': 0, 'MR': 1}, 'validation': {'CT': 0, 'MR': 1}}
        >>> volume = volumes.training[0]
        >>> volume.size, volume.padded
        ((32, 32, 24), True)
        >>> sorted(volume.load())
        ['foreground', 'image', 'modality', 'spacing', 'valid']
        >>> volume.load(crop=(slice(0, 8), slice(8, 16), slice(8, 16)))["image"].shape
        torch.Size([1, 8, 8, 8])
    """

    def __init__(
        self,
        *,
        dataset_dir: str | os.PathLike[str],
        transform: Callable[[dict[str, Any]], dict[str, Any]],
        cache_dir: str | os.PathLike[str],
        val_fraction: float = 0.2,
        seed: int = 0,
        workers: int = 1,
        memory_gb: float | None = None,
        find: Callable[[str | os.PathLike[str]], list[FoundVolume]] = find_scans,
        hash_names: bool = False,
        store: str | Store = "blosc2",
        folds: int | None = None,
        fold: int = 0,
        earlier: Callable[[PreparedVolume], str] | None = None,
    ) -> None:
        check_fold(folds, fold)
        if not 0 <= val_fraction < 1:
            raise UserError(f"--val_fraction {val_fraction} does not fit: give a share from 0 to below 1, such as 0.2")
        self.folds, self.fold = folds, fold
        self.preparation = Preparation(transform, open_store(store, Path(cache_dir)))
        listed = listed_by_one(lambda: find(dataset_dir))
        found = [volume for volume in listed if volume.part != "test"]  # neither trained nor validated on
        usable, self.skipped = prepare_usable(
            found,
            self.preparation,
            source=f"--dataset_dir {dataset_dir}",
            workers=workers,
            memory_gb=memory_gb,
            hash_names=hash_names,
        )
        if padded := [volume.name for volume in usable if volume.padded]:
            logger.info("smaller than the crop, so padded: %s", ", ".join(padded))
        self.training, self.validation = split_volumes(
            join_copies(usable), val_fraction=val_fraction, seed=seed, folds=folds, fold=fold, earlier=earlier
        )

    @property
    def held_out(self) -> bool:
        """Whether the volumes for validation are not those to train on, as they are with `val_fraction` 0."""
        return self.validation != self.training

    @property
    def summary(self) -> dict[str, Any]:
        """Number of volumes by part and modality; with folds also how many there are, and which one this is."""
        parts = {"training": self.training, "validation": self.validation}
        counts = {part: {m: sum(v.modality == m for v in vs) for m in ("CT", "MR")} for part, vs in parts.items()}
        return counts if self.folds is None else {**counts, "folds": self.folds, "fold": self.fold}

    @property
    def voxel_mm(self) -> dict[str, list[float]] | None:
        """The smallest and the largest voxel that is trained on: `lowest` and `highest`, mm on each prepared axis.

        Some volumes are asked, evenly over all; None where they do not tell.
        """
        sizes = []
        for volume in self.training[:: math.ceil(len(self.training) / _ASKED) or 1]:
            with contextlib.suppress(UserError, KeyError):  # the training says what is wrong with a volume
                sizes.append(volume.load(keys=["spacing"])["spacing"].tolist())
        if not sizes:
            return None
        return {"lowest": [min(axis) for axis in zip(*sizes)], "highest": [max(axis) for axis in zip(*sizes)]}

    @property
    def fingerprints(self) -> dict[str, list[str]]:
        """By part, what tells an evaluation that a scan was trained on, or chose the epoch: see `fingerprint`."""
        parts = {"training": self.training, "validation": self.validation}
        return {part: sorted({v.fingerprint for v in vs if v.fingerprint}) for part, vs in parts.items()}


def prepare_together(
    found: Sequence[FoundVolume], preparation: Preparation, *, workers: int = 1, memory_gb: float | None = None
) -> list[PreparedVolume | SkippedVolume]:
    """A result for each volume, sorted by name. Under torchrun the processes share the work. All must call it.

    Args:
        found: the same volumes in every process.
        preparation: prepares one.
        workers: volumes that a process prepares at a time.
        memory_gb: that these together may take; None sets no bound.

    Raises:
        UserError: if the store takes no more.
    """
    rank, world = this_rank(), world_size()
    results: list[PreparedVolume | SkippedVolume] | UserError
    try:
        results, _ = prepare_all(found[rank::world], preparation, workers=workers, memory_gb=memory_gb, quiet=rank > 0)
    except UserError as error:  # the other processes must not wait for this one
        results = error
    shared: list[Any] = [results]
    if world > 1:
        shared = [None] * world
        dist.all_gather_object(shared, results)
    for part in shared:
        if isinstance(part, UserError):
            raise part
    results = [result for part in shared for result in part]
    return sorted(results, key=lambda result: result.name)


def prepare_usable(
    found: Sequence[FoundVolume],
    preparation: Preparation,
    *,
    source: str,
    kind: str = "",
    workers: int = 1,
    memory_gb: float | None = None,
    hash_names: bool = False,
) -> tuple[list[PreparedVolume], list[SkippedVolume]]:
    """The volumes that can be used, and those that cannot; the log says which, and what is odd about the others.

    Args:
        found: as for `prepare_together`.
        preparation: as for `prepare_together`.
        source: the option and what it was given, for the error.
        kind: what the log calls a volume, before its name.
        workers: as for `prepare_together`.
        memory_gb: as for `prepare_together`.
        hash_names: as for `VolumeSet`.

    Raises:
        UserError: if none can be used.
    """
    if not found:
        raise UserError(f"{source} lists no volume to train or validate on: name some under training")
    results = prepare_together(found, preparation, workers=workers, memory_gb=memory_gb)
    if hash_names:
        results = [hashed(result, found) for result in results]
    skipped = [result for result in results if isinstance(result, SkippedVolume)]
    usable = [result for result in results if isinstance(result, PreparedVolume)]
    for one in skipped:
        logger.warning("skipped %s%s: %s; %s", kind, one.name, one.problem, one.remedy)
    for volume in usable:
        if volume.notes:
            logger.warning("%s%s: %s", kind, volume.name, volume.notes)
    if not usable:
        first = skipped[0]
        raise UserError(
            f"none of the {len(found)} volumes in {source} can be used; the first: {first.name} {first.problem}; "
            f"{first.remedy}"
        )
    return usable, skipped


def listed_by_one(find: Callable[[], list[FoundVolume]]) -> list[FoundVolume]:
    """What the first process finds: another one might see other files, and shares would overlap or leave gaps."""
    if not is_distributed():
        return find()
    shared: list[Any] = [None]
    if this_rank() == 0:
        try:
            shared = [find()]
        except UserError as error:
            shared = [error]
    dist.broadcast_object_list(shared, src=0)
    if isinstance(shared[0], UserError):
        raise shared[0]
    listed: list[FoundVolume] = shared[0]
    return listed


def hashed(result: PreparedVolume | SkippedVolume, found: Sequence[FoundVolume]) -> PreparedVolume | SkippedVolume:
    """A result under a digest of its volume's name, without the paths of its files.

    Args:
        result: of one volume.
        found: all volumes.
    """
    name = name_digest(result.name)
    if isinstance(result, PreparedVolume):
        return replace(result, name=name)
    volume = next(volume for volume in found if volume.name == result.name)
    return SkippedVolume(name, *(pseudonymous_text(text, volume) for text in (result.problem, result.remedy)))
