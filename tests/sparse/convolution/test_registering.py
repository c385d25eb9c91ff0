# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A way to convolve from a file outside the package: registered, measured by `auto`, and run by its name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bundle.errors import UserError
from bundle.sparse import CellLayout, Method, SparseVolume, Window, register_method
from bundle.sparse.convolution.methods import METHODS, convolve
from bundle.sparse.executors import auto
from tests.sparse.examples import CELL_SHAPE, example

CENTRED = Window((3, 3, 3), padding=(1, 1, 1))


def is_centred(dtype, cell_shape, window) -> bool:
    return window == CENTRED


class Shifts:
    """A user's method, with autograd's gradients: for each place of the kernel, the shifted map times a matrix."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, blocks, weight, bias, layout, cell_shape, window, groups):
        assert window == CENTRED and groups == 1, "asked for what it does not do"
        self.calls += 1
        b, (gd, gh, gw), (d, h, w) = layout.batch, layout.grid, cell_shape
        cells = blocks.new_zeros(b, gd, gh, gw, blocks.shape[1], d, h, w)
        cells = cells.masked_scatter(layout.visible[..., None, None, None, None], blocks.contiguous())
        dense = cells.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(b, -1, gd * d, gh * h, gw * w)
        padded = nn.functional.pad(dense, (1, 1, 1, 1, 1, 1))
        out = 0.0 if bias is None else bias.view(1, -1, 1, 1, 1)
        for z, y, x in torch.cartesian_prod(*[torch.arange(3)] * 3).tolist():
            part = padded[:, :, z : z + gd * d, y : y + gh * h, x : x + gw * w]
            out = out + torch.einsum("oc,bczyx->bozyx", weight[:, :, z, y, x], part)
        cells = out.reshape(b, -1, gd, d, gh, h, gw, w).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return cells[layout.visible]


@pytest.fixture
def shifts(monkeypatch: pytest.MonkeyPatch) -> Shifts:
    """The method, registered as "shifts" for one test, with nothing measured yet."""
    monkeypatch.setattr(auto, "_FASTEST", {})
    function = Shifts()
    register_method("shifts", Method(function, applies=is_centred))
    yield function
    del METHODS["shifts"]


def output_and_gradients(method: str) -> list[torch.Tensor]:
    image, visible = example()
    layout = CellLayout(visible)
    generator = torch.Generator().manual_seed(1)
    weight, bias = (torch.randn(s, dtype=torch.float64, generator=generator) for s in ((5, 4, 3, 3, 3), (5,)))
    leaves = [SparseVolume.from_dense(image, layout).features, weight, bias]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    out = convolve(*leaves, layout, CELL_SHAPE, CENTRED, method=method)
    weights = torch.randn(out.shape, dtype=out.dtype, generator=generator)
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


def test_it_gives_the_numbers_and_gradients_of_blocks(shifts):
    for a, b in zip(output_and_gradients("shifts"), output_and_gradients("blocks"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert shifts.calls == 1


def test_auto_measures_it_and_runs_it_where_it_is_fastest(shifts, monkeypatch: pytest.MonkeyPatch):
    measured: list[str] = []

    def seconds(call, device) -> float:
        measured.append(call.args[-1])
        return 0.1 if measured[-1] == "shifts" else 0.2

    monkeypatch.setattr(auto, "_seconds", seconds)
    image, visible = example()
    torch.manual_seed(0)
    layer = nn.Conv3d(4, 5, 3, padding=1).double()
    found, expected = (layer(SparseVolume.from_dense(image, visible, e)).to_dense() for e in ("auto", "cells"))
    assert "shifts" in measured and "blocks" in measured
    assert shifts.calls == 1  # nothing ran while the times were made up, so this is the convolution itself
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("arguments", [dict(stride=2), dict(groups=2), dict(dilation=2)])
def test_where_it_does_not_apply_it_is_never_tried(shifts, arguments):
    image, visible = example()
    padding = arguments.get("dilation", 1)
    nn.Conv3d(4, 4, 3, padding=padding, **arguments).double()(SparseVolume.from_dense(image, visible, "auto"))
    assert shifts.calls == 0 and auto._FASTEST


def test_a_method_registered_after_the_others_were_measured_is_measured_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auto, "_FASTEST", {})
    volume, layer = SparseVolume.from_dense(*example(), "auto"), nn.Conv3d(4, 5, 3, padding=1).double()
    layer(volume)
    function = Shifts()
    register_method("later", Method(function))
    try:
        layer(volume)
    finally:
        del METHODS["later"]
    assert function.calls > 1


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(UserError, match="there is a method 'blocks' already"):
        register_method("blocks", Method(Shifts()))


@pytest.mark.parametrize(("method", "groups"), [("no such method", 1), ("rows", 4), ("winograd cubes", 1)])
def test_a_method_that_cannot_convolve_this_names_those_that_can(method, groups):
    image, visible = example()
    layout = CellLayout(visible)
    blocks = SparseVolume.from_dense(image, layout).features
    weight = torch.randn(4, 4 // groups, 3, 3, 3, dtype=torch.float64)
    with pytest.raises(UserError, match=f"no method {method!r}.*choose one of blocks"):
        convolve(blocks, weight, None, layout, CELL_SHAPE, CENTRED, groups, method)
