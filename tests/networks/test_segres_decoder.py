# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch
from monai.networks import nets

from bundle.errors import UserError
from bundle.networks import PretrainingNetwork, SegResDecoder, build_encoder
from bundle.sparse import CellLayout, SparseVolume
from bundle.weights import without_reconstruction

NORMS = {"instance": ["instance", {"affine": True}], "batch": "batch", "group": ["group", {"num_groups": 2}]}


def built(norm: str = "instance", **more) -> PretrainingNetwork:
    """A network in float64 and evaluation, with scales that have grown apart, as in pre-training."""
    torch.manual_seed(0)
    arguments = {"init_filters": 4, "blocks_down": [1, 2, 1], "norm": NORMS[norm], **more}
    encoder = build_encoder("SegResEncoder", **arguments)
    net = PretrainingNetwork(encoder=encoder, decoder=SegResDecoder(encoder=encoder)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
        run(net.train(), image(), cells(net, 1))
    return net.eval().requires_grad_(False)


def image(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 1, 16, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cells(net: PretrainingNetwork, share: float) -> torch.Tensor:
    grid = [16 // step for step in net.encoder.total_stride]
    return torch.rand(2, 1, *grid, generator=torch.Generator().manual_seed(2)) < share


def run(net: PretrainingNetwork, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    return net(x, visible=visible, hidden=~visible, spacing=torch.ones(2, 3))["reconstruction"]


def plain(net: PretrainingNetwork, **more) -> nets.SegResNetDS:
    """MONAI's own network with these weights."""
    settings = {key: value for key, value in net.encoder.settings.items() if key != "name"}
    whole = nets.SegResNetDS(**settings, out_channels=1, **more).double()
    weights = {f"encoder.{key}": value for key, value in net.encoder.network_state_dict().items()}
    up = {key: value for key, value in net.decoder.state_dict().items() if key.startswith("up_layers.")}
    assert whole.load_state_dict({**whole.state_dict(), **weights, **up})
    return whole.eval().requires_grad_(False)


@pytest.mark.parametrize("norm", NORMS)
def test_where_nothing_is_hidden_it_is_monais_own_network(norm: str):
    net = built(norm)
    torch.testing.assert_close(run(net, image(), cells(net, 1)), plain(net)(image()), rtol=1e-10, atol=1e-10)


def test_hidden_voxels_change_nothing_and_tokens_stand_in_their_place():
    net = built()
    visible = cells(net, 0.5)
    hidden = torch.nn.functional.interpolate((~visible).double(), scale_factor=net.encoder.total_stride) > 0
    reconstruction = run(net, image(), visible)
    assert torch.equal(reconstruction, run(net, torch.where(hidden, 99.0, image()), visible))
    for token in net.decoder.mask_tokens:
        token.add_(1)
    assert not torch.equal(reconstruction, run(net, image(), visible))


def test_features_given_dense_with_tokens_by_hand_give_the_same():
    net = built()
    visible = cells(net, 0.5)
    features = net.encoder(SparseVolume.from_dense(image(), CellLayout(visible)))
    filled = []
    for level, token in zip(features, net.decoder.mask_tokens, strict=True):
        size = level.to_dense().shape[2:]
        seen = torch.nn.functional.interpolate(visible.double(), size=size) > 0
        filled.append(torch.where(seen, level.to_dense(), token.view(1, -1, 1, 1, 1)))
    whole = plain(net)
    whole.encoder.forward = lambda _: list(filled)
    torch.testing.assert_close(run(net, image(), visible), whole(image()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("norm", NORMS)
def test_exported_with_the_encoder_at_unit_scale_the_last_features_differ_by_a_factor_alone(norm: str):
    net = built(norm)
    images = [image(seed) for seed in (3, 4)]
    factors = net._encoder_for(images).unit_factors(images)
    assert max(factors) / min(factors) > 2, "else there is nothing to do"
    before, after = plain(net), plain(net)
    before.encoder.load_state_dict(net._encoder_for(images).network_state_dict())
    weights = {f"encoder.{key}": value for key, value in net.encoder_state_dict(images).items()}
    decoder = without_reconstruction(net.decoder_state_dict(images))
    assert decoder.keys() == {key for key in after.state_dict() if key.startswith("up_layers.") and "head" not in key}
    after.load_state_dict(after.state_dict() | weights | decoder)
    for network in (before, after):
        network.up_layers[-1]["head"] = torch.nn.Identity()
    wanted, found = before(image(5)) * factors[0], after(image(5))
    # norms add 1e-5 to variances of about 1
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("norm", NORMS)
def test_exported_weights_reconstruct_as_the_network_that_they_are_of(norm: str):
    net = built(norm)
    for token in net.decoder.mask_tokens:
        torch.nn.init.normal_(token)
    images, visible = [image(seed) for seed in (3, 4)], cells(net, 0.5)
    again = built(norm)
    again.encoder.network.load_state_dict(again.encoder.network.state_dict() | net.encoder_state_dict(images))
    again.decoder.load_state_dict(net.decoder_state_dict(images))
    wanted = net._encoder_for(images)  # BatchNorm's statistics are estimated anew
    net.encoder.load_state_dict(wanted.state_dict())
    found, wanted = run(again, image(5), visible), run(net, image(5), visible)
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("norm", NORMS)
def test_one_look_at_the_images_gives_the_weights_of_both(norm: str, monkeypatch: pytest.MonkeyPatch):
    net, looks = built(norm), []
    images = [image(seed) for seed in (3, 4)]
    encoder = net._encoder_for(images)
    factors = encoder.unit_factors(images)
    wanted = encoder.rescaled_state_dict(factors), net.decoder.rescaled_state_dict(factors)
    forward = type(encoder).forward
    monkeypatch.setattr(type(encoder), "forward", lambda self, x, *more: looks.append(1) or forward(self, x, *more))
    found = net.products(images)
    assert len(looks) == (4 if norm == "batch" else 2), "BatchNorm's statistics, and the scale"
    for weights, own in zip(found, wanted, strict=True):
        assert weights.keys() == own.keys() and all(torch.equal(weights[key], own[key]) for key in own)


def test_another_decoder_gives_no_weights_to_go_with_the_encoder():
    net = built()
    net.decoder = torch.nn.Identity()
    assert net.decoder_state_dict() == {}


def test_every_parameter_learns():
    net = built().train().requires_grad_(True)
    run(net, image(), cells(net, 0.5)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.decoder.parameters())


def test_it_is_the_decoder_of_no_other_encoder():
    with pytest.raises(UserError, match="is the other half of a SegResEncoder, not of SegResNet: choose that encoder"):
        SegResDecoder(encoder=build_encoder("SegResNet", init_filters=8, blocks_down=[1, 1]))
