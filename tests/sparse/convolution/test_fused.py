# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The method `fused`: right in Triton's interpreter, and not there without Triton or a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bundle.errors import UserError
from bundle.networks import build_encoder
from bundle.sparse import CellLayout, SparseVolume, Window
from bundle.sparse.convolution import fused, methods
from bundle.sparse.convolution.fused import find_gradient_reads, find_reads
from bundle.sparse.convolution.methods import applicable, convolve
from tests.sparse.convolution.interpret_fused import CASES, CENTRED, CUBE, STRIDED

ROOT = Path(__file__).parents[3]
WHAT = ("output", "gradient of the input", "gradient of the weight", "gradient of the bias")
#: distance to float64, relative to the length
ALLOWED = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0.01, torch.float16: 0.001}


def run(program: list[str], **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- in the interpreter ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    return json.loads(run([str(Path(__file__).parent / "interpret_fused.py")], TRITON_INTERPRET="1"))


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_those_of_blocks(name: str, interpreted: dict[str, Any]):
    found = dict(zip(WHAT, interpreted["cases"][name]))
    assert len(found) == 3 + CASES[name].bias
    assert all(distance <= ALLOWED[CASES[name].dtype] for distance in found.values()), found


def test_a_whole_encoder_of_nnunet_has_the_features_and_gradients_of_blocks(interpreted: dict[str, Any]):
    assert interpreted["resenc"]["convolutions"] == 7
    assert max(interpreted["resenc"]["distances"]) < 1e-12


def test_auto_measures_it_and_runs_it_where_it_is_fastest(interpreted: dict[str, Any]):
    assert {"blocks", "fused"} <= set(interpreted["auto"]["measured"])
    assert interpreted["auto"]["distance"] < 1e-6


def test_it_takes_no_groups(interpreted: dict[str, Any]):
    assert "fused" in interpreted["applicable"]
    assert interpreted["applicable in groups"] == ["blocks", "dense"]


def test_the_trial_on_a_device_lets_only_a_right_kernel_pass(interpreted: dict[str, Any]):
    assert interpreted["trial"]["distance"] < 0.001
    assert not interpreted["trial"]["passes when wrong"]
    assert not interpreted["trial"]["passes when it cannot start"]


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "cell_shape", "before", "after"),
    [
        (CENTRED, CUBE, (1, 1, 1), (1, 1, 1)),
        (STRIDED, CUBE, (1, 1, 1), (0, 0, 0)),
        (Window((2, 2, 2), stride=(2, 2, 2)), CUBE, (0, 0, 0), (0, 0, 0)),
        (Window((3, 1, 7), padding=(1, 0, 3)), (1, 1, 2), (1, 0, 2), (1, 0, 2)),
    ],
)
def test_only_cells_that_windows_reach_are_neighbours(window, cell_shape, before, after):
    reads = find_reads(cell_shape, window)
    assert (reads.before, reads.after) == (before, after)


@pytest.mark.parametrize("window", [CENTRED, STRIDED, Window((3, 1, 3), (2, 1, 1), (2, 0, 0), (2, 1, 2))])
def test_each_product_of_the_forward_pass_is_one_of_the_gradient(window: Window):
    forward, back = find_reads(CUBE, window), find_gradient_reads(CUBE, window)
    # of one axis each: (output, input, place of the kernel) in an endless row of sites
    for axis in range(3):
        reads = {
            (o, o * forward.source_step[axis] + place[axis], number)
            for o in range(-20, 20)
            for place, number in forward.classes[0].places
        }
        given = {
            (step + place[axis], one.first[axis] + step * back.target_step[axis], number)
            for one in back.classes
            for step in range(-20, 20)
            for place, number in one.places
        }
        inner = range(-8, 8)
        assert {r for r in reads if r[0] in inner and r[1] in inner} == {
            g for g in given if g[0] in inner and g[1] in inner
        }


# ---- ResEnc-L --------------------------------------------------------------------------------------------------------


def convolutions(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> set[tuple[Any, ...]]:
    """What nnU-Net's encoder asks for: channels, cell shape, window and groups, of all but pointwise convolutions."""
    asked = set()

    def look(blocks: torch.Tensor, cell_shape: Any, window: Window, groups: int) -> str:
        asked.add((blocks.shape[1], cell_shape, window, groups))
        return "blocks"

    monkeypatch.setattr(methods, "usual_method", look)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # which the device meta has not
    meta = torch.device("meta")
    with meta:
        encoder = build_encoder("ResidualEncoderUNet", **arguments)
    image = torch.empty(1, 1, *(2 * s for s in encoder.total_stride), device=meta)
    encoder(SparseVolume.from_dense(image, CellLayout(torch.ones(1, 1, 2, 2, 2, dtype=torch.bool), meta)))
    return asked


#: as nnU-Net plans for thick slices
FLAT_STEMS = {
    "n_stages": 6,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
}


@pytest.mark.parametrize("arguments", [{}, FLAT_STEMS], ids=["ResEnc-L", "for thick slices"])
def test_every_convolution_of_resenc_l_is_one_that_it_takes_and_whose_window_is_tried(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    asked = convolutions(monkeypatch, **arguments)
    assert {channels for channels, *_ in asked} == {1, 32, 64, 128, 256, 320}
    tried = {case.window for case in CASES.values()}
    for _, cell_shape, window, groups in asked:
        assert groups == 1 and window in tried
        assert all(fused.applies(dtype, cell_shape, window) for dtype in (torch.bfloat16, torch.float32))


# ---- where it is not -------------------------------------------------------------------------------------------------


def test_a_cpu_has_no_such_method():
    assert "fused" not in applicable(torch.float32, CUBE, CENTRED, groups=1)
    layout = CellLayout(torch.ones(1, 1, 1, 1, 1, dtype=torch.bool))
    with pytest.raises(UserError, match=r"no method 'fused'.*on cpu: choose one of blocks"):
        convolve(torch.zeros(1, 2, 4, 4, 4), torch.zeros(2, 2, 3, 3, 3), None, layout, CUBE, CENTRED, 1, "fused")


def test_without_triton_nothing_is_amiss():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, bundle.sparse\n"
        "from bundle.sparse.convolution.methods import METHODS\n"
        "print([METHODS['fused'].runs_on(torch.device(d)) for d in ('cpu', 'cuda')])"
    )
    assert run(["-c", program], TRITON_INTERPRET="1") == "[False, False]\n"


def test_triton_is_imported_only_when_it_is_asked_for():
    program = (
        "import sys, torch, bundle.sparse\n"
        "volume = bundle.sparse.SparseVolume.from_dense(torch.zeros(1, 2, 8, 8, 8), torch.ones(1, 1, 2, 2, 2) > 0)\n"
        "torch.nn.Conv3d(2, 2, 3, padding=1)(volume)\n"
        "print('triton' in sys.modules)"
    )
    assert run(["-c", program]) == "False\n"
