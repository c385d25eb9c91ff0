# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The ways to compute a submanifold convolution: each right by loops and finite differences, each alike."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.sparse import CellLayout, SparseVolume
from bundle.sparse.convolution import blocks as block_convolution
from bundle.sparse.convolution import methods, winograd_cubes, winograd_depth
from bundle.sparse.convolution.methods import applicable, convolve, usual_method
from bundle.sparse.storage import blocks_to_dense, dense_to_blocks
from bundle.sparse.windows import Window
from tests.sparse.examples import CELL_SHAPE, example
from tests.sparse.oracle import site_mask, submanifold_conv

#: those that a CPU has
METHODS = [name for name, method in methods.METHODS.items() if method.runs_on(torch.device("cpu"))]
WINDOWS = {
    "3x3x3": Window((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    "strided": Window((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    "strided without overlap": Window((2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1)),
    "dilated": Window((3, 3, 3), (1, 1, 1), (2, 2, 2), (2, 2, 2)),
    "wider than a block": Window((3, 7, 3), (1, 1, 1), (1, 3, 1), (1, 1, 1)),
    "anisotropic": Window((3, 1, 3), (2, 1, 2), (1, 0, 1), (1, 1, 1)),
    "even kernel, padded on one side": Window((2, 2, 2), (1, 1, 1), (1, 0, 1), (1, 1, 1)),
    "stride to one site": Window((5, 3, 5), (4, 2, 4), (2, 1, 2), (1, 1, 1)),
}
CASES = [
    pytest.param(method, window, id=f"{method}: {name}")
    for name, window in WINDOWS.items()
    for method in applicable(torch.float64, CELL_SHAPE, window, groups=1)
]


def parameters(window: Window, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 4, *window.kernel, dtype=torch.float64, generator=generator)
    return weight, torch.randn(5, dtype=torch.float64, generator=generator)


def dense_result(image, visible, weight, bias, window, method) -> torch.Tensor:
    layout = CellLayout(visible)
    blocks = convolve(dense_to_blocks(image, layout, CELL_SHAPE), weight, bias, layout, CELL_SHAPE, window, 1, method)
    return blocks_to_dense(blocks, layout, tuple(b // s for b, s in zip(CELL_SHAPE, window.stride)))


@pytest.mark.parametrize(("method", "window"), CASES)
def test_a_method_is_the_submanifold_convolution(method: str, window: Window):
    image, visible = example()
    weight, bias = parameters(window)
    out_shape = tuple(b // s for b, s in zip(CELL_SHAPE, window.stride))
    expected = submanifold_conv(
        image.numpy(),
        site_mask(visible, CELL_SHAPE).numpy(),
        site_mask(visible, out_shape).numpy(),
        weight.numpy(),
        bias.numpy(),
        window.stride,
        window.padding,
        window.dilation,
    )
    actual = dense_result(image, visible, weight, bias, window, method)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels_last", [False, True], ids=["", "weights channels last"])
@pytest.mark.parametrize(("method", "window"), CASES)
def test_its_gradients_are_right_by_finite_differences(method: str, window: Window, channels_last: bool):
    image, visible = example()
    weight, bias = parameters(window)
    if channels_last:
        weight = weight.contiguous(memory_format=torch.channels_last_3d)
    inputs = [x.requires_grad_() for x in (image, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda image, weight, bias: dense_result(image, visible, weight, bias, window, method), inputs, fast_mode=True
    )


METHOD_MODULES = {"blocks": block_convolution, "winograd depth": winograd_depth, "winograd cubes": winograd_cubes}
IN_PARTS = [
    pytest.param(method, window, id=f"{method}: {name}")
    for name, window in WINDOWS.items()
    for method in METHOD_MODULES
    if method in applicable(torch.float64, CELL_SHAPE, window, groups=1)
]


@pytest.mark.parametrize(("method", "window"), IN_PARTS)
def test_cells_in_parts_are_the_same_in_value_and_gradient(
    method: str, window: Window, monkeypatch: pytest.MonkeyPatch
):
    image, visible = example()
    inputs = [image, *parameters(window)]

    def result_and_gradients() -> list[torch.Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        result = dense_result(leaves[0], visible, *leaves[1:], window, method)
        generator = torch.Generator().manual_seed(2)
        weights = torch.randn(result.shape, dtype=result.dtype, generator=generator)
        return [result, *torch.autograd.grad((result * weights).sum(), leaves)]

    whole = result_and_gradients()
    parts: list[int] = []
    halos = CellLayout.halos
    monkeypatch.setattr(CellLayout, "halos", lambda *args: parts.append(args[-1]) or halos(*args))
    monkeypatch.setattr(METHOD_MODULES[method], "PART_BYTES", 4_000)
    in_parts = result_and_gradients()
    assert max(parts) > 1, "nothing was split: the test shows nothing"
    for a, b in zip(in_parts, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(data=st.data())
def test_methods_agree_on_any_mask_shape_and_batch(data: st.DataObject):
    grid = data.draw(st.tuples(*[st.integers(1, 3)] * 3), "grid")
    batch = data.draw(st.integers(1, 3), "batch")
    cell_shape = data.draw(st.tuples(*[st.sampled_from(s) for s in ([1, 2, 4, 8], [1, 2, 4], [1, 2, 4])]), "cell shape")
    stride = tuple(data.draw(st.sampled_from([s for s in (1, 2) if b % s == 0]), "stride") for b in cell_shape)
    kernel = data.draw(st.tuples(*[st.sampled_from([1, 3])] * 3), "kernel")
    window = Window(kernel, stride, tuple(k // 2 for k in kernel), (1, 1, 1))
    seen = data.draw(st.lists(st.booleans(), min_size=batch * prod(grid), max_size=batch * prod(grid)), "visible")
    visible = torch.tensor(seen).view(batch, 1, *grid)
    visible.view(-1)[data.draw(st.integers(0, visible.numel() - 1), "one that is visible")] = True
    layout = CellLayout(visible)
    blocks = torch.randn(len(layout), 3, *cell_shape, dtype=torch.float64)
    weight = torch.randn(2, 3, *kernel, dtype=torch.float64)

    def result_and_gradients(method: str) -> tuple[torch.Tensor, ...]:
        leaves = [blocks.clone().requires_grad_(), weight.clone().requires_grad_()]
        out = convolve(leaves[0], leaves[1], None, layout, cell_shape, window, 1, method)
        return out, *torch.autograd.grad(out.square().sum(), leaves)

    expected = result_and_gradients("dense")
    for method in applicable(torch.float64, cell_shape, window, groups=1):
        for a, b in zip(result_and_gradients(method), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * float(b.abs().max() + 1))


def test_groups_strides_cell_shapes_and_half_precision_leave_the_methods_that_can():
    centred, strided, dtype = WINDOWS["3x3x3"], WINDOWS["strided"], torch.float32
    assert applicable(dtype, (4, 4, 4), centred, groups=1) == list(METHODS)
    assert applicable(dtype, (4, 4, 4), centred, groups=4) == ["blocks", "dense"]
    without = [method for method in METHODS if not method.startswith("winograd")]
    assert applicable(dtype, (4, 4, 4), strided, groups=1) == [method for method in without if method != "rows"]
    assert applicable(dtype, (6, 4, 4), centred, groups=1) == without
    assert applicable(dtype, (4, 4, 6), centred, groups=1) == [*without, "winograd depth"]
    assert applicable(dtype, (8, 8, 8), WINDOWS["dilated"], groups=1) == without
    in_half = [method for method in without if method != "pairs"]
    for half in (torch.bfloat16, torch.float16):
        assert applicable(half, (4, 4, 4), centred, groups=1) == in_half


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_every_convolution_has_a_method_also_the_usual_one(window: Window, dtype: torch.dtype):
    for cell_shape in ((4, 2, 4), (8, 8, 8)):
        for groups in (1, 2, 128):
            can = applicable(dtype, cell_shape, window, groups)
            assert {"blocks", "dense"} <= set(can)
            assert usual_method(torch.zeros(3, 128, *cell_shape, dtype=dtype), cell_shape, window, groups) in can


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_one_go(dtype: torch.dtype):
    window = WINDOWS["3x3x3"]
    for cell_shape, few in (((2, 2, 2), "rows"), ((4, 4, 4), "blocks")):
        assert usual_method(torch.zeros(3, 256, *cell_shape, dtype=dtype), cell_shape, window, 1) == few
        assert usual_method(torch.zeros(3, 256, *cell_shape), cell_shape, window, 1) != few


@pytest.mark.parametrize(
    ("cells", "channels", "size", "method"),
    [
        (50, 16, 32, "blocks"),
        (50, 32, 16, "winograd cubes"),
        (50, 32, 8, "winograd cubes"),
        (3, 64, 8, "winograd cubes"),
        (50, 64, 4, "winograd cubes"),
        (3, 64, 4, "blocks"),
        (50, 128, 4, "winograd cubes"),
        (3, 128, 4, "pairs"),
        (50, 256, 2, "pairs"),
        (50, 64, 2, "rows"),
    ],
)
def test_the_usual_method_in_float32(cells: int, channels: int, size: int, method: str):
    cell_shape = (size, size, size)
    blocks = torch.zeros(cells, channels, *cell_shape)
    assert usual_method(blocks, cell_shape, WINDOWS["3x3x3"], 1) == method
    assert usual_method(blocks, cell_shape, WINDOWS["3x3x3"], channels) == "blocks"


def test_the_usual_method_of_cells_that_are_not_cubes():
    blocks, window = torch.zeros(3, 128, 8, 8, 2), WINDOWS["3x3x3"]
    assert usual_method(blocks, (8, 8, 2), window, 1) == "winograd depth"
    assert usual_method(blocks.permute(0, 1, 4, 2, 3), (2, 8, 8), window, 1) == "blocks"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", applicable(torch.float16, CELL_SHAPE, WINDOWS["3x3x3"], groups=1))
def test_half_precision_stays_near_float32(method: str, dtype: torch.dtype):
    image, visible = example()
    weight, bias = parameters(WINDOWS["3x3x3"])
    image, weight, bias = image.float(), weight.float() / 10, bias.float()
    exact = dense_result(image, visible, weight, bias, WINDOWS["3x3x3"], method)
    with torch.autocast("cpu", dtype=dtype):
        rough = dense_result(image, visible, weight, bias, WINDOWS["3x3x3"], method)
    assert rough.dtype == dtype
    assert (rough - exact).abs().max() < 8 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("executor", sorted(SparseVolume.executors))
def test_autocast_leaves_float64_as_torch_does(executor: str):
    image, visible = torch.randn(1, 4, 8, 8, 8, dtype=torch.float64), torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)
    layer = torch.nn.Conv3d(4, 4, 3, padding=1).double()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = layer(SparseVolume.from_dense(image, visible, executor)).to_dense(), layer(image)
    assert found.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(found, expected)
