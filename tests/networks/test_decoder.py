# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch

from bundle.errors import UserError
from bundle.networks import Decoder, Level
from bundle.networks.decoder import Densify
from bundle.sparse import SparseVolume

LEVELS = [Level(4, (1, 1, 1)), Level(8, (2, 2, 1)), Level(16, (4, 4, 2))]


def features(visible: torch.Tensor) -> list[SparseVolume]:
    shapes = [(visible.shape[0], level.channels, *(16 // s for s in level.stride)) for level in LEVELS]
    return [SparseVolume.from_dense(torch.randn(shape), visible) for shape in shapes]


def test_densify_puts_the_token_in_the_holes_and_projected_features_elsewhere():
    visible = torch.rand(2, 1, 4, 4, 8) > 0.5
    densify = Densify(16, 5)
    dense = densify(features(visible)[-1]).permute(0, 2, 3, 4, 1)
    assert (dense[~visible[:, 0]] == densify.mask_token).all()
    assert not (dense[visible[:, 0]] == densify.mask_token).all(1).any()


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_it_reconstructs_the_whole_crop_from_any_of_its_levels(stride: int):
    decoder = Decoder(levels=LEVELS, width=8, stride=stride, channels=2)
    assert decoder(features(torch.rand(2, 1, 4, 4, 8) > 0.5)).shape == (2, 2, 16, 16, 16)


def test_a_sites_channels_become_its_own_voxels():
    decoder = Decoder(levels=LEVELS, width=8, stride=2)
    x = torch.arange(4.0).view(1, 4, 1, 1, 1) + 10 * torch.arange(3.0)  # four voxels per site, three sites in a row
    voxels = decoder._voxels(x)
    assert voxels.shape == (1, 1, 2, 2, 3)
    assert voxels[0, 0, :, :, 1].flatten().tolist() == [10, 11, 12, 13]


def test_a_stride_the_encoder_lacks_names_those_it_has():
    with pytest.raises(UserError, match="choose one of 1, 2, 4"):
        Decoder(levels=LEVELS, stride=8)
