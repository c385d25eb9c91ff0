# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/training/gradients.py: long gradients, gradients that vanish or overflow in float16, and float32 untouched."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import nn
from torch.optim import SGD

from bundle.errors import UserError
from bundle.training import ClipGradients, ScaleLoss
from bundle.training.history import read_history
from tests.tiny_run import bundle_root, train

from .toy import ToyNetwork, toy_loader, toy_trainer

CPU = torch.device("cpu")


def trainer_with_clipping(max_norm, draws=8, **more):
    network = ToyNetwork()
    optimizer = SGD(network.parameters(), lr=1.0)
    clip = ClipGradients(optimizer=optimizer, max_norm=max_norm)
    return toy_trainer(network, optimizer, toy_loader(draws), 1, [clip], **more)


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()])


def test_a_step_is_no_longer_than_the_largest_norm_and_the_norm_is_logged():
    trainer = trainer_with_clipping(max_norm=1e-3, draws=2)
    before = weights(trainer).clone()
    trainer.run()
    assert (weights(trainer) - before).norm() == pytest.approx(1e-3, rel=1e-3)
    assert trainer.state.output["pred"]["terms"]["gradient_norm"] > 1e-3


def test_accumulated_gradients_are_clipped_once_per_step():
    trainer = trainer_with_clipping(max_norm=1e9, accumulation_steps=2)
    logged, norms = [], []

    @trainer.on(IterationEvents.BACKWARD_COMPLETED)
    def norm(engine):
        norms.append(torch.stack([parameter.grad.norm() for parameter in engine.network.parameters()]).norm())

    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: logged.append(engine.state.output["pred"]["terms"].get("gradient_norm")),
    )
    trainer.run()
    assert [value is not None for value in logged] == [False, True, False, True]
    torch.testing.assert_close(torch.stack(logged[1::2]), torch.stack(norms[1::2]))


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change():
    trainer = trainer_with_clipping(max_norm=1.0)
    kept = []

    @trainer.on(IterationEvents.BACKWARD_COMPLETED)
    def spoil(engine):
        if engine.state.iteration == 2:
            kept.append(copy.deepcopy(weights(engine)))
            engine.network.head.weight.grad[:] = float("nan")

    with pytest.raises(UserError, match=r"not finite in epoch 1, iteration 2: .* with a lower --lr"):
        trainer.run()
    assert torch.equal(weights(trainer), kept[0])


class Half(nn.Module):
    """Multiplies in float16 by one weight, after a factor of its own."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight, self.factor = nn.Parameter(torch.ones(())), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * (x.half() * self.weight.half()).float()


def float16_trainer(
    factor: float, dtype: torch.dtype | None, batches: int = 1, *, fused: bool = False, **options
) -> SupervisedTrainer:
    network = Half(factor)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, fused=fused)
    data = [{"image": torch.full((1,), 0.5), "label": torch.zeros(1)} for _ in range(batches)]
    clip = ClipGradients(optimizer=optimizer, max_norm=1e9)
    return SupervisedTrainer(
        device=CPU, max_epochs=1, train_data_loader=data, network=network, optimizer=optimizer, decollate=False,
        loss_function=lambda pred, _: pred.mean(), train_handlers=[ScaleLoss(autocast=dtype, device=CPU), clip],
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_below_float16_is_not_lost(fused: bool):
    """The gradient of the weight passes 1e-9 in float16, whose smallest number is 6e-8."""
    plain, scaled = float16_trainer(1e-9, None), float16_trainer(1e-9, torch.float16, fused=fused)
    before = [engine.network.weight.item() for engine in (plain, scaled)]
    grads = []
    for engine in (plain, scaled):
        engine.optimizer.register_step_pre_hook(lambda *_, e=engine: grads.append(e.network.weight.grad.item()))
        engine.run()
    assert before == [1, 1] and grads[0] == 0
    assert grads[1] == pytest.approx(0.5e-9, rel=1e-2), "divided by the scale again before the step"


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_overflows_is_skipped_and_the_next_is_not(fused: bool):
    engine = float16_trainer(8.0, torch.float16, batches=4, fused=fused)
    engine.run()
    assert engine.scaler.get_scale() == 65536 / 2**4  # 8 * scale is beyond float16's 65504 four times
    assert engine.network.weight.item() == 1
    engine = float16_trainer(8.0, torch.float16, batches=6, fused=fused)
    engine.run()
    assert engine.network.weight.item() == pytest.approx(1 - 2 * 4.0)


def test_gradients_that_no_scale_helps_end_the_run_with_a_remedy():
    with pytest.raises(UserError, match="--amp bfloat16"):
        float16_trainer(float("inf"), torch.float16, batches=18).run()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_other_precisions_are_left_alone(dtype: torch.dtype | None):
    engine = float16_trainer(1.0, dtype)
    assert not engine.amp and engine.scaler is None
    engine.run()
    assert engine.network.weight.item() == 0.5


def test_a_run_in_float16_learns_as_one_in_float32(data_dir: Path, tmp_path: Path):
    root = bundle_root(tmp_path, data_dir)
    half, full = (
        read_history(train(root, amp=amp, output_dir=str(tmp_path / str(amp)), epochs=1) / "metrics.csv")[-1]
        for amp in ("float16", False)
    )
    for name in ("train/reconstruction", "validation/reconstruction"):
        assert half[name] == pytest.approx(full[name], rel=0.02) and half[name] != full[name]
