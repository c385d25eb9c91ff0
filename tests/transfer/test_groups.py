# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import re

import pytest
from monai.networks import nets
from torch.optim import AdamW

from bundle.errors import UserError
from bundle.transfer import Transfer, layer_wise_groups

ARGUMENTS = {"init_filters": 4, "blocks_down": [1, 1, 1], "norm": ["instance", {"affine": True}]}

DYNUNET = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 4, 8]}


def transfer(schedule: str = "full") -> Transfer:
    network = nets.SegResNetDS(out_channels=2, **ARGUMENTS)
    return Transfer(network, None, encoder={"name": "SegResEncoder", **ARGUMENTS}, schedule=schedule)


def settings_of(made: Transfer, **options) -> dict[str, dict]:
    """Each parameter's group, by the parameter's name."""
    by_id = {id(p): group for group in layer_wise_groups(made, **options) for p in group["params"]}
    return {name: by_id[id(p)] for name, p in made.network.named_parameters() if id(p) in by_id}


def test_rates_fall_by_a_factor_per_level_towards_the_image():
    groups = settings_of(transfer(), lr=0.1, encoder_factor=0.5, decay=0.8)
    rate = {name: group["lr"] for name, group in groups.items()}
    assert all(value == 0.1 for name, value in rate.items() if name.startswith("up_layers."))
    assert any(name.startswith("up_layers.") for name in rate)
    assert rate["encoder.layers.2.blocks.0.conv1.weight"] == pytest.approx(0.1 * 0.5)
    assert rate["encoder.layers.1.blocks.0.conv1.weight"] == pytest.approx(0.1 * 0.5 * 0.8)
    assert rate["encoder.layers.1.downsample.weight"] == pytest.approx(0.1 * 0.5)
    assert rate["encoder.conv_init.weight"] == pytest.approx(0.1 * 0.5 * 0.8**2)


def test_every_parameter_is_in_one_group_and_norms_and_biases_do_not_decay():
    made = transfer()
    groups = layer_wise_groups(made, lr=0.1, weight_decay=0.3)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(made.network.parameters()))
    for group in groups:
        assert all((parameter.ndim > 1) == (group["weight_decay"] == 0.3) for parameter in group["params"])
        assert group["weight_decay"] in (0.0, 0.3)
    assert groups[0]["part"] == "rest" and groups[0]["lr"] == 0.1  # whose rate is logged
    AdamW(groups, lr=0.1)


def test_groups_tell_the_encoder_from_the_rest():
    for name, group in settings_of(transfer(), lr=0.1).items():
        assert (group["part"] == "encoder") == name.startswith("encoder."), name


def test_frozen_leaves_the_encoder_out():
    groups = settings_of(transfer("frozen"), lr=0.1)
    assert groups and not any(name.startswith("encoder.") for name in groups)


@pytest.mark.parametrize(
    ("network", "encoder", "heads"),
    [
        (nets.SegResNetDS(out_channels=2, dsdepth=2, **ARGUMENTS), {"name": "SegResEncoder", **ARGUMENTS}, "head"),
        (
            nets.DynUNet(spatial_dims=3, in_channels=1, out_channels=2, deep_supervision=True, **DYNUNET),
            {"name": "DynUNet", **DYNUNET},
            "output_block|heads",
        ),
        (
            nets.FlexibleUNet(1, 2, "resnet10", pretrained=False, decoder_channels=(8, 8, 8, 8, 8), spatial_dims=3),
            {"name": "ResNetFeatures", "model_name": "resnet10", "in_channels": 1},
            "segmentation_head",
        ),
    ],
)
def test_heads_may_have_a_rate_of_their_own(network, encoder, heads: str):
    made = Transfer(network, None, encoder=encoder)
    for name, group in settings_of(made, lr=0.1, encoder_factor=0.5, head_factor=10).items():
        is_head = re.search(heads, name) is not None
        assert group["lr"] == pytest.approx(1.0 if is_head else 0.05 if group["part"] == "encoder" else 0.1), name
    assert any(group["lr"] == 1 for group in layer_wise_groups(made, lr=0.1, head_factor=10))
    assert layer_wise_groups(made, lr=0.1, head_factor=10)[0]["lr"] == 0.1  # whose rate is logged


@pytest.mark.parametrize(
    "options", [{"decay": 0.0}, {"decay": 1.1}, {"encoder_factor": 0}, {"encoder_factor": -1}, {"head_factor": 0}]
)
def test_factors_that_do_not_fit_are_one_line(options: dict):
    with pytest.raises(UserError, match=r"--layer_decay .* --encoder_lr_factor .* or --head_lr_factor .* does not fit"):
        layer_wise_groups(transfer(), lr=0.1, **options)
