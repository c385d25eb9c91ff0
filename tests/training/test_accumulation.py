# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/training/accumulation.py: a step in parts has the loss and the gradient of the whole batch at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from bundle.losses import AlignmentLoss, PretrainingLoss, ReconstructionLoss
from bundle.masking import AdaptiveBlocks, ChildLevel, MaskedBatch, MaskInMask, MaskSampler
from bundle.training import Accumulate, ClipGradients, Scalars
from bundle.training.accumulation import parts_of_batches

CROPS = 5


class Convolution(nn.Module):
    """Predicts every voxel of the crops and of the children with one convolution, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, 1, 3, padding=1).double()

    def forward(self, image: Tensor, visible: Tensor, hidden: Tensor, spacing: Tensor, children: list[Any]) -> Any:  # noqa: ARG002
        made = [self.convolution(image), *(self.convolution(level.image) for level in children)]
        return {"visible": visible, "hidden": hidden, "terms": {}, "made": {"reconstruction": made}}


def crops() -> list[dict[str, Tensor]]:
    """Each padded otherwise, so that no two have as many voxels to reconstruct."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for draw in range(CROPS):
        valid = torch.ones(1, 16, 16, 16, dtype=torch.bool)
        valid[:, 16 - 3 * draw :] = False
        made.append({
            "image": torch.randn(1, 16, 16, 16, generator=generator).double() * (1 + draw), "valid": valid,
            "foreground": valid, "draw": torch.tensor(draw), "spacing": torch.ones(3),
        })  # fmt: skip
    return made


def loss(visible_weight: float = 0.5) -> PretrainingLoss:
    voxels = ReconstructionLoss(target="per_volume", visible_weight=visible_weight, floor=1e-3)
    return PretrainingLoss(reconstruction=voxels, alignment=AlignmentLoss(), level_weights=[1.0, 1.0])


def train(network: nn.Module, parts: int | None, loss_function: nn.Module, **more: Any) -> SupervisedTrainer:
    """Two steps on the same five crops, at most so many at a time; None is MONAI's own iteration."""
    optimizer = SGD(network.parameters(), lr=0.01)
    rule = AdaptiveBlocks(ratio=0.5, min_masked=1, min_unmasked=1)
    masking = MaskSampler(rule=rule, cell=(4, 4, 4))
    level = ChildLevel(masking=masking, children=2, size=(8, 8, 8))
    handlers = [Scalars(name="train", optimizer=optimizer), ClipGradients(optimizer=optimizer, max_norm=1e9)]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=2, network=network, optimizer=optimizer, loss_function=loss_function,
        train_data_loader=DataLoader(crops(), batch_size=CROPS), decollate=False, train_handlers=handlers,
        prepare_batch=MaskedBatch(MaskInMask(masking=masking, levels=[level])),
        iteration_update=None if parts is None else Accumulate(crops=parts), **more,
    )  # fmt: skip
    trainer.run()
    return trainer


@pytest.fixture(scope="module")
def start() -> Convolution:
    torch.manual_seed(0)
    return Convolution()


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(start: Convolution, parts: int) -> None:
    whole, divided = copy.deepcopy(start), copy.deepcopy(start)
    one, other = train(whole, None, loss()), train(divided, parts, loss())
    assert one.state.iteration == other.state.iteration == 2
    for name, weight in whole.state_dict().items():
        assert (weight - start.state_dict()[name]).abs().max() > 1e-3
        torch.testing.assert_close(divided.state_dict()[name], weight, rtol=0, atol=1e-7)
    for name in ("loss", "reconstruction", "reconstruction_level2", "reconstruction_visible", "gradient_norm"):
        assert other.state.metrics[f"train/{name}"] == pytest.approx(one.state.metrics[f"train/{name}"], abs=1e-5), name


def test_without_counting_over_the_step_the_parts_would_give_another_gradient(start: Convolution) -> None:
    class Uncounted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = loss()

        def forward(self, output: Any, target: Any) -> Tensor:
            return self.inner(output, target)

    whole, divided = copy.deepcopy(start), copy.deepcopy(start)
    train(whole, None, loss())
    train(divided, 1, Uncounted())
    assert (whole.convolution.weight - divided.convolution.weight).abs().max() > 1e-4


def test_the_optimizer_steps_once_and_every_part_fires_monais_events(start: Convolution) -> None:
    network = copy.deepcopy(start)
    counts = {"forward": 0, "backward": 0, "model": 0, "steps": 0}

    class Count:
        def attach(self, engine: Any) -> None:
            engine.optimizer.register_step_post_hook(lambda *_: self.add("steps"))
            for name in ("forward", "backward", "model"):
                event = getattr(IterationEvents, f"{name.upper()}_COMPLETED")
                engine.add_event_handler(event, lambda _, name=name: self.add(name))

        def add(self, name: str) -> None:
            counts[name] += 1

    optimizer = SGD(network.parameters(), lr=0.01)
    masking = MaskSampler(rule=AdaptiveBlocks(ratio=0.5), cell=(4, 4, 4))
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=3, network=network, optimizer=optimizer, loss_function=loss(0.0),
        train_data_loader=DataLoader(crops(), batch_size=CROPS), decollate=False,
        prepare_batch=MaskedBatch(MaskInMask(masking=masking)), iteration_update=Accumulate(crops=2),
    )  # fmt: skip
    Count().attach(trainer)
    trainer.run()
    assert counts == {"forward": 9, "backward": 9, "model": 3, "steps": 3}


def test_batches_are_taken_in_parts_of_some_crops() -> None:
    batch = {"image": torch.arange(5), "box": list("abcde"), "name": "one"}
    parts = list(parts_of_batches([batch, {"image": torch.arange(2)}], 2))
    assert [part["image"].tolist() for part in parts] == [[0, 1], [2, 3], [4], [0, 1]]
    assert [part.get("box") for part in parts] == [["a", "b"], ["c", "d"], ["e"], None]
    (whole,) = parts_of_batches([batch], None)
    assert whole["image"].tolist() == [0, 1, 2, 3, 4] and whole["name"] == "one"
