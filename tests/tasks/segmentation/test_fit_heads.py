# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks.nets import SegResNetDS
from torch import nn

from bundle.errors import UserError
from bundle.tasks.segmentation import FitHeads

LOSS = DiceCELoss(to_onehot_y=True, softmax=True)


def loader() -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    blobs = torch.randn(3, 1, 4, 4, 4)
    images = nn.functional.interpolate(blobs, size=(16, 16, 16), mode="trilinear")[:, None]
    return [{"image": image, "label": (image > 0).float()} for image in images]


def loss_at_start(loss: nn.Module, *, batches: int = 2, epoch: int = 0) -> tuple[float, float]:
    """Of a new network on the first batch, before and after the handler."""
    torch.manual_seed(0)
    network = SegResNetDS(init_filters=8, blocks_down=[1, 1], in_channels=1, out_channels=2, dsdepth=1, norm="instance")
    first, found = loader()[0], []
    trainer = Engine(lambda *_: None)

    def measure(_: Engine) -> None:
        with torch.no_grad():
            found.append(LOSS(network(first["image"]), first["label"]).item())

    trainer.add_event_handler(Events.STARTED, measure)
    trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", epoch))
    trainer.state.device = torch.device("cpu")
    FitHeads(network=network, loader=loader(), loss=loss, batches=batches).attach(trainer)
    trainer.add_event_handler(Events.STARTED, measure)
    trainer.add_event_handler(Events.STARTED, lambda engine: engine.terminate())
    trainer.run([0])
    return found[0], found[1]


@pytest.mark.parametrize("loss", [LOSS, DeepSupervisionLoss(LOSS)], ids=["plain", "deep supervision"])
def test_heads_fit_before_the_first_step(loss: nn.Module):
    before, after = loss_at_start(loss)
    assert after < before - 0.2


def test_a_resumed_run_and_zero_batches_keep_them():
    for before, after in (loss_at_start(LOSS, epoch=1), loss_at_start(LOSS, batches=0)):
        assert before == after


@pytest.mark.parametrize("batches", [-1, "many", 2.5])
def test_what_is_no_number_of_batches_is_one_clear_line(batches):
    with pytest.raises(UserError, match=r"--fit_heads .* does not fit: give a number of batches, such as 8, or 0"):
        FitHeads(network=nn.Identity(), loader=[], loss=LOSS, batches=batches)
