# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Shapes of anchors come from the training boxes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundle.data import PlainStore, PreparedVolume, SkippedVolume
from bundle.errors import UserError
from bundle.tasks.detection import anchor_shapes


def volume(folder: Path, name: str, sizes: list[list[float]]) -> PreparedVolume:
    box = torch.tensor([[5.0, 6, 7, 5 + a, 6 + b, 7 + c] for a, b, c in sizes]).reshape(-1, 6)
    store = PlainStore(folder)
    store.write(name, {"box": box})
    return PreparedVolume(name=name, store=store, key=name, modality="CT", size=(64, 64, 64))


def test_small_medium_and_large_boxes_give_a_shape_each(tmp_path: Path):
    sizes = [[4, 4, 3], [4, 4, 3], [5, 4, 4], [5, 4, 4], [6, 5, 5], [6, 5, 5]]
    both = [volume(tmp_path, "a", sizes[::2]), volume(tmp_path, "b", [*sizes[1::2]]), volume(tmp_path, "none", [])]
    assert anchor_shapes(both, both, count=3, levels=3) == [[4, 4, 3], [5, 4, 4], [6, 5, 5]]


def test_larger_boxes_are_left_to_the_coarser_levels(tmp_path: Path):
    one = [volume(tmp_path, "a", [[4, 6, 8], [8, 12, 16], [16, 24, 32], [32, 48, 64]])]
    assert anchor_shapes(one, one, count=1, levels=4) == [[4, 6, 8]]
    (shape,) = anchor_shapes(one, one, count=1, levels=2)
    assert shape == [6, 9, 12]  # 4, 4, 8 and 16 voxels on the first axis are left


def test_fewer_boxes_than_shapes_still_give_all_shapes(tmp_path: Path):
    one = [volume(tmp_path, "a", [[4, 1, 8]])]
    assert anchor_shapes(one, one, count=3) == [[4, 2, 8]] * 3  # 2: the smallest that MONAI can draw


def test_no_box_in_a_part_is_one_line_that_says_why(tmp_path: Path):
    some, none = [volume(tmp_path, "a", [[4, 4, 4]])], [volume(tmp_path, "b", [])]
    with pytest.raises(UserError, match="validation volumes have no box"):
        anchor_shapes(some, none)
    skipped = [SkippedVolume("c.nii.gz", "has a box around (1, 2, 3) mm, which is not in the image", "correct it")]
    with pytest.raises(UserError, match=r"training volumes have no box \(1 were left out; c.nii.gz has a box around"):
        anchor_shapes(none, some, skipped=skipped)
