# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Networks of published depth, by name, exact in float64: what small ones might hide adds up over many layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bundle.networks import build_encoder
from bundle.sparse import SparseVolume

NETWORKS: dict[str, dict[str, Any]] = {
    "ResNet": {
        "block": "bottleneck",
        "layers": [3, 4, 6, 3],
        "block_inplanes": [8, 16, 32, 64],  # ResNet 50's depth at an eighth of its width
        "conv1_t_stride": 2,
    },
    "DenseNet121": {"init_features": 16, "growth_rate": 8},  # its depth at a quarter of its growth
    "SEResNet50": {},
}


def features_and_gradients(name: str, executor: str) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    # norms with their running statistics: over the few sites of so small a batch some channels hardly vary, and a norm
    # that divides by such a deviation blows up rounding without bound, in the dense network just as here
    encoder = build_encoder(name, **NETWORKS[name]).double().eval()
    generator = torch.Generator().manual_seed(1)
    size = [2 * s for s in encoder.total_stride]
    image = torch.randn(1, 1, *size, dtype=torch.float64, generator=generator)
    visible = torch.rand(1, 1, 2, 2, 2, generator=generator) > 0.5
    features = [f.to_dense() for f in encoder(SparseVolume.from_dense(image, visible, executor))]
    loss = sum((f * torch.randn(f.shape, dtype=f.dtype, generator=generator)).sum() for f in features)
    loss.backward()
    gradients = {key: p.grad for key, p in encoder.named_parameters() if p.requires_grad}
    return [f.detach() for f in features], gradients


@pytest.mark.parametrize("name", NETWORKS)
def test_cells_equal_the_masked_reference(name: str):
    features, gradients = features_and_gradients(name, "cells")
    expected_features, expected = features_and_gradients(name, "masked")
    for a, b in zip(features, expected_features, strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()
    scale = max(gradient.abs().max() for gradient in expected.values())
    for key, b in expected.items():
        # rounding grows with depth; a gradient that is zero but for rounding is held to the network's scale
        assert (gradients[key] - b).abs().max() <= 1e-11 * b.abs().max().clamp(min=1e-2 * scale), key
