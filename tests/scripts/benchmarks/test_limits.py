# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The limits on paper count what torch and the sparse methods really do."""

from __future__ import annotations

import json
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from limits import ELEMENT, ENCODERS, INDEX, Case, Layer, cells, dense, expected_pairs, limits, segres_encoder, totals
from limits import layers as layers_of
from monai.networks.nets.segresnet_ds import SegResEncoder
from torch.utils.flop_counter import FlopCounterMode

from bundle.networks import build_encoder
from bundle.sparse import CellLayout, SparseVolume
from bundle.sparse.convolution.kernel_maps import pair_table
from bundle.sparse.windows import Window

ROOT = Path(__file__).parents[3]
BLOCKS = (1, 2, 1)
CASE = Case(size=16, batch=2, cell=4, masked=0.5)


def network() -> SegResEncoder:
    return SegResEncoder(init_filters=4, blocks_down=BLOCKS, norm="batch")


def mask(case: Case, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    total = case.grid**3
    order = torch.stack([torch.randperm(total, generator=generator) for _ in range(case.batch)])
    return (order < case.kept).view(case.batch, 1, *[case.grid] * 3)


def test_flops_of_a_dense_step_are_those_that_torch_counts():
    image = torch.randn(CASE.batch, 1, *[CASE.size] * 3)
    with FlopCounterMode(display=False) as counter:
        sum(feature.sum() for feature in network()(image)).backward()
    expected = sum(work.flops for layer in segres_encoder(4, BLOCKS) for work in dense(layer, CASE))
    assert counter.get_total_flops() == expected


def test_flops_of_a_dense_step_of_a_resenc_are_those_that_torch_counts():
    encoder = {
        "name": "ResidualEncoderUNet",
        "n_stages": 4,
        "features_per_stage": (4, 8, 16, 16),
        "kernel_sizes": ((3, 3, 3),) * 4,
        "strides": ((1, 1, 1), *((2, 2, 2),) * 3),
        "n_blocks_per_stage": (1, 2, 1, 2),
    }
    resenc, image = build_encoder(**encoder), torch.randn(CASE.batch, 1, *[CASE.size] * 3)
    with FlopCounterMode(display=False) as counter:
        sum(feature.sum() for feature in resenc(image)).backward()
    assert counter.get_total_flops() == sum(work.flops for layer in layers_of(encoder) for work in dense(layer, CASE))


def test_flops_of_the_cells_forward_pass_are_those_that_torch_counts():
    torch.manual_seed(0)
    image = SparseVolume.from_dense(torch.randn(CASE.batch, 1, *[CASE.size] * 3), mask(CASE), "cells")
    encoder = network()
    with FlopCounterMode(display=False) as counter:
        encoder(image)
    # the result's convolution does as much as the weight's gradient, which every layer has
    works = [[work.flops for work in cells(layer, CASE) if work.flops] for layer in segres_encoder(4, BLOCKS)]
    assert counter.get_total_flops() == sum(flops[0] for flops in works)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_gather_of_cells_moves_as_many_rows_as_the_layouts_table_has(stride: int):
    layer = Layer("some", 3, 5, stride_before=1, stride=stride)
    window = Window((3, 3, 3), (stride,) * 3, (1, 1, 1), (1, 1, 1))
    halo = CellLayout(mask(CASE)).halo((4, 4, 4), window.padding, window.high)
    assert cells(layer, CASE)[0].bytes == len(halo.rows) * (INDEX + 2 * ELEMENT * layer.inputs)


@pytest.mark.parametrize("stride", [1, 2])
def test_pairs_are_those_of_the_table_where_everything_is_visible(stride: int):
    case, layer = Case(8, 2, 4, masked=0.0), Layer("some", 1, 1, stride_before=1, stride=stride)
    assert expected_pairs(layer, case) == pytest.approx(_pairs(case, stride, seed=0))


def test_pairs_are_those_of_the_table_on_average_over_masks():
    case, layer = Case(8, 2, 2, masked=0.75), Layer("some", 1, 1, stride_before=1)
    counts = [_pairs(case, 1, seed) for seed in range(100)]
    assert expected_pairs(layer, case) == pytest.approx(sum(counts) / len(counts), rel=0.02)


def _pairs(case: Case, stride: int, seed: int) -> int:
    window = Window((3, 3, 3), (stride,) * 3, (1, 1, 1), (1, 1, 1))
    table = pair_table(CellLayout(mask(case, seed)), (case.cell,) * 3, window)
    return sum(len(outputs) for outputs in table.outputs)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_fused_kernel_is_the_floor_and_gains_what_is_hidden(name: str):
    layers, cell = ENCODERS[name]
    case = Case(128, 2, cell, masked=0.75)
    found = {row["method"]: row for row in totals(limits(layers, case, bandwidth=3e12, peak=700e12))}
    assert found["fused"]["whole ms"] == min(row["whole ms"] for row in found.values())
    assert 1 < found["cells"]["dense ÷ it"] < found["fused"]["dense ÷ it"] <= 4
    assert found["masked"]["dense ÷ it"] < 1


def test_resenc_l_has_the_parameters_of_its_table():
    layers, _ = ENCODERS["ResEnc-L"]
    convolutions = [layer for layer in layers if layer.kernel == 3]
    assert len(convolutions) == 1 + 2 * (1 + 3 + 4 + 6 + 6 + 6)
    assert prod(layer.stride for layer in layers) == 32


def test_the_page_holds_what_the_command_prints(tmp_path: Path):
    command = [sys.executable, "scripts/benchmarks/limits.py", "--output", str(tmp_path / "limits.json")]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs/explanation/gpu_limits.md").read_text()
    tables = [block for block in printed.split("\n\n") if block.startswith("|")]
    assert len(tables) == 6
    assert all(table.strip() in page for table in tables)
    assert len(json.loads((tmp_path / "limits.json").read_text())["cases"]) == 6
