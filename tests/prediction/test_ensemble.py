# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from bundle.errors import UserError
from bundle.prediction import MeanProbability, pick_mirrors


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
    found = MeanProbability(both, mirror_axes=axes)(image)
    assert torch.allclose(found, torch.stack(probabilities).mean(0), atol=1e-6)


def test_one_network_without_mirrors_is_its_softmax_and_its_image_stays():
    network, image = networks()[0], torch.rand(1, 2, 4, 4, 4)
    before = image.clone()
    assert torch.equal(MeanProbability([network])(image), network(image).softmax(1)) and torch.equal(image, before)


def test_outputs_that_are_no_volumes_are_not_mirrored_back():
    class Findings(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x[:, :, 0].mean((2, 3)), x]  # of deep supervision, the first counts

    image = torch.rand(2, 3, 4, 4, 4)
    found = MeanProbability([Findings()], mirror_axes=[0], activation="sigmoid")(image)
    ends = [image[:, :, end].mean((2, 3)).sigmoid() for end in (0, -1)]
    assert torch.allclose(found, (ends[0] + ends[1]) / 2)


def test_mirrors_are_those_of_training_unless_told_otherwise():
    assert pick_mirrors("auto", [0, 2]) == pick_mirrors(True, [0, 2]) == [0, 2]
    assert pick_mirrors(False, [0, 2]) == pick_mirrors("auto", []) == []
    with pytest.raises(UserError, match="training showed no mirror images"):
        pick_mirrors(True, [])
    with pytest.raises(UserError, match="--mirrors 'all' is not known: choose"):
        pick_mirrors("all", [0])
