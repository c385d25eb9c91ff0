# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bundle.errors import UserError
from bundle.transfer import Transfer
from bundle.transfer.perturb import shrink_and_perturb
from tests.export.models import write_model
from tests.networks.encoder_cases import Case
from tests.transfer.test_transfer import SEGRES, segresnet


def transferred(tmp_path: Path, **more) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], nn.Module]:
    """What the network had before, what the file has, and the network after."""
    path, _ = write_model(tmp_path, Case("SegResEncoder", SEGRES, ()))
    network = segresnet()
    fresh = {key: value.clone() for key, value in network.state_dict().items()}
    Transfer(network, path, encoder={"name": "SegResEncoder", **SEGRES}, **more)
    return fresh, torch.load(path, weights_only=True), network


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_convolutions_are_mixed_and_all_else_is_as_loaded_or_as_it_was(tmp_path: Path, share: float):
    fresh, given, network = transferred(tmp_path, perturb=share)
    for key, value in network.state_dict().items():
        loaded = given.get(key.removeprefix("encoder.")) if key.startswith("encoder.") else None
        if loaded is None:
            assert torch.equal(value, fresh[key]), key
        elif loaded.ndim < 2 or share == 0:
            assert torch.equal(value, loaded), key
        else:
            expected = (1 - share) * loaded + share * fresh[key] * (loaded.std() / fresh[key].std())
            assert torch.allclose(value, expected, atol=1e-6), key
            assert value.std().item() == pytest.approx(
                loaded.std().item() * ((1 - share) ** 2 + share**2) ** 0.5, rel=0.15
            )


def test_a_tensor_under_two_names_is_mixed_once():
    network = nn.Module()
    network.one = nn.Linear(20, 20, bias=False)
    network.other = network.one
    fresh = {key: value.clone() for key, value in network.state_dict().items()}
    nn.init.normal_(network.one.weight)
    loaded = network.one.weight.detach().clone()
    shrink_and_perturb(network, fresh, ["one.weight", "other.weight"], 0.5)
    start = fresh["one.weight"]
    assert torch.allclose(network.one.weight, 0.5 * loaded + 0.5 * start * (loaded.std() / start.std()), atol=1e-6)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: float):
    with pytest.raises(UserError, match=f"--transfer#perturb {share} does not fit"):
        transferred(tmp_path, perturb=share)
