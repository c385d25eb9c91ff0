# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import itertools

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from bundle.errors import UserError
from bundle.prediction import LogMeanProbability, pick_mirrors


def networks() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Conv3d(2, 3, 3, padding=1) for _ in range(2)]


@pytest.mark.parametrize("axes", [[], [1], [0, 2], [0, 1, 2]])
def test_the_mean_is_over_networks_and_all_mirror_images(axes: list[int]):
    both, image = networks(), torch.rand(2, 2, 5, 6, 7)
    probabilities = []
    for network, bits in itertools.product(both, itertools.product([False, True], repeat=len(axes))):
        dims = [axis + 2 for axis, bit in zip(axes, bits, strict=True) if bit]
        probabilities.append(torch.softmax(network(image.flip(dims)), 1).flip(dims))
    assert len(probabilities) == 2 * 2 ** len(axes)
    found = LogMeanProbability(both, mirror_axes=axes)(image).exp()
    assert torch.allclose(found, torch.stack(probabilities).mean(0), atol=1e-6)


def test_windows_of_one_network_average_its_logits_and_its_image_stays():
    network, image = networks()[0], torch.rand(1, 2, 12, 6, 6)
    before = image.clone()
    window = {"roi_size": (6, 6, 6), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
    found = sliding_window_inference(image, predictor=LogMeanProbability([network]), **window).softmax(1)
    expected = sliding_window_inference(image, predictor=network, **window).softmax(1)
    assert torch.allclose(found, expected, atol=1e-6) and torch.equal(image, before)
    averaged = sliding_window_inference(image, predictor=lambda x: network(x).softmax(1), **window)
    assert not torch.allclose(averaged, expected, atol=1e-6), "else this test shows nothing"


def test_of_several_outputs_the_first_counts_and_no_probability_is_lost():
    class Sure(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [1000 * x, x]  # a probability of 0 in float32, whose logarithm is not finite

    image = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1)
    found = LogMeanProbability([Sure()])(image)
    assert found.flatten().tolist() == [0.0, -2000.0]


def test_mirrors_are_those_of_training_unless_told_otherwise():
    assert pick_mirrors("auto", [0, 2]) == pick_mirrors(True, [0, 2]) == [0, 2]
    assert pick_mirrors(False, [0, 2]) == pick_mirrors("auto", []) == []
    with pytest.raises(UserError, match="training showed no mirror images"):
        pick_mirrors(True, [])
    with pytest.raises(UserError, match="--mirrors 'all' is not known: choose"):
        pick_mirrors("all", [0])
