# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Prepares every volume once, keeps the result on disk, and splits the volumes into training and validation."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from monai.data.utils import pickle_hashing
from monai.transforms import Compose
from tqdm import tqdm

from bundle.data.find import FoundVolume
from bundle.data.fingerprints import fingerprint
from bundle.data.names import name_digest, without_paths
from bundle.data.printable import printable
from bundle.data.scans import find_scans
from bundle.data.split import check_fold, split_volumes
from bundle.data.store import Crop, Header, Store, open_store
from bundle.errors import UserError, VolumeError, user_error_in

__all__ = ["PreparedVolume", "SkippedVolume", "VolumeSet", "listed_by_one", "skipped_because"]

logger = logging.getLogger(__name__)

#: to be raised when the transforms' code changes what they compute: their settings are in the key, their code is not
_CACHE_VERSION = 2
#: what is kept with a volume's tensors, for the run and not for the network
_NOT_LOADED = ("notes", "content")


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
        columns: what else is known of it, by name, to balance the draws by: "folder" is the first one in its path; all
            columns of an index.
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
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def load(self, crop: Crop | None = None, keys: Collection[str] | None = None) -> dict[str, Any]:
        """The tensors: `image` float32, `foreground` and `valid` uint8, ``[C, D, H, W]``, `spacing` ``[3]`` in mm, ...

        Args:
            crop: the part to read, a slice of voxels for each axis; None reads the whole volume.
            keys: names of the tensors to read, where they are there; None reads all.
        """
        return {name: value for name, value in self.store.read(self.key, crop, keys).items() if name not in _NOT_LOADED}


class SkippedVolume(NamedTuple):
    """A volume that the run does without, and why."""

    name: str
    problem: str
    remedy: str


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
        workers: volumes prepared at a time.
        find: what finds the volumes; their annotations are handed to `transform` under their own names.
        hash_names: from here on a volume's name is `name_digest` of it; `transform` still gets the name itself.
        store: where prepared volumes are kept: a name in `bundle.data.store.STORES`, or a `Store`.
        folds: number of folds of a cross-validation; `val_fraction`, and the lists of a data list, are then not used.
        fold: which of them to validate, from 0.

    Attributes:
        training: volumes to train on.
        validation: volumes to validate on.
        skipped: volumes that cannot be used.

    Raises:
        UserError: if there is nothing to train on, or nothing to validate on, or fewer patients than folds.

    Example:
        Two small volumes are prepared, and one of them is held out for validation.

        >>> import tempfile, nibabel, numpy
        >>> from monai.transforms import Compose
        >>> from bundle.data import Foregroundd, Modalityd, NormalizeByModalityd, PadToCropd, ReadVolumed
        >>> from bundle.data import ToPlainTensorsd, VolumeSet
        >>> folder = tempfile.TemporaryDirectory()
        >>> for name in ("one", "two"):
        ...     voxels = numpy.zeros((24, 24, 24), dtype=numpy.float32)
        ...     voxels[4:20, 4:20, 4:20] = numpy.random.default_rng(0).normal(500, 50, (16, 16, 16))
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
        find: Callable[[str | os.PathLike[str]], list[FoundVolume]] = find_scans,
        hash_names: bool = False,
        store: str | Store = "plain",
        folds: int | None = None,
        fold: int = 0,
    ) -> None:
        check_fold(folds, fold)
        if not 0 <= val_fraction < 1:
            raise UserError(f"--val_fraction {val_fraction} does not fit: give a share from 0 to below 1, such as 0.2")
        self.folds, self.fold = folds, fold
        self.transform, self.store = transform, open_store(store, Path(cache_dir))
        listed = listed_by_one(lambda: find(dataset_dir))
        found = [volume for volume in listed if volume.part != "test"]  # neither trained nor validated on
        results = self._prepare(found, workers)
        if hash_names:
            results = [_hashed(result, found) for result in results]
        self.skipped = [result for result in results if isinstance(result, SkippedVolume)]
        for skipped in self.skipped:
            logger.warning("skipped %s: %s; %s", skipped.name, skipped.problem, skipped.remedy)
        usable = [result for result in results if isinstance(result, PreparedVolume)]
        for volume in usable:
            if volume.notes:
                logger.warning("%s: %s", volume.name, volume.notes)
        if padded := [volume.name for volume in usable if volume.padded]:
            logger.info("smaller than the crop, so padded: %s", ", ".join(padded))
        if not usable:
            raise UserError(
                f"none of the {len(found)} volumes in --dataset_dir {dataset_dir} can be used; the first: "
                f"{self.skipped[0].name} {self.skipped[0].problem}; {self.skipped[0].remedy}"
            )
        self.training, self.validation = split_volumes(
            usable, val_fraction=val_fraction, seed=seed, folds=folds, fold=fold
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
    def fingerprints(self) -> dict[str, list[str]]:
        """By part, what tells an evaluation that a scan was trained on, or chose the epoch: see `fingerprint`."""
        parts = {"training": self.training, "validation": self.validation}
        return {part: sorted({v.fingerprint for v in vs if v.fingerprint}) for part, vs in parts.items()}

    def _prepare(self, found: Sequence[FoundVolume], workers: int) -> list[PreparedVolume | SkippedVolume]:
        rank, world = (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)
        share = found[rank::world]
        with ThreadPoolExecutor(max(1, workers)) as pool:
            bar = tqdm(pool.map(self._prepare_one, share), total=len(share), desc="preparing volumes", disable=rank > 0)
            results = list(bar)
        if world > 1:
            shared: list[Any] = [None] * world
            dist.all_gather_object(shared, results)
            results = [result for part in shared for result in part]
        return sorted(results, key=lambda result: result.name)

    def _prepare_one(self, found: FoundVolume) -> PreparedVolume | SkippedVolume:
        try:
            item = found.to_item()
            key = self._key(item)
            header = self.store.describe(key)
            if header is None:
                tensors = self.transform(item)
                tensors["content"] = torch.tensor(list(_content(item).encode()), dtype=torch.uint8)
                header = Header.from_tensors(tensors)
                self._keep(key, tensors, found.name)
            content = header.content or _content(item)  # a store of the user's may not keep it
        except Exception as error:  # noqa: BLE001  one broken volume must not end the run
            return skipped_because(found.name, error)
        return PreparedVolume(
            name=found.name,
            store=self.store,
            key=key,
            modality=header.modality,
            size=header.size,
            padded=header.padded,
            group=found.group or found.name,
            part=found.part,
            notes=header.notes,
            fingerprint=fingerprint(found.files),
            content=content,
            columns={**found.columns, "folder": _first_folder(found.name)},
        )

    def _keep(self, key: str, tensors: dict[str, Any], name: str) -> None:
        try:
            self.store.write(key, tensors)
        except (OSError, RuntimeError) as error:  # torch's writer raises the second where the disk is full
            reason = str(error).splitlines()[0]
            raise VolumeError(
                name, f"is prepared but cannot be kept ({reason})", "make room in --cache_dir, or give another one"
            ) from error

    def _key(self, item: dict[str, Any]) -> str:
        annotations = _annotations(item)
        files = [Path(file).absolute() for file in _files(item)]
        stamp = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        # the steps of a Compose, not itself: it holds a random state, another one in each process
        steps = self.transform.flatten().transforms if isinstance(self.transform, Compose) else self.transform
        more_settings = [annotations] if annotations else []
        return pickle_hashing([_CACHE_VERSION, stamp, item["modality"], steps, *more_settings]).decode()


def listed_by_one(find: Callable[[], list[FoundVolume]]) -> list[FoundVolume]:
    """What the first process finds: another one might see other files, and shares would overlap or leave gaps."""
    if not _distributed():
        return find()
    shared: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            shared = [find()]
        except UserError as error:
            shared = [error]
    dist.broadcast_object_list(shared, src=0)
    if isinstance(shared[0], UserError):
        raise shared[0]
    listed: list[FoundVolume] = shared[0]
    return listed


def _first_folder(name: str) -> str:
    return Path(name).parts[0] if len(Path(name).parts) > 1 else "."


def _annotations(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("image", "name", "modality")}


def _files(item: Mapping[str, Any]) -> list[str]:
    """All files of a volume: its image, those that its annotations name, its further channels."""
    named = [file for key, value in _annotations(item).items() for file in _annotated(item["name"], key, value)]
    return [*item["image"], *named, *(file for files in item.get("channels", ()) for file in files)]


def _content(item: Mapping[str, Any]) -> str:
    """A digest of the bytes of all files, and of the annotations that are none."""
    digest = hashlib.blake2b(digest_size=8)
    for file in _files(item):
        with Path(file).open("rb") as stream:
            while part := stream.read(2**20):
                digest.update(part)
    for key, value in sorted(_annotations(item).items()):
        if key not in ("channels", "from_folder") and not _annotated(item["name"], key, value):
            digest.update(repr((key, value)).encode())
    return digest.hexdigest()


def _annotated(name: str, key: str, value: object) -> list[str]:
    """The files of an annotation: one, or one of each class.

    Raises:
        VolumeError: for one that is not there, which is not the volume's own fault.
    """
    values = list(value.values()) if isinstance(value, Mapping) else [value]
    files = [str(file) for file in values if isinstance(file, str)]
    for file in files:
        if not Path(file).exists():
            raise VolumeError(
                name, f"lacks its {key}: {file} does not exist", "correct the data list or put the file there"
            )
    return files


def _hashed(result: PreparedVolume | SkippedVolume, found: Sequence[FoundVolume]) -> PreparedVolume | SkippedVolume:
    name = name_digest(result.name)
    if isinstance(result, PreparedVolume):
        return replace(result, name=name)
    volume = next(volume for volume in found if volume.name == result.name)
    return SkippedVolume(name, *(without_paths(text, volume, name) for text in (result.problem, result.remedy)))


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


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
