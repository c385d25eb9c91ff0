# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Random appearance by region, against the formula and by what it does to contrast."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bundle.data import RandRegionAppearanced
from bundle.errors import UserError


def image(channels: int = 1) -> torch.Tensor:
    return torch.rand(channels, 10, 12, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4 - 1


def changed(item: dict, seed: int = 0, **options) -> torch.Tensor:
    options = {"prob": 1.0, "strength": (1.0, 1.0), **options}
    return RandRegionAppearanced("image", **options).set_random_state(seed=seed)(item)["image"]


@pytest.mark.parametrize("channels", [1, 2])
def test_each_label_has_a_map_of_its_own(channels: int):
    labels = torch.zeros(1, 10, 12, 14, dtype=torch.uint8)
    labels[:, 5:], labels[:, :, 6:] = 3, 7
    before = image(channels)
    found = changed({"image": before, "label": labels}, label_key="label", points=(2, 2))
    for old, new in zip(before, found):
        slopes = []
        for label in (0, 3, 7):  # two points: a straight line
            x, y = (volume[labels[0] == label].numpy() for volume in (old, new))
            slope, offset = np.polyfit(x, y, 1)
            np.testing.assert_allclose(y, slope * x + offset, atol=1e-5)
            slopes.append(slope)
        assert len({round(slope, 4) for slope in slopes}) == 3
        assert new.mean().item() == pytest.approx(old.mean().item(), abs=1e-6)
        assert new.std().item() == pytest.approx(old.std().item(), rel=1e-5)


def test_one_region_is_the_map_written_out():
    transform = RandRegionAppearanced(
        "image", prob=1.0, regions=(1, 1), points=(5, 5), monotone=0.0, strength=(0.6, 0.6)
    )
    values = np.array([0.2, 0.9, 0.1, 0.5, 0.4])
    transform._draw_map = lambda: values
    x = image()[0].numpy()
    found = transform.set_random_state(seed=1)({"image": image()})["image"][0].numpy()
    scaled = (x - x.min()) / (x.max() - x.min())
    place = np.minimum((scaled * 4).astype(int), 3)
    line = values[place] + (scaled * 4 - place) * (values[place + 1] - values[place])
    mixed = 0.4 * scaled + 0.6 * line
    np.testing.assert_allclose(found, (mixed - mixed.mean()) / mixed.std() * x.std() + x.mean(), atol=1e-6)


def test_monotone_maps_rise_or_fall_and_others_do_neither():
    ramp = torch.linspace(0, 1, 64, dtype=torch.float64).reshape(1, 4, 4, 4)
    kinds = []
    for seed in range(20):
        steps = changed({"image": ramp}, seed, regions=(1, 1), monotone=1.0).flatten().diff()
        assert (steps >= -1e-9).all() or (steps <= 1e-9).all()
        kinds.append(bool(steps.sum() > 0))
    assert 4 < sum(kinds) < 16
    either = [changed({"image": ramp}, seed, regions=(1, 1), monotone=0.0).flatten().diff() for seed in range(20)]
    assert sum(bool((steps > 0).any() and (steps < 0).any()) for steps in either) > 15


@pytest.mark.parametrize("border", [0.0, 3.0])
def test_regions_are_the_voxels_next_to_each_point_with_soft_borders(border: float):
    transform = RandRegionAppearanced("image", regions=(3, 3), border=border).set_random_state(seed=2)
    shares = np.stack(transform._draw_regions({}, (20, 22, 24)))
    again = np.random.RandomState(2)
    again.randint(3, 4)
    points = [again.uniform(0, (20, 22, 24)) for _ in range(3)]
    for place in ((3, 4, 5), (10, 11, 12), (19, 0, 23)):
        distances = [sum((p - i) ** 2 for p, i in zip(point, place)) ** 0.5 for point in points]
        if border == 0:
            expected = [float(distance == min(distances)) for distance in distances]
        else:
            powers = [np.exp(-2 * distance / border) for distance in distances]
            expected = [power / sum(powers) for power in powers]
        np.testing.assert_allclose(shares[:, place[0], place[1], place[2]], expected, atol=1e-4)
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)


def test_the_same_seed_gives_the_same_crop_and_nothing_is_changed_in_place():
    before = image()
    item = {"image": before}
    assert torch.equal(changed(item, 5), changed(item, 5))
    assert not torch.equal(changed(item, 5), changed(item, 6))
    assert torch.equal(before, image()) and item["image"] is before
    assert torch.equal(changed(item, prob=0.0), before)
    flat = torch.ones(1, 4, 4, 4)
    assert torch.equal(changed({"image": flat}), flat)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"regions": (0, 3)}, "regions"), ({"points": (5, 4)}, "points"), ({"strength": (0.0, 1.5)}, "strength"),
     ({"border": -1}, "border")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(options: dict, said: str):
    with pytest.raises(UserError, match=said):
        RandRegionAppearanced("image", **options)
