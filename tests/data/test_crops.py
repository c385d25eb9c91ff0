# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/crops.py: crops that depend on seed and draw alone, shared out evenly over volumes and processes."""

from __future__ import annotations

import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlipd

from bundle.data import (
    CropDataset,
    DrawSampler,
    PlainStore,
    PreparedVolume,
    RandForegroundCropd,
    VolumeSet,
    make_loader,
)
from bundle.errors import UserError
from tests.data.volumes import preparation

SIZE, CROP = (12, 10, 8), (4, 4, 4)


def augmentation(crop: tuple[int, ...] = CROP) -> Compose:
    keys = ("image", "foreground", "valid")
    return Compose([RandForegroundCropd(keys, spatial_size=crop), RandFlipd(keys, prob=0.5, spatial_axis=0)])


@pytest.fixture
def volumes(tmp_path: Path) -> list[PreparedVolume]:
    """Three volumes whose voxel values tell the volume and the place: 10000 * volume + index."""
    prepared = []
    for n in range(3):
        image = torch.arange(np.prod(SIZE), dtype=torch.float32).reshape(1, *SIZE) + 10000 * n
        content = {
            "image": image,
            "foreground": (image % 2 == 0).to(torch.uint8),
            "valid": (image % 3 > 0).to(torch.uint8),
            "spacing": torch.tensor([1.0, 2.0, 3.0 + n]),
            "modality": "CT",
        }
        store = PlainStore(tmp_path)
        store.write(f"{n}", content)
        prepared.append(PreparedVolume(name=f"{n}", store=store, key=f"{n}", modality="CT", size=SIZE))
    return prepared


def dataset(volumes: list[PreparedVolume], seed: int = 0, **options: Any) -> CropDataset:
    return CropDataset(data=volumes, transform=augmentation(), seed=seed, **options)


def test_crop_carries_what_its_place_in_the_volume_says(volumes: list[PreparedVolume]) -> None:
    for draw in range(12):
        crop = dataset(volumes)[draw]
        image = crop["image"]
        assert image.shape == crop["valid"].shape == crop["foreground"].shape == (1, *CROP)
        assert image.dtype == torch.float32 and crop["valid"].dtype == crop["foreground"].dtype == torch.bool
        assert (image // 10000 == crop["volume"]).all() and crop["draw"] == draw
        assert torch.equal(crop["foreground"], image % 2 == 0)
        assert torch.equal(crop["valid"], image % 3 > 0)
        assert crop["spacing"].tolist() == [1, 2, 3 + crop["volume"]]


def test_draw_gives_the_same_crop_in_any_order_and_another_one_for_another_seed(volumes: list[PreparedVolume]) -> None:
    crops = dataset(volumes)
    forwards = [crops[draw]["image"] for draw in range(10)]
    backwards = [dataset(volumes)[draw]["image"] for draw in reversed(range(10))][::-1]
    assert all(torch.equal(one, other) for one, other in zip(forwards, backwards))
    other_seed = [dataset(volumes, seed=1)[draw]["image"] for draw in range(10)]
    assert sum(torch.equal(one, other) for one, other in zip(forwards, other_seed)) < 3


def test_places_differ_between_draws_of_one_volume(volumes: list[PreparedVolume]) -> None:
    crops = dataset(volumes[:1])
    assert len({float(crops[draw]["image"].min()) for draw in range(20)}) > 10


def test_augmentation_differs_between_draws(volumes: list[PreparedVolume]) -> None:
    crops = dataset(volumes)
    flipped = [bool(crops[draw]["image"][0, 0, 0, 0] > crops[draw]["image"][0, -1, 0, 0]) for draw in range(24)]
    assert 4 < sum(flipped) < 20


def test_every_round_takes_each_volume_once_in_changing_order(volumes: list[PreparedVolume]) -> None:
    crops = dataset(volumes)
    rounds = [tuple(crops.find_volume(3 * r + i) for i in range(3)) for r in range(20)]
    assert all(sorted(order) == [0, 1, 2] for order in rounds) and len(set(rounds)) > 3
    in_order = dataset(volumes, shuffle=False)
    assert [in_order.find_volume(draw) for draw in range(6)] == [0, 1, 2, 0, 1, 2]


def images(loader: Any) -> list[torch.Tensor]:
    return [batch["image"].clone() for batch in loader]


def test_batch_is_plain_tensors_of_the_agreed_types(volumes: list[PreparedVolume]) -> None:
    batch = next(iter(make_loader(dataset(volumes), batch_size=2, steps=3)))
    shapes = {key: (type(value), value.dtype, tuple(value.shape)) for key, value in batch.items()}
    assert shapes == {
        "image": (torch.Tensor, torch.float32, (2, 1, *CROP)),
        "valid": (torch.Tensor, torch.bool, (2, 1, *CROP)),
        "foreground": (torch.Tensor, torch.bool, (2, 1, *CROP)),
        "spacing": (torch.Tensor, torch.float32, (2, 3)),
        "draw": (torch.Tensor, torch.int64, (2,)),
        "volume": (torch.Tensor, torch.int64, (2,)),
    }


def test_workers_load_the_batches_that_one_process_loads(volumes: list[PreparedVolume]) -> None:
    alone, loader = (make_loader(dataset(volumes), batch_size=2, steps=3, num_workers=n) for n in (0, 2))
    for epoch in range(2):
        for each in (alone, loader):
            each.sampler.set_epoch(epoch)
        for one, other in zip(images(alone), images(loader), strict=True):
            assert torch.equal(one, other)


def test_epochs_take_successive_draws_so_that_a_resume_repeats_none(volumes: list[PreparedVolume]) -> None:
    loader = make_loader(dataset(volumes), batch_size=2, steps=4)
    draws = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        draws += [int(draw) for batch in loader for draw in batch["draw"]]
    assert draws == list(range(24))
    assert max(Counter(dataset(volumes).find_volume(draw) for draw in draws).values()) == 8


def test_two_ranks_together_take_the_draws_of_one_rank_step_by_step() -> None:
    one = DrawSampler(16, rank=0, world=1)
    ranks = [DrawSampler(16, rank=rank, world=2) for rank in range(2)]
    for sampler in (one, *ranks):
        sampler.set_epoch(5)
    steps = [set(step) for step in np.reshape(list(one), (4, 4))]
    halves = [np.reshape(list(sampler), (4, 2)) for sampler in ranks]
    assert [set(first) | set(second) for first, second in zip(*halves)] == steps
    assert len(one) == 16 and [len(sampler) for sampler in ranks] == [8, 8]


def test_uneven_validation_draws_are_each_taken_once() -> None:
    ranks = [DrawSampler(7, same_every_epoch=True, rank=rank, world=3) for rank in range(3)]
    assert sorted(draw for sampler in ranks for draw in sampler) == list(range(7))
    assert [len(sampler) for sampler in ranks] == [3, 2, 2]


def test_validation_takes_the_same_crops_of_every_volume_in_every_epoch(volumes: list[PreparedVolume]) -> None:
    loader = make_loader(dataset(volumes, shuffle=False), batch_size=2, crops_per_volume=2)
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append(list(loader))
    assert Counter(int(v) for batch in epochs[0] for v in batch["volume"]) == {0: 2, 1: 2, 2: 2}
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(*epochs, strict=True))


@pytest.mark.parametrize("options", [{}, {"steps": 3, "crops_per_volume": 2}])
def test_loader_wants_one_length(volumes: list[PreparedVolume], options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="either steps or crops_per_volume"):
        make_loader(dataset(volumes), batch_size=2, **options)


def item(foreground: torch.Tensor) -> dict[str, torch.Tensor]:
    index = torch.arange(foreground.numel(), dtype=torch.float32).reshape(foreground.shape)
    return {"image": index, "foreground": foreground}


def crops_of(foreground: torch.Tensor, n: int, **options: Any) -> list[dict[Any, Any]]:
    crop = RandForegroundCropd(("image", "foreground"), spatial_size=(4, 4, 4), **options)
    crop.set_random_state(0)
    return [crop(item(foreground)) for _ in range(n)]


def test_crops_are_taken_where_enough_foreground_is() -> None:
    foreground = torch.zeros(1, 32, 8, 8, dtype=torch.uint8)
    foreground[:, :8] = 1
    with_tries = [float(c["foreground"].float().mean()) for c in crops_of(foreground, 100, tries=50)]
    blind = [float(c["foreground"].float().mean()) for c in crops_of(foreground, 100, tries=1)]
    assert min(with_tries) >= 0.3 and np.mean([share < 0.3 for share in blind]) > 0.5


def test_best_try_is_taken_where_none_has_enough() -> None:
    foreground = torch.zeros(1, 16, 4, 4, dtype=torch.uint8)
    foreground[0, 5, 0, 0] = 1  # 1 of 64 voxels
    shares = [float(c["foreground"].float().mean()) for c in crops_of(foreground, 20, tries=100)]
    assert shares == [1 / 64] * 20


def test_every_place_of_the_volume_is_reached_and_none_beyond() -> None:
    foreground = torch.ones(1, 6, 5, 4, dtype=torch.uint8)
    corners = {int(c["image"][0, 0, 0, 0]) for c in crops_of(foreground, 300)}
    assert corners == {int(i * 20 + j * 4) for i in range(3) for j in range(2)}


def test_crop_is_a_copy_of_its_own() -> None:
    volume = item(torch.ones(1, 8, 8, 8, dtype=torch.uint8))
    crop = RandForegroundCropd(("image",), spatial_size=(4, 4, 4))
    crop.set_random_state(0)
    crop(volume)["image"].fill_(-1)
    assert volume["image"].min() == 0


def test_real_volume_smaller_than_the_crop_is_padded_and_marked(data_dir: Path, tmp_path: Path) -> None:
    listed = tmp_path / "dataset.json"
    listed.write_text(f'{{"training": ["{data_dir / "volumes/mr_body_totalseg.nii.gz"}"]}}')
    prepared = VolumeSet(dataset_dir=listed, transform=preparation((64, 64, 64)), cache_dir=tmp_path, val_fraction=0)
    crops = CropDataset(data=prepared.training, transform=augmentation((64, 64, 64)))
    for draw in range(4):
        crop = crops[draw]
        axial_slices = crop["valid"].any(dim=2).any(dim=1)[0]
        assert int(axial_slices.sum()) == 20 and all(int(b) - int(a) == 1 for a, b in pairwise(axial_slices.nonzero()))
        assert not (crop["foreground"] & ~crop["valid"]).any()
        outside = crop["image"][~crop["valid"]]
        assert (outside == outside[0]).all() and outside[0] <= crop["image"].min()
        assert float(crop["foreground"].float().mean()) > 0.02


def test_less_to_validate_on_than_processes_is_one_line(
    volumes: list[PreparedVolume], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = CropDataset(data=volumes[:1], transform=Compose([]))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="1 crops or volumes to validate on do not go round 2 processes"):
        make_loader(dataset, batch_size=1, crops_per_volume=1)
    assert len(make_loader(dataset, batch_size=1, crops_per_volume=2)) == 1


def test_a_signal_to_the_group_of_the_process_does_not_reach_its_workers(volumes: list[PreparedVolume]) -> None:
    loader = make_loader(dataset(volumes), batch_size=1, steps=1, num_workers=1)
    list(loader)
    (worker,) = loader._iterator._workers
    assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)


def test_a_pass_within_an_epoch_takes_the_draws_that_are_left() -> None:
    ranks = [DrawSampler(12, rank=rank, world=2) for rank in range(2)]
    for sampler in ranks:
        sampler.set_epoch(3, taken=4)
    assert sorted(draw for sampler in ranks for draw in sampler) == [44, 45, 46, 47]
    assert [len(sampler) for sampler in ranks] == [6, 6], "of a whole epoch"
    ranks[0].set_epoch(4)
    assert next(iter(ranks[0])) == 48
