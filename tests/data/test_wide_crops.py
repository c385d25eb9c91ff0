# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Wide crops: how wide, what lies beyond the volume, and that only the crop is read."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.transforms import Compose, RandFlipd

from bundle.data import Blosc2Store, CropDataset, OptionalSpacingd, PreparedVolume, RandWideCropd, make_loader
from bundle.errors import UserError
from bundle.masking import ChildLevel, MaskInMask, MaskSampler, UniformCells, WideField

KEYS = ("image", "foreground", "valid", "weight_map")
SIZE = (40, 21, 9)  # of a volume; crops of 8: twice as wide on two axes, and not on the third


def volume(size=SIZE) -> dict[str, Any]:
    image = torch.arange(size[0] * size[1] * size[2], dtype=torch.float32).view(1, *size) + 5
    masks = {"foreground": (image % 2 == 0).to(torch.uint8), "valid": torch.ones(1, *size, dtype=torch.uint8)}
    return {
        "image": image,
        **masks,
        "weight_map": image / 7,
        "spacing": torch.tensor([1.0, 0.5, 3.0]),
        "modality": "CT",
    }


def wide(**options: Any) -> RandWideCropd:
    return RandWideCropd(KEYS, allow_missing_keys=True, **{"spatial_size": (8, 8, 8), "field": 2, **options})


def test_it_is_as_wide_as_the_volume_lets_it():
    assert wide().find_width((100, 12, 8)) == (16, 16, 8)
    assert wide().find_width((11, 16, 19)) == (8, 16, 16)
    assert wide(field=(4, 1, 2)).find_width((23, 100, 100)) == (24, 8, 16)
    for size, field, beyond in product(range(8, 60), range(1, 6), (0, 0.25, 0.5)):
        width = wide(field=field, beyond=beyond).find_width((size, 8, 8))[0]
        fits = [8 * times for times in range(1, field + 1) if size >= (1 - beyond) * 8 * times]
        assert width == fits[-1]


@pytest.mark.parametrize("size", [SIZE, (13, 14, 15)])
def test_every_voxel_is_where_it_was_and_the_rest_is_not_valid(size: tuple[int, int, int]):
    crop, whole = wide(field=(2, 2, 2)), volume(size)
    befores = set()
    for seed in range(40):
        crop.set_random_state(seed=seed)
        item = crop(whole)
        shape = crop.find_width(size)
        assert all(item[key].shape == (1, *shape) for key in KEYS)
        inside = item["valid"][0].nonzero()
        first, last = inside[0], inside[-1]
        assert len(inside) == int((last - first + 1).prod()), "the valid part is a box"
        window = tuple(slice(a, b + 1) for a, b in zip(first.tolist(), last.tolist()))
        corner = (whole["image"][0] == item["image"][(0, *first.tolist())]).nonzero()[0].tolist()
        source = tuple(slice(c, c + (w.stop - w.start)) for c, w in zip(corner, window))
        for key in KEYS:
            assert torch.equal(item[key][(0, *window)], whole[key][(0, *source)])
        beyond = item["valid"] == 0
        assert (item["foreground"][beyond] == 0).all() and (item["weight_map"][beyond] == 0).all()
        assert (item["image"][beyond] == item["image"][item["valid"] > 0].min()).all()
        befores.add(tuple(first.tolist()))
    assert len(befores) > (1 if size != SIZE else 0), "the padding is on either side"


def test_the_place_says_where_the_crop_would_end_beyond_the_volume():
    crop = wide(place_key="place")
    item = crop(volume((13, 40, 8)))
    first = item["valid"][0].nonzero()[0, 0].item()
    assert item["place"][0].tolist() == pytest.approx([-first / 13, (15 - first) / 13])


@pytest.fixture
def volumes(tmp_path: Path) -> list[PreparedVolume]:
    store = Blosc2Store(tmp_path, exact=("CT", "MR"))
    found = []
    for number, size in enumerate([(40, 60, 30), (30, 18, 16), (100, 100, 30)]):
        store.write(str(number), volume(size))
        found.append(PreparedVolume(name=str(number), store=store, key=str(number), modality="CT", size=size))
    return found


def test_what_is_read_from_a_store_is_what_the_whole_volume_gives(volumes: list[PreparedVolume]):
    for each in volumes:
        for seed in range(5):
            items = []
            for read in (lambda crop: crop(each.load()), lambda crop: crop.read(each)):  # noqa: B023 - called at once
                crop = wide(spatial_size=(16, 16, 16), field=2)
                crop.set_random_state(seed=seed)
                items.append(read(crop))
            assert all(torch.equal(items[0][key], items[1][key]) for key in KEYS)


def dataset(volumes: list[PreparedVolume], **options: Any) -> CropDataset:
    flips = [RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in range(3)]
    masking = MaskSampler(rule=UniformCells(), cell=(4, 4, 4))
    levels = [ChildLevel(masking=masking, children=2, size=(8, 8, 8))]
    field = WideField(masking=MaskInMask(masking=masking, levels=levels), size=(16, 16, 16))
    return CropDataset(
        data=volumes, transform=Compose([wide(spatial_size=(16, 16, 16)), *flips]), last_step=field, **options
    )


def test_it_says_how_many_volumes_are_smaller(volumes: list[PreparedVolume], caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", logger="bundle"):
        dataset(volumes)
        assert "1 of 3 volumes are smaller than the field of 32x32x32 voxels" in caplog.text
        caplog.clear()
        dataset([volumes[0], volumes[2]])
    assert not caplog.text


def test_a_draw_gives_the_same_levels_in_any_process_and_order(volumes: list[PreparedVolume]):
    alone, workers = (list(make_loader(dataset(volumes), batch_size=2, steps=3, num_workers=n)) for n in (0, 2))
    for one, other in zip(alone, workers, strict=True):
        assert one.keys() == other.keys() and "children_image" in one
        assert all(torch.equal(one[key], other[key]) for key in one)
    again = dataset(volumes)
    for draw in reversed(range(6)):
        item, found = again[draw], alone[draw // 2]
        assert all(torch.equal(torch.as_tensor(item[key]), found[key][draw % 2]) for key in item)
    assert alone[0]["image"].shape == (2, 1, 16, 16, 16) and alone[0]["children_image"].shape == (2, 2, 1, 8, 8, 8)
    assert len({tuple(batch["spacing"][row].tolist()) for batch in alone for row in range(2)}) > 1


def test_children_are_voxels_of_the_volume_and_the_first_level_means_of_them(volumes: list[PreparedVolume]):
    for draw in range(6):
        item = dataset(volumes)[draw]
        whole = volumes[item["volume"]].load()["image"]
        assert torch.isin(item["children_image"], whole).all()
        assert torch.equal(item["children_spacing"], torch.tensor([[1.0, 0.5, 3.0]] * 2).double())


def test_a_further_tensor_of_the_crop_is_refused_in_one_line(volumes: list[PreparedVolume]):
    with pytest.raises(UserError, match=r"pretext_class, which WideField cannot take: leave them out .*levels_wide"):
        dataset(volumes, keys=("image", "valid", "foreground", "pretext_class"))


@pytest.mark.parametrize("field", [0, 9, 1.5, True, (2, 2), (2, 2, "2")])
def test_a_field_that_does_not_fit_is_refused(field: Any):
    with pytest.raises(UserError, match="--field"):
        wide(field=field)


def test_a_share_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="--beyond"):
        wide(beyond=0.6)


def test_finer_voxels_are_kept_on_request_and_what_is_prepared_stays_prepared():
    """Volumes are kept under a digest of the transforms' attributes."""
    assert (
        vars(OptionalSpacingd("image", [1, 1, 1])).keys()
        < vars(OptionalSpacingd("image", [1, 1, 1], keep_finer=True)).keys()
    )
