# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from monai.apps.detection.transforms.dictionary import RandFlipBoxd
from monai.transforms import Compose, RandFlipd

from bundle.data import mirrored_axes, random_mirrors
from bundle.errors import UserError

VOXELS = torch.arange(24.0).view(1, 2, 3, 4)


def seen(axes, probability=0.5):
    """How often each set of mirrored axes comes in 400 draws."""
    flip = partial(RandFlipd, keys=["image", "label"])
    transform = Compose([random_mirrors(flip, axes=axes, probability=probability)]).set_random_state(seed=0)
    subsets = [tuple(axis for axis in range(3) if bits & 1 << axis) for bits in range(8)]
    counts = dict.fromkeys(subsets, 0)
    for _ in range(400):
        item = transform({"image": VOXELS, "label": 2 * VOXELS})
        assert torch.equal(item["label"], 2 * item["image"]), "both alike"
        for subset in subsets:
            oracle = np.flip(VOXELS[0].numpy(), subset)
            counts[subset] += bool((item["image"][0].numpy() == oracle).all())
    assert sum(counts.values()) == 400
    return {subset: count for subset, count in counts.items() if count}


def test_only_the_named_axes_are_mirrored_each_for_itself():
    assert set(seen([])) == {()}
    assert set(seen([2])) == {(), (2,)}
    both = seen([0, 1])
    assert set(both) == {(), (0,), (1,), (0, 1)} and min(both.values()) > 60


def test_every_axis_has_the_probability():
    assert seen([0, 1, 2], probability=1.0) == {(0, 1, 2): 400}
    rare = seen([0], probability=0.1)
    assert 20 < rare[(0,)] < 65


def test_boxes_are_mirrored_with_their_image():
    flip = partial(RandFlipBoxd, image_keys="image", box_keys="box", box_ref_image_keys="image")
    item = {"image": VOXELS, "box": torch.tensor([[0.0, 0, 0, 1, 1, 1]])}
    mirrored = random_mirrors(flip, axes=[2], probability=1.0)(item)
    assert mirrored["box"].tolist() == [[0, 0, 3, 1, 1, 4]]
    assert torch.equal(mirrored["image"], VOXELS.flip(3))


@pytest.mark.parametrize("axes", [3, 0, None, "0", [0, 0], [3], [-1]])
def test_what_names_no_axes_is_refused(axes):
    with pytest.raises(UserError, match=r"--mirror_axes .* does not fit: give different axes"):
        random_mirrors(partial(RandFlipd, keys="image"), axes=axes)
    with pytest.raises(UserError, match=r"--mirror_axes .* does not fit: give different axes"):
        mirrored_axes(axes)


@pytest.mark.parametrize("axes", [[], [0], [2, 0], [0, 1, 2]])
def test_mirrored_axes_are_those_on_which_something_is_ever_mirrored(axes):
    assert mirrored_axes(axes) == sorted({axis for subset in seen(axes) for axis in subset})
