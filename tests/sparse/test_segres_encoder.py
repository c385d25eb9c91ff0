# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""MONAI's SegResEncoder, unmodified, on sparse volumes."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets.segresnet_ds import SegResEncoder

from bundle.sparse import SparseVolume

NORMS = ["batch", "instance", ("group", {"num_groups": 4})]


def encoder(norm) -> SegResEncoder:
    torch.manual_seed(0)
    return SegResEncoder(init_filters=4, blocks_down=(1, 2, 1, 1, 1), norm=norm).double()


def masked_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    visible = torch.rand(2, 1, 3, 2, 2, generator=generator) > 0.5
    visible[1, 0, 0] = False  # fewer cells than the first sample
    assert visible[0].sum() != visible[1].sum()
    return torch.randn(2, 1, 48, 32, 32, dtype=torch.float64, generator=generator), visible


def features_and_gradients(norm, executor):
    network, (image, visible) = encoder(norm), masked_batch()
    features = [f.to_dense() for f in network(SparseVolume.from_dense(image, visible, executor))]
    generator = torch.Generator().manual_seed(4)
    sum((f * torch.randn(f.shape, dtype=f.dtype, generator=generator)).sum() for f in features).backward()
    return features, {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_cells_equal_the_masked_reference_in_features_and_every_gradient(norm):
    features, gradients = features_and_gradients(norm, "cells")
    expected_features, expected_gradients = features_and_gradients(norm, "masked")
    for a, b in zip(features, expected_features):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()
    for name, b in expected_gradients.items():
        assert (gradients[name] - b).abs().max() <= 1e-12 * b.abs().max(), name


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("executor", sorted(SparseVolume.executors))
def test_with_everything_visible_it_is_the_dense_network(norm, executor):
    image, visible = masked_batch()
    sparse = encoder(norm)(SparseVolume.from_dense(image, torch.ones_like(visible), executor))
    for a, b in zip(sparse, encoder(norm)(image)):
        torch.testing.assert_close(a.to_dense(), b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("executor", sorted(SparseVolume.executors))
def test_masked_voxels_change_no_feature_bit_for_bit(executor):
    image, visible = masked_batch()
    hidden = ~visible.repeat_interleave(16, 2).repeat_interleave(16, 3).repeat_interleave(16, 4)
    changed = torch.where(hidden, torch.randn_like(image) * 1e6, image)
    network = encoder("instance")
    for a, b in zip(*(network(SparseVolume.from_dense(x, visible, executor)) for x in (image, changed))):
        assert torch.equal(a.to_dense(), b.to_dense())


def test_running_statistics_agree_between_executors():
    image, visible = masked_batch()
    networks = []
    for executor in ("cells", "masked"):
        networks.append(encoder("batch"))
        networks[-1](SparseVolume.from_dense(image, visible, executor))
    for (name, a), (_, b) in zip(*(n.state_dict().items() for n in networks)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("executor", sorted(SparseVolume.executors))
def test_half_precision_autocast_stays_near_float32_forward_and_backward(executor, dtype):
    image, visible = masked_batch()
    networks = [encoder("instance").float() for _ in range(2)]
    volume = SparseVolume.from_dense(image.float(), visible, executor)
    exact = networks[0](volume)[-1].to_dense()
    with torch.autocast("cpu", dtype=dtype):
        rough = networks[1](volume)[-1]
    assert rough.dtype == dtype
    assert (rough.to_dense() - exact).abs().mean() < 0.05 * exact.abs().mean()
    weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(4))
    for output in (exact, rough.to_dense().float()):
        (output * weights).sum().backward()
    gradients = [torch.cat([p.grad.flatten() for p in net.parameters()]) for net in networks]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.95


def test_a_metatensor_is_taken_as_its_plain_tensor():
    image, visible = masked_batch()
    network = encoder("instance")
    features = network(SparseVolume.from_dense(MetaTensor(image), visible))
    assert torch.equal(features[-1].to_dense(), network(SparseVolume.from_dense(image, visible))[-1].to_dense())
    assert type(features[-1].features) is torch.Tensor
