# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Starts the programs: a convolution over gathered rows, and its weight's gradient.

Triton is imported when a program is first started. It comes with torch's builds for CUDA.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from bundle.kernels.reads import HEAD, PLACE, Reads

__all__ = ["Tiles", "choose_tiles", "choose_weight_tiles", "convolve_rows", "differentiate_weight", "is_interpreted"]

#: with fewer input channels a tile takes those of several places of the kernel
FEW_CHANNELS = 16
#: programs of the weight's gradient, about: enough for every GPU, and the same on each, so that sums are too
PROGRAMS = 1024


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the programs, on any device: if TRITON_INTERPRET=1 is set."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Tiles:
    """How much a program computes at once: powers of two, 16 or more.

    Attributes:
        sites: of the map.
        out: output channels.
        into: channels of the input.
        warps: of 32 threads.
        stages: tiles that are being read while one is multiplied.
    """

    sites: int
    out: int
    into: int
    warps: int = 4
    stages: int = 3


def choose_tiles(sites: int, c_in: int, c_out: int, dtype: torch.dtype) -> Tiles:
    """Tiles of usual size; not measured yet (scripts/benchmarks/gpu.py, part c, compares others)."""
    wide = dtype.itemsize > 2  # twice the bytes, and no products of 16 bits: half the tile
    out = min(64 if wide else 128, _power(c_out))
    few_tiles = sites * c_out < 300 * 128 * out  # of 128 sites: some of a GPU's processors would have none
    into = min(32 if wide else 64, max(32, _power(c_in)))
    return Tiles(64 if wide or few_tiles else 128, out, into, warps=8 if out == 128 and not few_tiles else 4)


def choose_weight_tiles(c_in: int, c_out: int, dtype: torch.dtype) -> Tiles:
    """Of the weight's gradient, where the sum runs over sites."""
    most = 64 if dtype.itemsize > 2 else 128
    into = 32 if c_in < FEW_CHANNELS else min(64, _power(c_in))
    return Tiles(32 if dtype.itemsize > 2 else 64, min(most, _power(c_out)), into)


def _power(channels: int) -> int:
    """The least power of two that holds them, 16 or more."""
    return max(16, 1 << (channels - 1).bit_length())


# ---- the programs ----------------------------------------------------------------------------------------------------


def convolve_rows(rows: Tensor, weight: Tensor, bias: Tensor | None, near: Tensor, reads: Reads) -> Tensor:
    """The convolution of a matrix of sites.

    Args:
        rows: ``[N * source sites of a cell, C_in]``.
        weight: ``[C_out, K, C_in]``, in any order in memory.
        bias: ``[C_out]`` or None.
        near: int32 ``[N, cells near]``: which cells' rows a cell's targets read, -1 for none.
        reads: where.

    Returns:
        ``[N * target sites of a cell, C_out]``.

    Raises:
        RuntimeError: if Triton cannot compile or start the program.
    """
    rows = rows.contiguous()
    c_out, _, c_in = weight.shape
    out = rows.new_empty(len(near) * prod(reads.target), c_out)
    sites = len(near) * prod(reads.steps)  # of each class
    tiles = choose_tiles(sites, c_in, c_out, rows.dtype)
    with _launch_on(rows.device):
        from bundle.kernels.programs import convolve  # noqa: PLC0415 - imports Triton

        convolve[_tiles(sites, tiles.sites) * _tiles(c_out, tiles.out), len(reads.classes)](
            rows,
            weight,
            rows if bias is None else bias,
            out,
            near,
            reads.table(rows.device),
            sites,
            HEAD + PLACE * reads.most_places,
            c_in,
            c_out,
            *(weight.stride(axis) for axis in (1, 2, 0)),
            TARGET=reads.target,
            TARGET_STEP=reads.target_step,
            HAS_BIAS=bias is not None,
            **_constants(rows.dtype, c_in, reads, tiles),
        )
    return out


def differentiate_weight(rows: Tensor, grad: Tensor, near: Tensor, reads: Reads) -> Tensor:
    """The weight's gradient, ``[K, C_in, C_out]``; the same bits in every run.

    Args:
        rows: as for `convolve_rows`.
        grad: ``[N * target sites of a cell, C_out]``, of the output.
        near: as for `convolve_rows`.
        reads: with one class.

    Raises:
        RuntimeError: if Triton cannot compile or start the program.
    """
    rows, grad = rows.contiguous(), grad.contiguous()
    (_, c_in), (sites, c_out) = rows.shape, grad.shape
    places = reads.most_places
    tiles = choose_weight_tiles(c_in, c_out, rows.dtype)
    terms = _tiles(places * c_in, tiles.into) if c_in < FEW_CHANNELS else places * _tiles(c_in, tiles.into)
    programs = terms * _tiles(c_out, tiles.out)
    turns = _tiles(_tiles(sites, tiles.sites), max(1, PROGRAMS // programs))  # of a program, a tile of sites each
    parts = _tiles(sites, turns * tiles.sites)
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    sums = rows.new_empty(parts, places, c_in, c_out, dtype=dtype)
    with _launch_on(rows.device):
        from bundle.kernels.programs import weight_gradient  # noqa: PLC0415 - imports Triton

        constants = _constants(rows.dtype, c_in, reads, tiles)
        table = reads.table(rows.device)
        weight_gradient[programs, parts](rows, grad, sums, near, table, sites, turns, c_in, c_out, **constants)
    return sums.sum(0).to(rows.dtype)


def _tiles(count: int, tile: int) -> int:
    return -(-count // tile)


def _constants(dtype: torch.dtype, c_in: int, reads: Reads, tiles: Tiles) -> dict[str, Any]:
    """What both programs know when they are compiled."""
    import triton.language as tl  # noqa: PLC0415 - Triton may be missing

    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # missing in torch's stub
    return {
        "STEPS": reads.steps,
        "SOURCE": reads.source,
        "SOURCE_STEP": reads.source_step,
        "NEAR": reads.near,
        "FEW_CHANNELS": c_in < FEW_CHANNELS,
        "SUM": tl.float64 if dtype == torch.float64 else tl.float32,
        "WIDEN": is_interpreted(),  # the interpreter cannot multiply bfloat16
        "PRECISION": "tf32" if convolutions.fp32_precision == "tf32" else "ieee",  # as torch's convolutions
        "TILE_SITES": tiles.sites,
        "TILE_OUT": tiles.out,
        "TILE_IN": tiles.into,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


@contextmanager
def _launch_on(device: torch.device) -> Iterator[None]:
    """Programs start on the current GPU, which need not be that of the features; Triton has many kinds of errors."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        try:
            yield
        except Exception as error:
            raise RuntimeError(f"Triton cannot convolve on {device}: {error}") from error
