# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Runs the method `fused` in Triton's interpreter and prints, as JSON, how far it is from the method `blocks`.

Triton decides at import whether it interprets, so this needs a process of its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from bundle.kernels import launch
from bundle.networks import build_encoder
from bundle.sparse import CellLayout, SparseVolume, Window
from bundle.sparse.convolution import fused, methods
from bundle.sparse.convolution.methods import applicable, convolve
from bundle.sparse.executors import auto

CENTRED = Window((3, 3, 3), padding=(1, 1, 1))
FLAT = Window((1, 3, 3), padding=(0, 1, 1))
STRIDED = Window((3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1))
FLAT_STRIDED = Window((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
PARTLY_STRIDED = Window((3, 3, 3), stride=(1, 2, 2), padding=(1, 1, 1))
CUBE, TINY = (4, 4, 4), (2, 2, 2)
#: the interpreter's time is that of the programs, whatever they hold; there are two along the sites of CUBE
LARGE = launch.Tiles(128, 32, 32)


@dataclass
class Case:
    window: Window
    cell_shape: tuple[int, int, int]
    c_in: int = 20
    c_out: int = 17
    dtype: torch.dtype = torch.float64
    bias: bool = True
    tiles: launch.Tiles | None = LARGE  # None: the usual ones


#: no number of channels is a multiple of a tile; fewer than 16 are read from several places at once
CASES = {
    "3x3x3": Case(CENTRED, CUBE),
    "3x3x3 in float32": Case(CENTRED, TINY, dtype=torch.float32, tiles=None),
    "without bias": Case(CENTRED, TINY, bias=False),
    "1x3x3": Case(FLAT, CUBE),
    "1x3x3, strided on two axes": Case(FLAT_STRIDED, CUBE, tiles=None),
    "3x3x3, strided on two axes": Case(PARTLY_STRIDED, CUBE, c_in=3, c_out=4),
    "strided": Case(STRIDED, CUBE),
    "strided to one site": Case(STRIDED, TINY, bias=False),
    "strided without overlap": Case(Window((2, 2, 2), stride=(2, 2, 2)), TINY),
    "strided past sites that no output reads": Case(Window((1, 1, 1), stride=(2, 2, 2)), CUBE),
    "dilated": Case(Window((3, 3, 3), padding=(2, 2, 2), dilation=(2, 2, 2)), TINY),
    "dilated beyond the next cell": Case(Window((1, 3, 1), padding=(0, 3, 0), dilation=(1, 3, 1)), TINY),
    "strided and dilated": Case(Window((3, 1, 3), (2, 1, 2), (2, 0, 2), (2, 1, 2)), CUBE),
    "even kernel, padded on one side": Case(Window((2, 2, 2), padding=(1, 0, 1)), (4, 2, 4)),
    "few channels": Case(CENTRED, TINY, c_in=3, c_out=20),
    "one channel": Case(STRIDED, CUBE, c_in=1, c_out=16, dtype=torch.float32),
    "many tiles": Case(Window((1, 3, 1), padding=(0, 1, 0)), TINY, c_in=18, c_out=35, tiles=launch.Tiles(16, 16, 16)),
    "few channels in many tiles": Case(FLAT_STRIDED, CUBE, c_in=5, c_out=18, tiles=launch.Tiles(16, 16, 16)),
    "bfloat16": Case(CENTRED, TINY, dtype=torch.bfloat16, tiles=None),
    "float16": Case(STRIDED, CUBE, dtype=torch.float16),
}


def results(case: Case, method: str, dtype: torch.dtype) -> list[Tensor]:
    """The output, and the gradients of blocks, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    visible = torch.tensor([[1, 0, 0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]], dtype=torch.bool).view(2, 1, 2, 2, 2)
    layout = CellLayout(visible)
    shapes = [(len(layout), case.c_in, *case.cell_shape), (case.c_out, case.c_in, *case.window.kernel), (case.c_out,)]
    tensors = [torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes[: 2 + case.bias]]
    leaves = [x.to(case.dtype).to(dtype).requires_grad_() for x in tensors]
    bias = leaves[2] if case.bias else None
    out = convolve(leaves[0], leaves[1], bias, layout, case.cell_shape, case.window, method=method)
    slope = torch.randn(out.shape, dtype=torch.float64, generator=generator).to(case.dtype).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, slope)]


def distances(case: Case) -> list[float]:
    """Of the results to those of `blocks` in float64, relative to their length."""
    usual = launch.choose_tiles, launch.choose_weight_tiles
    if case.tiles is not None:
        launch.choose_tiles = launch.choose_weight_tiles = lambda *_: case.tiles
    found = results(case, "fused", case.dtype)
    launch.choose_tiles, launch.choose_weight_tiles = usual
    assert {x.dtype for x in found} == {case.dtype}
    expected = results(case, "blocks", torch.float64)
    assert [x.shape for x in found] == [x.shape for x in expected]
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


#: as nnU-Net plans it for thick slices
RESENC = {
    "n_stages": 3,
    "features_per_stage": [3, 4, 5],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_blocks_per_stage": [1, 1, 1],
}


def resenc() -> dict[str, object]:
    """nnU-Net's residual encoder, every convolution by this method: how far features and gradients are from blocks."""
    usual, found = methods.usual_method, {}
    for method in ("fused", "blocks"):
        calls: list[str] = []

        def choose(*_: object, method: str = method, calls: list[str] = calls) -> str:
            calls.append(method)
            return method

        methods.usual_method = choose
        torch.manual_seed(0)
        encoder = build_encoder("ResidualEncoderUNet", **RESENC).double()
        visible = torch.tensor([True, True, False, True]).view(1, 1, 2, 1, 2)
        image = torch.randn(1, 1, 4, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        features = [f.features for f in encoder(SparseVolume.from_dense(image, visible))]
        torch.autograd.backward(features, [f.detach().cos() for f in features])
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        found[method] = [torch.cat([x.detach().flatten() for x in part]) for part in (features, gradients)]
    methods.usual_method = usual
    apart = [float((a - b).norm() / b.norm()) for a, b in zip(found["fused"], found["blocks"], strict=True)]
    return {"distances": apart, "convolutions": len(calls)}


def trial() -> dict[str, object]:
    """What the trial on a device finds: that the kernels are right, that one is wrong, that one does not start."""
    cpu = torch.device("cpu")
    launch.choose_tiles = launch.choose_weight_tiles = lambda *_: LARGE
    found: dict[str, object] = {"distance": fused._compare_with_blocks(cpu)}
    logging.disable()
    reads = fused.find_gradient_reads
    fused.find_gradient_reads = fused.find_reads  # the opposite neighbours
    found["passes when wrong"] = fused._passes_trial.__wrapped__(cpu)
    fused.find_gradient_reads = reads
    launch.choose_tiles = lambda *_: launch.Tiles(17, 16, 16)
    found["passes when it cannot start"] = fused._passes_trial.__wrapped__(cpu)
    return found


def auto_executor() -> dict[str, object]:
    """Whether `auto` measures the method, and what it computes when it takes it."""
    measured: list[str] = []

    def seconds(call, device) -> float:
        measured.append(call.args[-1])
        return 0.1 if measured[-1] == "fused" else 0.2

    auto._seconds = seconds
    layer = torch.nn.Conv3d(3, 16, 3, padding=1)
    image, visible = torch.randn(1, 3, 4, 4, 4), torch.tensor([True, False] * 4).view(1, 1, 2, 2, 2)
    found, expected = (layer(SparseVolume.from_dense(image, visible, e)).to_dense() for e in ("auto", "cells"))
    return {"measured": measured, "distance": float(((found - expected).norm() / expected.norm()).detach())}


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "cases": {name: distances(case) for name, case in CASES.items()},
                "applicable": applicable(torch.float32, CUBE, CENTRED, 1),
                "applicable in groups": applicable(torch.float32, CUBE, CENTRED, 2),
                "auto": auto_executor(),
                "resenc": resenc(),
                "trial": trial(),
            }
        )
    )
