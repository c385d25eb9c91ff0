# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What an experiment measures after its last step. Dice is tested with scripts/studies/recipe.py."""

from __future__ import annotations

import pytest
import torch

from bundle.training.trial import hausdorff95


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
    assert found == [pytest.approx(diagonal), pytest.approx(diagonal), 0.0]
