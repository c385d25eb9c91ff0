# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A convolution's programs for a GPU, in Triton. Importing this file imports Triton.

A name in capitals is known when a program is compiled. Triton decides at import whether it interprets.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["convolve", "weight_gradient"]

# fmt: off

@triton.jit
def _find_steps(site, STEPS: tl.constexpr):
    """The cells of sites, and how many steps each lies behind the first of its cell, on each axis."""
    z = site // (STEPS[1] * STEPS[2]) % STEPS[0]
    return site // (STEPS[0] * STEPS[1] * STEPS[2]), z, site // STEPS[2] % STEPS[1], site % STEPS[2]


@triton.jit
def _find_terms(turn, count, c_in, FEW_CHANNELS: tl.constexpr, TILE_IN: tl.constexpr):
    """Place, or places, and channels of a tile of the sum, and which of these exist."""
    if FEW_CHANNELS:  # a tile holds the channels of several places
        term = turn * TILE_IN + tl.arange(0, TILE_IN)
        place = tl.minimum(term // c_in, count - 1)
        channel = term % c_in
        exists = term < count * c_in
    else:
        chunks = tl.cdiv(c_in, TILE_IN)
        place = turn // chunks + tl.arange(0, 1)
        channel = turn % chunks * TILE_IN + tl.arange(0, TILE_IN)
        exists = channel < c_in
    return place, channel, exists


@triton.jit
def _find_rows(near, places, place, cell, z, y, x, there,
               SOURCE: tl.constexpr, SOURCE_STEP: tl.constexpr, NEAR: tl.constexpr):
    """[sites, places]: the rows that sites read, -1 where absent."""
    source_z = (z * SOURCE_STEP[0])[:, None] + tl.load(places + place * 4)[None, :]
    source_y = (y * SOURCE_STEP[1])[:, None] + tl.load(places + place * 4 + 1)[None, :]
    source_x = (x * SOURCE_STEP[2])[:, None] + tl.load(places + place * 4 + 2)[None, :]
    near_z = source_z // SOURCE[0]
    near_y = source_y // SOURCE[1]
    near_x = source_x // SOURCE[2]
    neighbour = (near_z * NEAR[1] + near_y) * NEAR[2] + near_x
    slot = tl.load(near + cell[:, None] * (NEAR[0] * NEAR[1] * NEAR[2]) + neighbour, mask=there[:, None], other=-1)
    inside_z = source_z - near_z * SOURCE[0]
    inside_y = source_y - near_y * SOURCE[1]
    inside_x = source_x - near_x * SOURCE[2]
    row = slot * (SOURCE[0] * SOURCE[1] * SOURCE[2]) + (inside_z * SOURCE[1] + inside_y) * SOURCE[2] + inside_x
    return tl.where(slot < 0, -1, row)


@triton.jit(do_not_specialize=["sites"])
def convolve(rows, weight, bias, out, near, table, sites, table_width, c_in, c_out, weight_place, weight_in, weight_out,
             STEPS: tl.constexpr, TARGET: tl.constexpr, TARGET_STEP: tl.constexpr, SOURCE: tl.constexpr,
             SOURCE_STEP: tl.constexpr, NEAR: tl.constexpr, FEW_CHANNELS: tl.constexpr, HAS_BIAS: tl.constexpr,
             SUM: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr, TILE_SITES: tl.constexpr,
             TILE_OUT: tl.constexpr, TILE_IN: tl.constexpr):
    """One tile of targets times channels; the second axis of the grid is the class of the targets."""
    out_tiles = tl.cdiv(c_out, TILE_OUT)
    site = tl.program_id(0) // out_tiles * TILE_SITES + tl.arange(0, TILE_SITES)
    channel_out = tl.program_id(0) % out_tiles * TILE_OUT + tl.arange(0, TILE_OUT)
    head = table + tl.program_id(1) * table_width
    places = head + 4
    count = tl.load(head)
    there = site < sites
    cell, step_z, step_y, step_x = _find_steps(site, STEPS)

    turns = count * tl.cdiv(c_in, TILE_IN)
    if FEW_CHANNELS:
        turns = tl.cdiv(count * c_in, TILE_IN)
    total = tl.zeros((TILE_SITES, TILE_OUT), dtype=SUM)
    for turn in range(turns):
        place, channel, exists = _find_terms(turn, count, c_in, FEW_CHANNELS, TILE_IN)
        row = _find_rows(near, places, place, cell, step_z, step_y, step_x, there, SOURCE, SOURCE_STEP, NEAR)
        read = tl.load(rows + row.to(tl.int64) * c_in + channel[None, :], mask=(row >= 0) & exists[None, :], other=0.0)
        number = tl.load(places + place * 4 + 3)
        factor = tl.load(
            weight + number[:, None] * weight_place + channel[:, None] * weight_in + channel_out[None, :] * weight_out,
            mask=exists[:, None] & (channel_out < c_out)[None, :], other=0.0)
        if WIDEN:
            read = read.to(SUM)
            factor = factor.to(SUM)
        total = tl.dot(read, factor, total, input_precision=PRECISION, out_dtype=SUM)
    if HAS_BIAS:
        total += tl.load(bias + channel_out, mask=channel_out < c_out, other=0.0).to(SUM)[None, :]

    z = step_z * TARGET_STEP[0] + tl.load(head + 1)
    y = step_y * TARGET_STEP[1] + tl.load(head + 2)
    x = step_x * TARGET_STEP[2] + tl.load(head + 3)
    target = cell * (TARGET[0] * TARGET[1] * TARGET[2]) + (z * TARGET[1] + y) * TARGET[2] + x
    tl.store(out + target.to(tl.int64)[:, None] * c_out + channel_out[None, :], total.to(out.dtype.element_ty),
             mask=there[:, None] & (channel_out < c_out)[None, :])


@triton.jit(do_not_specialize=["sites", "turns"])
def weight_gradient(rows, grad, parts, near, table, sites, turns, c_in, c_out,
                    STEPS: tl.constexpr, SOURCE: tl.constexpr, SOURCE_STEP: tl.constexpr, NEAR: tl.constexpr,
                    FEW_CHANNELS: tl.constexpr, SUM: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
                    TILE_SITES: tl.constexpr, TILE_OUT: tl.constexpr, TILE_IN: tl.constexpr):
    """One tile of the weight's gradient over a part of the sites; the second axis of the grid is the part."""
    out_tiles = tl.cdiv(c_out, TILE_OUT)
    channel_out = tl.program_id(0) % out_tiles * TILE_OUT + tl.arange(0, TILE_OUT)
    part = tl.program_id(1)
    places = table + 4
    count = tl.load(table)
    place, channel, exists = _find_terms(tl.program_id(0) // out_tiles, count, c_in, FEW_CHANNELS, TILE_IN)
    total = tl.zeros((TILE_IN, TILE_OUT), dtype=SUM)
    for turn in range(turns):
        site = (part * turns + turn) * TILE_SITES + tl.arange(0, TILE_SITES)
        there = site < sites
        cell, step_z, step_y, step_x = _find_steps(site, STEPS)
        row = _find_rows(near, places, place, cell, step_z, step_y, step_x, there, SOURCE, SOURCE_STEP, NEAR)
        read = tl.load(rows + row.to(tl.int64) * c_in + channel[None, :], mask=(row >= 0) & exists[None, :], other=0.0)
        slope = tl.load(grad + site.to(tl.int64)[:, None] * c_out + channel_out[None, :],
                        mask=there[:, None] & (channel_out < c_out)[None, :], other=0.0)
        if WIDEN:
            read = read.to(SUM)
            slope = slope.to(SUM)
        total = tl.dot(tl.trans(read), slope, total, input_precision=PRECISION, out_dtype=SUM)
    line = (part * count + tl.load(places + place * 4 + 3)) * c_in + channel
    tl.store(parts + line.to(tl.int64)[:, None] * c_out + channel_out[None, :], total,
             mask=exists[:, None] & (channel_out < c_out)[None, :])
