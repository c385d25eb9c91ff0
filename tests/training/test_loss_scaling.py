# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/training/loss_scaling.py: float16 gradients that would vanish, that overflow, and float32 untouched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from bundle.errors import UserError
from bundle.training import ClipGradients, ScaleLoss
from bundle.training.history import read_history
from tests.tiny_run import bundle_root, train

CPU = torch.device("cpu")


class Half(nn.Module):
    """Multiplies in float16 by one weight, after a factor of its own."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight, self.factor = nn.Parameter(torch.ones(())), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * (x.half() * self.weight.half()).float()


def trainer(factor: float, dtype: torch.dtype | None, batches: int = 1, **options) -> SupervisedTrainer:
    network = Half(factor)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    data = [{"image": torch.full((1,), 0.5), "label": torch.zeros(1)} for _ in range(batches)]
    clip = ClipGradients(optimizer=optimizer, max_norm=1e9)
    return SupervisedTrainer(
        device=CPU, max_epochs=1, train_data_loader=data, network=network, optimizer=optimizer, decollate=False,
        loss_function=lambda pred, _: pred.mean(), train_handlers=[ScaleLoss(autocast=dtype, device=CPU), clip],
        **options,
    )  # fmt: skip


def test_a_gradient_below_float16_is_not_lost():
    """The gradient of the weight passes 1e-9 in float16, whose smallest number is 6e-8."""
    plain, scaled = trainer(1e-9, None), trainer(1e-9, torch.float16)
    before = [engine.network.weight.item() for engine in (plain, scaled)]
    grads = []
    for engine in (plain, scaled):
        engine.optimizer.register_step_pre_hook(lambda *_, e=engine: grads.append(e.network.weight.grad.item()))
        engine.run()
    assert before == [1, 1] and grads[0] == 0
    assert grads[1] == pytest.approx(0.5e-9, rel=1e-2), "divided by the scale again before the step"


def test_a_step_that_overflows_is_skipped_and_the_next_is_not():
    engine = trainer(8.0, torch.float16, batches=4)
    engine.run()
    assert engine.scaler.get_scale() == 65536 / 2**4  # 8 * scale is beyond float16's 65504 four times
    assert engine.network.weight.item() == 1
    engine = trainer(8.0, torch.float16, batches=6)
    engine.run()
    assert engine.network.weight.item() == pytest.approx(1 - 2 * 4.0)


def test_gradients_that_no_scale_helps_end_the_run_with_a_remedy():
    with pytest.raises(UserError, match="--amp bfloat16"):
        trainer(float("inf"), torch.float16, batches=18).run()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_other_precisions_are_left_alone(dtype: torch.dtype | None):
    engine = trainer(1.0, dtype)
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
