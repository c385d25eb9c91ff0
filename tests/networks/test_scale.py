# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch

from bundle.networks import build_encoder

RESIDUAL = {
    "SegResEncoder": {"init_filters": 8, "blocks_down": [1, 2, 1], "norm": ["instance", {"affine": True}]},
    "SegResEncoder, batch norm": {"init_filters": 8, "blocks_down": [1, 2, 1], "norm": "batch"},
    "SegResNetDS": {"init_filters": 8, "blocks_down": [1, 2, 1], "norm": ["instance", {"affine": True}]},
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 2, 1]},
    "MedNeXt": {
        "init_filters": 8,
        "blocks_down": [1, 1, 1, 1],
        "blocks_up": [1, 1, 1, 1],
        "use_residual_connection": True,
    },
}


def grown(name: str, arguments: dict):
    """An encoder whose stream has grown, as pre-training lets it, in evaluation."""
    torch.manual_seed(0)
    encoder = build_encoder(name.split(",", maxsplit=1)[0], **arguments).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
        encoder.train()
        encoder(images()[0])  # running statistics that fit
    return encoder.eval().requires_grad_(False)


def images():
    torch.manual_seed(1)
    return [torch.randn(2, 1, 32, 32, 32, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("name", RESIDUAL)
def test_features_get_unit_scale_and_stay_else_the_same(name):
    encoder = grown(name, RESIDUAL[name])
    before = encoder(images()[0])
    assert before[-1].std() > 1.5, "else there is nothing to do"
    weights = encoder.rescaled_state_dict(encoder.unit_factors(images()))
    assert weights.keys() == encoder.network_state_dict().keys()
    encoder.network.load_state_dict(encoder.network.state_dict() | weights)
    for image in images():
        for level in encoder(image):
            assert level.std() == pytest.approx(1, abs=0.1)
    for level, own in zip(encoder(images()[0]), before, strict=True):
        shape = own / own.std()
        # norms add 1e-5 to variances of about 1
        torch.testing.assert_close(level / level.std(), shape, rtol=0, atol=5e-3 * float(shape.abs().max()))


def test_the_encoder_itself_is_left_as_it_was():
    encoder = grown("SegResEncoder", RESIDUAL["SegResEncoder"])
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder.rescaled_state_dict(encoder.unit_factors(images()))
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert not encoder.training


def test_every_module_is_left_in_its_mode_though_an_image_does_not_fit():
    encoder = grown("SegResEncoder", RESIDUAL["SegResEncoder"]).train()
    frozen = next(encoder.network.children()).eval()
    before = [module.training for module in encoder.modules()]
    encoder.unit_factors(images())
    assert [module.training for module in encoder.modules()] == before and not frozen.training
    with pytest.raises(RuntimeError):
        encoder.unit_factors([torch.zeros(1, 2, 32, 32, 32, dtype=torch.float64)])
    assert [module.training for module in encoder.modules()] == before


def test_a_network_whose_levels_end_in_norms_keeps_its_weights():
    arguments = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [8, 16, 32]}
    encoder = grown("DynUNet", arguments)
    weights = encoder.rescaled_state_dict(encoder.unit_factors(images()))
    assert all(torch.equal(value, weights[key]) for key, value in encoder.network_state_dict().items())
