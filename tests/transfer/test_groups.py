# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
from monai.networks import nets
from torch.optim import AdamW

from bundle.errors import UserError
from bundle.transfer import Transfer, layer_wise_groups

ARGUMENTS = {"init_filters": 4, "blocks_down": [1, 1, 1], "norm": ["instance", {"affine": True}]}


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


@pytest.mark.parametrize("options", [{"decay": 0.0}, {"decay": 1.1}, {"encoder_factor": 0}, {"encoder_factor": -1}])
def test_factors_that_do_not_fit_are_one_line(options: dict):
    with pytest.raises(UserError, match=r"--layer_decay .* or --encoder_lr_factor .* does not fit"):
        layer_wise_groups(transfer(), lr=0.1, **options)
