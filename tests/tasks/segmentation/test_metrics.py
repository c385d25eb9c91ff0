# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, from_engine
from monai.transforms import AsDiscreted, Compose
from torch import Tensor

from bundle.tasks.segmentation import SurfaceDistanceInMm
from bundle.training import PerClass


def box(*slices: tuple[int, int], size: int = 12) -> Tensor:
    """A label map with a box of class 1."""
    label = torch.zeros(1, size, size, size)
    label[(0, *(slice(*bounds) for bounds in slices))] = 1
    return label


def evaluate(pairs: list[tuple[Tensor, Tensor]], spacing: tuple[float, ...], classes: int = 1) -> Engine:
    """Runs MONAI's evaluator on predictions that are handed through as images."""
    batches = [
        {"image": predicted[None], "label": label[None], "spacing": torch.tensor([spacing])}
        for predicted, label in pairs
    ]
    count = classes + 1
    outputs = from_engine(["pred", "label"])
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches,
        network=torch.nn.Identity(),
        postprocessing=Compose(AsDiscreted(keys=["pred", "label"], to_onehot=count)),
        key_val_metric={"dice": MeanDice(include_background=False, num_classes=count, output_transform=outputs)},
        additional_metrics={
            "mm": SurfaceDistanceInMm(include_background=False, symmetric=True, output_transform=outputs)
        },
        val_handlers=[PerClass(metric="dice", classes=["a", "b", "c"][:classes], name="dice")],
    )
    evaluator.run()
    return evaluator


def metrics(*arguments: Any, **more: Any) -> dict[str, float]:
    return dict(evaluate(*arguments, **more).state.metrics)


PLATE = box((0, 12), (4, 8), (0, 12))


@pytest.mark.filterwarnings("error:.*always_return_as_numpy")
def test_monai_does_not_warn_of_its_own_call():
    assert metrics([(PLATE, PLATE)], (1.0, 1.0, 1.0))["mm"] == 0


@pytest.mark.parametrize(("axis", "step"), [(0, 0.5), (1, 2.0), (2, 5.0)])
def test_the_distance_is_in_mm_along_each_axis(axis: int, step: float):
    bounds: list[tuple[int, int]] = [(0, 12)] * 3
    bounds[axis] = (6, 7)
    moved = list(bounds)
    moved[axis] = (8, 9)
    # every voxel of either plate is 2 voxels from the other one
    assert metrics([(box(*moved), box(*bounds))], (0.5, 2.0, 5.0))["mm"] == pytest.approx(2 * step)


def test_volumes_of_different_spacing_and_size_count_alike():
    small = (box((2, 3), (0, 8), (0, 8), size=8), box((3, 4), (0, 8), (0, 8), size=8))
    same = (PLATE, PLATE)
    assert metrics([small, same], (3.0, 1.0, 1.0))["mm"] == pytest.approx(1.5)


def test_a_class_that_one_of_the_two_lacks_has_no_distance():
    empty = torch.zeros_like(PLATE)
    assert metrics([(empty, PLATE), (PLATE, PLATE), (PLATE, empty)], (1.0, 1.0, 1.0))["mm"] == 0.0
    assert math.isnan(metrics([(empty, PLATE)], (1.0, 1.0, 1.0))["mm"])


def test_each_class_has_its_mean_over_the_volumes_that_have_it():
    half, other = box((0, 6), (4, 8), (0, 12)), 2 * PLATE
    found = metrics([(half, PLATE), (PLATE, PLATE), (other, other)], (1.0, 1.0, 1.0), classes=3)
    # 2 * |half| / (|half| + |plate|) = 2/3
    assert found["dice/a"] == pytest.approx((2 / 3 + 1) / 2) and found["dice/b"] == pytest.approx(1)
    assert "dice/c" not in found
