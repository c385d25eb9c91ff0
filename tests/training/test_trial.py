# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What an experiment measures after its last step. Whole volumes are tested with scripts/studies/recipe.py."""

from __future__ import annotations

import math

import pytest
import torch

from bundle.errors import UserError
from bundle.training.trial import class_means, dice, hausdorff95


def block(first: int, value: int = 1) -> torch.Tensor:
    voxels = torch.zeros(24, 12, 12, dtype=torch.uint8)
    voxels[first : first + 8, 3:9, 3:9] = value
    return voxels


def test_a_block_that_is_moved_lies_as_many_millimetres_away():
    found = hausdorff95(block(9), block(4), 1, torch.tensor([0.5, 2.0, 2.0]))
    assert found == [pytest.approx(5 * 0.5)]
    assert hausdorff95(block(4), block(4), 1, torch.ones(3)) == [0.0]


def test_a_class_that_one_of_the_two_lacks_is_a_diagonal_away_and_none_if_both_do():
    spacing = torch.tensor([1.0, 1.0, 2.0])
    found = hausdorff95(block(4, 1), block(4, 2), 3, spacing)
    diagonal = (24**2 + 12**2 + 24**2) ** 0.5
    assert found == pytest.approx([diagonal, diagonal, math.nan], nan_ok=True)


def test_a_class_that_neither_has_has_no_dice_and_a_missed_or_invented_one_0():
    assert dice(block(4, 1), block(4, 2), 3) == pytest.approx([0, 0, math.nan], nan_ok=True)
    assert dice(block(4), block(8), 1) == [pytest.approx(2 * 4 / (8 + 8))]


def test_means_of_classes_leave_out_volumes_without_a_value():
    assert class_means([[0.5, math.nan], [math.nan, 0.0], [0.7, 0.25]]) == [0.6, 0.125]
    with pytest.raises(UserError, match="class 2 is in none of 2 test volumes, nor predicted: leave it out"):
        class_means([[0.5, math.nan], [0.7, math.nan]])
