# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Pooling, on every executor, against loops over windows and formulas on the gathered visible rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.blocks import ChannelSELayer
from torch import nn

from bundle.sparse import SparseVolume, UnsupportedOperation
from tests.sparse.examples import CELL_SHAPE, EXECUTORS, example, run, visible_rows
from tests.sparse.oracle import pool, site_mask

WINDOWS = {
    "side by side": dict(kernel_size=2),
    "overlapping": dict(kernel_size=3, stride=2, padding=1),
    "overlapping, in ceil mode": dict(kernel_size=3, stride=2, ceil_mode=True),
    "every site": dict(kernel_size=3, stride=1, padding=1),
    "anisotropic": dict(kernel_size=(3, 1, 2), stride=(2, 1, 2), padding=(1, 0, 0)),
    "wider than a block": dict(kernel_size=(5, 5, 5), stride=(4, 2, 4), padding=(2, 2, 2)),
    "subsampling": dict(kernel_size=1, stride=2),
}
every_window = pytest.mark.parametrize("arguments", WINDOWS.values(), ids=WINDOWS)


def geometry(arguments: dict) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride and padding per axis."""
    kernel, padding = arguments["kernel_size"], arguments.get("padding", 0)
    stride = arguments.get("stride", kernel)
    return tuple([v] * 3 if isinstance(v, int) else list(v) for v in (kernel, stride, padding))


def padded_mask(visible: torch.Tensor, padding: list[int], value: bool) -> np.ndarray:
    mask = site_mask(visible, CELL_SHAPE).numpy()
    mask = np.pad(mask, [(0, 0), *((p, p) for p in padding)], constant_values=value)
    return np.pad(mask, [(0, 0)] + [(0, 5)] * 3)  # what a last window in ceil mode may reach


@every_window
def test_max_pooling_ignores_absent_sites(executor, arguments):
    image, visible = example()
    image = image - 3  # all below zero: an absent site taken for a zero would win
    kernel, stride, padding = geometry(arguments)
    out_mask = site_mask(visible, tuple(b // s for b, s in zip(CELL_SHAPE, stride))).numpy()
    largest = lambda values: values.max(0)  # noqa: E731
    expected = pool(image.numpy(), padded_mask(visible, padding, False), out_mask, kernel, stride, padding, largest)
    assert np.array_equal(run(nn.MaxPool3d(**arguments), image, visible, executor).numpy(), expected)


@pytest.mark.parametrize("include", [True, False])
@every_window
def test_average_pooling_divides_by_the_sites_that_are_not_masked(executor, arguments, include):
    image, visible = example()
    kernel, stride, padding = geometry(arguments)
    out_mask = site_mask(visible, tuple(b // s for b, s in zip(CELL_SHAPE, stride))).numpy()
    mean = lambda values: values.mean(0)  # noqa: E731
    expected = pool(image.numpy(), padded_mask(visible, padding, include), out_mask, kernel, stride, padding, mean)
    out = run(nn.AvgPool3d(**arguments, count_include_pad=include), image, visible, executor)
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", [nn.MaxPool3d, nn.AvgPool3d])
def test_windows_as_wide_as_their_stride_still_cross_cells_if_they_are_padded(executor, layer):
    visible = torch.tensor([True, True, False, True]).view(1, 1, 4, 1, 1)
    image = torch.arange(12.0).view(1, 1, 12, 1, 1) + 1
    out = run(layer((3, 1, 1), (3, 1, 1), (1, 0, 0)), image, visible, executor).flatten().tolist()
    # windows start one site before their cell: [pad, 1, 2] [3, 4, 5] [6, absent, absent] [absent, 10, 11]
    expected = [2, 5, 0, 11] if layer is nn.MaxPool3d else [1, 4, 0, 10.5]
    assert out == expected


@pytest.mark.parametrize("layer", [nn.MaxPool3d, nn.AvgPool3d])
@every_window
def test_with_everything_visible_pooling_is_the_dense_layer(executor, layer, arguments):
    image, visible = example()
    layer = layer(**arguments)
    out = run(layer, image, torch.ones_like(visible), executor)
    torch.testing.assert_close(out, layer(image), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", [nn.MaxPool3d, nn.AvgPool3d])
@every_window
def test_pooling_gradients_are_right_by_finite_differences(executor, layer, arguments):
    image, visible = example(channels=1)
    forward = lambda x: run(layer(**arguments), x, visible, executor)  # noqa: E731
    assert torch.autograd.gradcheck(forward, image.requires_grad_(), fast_mode=True)


def test_a_divisor_of_ones_own_divides_the_sum_of_visible_sites(executor):
    image, visible = example()
    out = run(lambda x: F.avg_pool3d(x, 2, divisor_override=5), image, visible, executor)
    mask = site_mask(visible, (2, 1, 2))[:, None]
    torch.testing.assert_close(out, torch.where(mask, F.avg_pool3d(image, 2) * 8 / 5, 0.0))


def test_pooling_under_autocast_stays_near_full_precision(executor):
    image, visible = example()
    for layer in (nn.MaxPool3d(3, 2, 1), nn.AvgPool3d(3, 2, 1), nn.AvgPool3d(2)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = run(layer, image.bfloat16(), visible, executor)
        torch.testing.assert_close(out.double(), run(layer, image, visible, executor), rtol=0.02, atol=0.02)


def test_global_means_of_bfloat16_are_summed_in_float32(executor):
    visible = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
    volume = SparseVolume.from_dense(torch.ones(1, 1, 11, 11, 11).bfloat16(), visible, executor)
    assert volume.mean((2, 3, 4)).item() == 1  # 1331 is 1328 in bfloat16


def test_global_pooling_is_over_each_samples_visible_sites(executor):
    image, visible = example()
    image = image - 3
    volume = SparseVolume.from_dense(image, visible, executor)
    rows = [visible_rows(image, visible, sample) for sample in range(2)]
    mean, largest = (torch.stack([f(r) for r in rows]) for f in (lambda r: r.mean(0), lambda r: r.amax(0)))
    norm = torch.stack([r.square().sum(0).sqrt() for r in rows])
    for got, expected in (
        (F.adaptive_avg_pool3d(volume, 1)[..., 0, 0, 0], mean),
        (F.adaptive_max_pool3d(volume, 1)[..., 0, 0, 0], largest),
        (volume.mean((2, 3, 4)), mean),
        (torch.mean(volume, dim=(-3, -2, -1), keepdim=True)[..., 0, 0, 0], mean),
        (torch.norm(volume, p=2, dim=(-3, -2, -1)), norm),
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_global_pooling_of_a_sample_with_nothing_visible_is_zero_with_finite_gradients(executor):
    image, visible = example()
    visible[0] = False
    image.requires_grad_()
    volume = SparseVolume.from_dense(image, visible, executor)
    pooled = [F.adaptive_avg_pool3d(volume, 1), F.adaptive_max_pool3d(volume, 1), torch.norm(volume, dim=(2, 3, 4))]
    sum(p.sum() for p in pooled).backward()
    assert all((p[0] == 0).all() and (p[1] != 0).all() for p in pooled)
    assert image.grad.isfinite().all() and (image.grad[0] == 0).all()


def test_the_norm_of_a_channel_that_is_zero_everywhere_has_a_finite_gradient(executor):
    image, visible = example()
    image = (image * 0).requires_grad_()  # as after a ReLU that nothing passes
    torch.norm(SparseVolume.from_dense(image, visible, executor), dim=(2, 3, 4)).sum().backward()
    assert image.grad.isfinite().all()


def test_squeeze_and_excitation_weighs_channels_by_the_visible_mean(executor):
    image, visible = example()
    torch.manual_seed(0)
    layer = ChannelSELayer(spatial_dims=3, in_channels=4, add_residual=True).double()
    out = run(layer, image, visible, executor)
    for sample in range(2):
        rows = visible_rows(image, visible, sample)
        gate = layer.fc(rows.mean(0, keepdim=True))
        torch.testing.assert_close(visible_rows(out, visible, sample), rows * gate + rows, rtol=0, atol=1e-12)


def test_what_pooling_cannot_do_it_says(executor):
    volume = SparseVolume.from_dense(*example(), executor)
    for operation, message in (
        (lambda: F.max_pool3d(volume, 3, 1), "off its cells"),
        (lambda: F.max_pool3d(volume, 2, return_indices=True), "indices"),
        (lambda: F.adaptive_avg_pool3d(volume, 2), "single site"),
        (lambda: volume.mean(2), "over all spatial"),
        (lambda: torch.norm(volume, p=1, dim=(2, 3, 4)), "only the 2-norm"),
    ):
        with pytest.raises(UnsupportedOperation, match=message):
            operation()


@st.composite
def _cases(draw):
    grid = draw(st.tuples(*[st.integers(1, 3)] * 3))
    cell_shape = draw(st.tuples(*[st.sampled_from([1, 2, 4])] * 3))
    stride = tuple(draw(st.sampled_from([s for s in (1, 2, 4) if b % s == 0])) for b in cell_shape)
    kernel = draw(st.tuples(*[st.sampled_from([1, 3, 5])] * 3))
    shown = draw(st.sampled_from(["one cell", "all", "some", "none in one sample"]))
    return grid, cell_shape, stride, kernel, shown, draw(st.integers(0, 2**31))


@settings(max_examples=40)
@given(_cases())
def test_executors_agree_on_pooling_and_gates_in_any_geometry(case):
    grid, cell_shape, stride, kernel, shown, seed = case
    torch.manual_seed(seed)
    visible = torch.rand(2, 1, *grid) > 0.5
    if shown in {"one cell", "all"}:
        visible[:] = shown == "all"
    visible[1, 0, 0, 0, 0] = True
    if shown == "none in one sample":
        visible[0] = False
    image = torch.randn(2, 2, *(g * b for g, b in zip(grid, cell_shape)), dtype=torch.float64)
    padding = tuple(k // 2 for k in kernel)
    results = []
    for executor in EXECUTORS:
        x = image.clone().requires_grad_()
        volume = SparseVolume.from_dense(x, visible, executor)
        gated = volume * F.adaptive_avg_pool3d(volume, 1).sigmoid()
        largest, mean = F.max_pool3d(gated, kernel, stride, padding), F.avg_pool3d(gated, kernel, stride, padding)
        out = torch.cat([largest, mean - 1], dim=1).to_dense()
        weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(seed))
        (out * weights).sum().backward()
        results.append((out.detach(), x.grad))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_maxima_over_windows_without_their_own_site_are_refused(executor):
    volume = SparseVolume.from_dense(*example(), executor)
    with pytest.raises(UnsupportedOperation, match="leave out their own site"):
        F.max_pool3d(volume, 2, stride=1, padding=1, dilation=2)
    assert F.max_pool3d(volume, 3, stride=1, padding=2, dilation=2).to_dense().isfinite().all()
