# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Computes how fast each way to convolve could be on a GPU: the bytes that it moves and the arithmetic that it does.

    python scripts/benchmarks/limits.py                          a Markdown table of both encoders
    python scripts/benchmarks/limits.py --details                and of every kind of layer
    python scripts/benchmarks/limits.py --bandwidth 4.8 --peak 700 --output limits.json

A kernel takes at least the larger of two times: its bytes through the GPU's memory at full bandwidth, its operations
at the full rate. Kernels run one after the other, so a copy before a convolution costs its own time. Forward and
backward pass of the encoder count, in bfloat16. A kernel reads every input once and writes every result once; caches
keep nothing between two kernels. Real code is slower. The table says what cannot be reached and what limits a layer; it
is no measurement.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

ELEMENT = 2  # bytes of a value in bfloat16
INDEX = 8  # bytes of an entry of an index table


@dataclass(frozen=True)
class Layer:
    """A convolution of an encoder, with the norm and the activation beside it.

    Attributes:
        name: level and kind.
        inputs: channels.
        outputs: channels.
        stride_before: voxels per axis that a site of its input stands for.
        stride: sites per axis from one output to the next.
        kernel: sites per axis that an output reads.
        is_first: whether its input is the image, which needs no gradient.
    """

    name: str
    inputs: int
    outputs: int
    stride_before: int
    stride: int = 1
    kernel: int = 3
    is_first: bool = False

    @property
    def taps(self) -> int:
        """Places of the kernel."""
        return self.kernel**3

    @property
    def weight(self) -> int:
        """Values of the weight."""
        return self.taps * self.inputs * self.outputs


def segres_encoder(filters: int = 32, blocks: tuple[int, ...] = (1, 2, 2, 4, 4)) -> list[Layer]:
    """The convolutions of MONAI's `SegResEncoder` as configs/train.yaml has it."""
    layers = [Layer("0 first", 1, filters, 1, is_first=True)]
    for level, count in enumerate(blocks):
        channels = filters * 2**level
        layers += [Layer(f"{level} block", channels, channels, 2**level)] * (2 * count)
        if level + 1 < len(blocks):
            layers.append(Layer(f"{level} down", channels, 2 * channels, 2**level, stride=2))
    return layers


def resenc_l(
    channels: tuple[int, ...] = (32, 64, 128, 256, 320, 320), blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6)
) -> list[Layer]:
    """The convolutions of nnU-Net's residual encoder L: stages of blocks of two convolutions, the first one strided."""
    layers, before = [Layer("0 first", 1, channels[0], 1, is_first=True)], channels[0]
    for level, (width, count) in enumerate(zip(channels, blocks)):
        stride, above = (2, 2 ** (level - 1)) if level else (1, 1)
        layers.append(Layer(f"{level} down" if level else "0 block", before, width, above, stride))
        if width != before:  # the shortcut: mean of 2 x 2 x 2, then a product of the channels
            layers.append(Layer(f"{level} shortcut", before, width, 2**level, kernel=1))
        layers += [Layer(f"{level} block", width, width, 2**level)] * (2 * count - 1)
        before = width
    return layers


def layers(encoder: Mapping[str, Any]) -> list[Layer]:
    """The convolutions of an encoder, given as for `bundle.networks.build_encoder`: a SegResEncoder or a ResEnc.

    Raises:
        ValueError: for another network.
    """
    if encoder["name"] == "SegResEncoder":
        return segres_encoder(encoder["init_filters"], tuple(encoder["blocks_down"]))
    if encoder["name"] == "ResidualEncoderUNet":
        return resenc_l(tuple(encoder["features_per_stage"]), tuple(encoder["n_blocks_per_stage"]))
    raise ValueError(f"no limits for {encoder['name']}: give a SegResEncoder or a ResidualEncoderUNet")


ENCODERS = {"SegResEncoder": (segres_encoder(), 16), "ResEnc-L": (resenc_l(), 32)}


@dataclass(frozen=True)
class Case:
    """What an encoder is given.

    Attributes:
        size: voxels per axis of the crop.
        batch: crops.
        cell: voxels per axis of a cell.
        masked: share of the cells that is hidden.
    """

    size: int
    batch: int
    cell: int
    masked: float

    @property
    def grid(self) -> int:
        """Cells per axis."""
        return self.size // self.cell

    @property
    def kept(self) -> int:
        """Visible cells of one crop."""
        return round(self.grid**3 * (1 - self.masked))

    @property
    def cells(self) -> int:
        """Visible cells of the batch."""
        return self.batch * self.kept

    def all_sites(self, stride: int) -> int:
        """Sites of the whole batch where one stands for `stride` voxels per axis."""
        return self.batch * (self.size // stride) ** 3

    def visible_sites(self, stride: int) -> int:
        """As `all_sites`, in visible cells."""
        return self.cells * (self.cell // stride) ** 3


@dataclass(frozen=True)
class Work:
    """What one kernel does; kernels run one after the other.

    Attributes:
        bytes: read from and written to the GPU's memory.
        flops: operations; a product and its sum are two.
    """

    bytes: float
    flops: float = 0

    def seconds(self, bandwidth: float, peak: float) -> float:
        """The least time, given bytes and operations per second."""
        return max(self.bytes / bandwidth, self.flops / peak)


def _convolutions(layer: Layer, read: float, written: float, read_grad: float | None = None) -> list[Work]:
    """The convolutions of a step: the result, the weight's gradient and, but for the first layer, the input's.

    Each touches the input, the output and the weight once, and multiplies the whole kernel for every output.

    Args:
        layer: the layer.
        read: sites of its input, as the convolution sees it.
        written: sites of its output.
        read_grad: sites of the output's gradient that the input's gradient is made from; None: `written`.
    """
    flops = 2 * written * layer.weight
    values = read * layer.inputs + written * layer.outputs + layer.weight
    works = [Work(ELEMENT * values, flops)] * 2
    if not layer.is_first:
        grad = written if read_grad is None else read_grad
        before = written * layer.stride**3
        works.append(Work(ELEMENT * (before * layer.inputs + grad * layer.outputs + layer.weight), flops))
    return works


def dense(layer: Layer, case: Case) -> list[Work]:
    """Every site of the crop, as torch runs the network on a plain tensor."""
    before, after = (case.all_sites(s) for s in (layer.stride_before, layer.stride_before * layer.stride))
    return _convolutions(layer, before, after)


def masked(layer: Layer, case: Case) -> list[Work]:
    """As `dense`; the result and its gradient are also multiplied by the mask."""
    after = case.all_sites(layer.stride_before * layer.stride)
    return dense(layer, case) + [Work(after * (2 * ELEMENT * layer.outputs + 1))] * 2


def fused(layer: Layer, case: Case) -> list[Work]:
    """Visible sites only, and the halo read inside the convolution: what a kernel written for it could reach."""
    before, after = (case.visible_sites(s) for s in (layer.stride_before, layer.stride_before * layer.stride))
    return _convolutions(layer, before, after)


def cells(layer: Layer, case: Case) -> list[Work]:
    """Blocks of visible cells, each copied with its halo before a dense convolution (`convolution/blocks.py`)."""
    if layer.kernel == 1:
        return fused(layer, case)
    block, reach = case.cell // layer.stride_before, layer.kernel // 2
    out = block // layer.stride
    # a strided layer reads beyond one end only, and so does the gradient of its input
    halo = 2 * reach if layer.stride == 1 else reach
    wide, wide_grad = case.cells * (block + halo) ** 3, case.cells * (out + halo) ** 3
    gathers = [_gather(wide, layer.inputs)] * 2  # for the result, and again for the weight's gradient
    if not layer.is_first:
        gathers.append(_gather(wide_grad, layer.outputs))
    return gathers + _convolutions(layer, wide, case.cells * out**3, wide_grad)


def rows(layer: Layer, case: Case) -> list[Work] | None:
    """Every site's neighbours in one row, then one matrix product (`convolution/rows.py`); None for a strided layer."""
    if layer.stride > 1:
        return None
    if layer.kernel == 1:
        return fused(layer, case)
    sites = case.visible_sites(layer.stride_before)
    gathers = [_gather(sites * layer.taps, layer.inputs)] * 2
    if not layer.is_first:
        gathers.append(_gather(sites * layer.taps, layer.outputs))
    return gathers + _convolutions(layer, sites * layer.taps, sites, sites * layer.taps)


def pairs(layer: Layer, case: Case) -> list[Work]:
    """For each place of the kernel the pairs of sites that exist: gather, multiply, add (`convolution/pairs.py`)."""
    if layer.kernel == 1:
        return fused(layer, case)
    count = expected_pairs(layer, case)
    read, grad = _gather(count, layer.inputs), _gather(count, layer.outputs)
    multiply = Work(
        ELEMENT * (count * (layer.inputs + layer.outputs) + layer.weight), 2 * count * layer.inputs * layer.outputs
    )
    works = [read, multiply, _add(count, layer.outputs), read, grad, multiply]
    # the gathered gradient serves both gradients
    return works if layer.is_first else [*works, multiply, _add(count, layer.inputs)]


def _gather(sites: float, channels: int) -> Work:
    """A copy of so many sites by an index table."""
    return Work(sites * (INDEX + 2 * ELEMENT * channels))


def _add(sites: float, channels: int) -> Work:
    """Products read again and added to the sites of an index table."""
    return Work(sites * (INDEX + 3 * ELEMENT * channels))


def expected_pairs(layer: Layer, case: Case) -> float:
    """How many visible sites the visible outputs of a layer read, on average over masks of single cells."""
    block = case.cell // layer.stride_before
    out = block // layer.stride
    total = case.grid**3
    share = (case.kept - 1) / (total - 1) if total > 1 else 1.0  # of another cell, given a visible one
    count = 0.0
    for place in product(*[_axis(layer, block, out)] * 3):
        outside = math.prod(fraction for fraction, crosses in place if crosses)
        inside = math.prod(fraction for fraction, crosses in place if not crosses)
        crossed = sum(crosses for _, crosses in place)
        there = (1 - 1 / case.grid) ** crossed * (share if crossed else 1.0)  # the neighbour lies in the volume
        count += outside * inside * there
    return count * case.cells * out**3


def _axis(layer: Layer, block: int, out: int) -> list[tuple[float, bool]]:
    """Of one axis: the kernel's places as shares of the outputs, and whether they read beyond their cell."""
    reach = layer.kernel // 2
    found = []
    for step in range(-reach, layer.kernel - reach):
        beyond = sum(not 0 <= o * layer.stride + step < block for o in range(out)) / out
        found += [(beyond, True)] * (beyond > 0) + [(1 - beyond, False)] * (beyond < 1)
    return found


METHODS: dict[str, Callable[[Layer, Case], list[Work] | None]] = {
    "dense": dense,
    "masked": masked,
    "cells": cells,
    "rows": rows,
    "pairs": pairs,
    "fused": fused,
}
#: how often a step reads or writes all values beside a convolution: a norm 3 times forward and 5 backward, an
#: activation in place 2 and 3, half an addition 2
PASSES = 3 + 5 + 2 + 3 + 2


def beside(layer: Layer, case: Case, method: str) -> Work:
    """Norm, activation and addition beside a layer: they are torch's own, so they move every stored value."""
    stride = layer.stride_before * layer.stride
    sites = case.all_sites(stride) if method in {"dense", "masked"} else case.visible_sites(stride)
    return Work(bytes=PASSES * ELEMENT * sites * layer.outputs)


def limits(layers: list[Layer], case: Case, bandwidth: float, peak: float) -> list[dict[str, Any]]:
    """One row for each kind of layer and method: work, least time in ms, and how much of it memory sets."""
    table = []
    for layer, (name, method) in product(dict.fromkeys(layers), METHODS.items()):
        works, count = method(layer, case), layers.count(layer)
        if works is None:
            continue
        times = [work.seconds(bandwidth, peak) for work in works]
        by_memory = sum(t for t, work in zip(times, works) if work.bytes / bandwidth > work.flops / peak)
        row = {"layer": layer.name, "layers": count, "channels": f"{layer.inputs} to {layer.outputs}", "method": name}
        row["gflop"] = count * sum(work.flops for work in works) / 1e9
        row["gbyte"] = count * sum(work.bytes for work in works) / 1e9
        row["ms"] = 1000 * count * sum(times)
        row["by memory ms"] = 1000 * count * by_memory
        row["norms ms"] = 1000 * count * beside(layer, case, name).seconds(bandwidth, peak)
        table.append(row)
    return table


def totals(rows_of_layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method over all layers, and how many times as long a dense encoder takes at least.

    A method that cannot compute a layer, as `rows` a strided one, counts there as `cells` does.
    """
    by_layer: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows_of_layers:
        by_layer.setdefault(f"{row['layer']} {row['channels']}", {})[row["method"]] = row
    sums = {name: [found.get(name, found["cells"]) for found in by_layer.values()] for name in METHODS}
    sums["best of cells, rows, pairs"] = [
        min((found[name] for name in ("cells", "rows", "pairs") if name in found), key=lambda row: row["ms"])
        for found in by_layer.values()
    ]
    whole = {name: sum(row["ms"] + row["norms ms"] for row in rows) for name, rows in sums.items()}
    return [
        {
            "method": name,
            **{key: sum(row[key] for row in rows) for key in ("gflop", "gbyte", "ms", "by memory ms", "norms ms")},
            "whole ms": whole[name],
            "dense ÷ it": whole["dense"] / whole[name],
        }
        for name, rows in sums.items()
    ]


def markdown(rows_of_table: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    names = list(rows_of_table[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows_of_table]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description="Computes how fast each way to convolve could be on a GPU.")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--size", type=int, default=128, help="voxels per axis of a crop")
    parser.add_argument("--batch", type=int, default=2, help="crops")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.6, 0.75, 0.9], help="shares that are masked")
    parser.add_argument("--bandwidth", type=float, default=3.0, help="TB/s of the GPU's memory, 3 of an H100")
    parser.add_argument("--peak", type=float, default=700.0, help="TFLOP/s in bfloat16, 700 of an H100")
    parser.add_argument("--details", action="store_true", help="print every kind of layer as well")
    parser.add_argument("--output", type=Path, help="file for all figures as JSON")
    options = parser.parse_args()

    found = []
    for name, ratio in product(options.encoders, options.ratios):
        layers, cell = ENCODERS[name]
        case = Case(options.size, options.batch, cell, ratio)
        detailed = limits(layers, case, options.bandwidth * 1e12, options.peak * 1e12)
        found.append({"encoder": name, "masked": ratio, "totals": totals(detailed), "layers": detailed})
        print(f"{name}, {options.size}³, batch {options.batch}, {ratio:.0%} masked\n")
        print(markdown(found[-1]["totals"]), end="\n\n")
        if options.details:
            print(markdown(detailed), end="\n\n")
    if options.output is not None:
        given = {"size": options.size, "batch": options.batch, "TB/s": options.bandwidth, "TFLOP/s": options.peak}
        options.output.write_text(json.dumps({**given, "cases": found}, indent=1))


if __name__ == "__main__":
    main()
