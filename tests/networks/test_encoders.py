# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch
from monai.networks.nets.segresnet_ds import SegResEncoder, SegResNetDS

from bundle.errors import UserError
from bundle.networks import build_encoder


@pytest.mark.parametrize("scales", [None, ((2, 2, 1), (2, 2, 2), (1, 1, 1))])
def test_levels_tell_the_channels_and_strides_of_the_features(scales):
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1), anisotropic_scales=scales)
    features = encoder(torch.randn(1, 1, 16, 16, 16))
    assert len(features) == len(encoder.levels)
    for level, feature in zip(encoder.levels, features):
        assert feature.shape[1] == level.channels
        assert tuple(16 // s for s in feature.shape[2:]) == level.stride
    assert encoder.total_stride == encoder.levels[-1].stride


def test_the_network_is_monais_own_with_its_own_keys_and_weights():
    torch.manual_seed(0)
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1))
    torch.manual_seed(0)
    plain = SegResEncoder(init_filters=4, blocks_down=(1, 1))
    assert type(encoder.network) is SegResEncoder
    for (key, a), (plain_key, b) in zip(encoder.network.state_dict().items(), plain.state_dict().items(), strict=True):
        assert key == plain_key and torch.equal(a, b)


def test_its_weights_load_strictly_into_the_segmentation_network():
    arguments = dict(init_filters=4, blocks_down=(1, 1, 1), norm=("instance", {"affine": True}))
    encoder = build_encoder("SegResEncoder", **arguments)
    SegResNetDS(out_channels=2, **arguments).encoder.load_state_dict(encoder.network.state_dict(), strict=True)


def test_a_misspelt_name_suggests_the_right_one():
    with pytest.raises(UserError, match="did you mean 'SegResEncoder'"):
        build_encoder("SegResEncodr")


def test_an_argument_the_network_does_not_take_is_named():
    with pytest.raises(UserError, match="filters"):
        build_encoder("SegResEncoder", filters=3)
