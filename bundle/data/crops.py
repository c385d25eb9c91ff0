# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Random crops that depend on nothing but the seed and the number of the draw."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform, Randomizable
from torch.utils.data import DataLoader, Dataset, Sampler

from bundle.data.draws import InOrder, ShuffledOrder, VolumeOrder, balanced_order
from bundle.data.prepared_volume import PreparedVolume
from bundle.errors import UserError
from bundle.ranks import this_rank, world_size
from bundle.stores.store import Crop, DamagedVolumeError

__all__ = ["CropDataset", "DrawSampler", "PlacedCropd", "RandForegroundCropd", "make_loader"]

# random streams of one seed: masks have stream 1 (bundle/masking/sampler.py), the order of volumes bundle/data/draws.py
_CROP_STREAM = 0


class PlacedCropd(Randomizable, MapTransform):
    """A random crop that draws its place first, from a few tensors, so that of the others only the crop is read.

    A subclass says in `place_keys` which tensors it must see, and draws from them in `draw_place`. It sees them whole,
    unless it says by `looks_at_places` that it only takes places from them, ``tensor[:, place, place, place]``.
    """

    place_keys: tuple[str, ...] = ()
    looks_at_places = False

    def draw_place(self, item: Mapping[Any, Any], size: Sequence[int]) -> Crop:
        """Draws where to crop.

        Args:
            item: the tensors `place_keys`.
            size: of the volume, voxels per axis.
        """
        raise NotImplementedError

    def report(self, volumes: Sequence[PreparedVolume]) -> None:
        """Says in the log what a user should know of crops of these volumes; here nothing."""

    def finish(self, item: dict[Any, Any], place: Crop) -> dict[Any, Any]:  # noqa: ARG002 - for subclasses
        """Changes what is not on the image's grid, boxes for example; here nothing."""
        return item

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        place = self.draw_place(item, item[self.first_key(item)].shape[1:])
        where = (slice(None), *place)
        for key in self.key_iterator(item):
            item[key] = item[key][where].clone()
        return self.finish(item, place)

    def read(self, volume: PreparedVolume) -> dict[Any, Any]:
        """The crop that `__call__` would make of the whole volume, read from its store as a crop."""
        if self.looks_at_places:
            state = self.R.get_state()
            try:
                place = self.draw_place(volume.look(self.place_keys), volume.size)
            except DamagedVolumeError as error:
                volume.prepare_again(error)
                self.R.set_state(state)  # draws what it would have drawn
                place = self.draw_place(volume.look(self.place_keys), volume.size)
        else:
            place = self.draw_place(volume.load(keys=self.place_keys), volume.size)
        item = volume.load(crop=place)
        list(self.key_iterator(item))  # an error for a key that is not there
        return self.finish(item, place)


class RandForegroundCropd(PlacedCropd):
    """Crops where there is something to see: the first of `tries` places with enough foreground, else the best.

    Args:
        keys: cropped together, ``[1, D, H, W]`` each.
        spatial_size: voxels per axis; no larger than the volume.
        foreground_key: uint8 mask of the body.
        min_foreground: share of the crop's voxels.
        tries: places to look at.
        allow_missing_keys: whether some of the keys may not be there.
        place_key: if given, the crop has under it where it lies: float ``[3, 2]``, the first and the last voxel of each
            axis as a share of the volume.
    """

    looks_at_places = True

    def __init__(
        self,
        keys: KeysCollection,
        *,
        spatial_size: Sequence[int],
        foreground_key: str = "foreground",
        min_foreground: float = 0.3,
        tries: int = 10,
        allow_missing_keys: bool = False,
        place_key: str | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_size, self.foreground_key = tuple(spatial_size), foreground_key
        self.min_foreground, self.tries = min_foreground, tries
        self.place_keys, self.place_key = (foreground_key,), place_key
        self._size: tuple[int, ...] = ()

    def draw_place(self, item: Mapping[Any, Any], size: Sequence[int]) -> Crop:
        """Draws up to `tries` places; gives the first with enough foreground, else the one with the most."""
        foreground, best = item[self.foreground_key], -1.0
        self._size = tuple(size)
        place: Crop = (slice(None), slice(None), slice(None))
        for _ in range(self.tries):
            candidate = self._draw(size)
            where = (slice(None), *candidate)
            share = foreground[where].float().mean().item()
            if share > best:
                best, place = share, candidate
            if share >= self.min_foreground:
                break
        return place

    def finish(self, item: dict[Any, Any], place: Crop) -> dict[Any, Any]:
        """Says where the crop lies, if asked to."""
        if self.place_key is not None:
            ends = [[axis.start / size, (axis.stop - 1) / size] for axis, size in zip(place, self._size)]
            item[self.place_key] = torch.tensor(ends)
        return item

    def _draw(self, size: Sequence[int]) -> Crop:
        starts = [int(self.R.randint(s - c + 1)) for s, c in zip(size, self.spatial_size)]
        d, h, w = (slice(start, start + c) for start, c in zip(starts, self.spatial_size))
        return d, h, w


class LastStep(Protocol):
    """What is done with a crop last, in the process that loads it.

    Attributes:
        keys: names of the tensors that it can take.
    """

    keys: tuple[str, ...]

    def __call__(self, crop: Mapping[str, Any]) -> dict[str, Any]:
        """The item to hand on, from the crop's tensors, its `spacing`, and the numbers `draw` and `volume`."""


class CropDataset(Dataset[dict[str, Any]]):
    """Crops of prepared volumes, by the number of the draw.

    Draw ``d`` is a crop of one volume: every ``n`` draws, with ``n`` the number of volumes, take each volume once, in
    an order shuffled anew or, unshuffled, in their own. With `balance` each value of a column has its share of the
    draws instead. Volume, crop and augmentation derive from (seed, d), so they are the same whichever process draws
    them, and after a resume.

    Args:
        data: prepared volumes.
        transform: random transforms from a volume's tensors to a crop's. If the first one is a `PlacedCropd`, only the
            crop is read from the store, else the whole volume.
        seed: of the run.
        shuffle: False draws the volumes in their own order: for validation.
        keys: of the tensors to hand on, where a crop has them.
        balance: a column of the volumes, such as "modality" or "folder": all its values are drawn equally often.
        balance_weights: by value, how often instead, such as ``{"CT": 1, "MR": 2}``; 1 for those that are not named.
        last_step: what is done with each crop after `transform`, such as `bundle.masking.WideField`.
        hash_names: whether the log has digests of the values of `balance`.

    Raises:
        UserError: if the volumes have no such column, a weight does not fit, there are weights without a column, or
            `last_step` cannot take one of `keys`.
    """

    def __init__(
        self,
        *,
        data: Sequence[PreparedVolume],
        transform: Compose,
        seed: int = 0,
        shuffle: bool = True,
        keys: Sequence[str] = ("image", "clean", "valid", "foreground", "weight_map"),
        balance: str | None = None,
        balance_weights: Mapping[str, float] | None = None,
        last_step: LastStep | None = None,
        hash_names: bool = False,
    ) -> None:
        self.data, self.transform, self.seed = list(data), transform, seed
        self.keys, self.last_step = tuple(keys), last_step
        if last_step is not None and (unknown := sorted(set(keys) - set(last_step.keys))):
            raise UserError(
                f"crops have {', '.join(unknown)}, which {type(last_step).__name__} cannot take: leave them out of "
                "train#dataset#keys, or the config that sets train#dataset#last_step, such as levels_wide.yaml"
            )
        if self.transform.transforms and isinstance(first := self.transform.transforms[0], PlacedCropd):
            first.report(self.data)
        self.order: VolumeOrder
        if balance is not None:
            self.order = balanced_order(self.data, balance, balance_weights, seed, hash_names=hash_names)
        elif balance_weights:
            raise UserError("--balance_weights needs the column of their values: give --balance too, such as modality")
        elif shuffle:
            self.order = ShuffledOrder(len(self.data), seed)
        else:
            self.order = InOrder(len(self.data))

    def __len__(self) -> int:
        """The number of volumes; draws go on for ever."""
        return len(self.data)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        volume = self.find_volume(draw)
        seed = np.random.SeedSequence((self.seed, _CROP_STREAM, draw)).generate_state(1)
        self.transform.set_random_state(seed=int(seed[0]))
        crop = self._crop(self.data[volume])
        if isinstance(crop, list):  # MONAI's random crops give lists, here of one
            (crop,) = crop
        plain = {key: crop[key].as_subclass(torch.Tensor).contiguous() for key in self.keys if key in crop}
        masks = {key: plain[key] > 0 for key in ("valid", "foreground") if key in plain}
        item = plain | masks | {"spacing": crop["spacing"], "draw": draw, "volume": volume}
        return item if self.last_step is None else self.last_step(item)

    def _crop(self, volume: PreparedVolume) -> Any:
        steps = self.transform.transforms
        if steps and isinstance(steps[0], PlacedCropd):
            return self.transform(steps[0].read(volume), start=1)
        return self.transform(volume.load())

    def find_volume(self, draw: int) -> int:
        """The number of the volume that a draw is taken from."""
        return self.order(draw)


class DrawSampler(Sampler[int]):
    """The numbers of an epoch's draws, shared out over processes.

    Epoch ``e`` has the draws from ``e * draws`` on, or always the first ones if `same_every_epoch`. Of ``world``
    processes, number ``rank`` takes every ``world``-th, so that together they take in each step what one process with
    a batch ``world`` times as large would.

    Args:
        draws: per epoch, over all processes.
        same_every_epoch: for validation.
        rank: of this process; None asks `torch.distributed`.
        world: number of processes; None asks `torch.distributed`.
    """

    def __init__(
        self, draws: int, *, same_every_epoch: bool = False, rank: int | None = None, world: int | None = None
    ) -> None:
        self.rank = this_rank() if rank is None else rank
        self.world = world_size() if world is None else world
        self.draws, self.same_every_epoch, self.epoch, self.taken = draws, same_every_epoch, 0, 0

    def set_epoch(self, epoch: int, taken: int = 0) -> None:
        """Sets what the next pass is for.

        Args:
            epoch: counted from 0.
            taken: draws of the epoch that this process has taken already, before a resume.
        """
        self.epoch, self.taken = epoch, taken

    def __iter__(self) -> Iterator[int]:
        first = 0 if self.same_every_epoch else self.epoch * self.draws
        return iter(range(first + self.rank + self.taken * self.world, first + self.draws, self.world))

    def __len__(self) -> int:
        """Draws of a whole epoch, of this process."""
        return len(range(self.rank, self.draws, self.world))


def make_loader(
    dataset: CropDataset,
    *,
    batch_size: int,
    steps: int | None = None,
    crops_per_volume: int | None = None,
    num_workers: int = 0,
    collate_fn: Callable[[Any], dict[str, Any]] | None = None,
) -> DataLoader[dict[str, Any]]:
    """A loader of `steps` batches per epoch (training), or of the same few crops of each volume (validation).

    Args:
        dataset: crops by the number of the draw.
        batch_size: crops per batch and process.
        steps: batches per epoch.
        crops_per_volume: instead of `steps`, and the same ones every epoch.
        num_workers: loading processes.
        collate_fn: makes a batch of crops that do not simply stack; None stacks them.

    Raises:
        UserError: if there is less to validate on than there are processes, each of which must have something.
    """
    if (steps is None) == (crops_per_volume is None):
        raise ValueError("give either steps or crops_per_volume")
    sampler = DrawSampler(len(dataset) * (crops_per_volume or 0), same_every_epoch=True)
    if crops_per_volume is not None and sampler.draws < sampler.world:
        raise UserError(
            f"{sampler.draws} crops or volumes to validate on do not go round {sampler.world} processes: raise "
            "--val_fraction, or start fewer processes"
        )
    if steps is not None:
        sampler = DrawSampler(1)
        sampler.draws = steps * batch_size * sampler.world
    # workers that stay take their seed once, from the global generator if they have no other: after a resume training
    # would draw other numbers than in the run that was never stopped
    generator = torch.Generator().manual_seed(dataset.seed) if num_workers > 0 else None
    return DataLoader(
        dataset,
        batch_size=batch_size,
        generator=generator,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        collate_fn=collate_fn,
        worker_init_fn=_leave_group if num_workers > 0 else None,
    )


def _leave_group(worker: int) -> None:  # noqa: ARG001 - what a loader calls in each loading process
    """A signal that torchrun sends to the group of a process does not end its loading processes before the step."""
    os.setpgid(0, 0)
