# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Boxes of several detectors made one set, and what 3D Slicer is given of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bundle.errors import UserError
from bundle.tasks.detection import BoxEnsemble, box_markups, fuse_boxes


def box(*ends: float, kind: int = 0, score: float) -> list[float]:
    return [*ends, kind, score]


def test_boxes_of_one_place_become_their_weighted_mean_and_share_their_scores() -> None:
    first = torch.tensor([box(0, 0, 0, 10, 10, 10, score=0.8), box(30, 30, 30, 40, 40, 40, score=0.6)])
    second = torch.tensor([box(2, 0, 0, 12, 10, 10, score=0.4), box(0, 0, 0, 10, 10, 10, kind=1, score=0.5)])
    fused = fuse_boxes([first, second, torch.zeros(0, 8)], iou_threshold=0.2).tolist()
    share = 0.4 / 1.2
    assert sorted(fused) == [
        pytest.approx(box(0, 0, 0, 10, 10, 10, kind=1, score=0.5 / 3)),
        pytest.approx(box(2 * share, 0, 0, 10 + 2 * share, 10, 10, score=1.2 / 3)),
        pytest.approx(box(30, 30, 30, 40, 40, 40, score=0.6 / 3)),
    ]


def test_a_detector_that_says_a_thing_twice_counts_once() -> None:
    twice = torch.tensor([box(0, 0, 0, 10, 10, 10, score=0.8), box(0, 0, 1, 10, 10, 10, score=0.8)])
    assert fuse_boxes([twice, torch.zeros(0, 8)], iou_threshold=0.5)[:, 7].tolist() == pytest.approx([0.4])


def test_no_box_is_no_box() -> None:
    assert fuse_boxes([torch.zeros(0, 8)] * 2, iou_threshold=0.2).shape == (0, 8)


class Brightest(nn.Module):
    """A detector of the brightest voxel, with a box that reaches further up than down on each axis."""

    def forward(self, image: torch.Tensor, *, use_inferer: bool) -> list[dict[str, torch.Tensor]]:  # noqa: ARG002
        place = torch.tensor(np.unravel_index(int(image.argmax()), image.shape)[2:]).float()
        ends = torch.cat([place - 1, place + 3])[None]
        return [{"box": ends, "label": torch.zeros(1, dtype=torch.int64), "label_scores": torch.full((1,), 0.9)}]


def test_boxes_of_mirror_images_come_back_to_their_places() -> None:
    ensemble = BoxEnsemble([], anchor_shapes=[], crop_size=[16, 16, 16], mirror_axes=[0, 2])
    ensemble.detectors = nn.ModuleList([Brightest()])
    image = torch.zeros(1, 1, 20, 24, 28)
    image[0, 0, 5, 7, 11] = 1
    (found,) = ensemble(image)
    # it reaches from 1 below the voxel to 3 above its lower border; mirrored the other way round; the mean is even
    assert found.tolist() == [pytest.approx([3.5, 6, 9.5, 7.5, 10, 13.5, 0, 0.9])]


def test_a_score_threshold_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="--score_threshold 2 does not fit: give a number"):
        BoxEnsemble([], anchor_shapes=[], crop_size=[16, 16, 16], score_threshold=2)


def test_markups_say_their_coordinates() -> None:
    boxes = [[10.0, 20.0, 30.0, 4.0, 5.0, 6.0], [-1.0, -2.0, 3.0, 1.0, 1.0, 1.0]]
    content = box_markups(boxes, [1, 0], [0.913, 0.5], names=["nodule", "mass"])
    assert content["@schema"].endswith("markups-schema-v1.0.3.json#")
    first, second = content["markups"]
    assert (first["type"], first["roiType"], first["coordinateSystem"], first["name"]) == (
        "ROI", "Box", "LPS", "mass 1 (0.91)",
    )  # fmt: skip
    assert first["center"] == [-10, -20, 30] and first["size"] == [4, 5, 6]
    assert first["controlPoints"][0]["position"] == first["center"]
    rotation = np.array(second["orientation"]).reshape(3, 3)
    assert np.array_equal(rotation, np.eye(3)) and second["center"] == [1, 2, 3]
    assert first["display"]["color"] != second["display"]["color"]
