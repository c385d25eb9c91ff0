# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Levels computed again in the backward pass give what they gave, and keep less."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bundle.networks import build_encoder
from bundle.sparse import SparseVolume


def encoder(norm: str) -> nn.Module:
    torch.manual_seed(0)
    return build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 2, 1), norm=norm).double()


def volume() -> SparseVolume:
    generator = torch.Generator().manual_seed(1)
    visible = torch.rand(2, 1, 3, 3, 3, generator=generator) > 0.5
    return SparseVolume.from_dense(torch.randn(2, 1, 12, 12, 12, dtype=torch.float64, generator=generator), visible)


def total(features: list[SparseVolume]) -> torch.Tensor:
    return sum(f.features.square().sum() for f in features)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_features_gradients_and_running_statistics_stay(norm: str, levels: int):
    plain, spare = encoder(norm), encoder(norm)
    kept, recomputed = plain(volume()), spare(volume(), recompute=levels)
    for a, b in zip(kept, recomputed, strict=True):
        assert torch.equal(a.features, b.features)
    total(kept).backward()
    total(recomputed).backward()
    for (name, a), b in zip(plain.named_parameters(), spare.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.state_dict().items(), spare.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert all(m.momentum == 0.1 for m in spare.modules() if isinstance(m, nn.BatchNorm3d))


def test_it_keeps_less_for_the_backward_pass():
    def kept_bytes(levels: int) -> int:
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t, lambda t: t
        ):
            features = encoder("instance")(volume(), recompute=levels)
        return sum(kept.values()) if features else 0

    assert kept_bytes(3) < 0.5 * kept_bytes(0)
