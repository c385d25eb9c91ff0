# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The host never waits for the device: nothing that is computed there decides what the host does next.

The device "meta" stands for a GPU. Its tensors have shapes but no values, so whatever would wait for a value fails. A
copy of numbers to the device makes the host wait as well; `torch.tensor` and its kind are seen on the CPU.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from bundle.losses import AlignmentLoss, PretrainingLoss, ReconstructionLoss
from bundle.masking import AdaptiveBlocks, ChildLevel, MaskedBatch, MaskInMask, MaskSampler
from bundle.networks import Decoder, EncoderDepthPairs, PretrainingNetwork, VolumeLevelPairs, build_encoder
from bundle.sparse import CellLayout, SparseVolume, Window
from bundle.sparse.convolution.methods import METHODS
from tests.sparse.calls import ENCODERS, Calls

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch has no autocast for the device "meta"."""

    @contextmanager
    def nothing(*args, **kwargs):
        yield

    monkeypatch.setattr(torch, "autocast", nothing)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


def visible_cells(grid: tuple[int, int, int] = (2, 2, 2)) -> torch.Tensor:
    return torch.rand(2, 1, *grid, generator=torch.Generator().manual_seed(0)) > 0.4


@pytest.mark.parametrize("device", [META, CPU], ids=str)
@pytest.mark.parametrize("executor", ["cells", "masked"])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_waits_for_nothing(name: str, executor: str, device: torch.device, no_autocast):
    encoder = build_encoder(**ENCODERS[name]).to(device)
    stride = encoder.total_stride
    image = torch.empty(2, 1, *(2 * s for s in stride), device=device, requires_grad=True)
    layout = CellLayout(visible_cells(), device)
    with Calls() as calls:
        features = encoder(SparseVolume.from_dense(image, layout, executor))
        torch.autograd.backward([f.to_dense().sum() for f in features])
    assert calls.counts["convolution_backward"] > 3 and image.grad is not None
    assert not calls.waits()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "fused"])
def test_a_method_builds_its_tables_without_waiting(method: str):
    layout, window = CellLayout(visible_cells(), META), Window((3, 3, 3), padding=(1, 1, 1))
    blocks = torch.empty(len(layout), 4, 4, 4, 4, device=META, requires_grad=True)
    weight = torch.empty(4, 4, 3, 3, 3, device=META, requires_grad=True)
    with Calls() as calls:
        out = METHODS[method].function(blocks, weight, None, layout, (4, 4, 4), window, 1)
        out.sum().backward()
    assert calls.counts and not calls.waits()


@pytest.mark.parametrize("device", [META, CPU], ids=str)
@pytest.mark.parametrize("kind", ["depths", "levels", "neither"])
def test_a_step_of_pretraining_waits_once_for_each_mask_at_most(
    kind: str, device: torch.device, no_autocast, monkeypatch: pytest.MonkeyPatch
):
    masking = MaskSampler(rule=AdaptiveBlocks(), cell=(16, 16, 16))
    children = [ChildLevel(masking=masking, children=2)] if kind == "levels" else []
    crops = {
        "image": torch.randn(2, 1, 64, 64, 64),
        **{name: torch.ones(2, 1, 64, 64, 64, dtype=torch.bool) for name in ("valid", "foreground")},
        "draw": torch.arange(2),
        "spacing": torch.ones(2, 3),
    }
    image, target, _, arguments = MaskedBatch(MaskInMask(masking=masking, levels=children))(crops, device)
    for level, drawn in zip(arguments["children"], [visible_cells()] * len(children)):
        # a mask that lies on a GPU is copied to the host, which "meta" cannot do
        level.visible, level.hidden = drawn.repeat(2, 1, 1, 1, 1), ~drawn.repeat(2, 1, 1, 1, 1)
    network = pretraining_network(kind).to(device)
    loss = PretrainingLoss(
        reconstruction=ReconstructionLoss(target="per_volume", visible_weight=0.0),
        alignment=AlignmentLoss(exclusion_mm=20),
    )
    with Calls() as calls:
        pause_while_laid_out(calls, monkeypatch)
        output = network(image, **arguments)
        assert {output[name].device for name in ("visible", "hidden")} == {device}
        for level in target["children"]:
            level.hidden = level.hidden.to(device)
        loss(output, target).backward()
    assert ("alignment" in output["made"]) == (kind != "neither")
    assert calls.counts["convolution_backward"] > 3
    assert not calls.waits()


def pretraining_network(kind: str) -> PretrainingNetwork:
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1, 1, 1))
    heads = {"depths": EncoderDepthPairs, "levels": VolumeLevelPairs}.get(kind)
    return PretrainingNetwork(
        encoder=encoder,
        decoder=Decoder(levels=encoder.levels, width=8),
        alignment=None if heads is None else heads(levels=encoder.levels, dim=8, samples=16),
        teacher_momentum=0.9 if kind == "levels" else None,
    )


def pause_while_laid_out(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a layout does with a mask on the CPU is no wait."""
    lay_out = CellLayout.__init__

    def paused(self, *args) -> None:
        calls.paused = True
        lay_out(self, *args)
        calls.paused = False

    monkeypatch.setattr(CellLayout, "__init__", paused)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x.sum().item(),
    ],
)
def test_meta_fails_where_a_gpu_would_be_waited_for(wait):
    with pytest.raises((RuntimeError, NotImplementedError)):
        wait(torch.empty(3, device=META))


@pytest.mark.parametrize("copy", [lambda x: torch.tensor(x.shape), lambda x: x.new_tensor([1, 2])])
def test_numbers_that_are_copied_to_the_device_are_seen(copy):
    with Calls() as calls:
        copy(torch.empty(3))
    assert calls.waits()


def test_masks_stay_on_the_cpu_and_all_else_goes_to_the_device():
    masking = MaskSampler(rule=AdaptiveBlocks(), cell=(16, 16, 16))
    everywhere = torch.ones(1, 1, 32, 32, 32, dtype=torch.bool)
    crops = {"image": torch.randn(1, 1, 32, 32, 32), "valid": everywhere, "foreground": everywhere}
    batch = MaskedBatch(MaskInMask(masking=masking))(
        {**crops, "draw": torch.arange(1), "spacing": torch.ones(1, 3)}, META
    )
    image, target, _, arguments = batch
    assert {arguments[name].device.type for name in ("visible", "hidden")} == {"cpu"}
    moved = [image, arguments["spacing"], *(x for x in target.values() if isinstance(x, torch.Tensor))]
    assert {x.device for x in moved} == {META}
