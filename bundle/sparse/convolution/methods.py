# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The ways to compute a submanifold convolution, in one registry, and which of them is usually fastest.

A new way is a `Method` in `METHODS`: a line there, or `register_method` in a file outside the package. The executor
`auto` then measures it beside the others. Only a way that is to be used unmeasured needs a case in `usual_method`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple
from bundle.errors import UserError
from bundle.sparse.convolution import fused, pairs, rows, winograd
from bundle.sparse.convolution.blocks import convolve_blocks
from bundle.sparse.convolution.dense import convolve_dense
from bundle.sparse.convolution.winograd_cubes import convolve_winograd_cubes
from bundle.sparse.convolution.winograd_depth import convolve_winograd_depth
from bundle.sparse.layout import CellLayout
from bundle.sparse.windows import Window

__all__ = ["METHODS", "Method", "applicable", "convolve", "register_method", "usual_method"]


CPU = torch.device("cpu")


def _always(dtype: torch.dtype, cell_shape: Triple, window: Window) -> bool:
    return True


def _everywhere(device: torch.device) -> bool:
    return True


@dataclass(frozen=True)
class Method:
    """A way to compute a submanifold convolution.

    Attributes:
        function: of blocks, weight, bias, layout, cell shape, window and groups, by position, as `convolve_blocks`
            takes them; it gives the output's blocks and has a gradient for blocks, weight and bias.
        groups: whether it takes more than one group.
        applies: of the data type, the input's cell shape and the window: whether it can compute the convolution, and
            rounds no more than the data type does.
        runs_on: of the device: whether it can compute there.
    """

    function: Callable[[Tensor, Tensor, Tensor | None, CellLayout, Triple, Window, int], Tensor]
    groups: bool = False
    applies: Callable[[torch.dtype, Triple, Window], bool] = _always
    runs_on: Callable[[torch.device], bool] = _everywhere


METHODS: dict[str, Method] = {
    "blocks": Method(convolve_blocks, groups=True),
    "rows": Method(rows.convolve_rows, applies=rows.applies),
    "pairs": Method(pairs.convolve_pairs, applies=pairs.applies),
    "dense": Method(convolve_dense, groups=True),
    "winograd depth": Method(convolve_winograd_depth, applies=partial(winograd.applies, axes=1)),
    "winograd cubes": Method(convolve_winograd_cubes, applies=partial(winograd.applies, axes=3)),
    "fused": Method(fused.convolve_fused, applies=fused.applies, runs_on=fused.runs_on),
}


def register_method(name: str, method: Method) -> None:
    """Adds a way to convolve: the executor `auto` then measures it, and `convolve` runs it by its name.

    Raises:
        UserError: if the name is taken.
    """
    if name in METHODS:
        raise UserError(f"register_method: there is a method {name!r} already: choose another name")
    METHODS[name] = method


def convolve(
    blocks: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: CellLayout,
    cell_shape: Triple,
    window: Window,
    groups: int = 1,
    method: str | None = None,
) -> Tensor:
    """Convolves ``[N, C_in, d, h, w]``, the blocks of the visible cells, to ``[N, C_out, d/s, h/s, w/s]``.

    Equal to a dense convolution of the volume with absent sites zero, read off at the visible sites.

    Args:
        blocks: features, one block per visible cell.
        weight: ``[C_out, C_in / groups, kd, kh, kw]``.
        bias: ``[C_out]`` or None.
        layout: which cells are visible.
        cell_shape: sites per cell and axis of the input.
        window: what an output reads; its stride must divide `cell_shape`.
        groups: as a dense layer's.
        method: of `METHODS`; None takes the one that is usually fastest.

    Raises:
        UserError: if there is no method of this name, or it cannot compute this convolution.
    """
    # a custom function must cast for itself; torch leaves float64 as it is
    if torch.is_autocast_enabled(blocks.device.type) and blocks.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(blocks.device.type)
        blocks, weight, bias = blocks.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if window.is_pointwise:
        return F.conv3d(blocks, weight, bias, groups=groups)
    if method is None:
        method = usual_method(blocks, cell_shape, window, groups)
    elif method not in (can := applicable(blocks.dtype, cell_shape, window, groups, blocks.device)):
        raise UserError(
            f"no method {method!r} for a convolution of {blocks.dtype} over cells of {cell_shape} sites in {groups} "
            f"groups with {window} on {blocks.device}: choose one of {', '.join(can)}"
        )
    return METHODS[method].function(blocks, weight, bias, layout, cell_shape, window, groups)


def applicable(
    dtype: torch.dtype, cell_shape: Triple, window: Window, groups: int, device: torch.device = CPU
) -> list[str]:
    """The methods that can compute a convolution of this kind there, and do so to the data type's rounding."""
    return [
        name
        for name, method in METHODS.items()
        if (groups == 1 or method.groups) and method.applies(dtype, cell_shape, window) and method.runs_on(device)
    ]


def usual_method(blocks: Tensor, cell_shape: Triple, window: Window, groups: int) -> str:
    """The method that is usually fastest, as measured on a CPU with 3x3x3 kernels (the executor `auto` measures)."""
    sites, channels = prod(cell_shape) // prod(window.stride), blocks.shape[1]
    # on a GPU for few launches; in half precision because each place of the kernel would round the sum
    in_one_go = blocks.device.type != "cpu" or blocks.dtype not in {torch.float32, torch.float64}
    if groups == 1 and not in_one_go:
        tiles_fill = partial(winograd.tiles_fill, cell_shape, window)
        # a tile of four sites per axis costs what it saves unless there are as many as a third of the channels
        if channels >= 32 and tiles_fill(axes=3) and 3 * len(blocks) * sites >= winograd.OUT**3 * channels:
            return "winograd cubes"
        if sites <= 64 and channels >= 128:
            return "pairs"
        if channels >= 32 and channels * cell_shape[0] >= 512 and tiles_fill(axes=1):
            return "winograd depth"
    if groups == 1 and sites <= 8 and window.keeps_size:
        return "rows"
    return "blocks"
