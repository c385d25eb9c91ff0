# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Crops keep boxes in place; so do flips and zooms after them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.apps.detection.transforms.dictionary import ClipBoxToImaged, RandFlipBoxd, RandZoomBoxd
from monai.transforms import Compose

from bundle.tasks.detection import RandBoxCropd, collate_boxes

SIZE = (40, 30, 20)
BOXES = torch.tensor([[4.0, 5, 6, 10, 9, 12], [20, 20, 2, 38, 28, 9]])


def item() -> dict:
    """A volume in which the first box is painted 1 and the second 2."""
    image = torch.zeros(1, *SIZE)
    for value, box in enumerate(BOXES.int().tolist(), start=1):
        image[0, box[0] : box[3], box[1] : box[4], box[2] : box[5]] = value
    foreground = torch.ones(1, *SIZE, dtype=torch.uint8)
    return {"image": image, "foreground": foreground, "box": BOXES.clone(), "label": torch.tensor([0, 1]).byte()}


def painted(image: torch.Tensor, value: int) -> np.ndarray:
    voxels = np.argwhere(np.asarray(image[0]) == value)
    return np.concatenate([voxels.min(0), voxels.max(0) + 1])


def test_boxes_stay_on_what_they_surround_through_crops_and_flips():
    flips = [RandFlipBoxd("image", "box", "image", prob=0.5, spatial_axis=axis) for axis in range(3)]
    steps = Compose([RandBoxCropd(spatial_size=(24, 16, 12), min_share=0), *flips])
    seen, flipped = 0, set()
    for seed in range(40):
        steps.set_random_state(seed=seed)
        crop = steps(item())
        assert crop["image"].shape == (1, 24, 16, 12)
        assert set(np.unique(crop["image"])) - {0} == {int(label) + 1 for label in crop["label"]}
        for box, label in zip(crop["box"], crop["label"], strict=True):
            np.testing.assert_array_equal(box.numpy(), painted(crop["image"], int(label) + 1))
            seen += 1
        flipped.add(tuple(flip._do_transform for flip in flips))
    assert seen > 40 and len(flipped) == 8


def test_a_crop_drawn_for_a_box_holds_it_whole_anywhere_in_the_crop():
    steps = RandBoxCropd(spatial_size=(24, 16, 12), positive=1)
    places = []
    for seed in range(200):
        steps.set_random_state(seed=seed)
        crop = steps(item())
        boxes = [box for box, label in zip(crop["box"], crop["label"]) if label == 0]
        whole = [box for box in crop["box"] if box.tolist() and float((box[3:] - box[:3]).prod()) in (144, 1008)]
        assert whole, "no box as a whole"
        places += [box[:3].tolist() for box in boxes if float((box[3:] - box[:3]).prod()) == 144]
    low, high = np.min(places, axis=0), np.max(places, axis=0)
    assert (low == [0, 0, 0]).all()  # at the low border of the crop
    assert (high == [4, 5, 6]).all()  # and where the volume's own border stops the crop


def test_a_box_longer_than_the_crop_fills_it():
    steps = RandBoxCropd(spatial_size=(8, 8, 8), positive=1, min_share=0)
    one = item() | {"box": torch.tensor([[2.0, 10, 0, 36, 14, 20]]), "label": torch.tensor([0]).byte()}
    for seed in range(20):
        steps.set_random_state(seed=seed)
        (box,) = steps(one)["box"].numpy()
        assert box[[0, 3, 2, 5]].tolist() == [0, 8, 0, 8] and box[4] - box[1] == 4


@pytest.mark.parametrize(("min_share", "kept"), [(0.4, 1), (0.6, 0)])
def test_a_box_of_which_too_little_is_in_the_crop_does_not_count(min_share: float, kept: int):
    one = item() | {"box": torch.tensor([[0.0, 0, 0, 40, 30, 40]]), "label": torch.tensor([0]).byte()}
    crop = RandBoxCropd(spatial_size=SIZE, positive=0, min_share=min_share)(one)  # half of it is above the volume
    assert len(crop["box"]) == len(crop["label"]) == kept


def test_other_crops_are_from_the_body():
    one = item() | {"box": torch.zeros(0, 6), "label": torch.zeros(0).byte()}
    one["foreground"] = torch.zeros(1, *SIZE, dtype=torch.uint8)
    one["foreground"][:, :20] = 1
    one["image"] = torch.arange(SIZE[0]).float()[None, :, None, None].expand(1, *SIZE)
    steps = RandBoxCropd(spatial_size=(8, 8, 8), positive=0.5, tries=50)
    for seed in range(20):
        steps.set_random_state(seed=seed)
        crop = steps(one)
        assert crop["box"].shape == (0, 6) and crop["image"][0, 4, 0, 0] < 20


def test_zoom_and_clip_take_boxes_along_and_drop_those_outside():
    steps = Compose([
        RandZoomBoxd("image", "box", "image", prob=1, min_zoom=2, max_zoom=2, mode="nearest", padding_mode="edge"),
        ClipBoxToImaged("box", "label", "image"),
    ])  # fmt: skip
    zoomed = steps(item())
    assert zoomed["image"].shape == (1, *SIZE)
    assert set(np.unique(zoomed["image"])) - {0} == {int(label) + 1 for label in zoomed["label"]}
    for box, label in zip(zoomed["box"], zoomed["label"], strict=True):
        np.testing.assert_allclose(box.numpy(), painted(zoomed["image"], int(label) + 1), atol=1.01)
    empty = steps(item() | {"box": torch.zeros(0, 6), "label": torch.zeros(0).byte()})
    assert empty["box"].shape == (0, 6) and empty["label"].shape == (0,)


def test_a_batch_keeps_each_crops_number_of_boxes():
    crops = [{"image": torch.zeros(1, 2, 2, 2), "box": torch.zeros(n, 6), "label": torch.zeros(n)} for n in (0, 3)]
    batch = collate_boxes(crops)
    assert batch["image"].shape == (2, 1, 2, 2, 2)
    assert [len(box) for box in batch["box"]] == [len(label) for label in batch["label"]] == [0, 3]
