# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The benchmark measures what it says: its baseline is exact, its candidates do the same work, its sums are right."""

from __future__ import annotations

import pytest
import speed as benchmark
import torch
import torch.utils._python_dispatch
from monai.networks.nets.segresnet_ds import SegResEncoder
from spark_baseline import SparKStep, make_spark

from bundle.sparse import SparseVolume


def encoder() -> SegResEncoder:
    torch.manual_seed(0)
    return SegResEncoder(init_filters=4, blocks_down=(1, 1, 1), norm="batch").double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    visible = torch.rand(2, 1, 3, 2, 2, generator=generator) > 0.5
    return torch.randn(2, 1, 12, 8, 8, dtype=torch.float64, generator=generator), visible


def test_the_spark_baseline_computes_what_the_sparse_encoder_computes():
    image, visible = batch()
    expected = encoder()(SparseVolume.from_dense(image, visible, "masked"))
    network = encoder()
    mask = make_spark(network)
    network.double()  # its norms are new
    mask.visible = visible
    for a, b in zip(network(image * mask.at(image)), expected, strict=True):
        torch.testing.assert_close(a, b.to_dense(), rtol=1e-10, atol=1e-10)


def test_the_spark_step_decodes_to_full_resolution_from_what_is_visible():
    image, visible = batch()
    network = SparKStep(encoder(), [4, 8, 16]).double()
    out = network(image, visible)
    assert out.shape == image.shape
    hidden = ~visible.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    changed = torch.where(hidden, image + 1e3, image)
    torch.testing.assert_close(network.eval()(changed, visible), network.eval()(image, visible))


def test_growth_is_the_slope_over_visible_voxels():
    rows = [
        {"what": "encoder", "ratio": 0.5, "candidate": "cells", "size": size, "seconds": 3e-6 * size ** (3 * 1.1)}
        for size in (64, 96, 128)
    ]
    (line,) = benchmark.growth(rows)
    assert line.endswith("^ 1.10")


def test_ratios_are_within_a_case():
    case = {"what": "encoder", "size": 64, "ratio": 0.75, "batch": 1}
    rows = [
        {**case, "candidate": "cells", "seconds": 2.0, "peak_mib": 100.0},
        {**case, "candidate": "dense", "seconds": 9.0, "peak_mib": 400.0},
        {**case, "size": 96, "candidate": "dense", "seconds": 50.0, "peak_mib": 400.0},
    ]
    dense = benchmark.with_ratios(rows)[1]
    assert (dense["times_cells"], dense["cells_memory_share"], dense["ideal"]) == (4.5, 0.25, 4.0)
    assert "times_cells" not in rows[2]


@pytest.mark.parametrize("what", ["encoder", "step"])
def test_every_candidate_runs_and_is_measured(what: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(benchmark, "ENCODER", {"init_filters": 4, "blocks_down": (1, 1, 1, 1, 1), "norm": "batch"})
    monkeypatch.setattr(benchmark, "peak_memory", lambda *_: 1.0)  # in a process of its own, at full size
    candidates = benchmark.ENCODERS if what == "encoder" else benchmark.STEPS
    options = {"size": 32, "ratio": 0.5, "batch": 1, "device": "cpu"}
    rows = benchmark.with_ratios(benchmark.measure(what, list(candidates), options, repeats=1, flops=True))
    assert [row["candidate"] for row in rows] == list(candidates)
    assert all(row["seconds"] > 0 and row["times_cells"] > 0 for row in rows)
    flops = {row["candidate"]: row["gflop"] for row in rows}
    assert flops["cells"] < flops["masked"], "the sparse one must do less work"
    assert "| cells |" in benchmark.table(rows)


def test_another_encoder_is_measured_in_cells_of_its_own(monkeypatch: pytest.MonkeyPatch):
    tiny = {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2]],
        "n_blocks_per_stage": [1, 1],
    }
    monkeypatch.setattr(benchmark, "ARGUMENTS", {"ResidualEncoderUNet": tiny})
    monkeypatch.setattr(benchmark, "peak_memory", lambda *_: 1.0)
    case = benchmark.Case(4, 0.75, 1, torch.device("cpu"), "ResidualEncoderUNet")
    assert (tuple(case.drawn.shape), int(case.drawn.sum())) == ((1, 1, 4, 2, 2), 4)
    options = {"size": 8, "ratio": 0.5, "batch": 1, "device": "cpu", "encoder": "ResidualEncoderUNet"}
    cells, dense = benchmark.measure("encoder", ["cells", "dense"], options, repeats=1, flops=True)
    assert cells["encoder"] == "ResidualEncoderUNet"
    assert cells["gflop"] < dense["gflop"]


def test_all_candidates_compute_in_one_precision(monkeypatch: pytest.MonkeyPatch):
    """A network that autocasts by itself switches off an autocast around it, so it must be told."""
    monkeypatch.setattr(benchmark, "half_precision", lambda _: torch.bfloat16)
    encoder = {"init_filters": 4, "blocks_down": (1, 1, 1), "norm": "batch"}
    monkeypatch.setattr(benchmark, "ENCODER", encoder)
    monkeypatch.setattr(benchmark, "CELL", 4)
    case = benchmark.Case(8, 0.5, 1, torch.device("cpu"))
    for what, pass_of in benchmark.WHAT.items():
        for candidate in ("cells", "masked", "spark"):
            types: set[torch.dtype] = set()
            step = pass_of(candidate, case)
            with Types(types):
                step()
            assert types == {torch.bfloat16}, (what, candidate)


class Types(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the types that convolutions compute in."""

    def __init__(self, found: set[torch.dtype]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.found.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_another_encoder_brings_its_own_cells(monkeypatch: pytest.MonkeyPatch):
    for name in ("USUAL", "ENCODER", "CELL"):
        monkeypatch.setattr(benchmark, name, getattr(benchmark, name))
    benchmark.use_encoder("ResidualEncoderUNet")
    assert benchmark.CELL == 32 and benchmark.Case(64, 0.5, 1, torch.device("cpu")).drawn.shape == (1, 1, 2, 2, 2)


def test_the_decoders_graphs_are_made_for_what_its_blocks_get(monkeypatch: pytest.MonkeyPatch):
    encoder = {"init_filters": 4, "blocks_down": (1, 1, 1, 1), "norm": "batch"}
    monkeypatch.setattr(benchmark, "ENCODER", encoder)
    monkeypatch.setattr(benchmark, "CELL", 8)
    monkeypatch.setattr(benchmark, "half_precision", lambda _: torch.bfloat16)
    got: list[tuple[torch.nn.Module, torch.Tensor]] = []
    given: list[tuple[torch.nn.Module, torch.Tensor]] = []

    def graph(blocks: tuple[torch.nn.Module, ...], samples: tuple[tuple[torch.Tensor], ...]) -> None:
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()
        for block, (sample,) in zip(blocks, samples, strict=True):
            given.append((block, sample))
            block.register_forward_pre_hook(lambda block, inputs: got.append((block, inputs[0])))

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", graph)
    benchmark.training_step("cells graphed", benchmark.Case(16, 0.5, 2, torch.device("cpu")))()
    facts = [[(id(b), x.shape, x.dtype, x.requires_grad) for b, x in pairs] for pairs in (given, got)]
    assert facts[0] == facts[1] and len(given) == 2
