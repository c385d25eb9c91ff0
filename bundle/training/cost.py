# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What an epoch will cost, said before it starts."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from bundle.cells import synchronize
from bundle.networks import ObjectiveSum
from bundle.runs.distributed import is_main_rank, unwrap

__all__ = ["CostReport", "cost_lines"]

logger = logging.getLogger(__name__)


class Sized(Protocol):
    """A level of children.

    Attributes:
        size: voxels of one on each axis.
    """

    size: tuple[int, int, int]


class Masking(Protocol):
    """What is known of the passes of a step; `bundle.masking.MaskInMask` is one."""

    @property
    def passes(self) -> list[int]:
        """Forward passes per crop at each level, the crop itself first."""

    @property
    def levels(self) -> Sequence[Sized]:
        """The levels of children."""


class PrepareBatch(Protocol):
    """The trainer's `prepare_batch`; `bundle.masking.MaskedBatch` is one."""

    @property
    def masking(self) -> Masking:
        """Says how many passes a step takes."""

    def __call__(self, batch: dict[str, Any], device: torch.device) -> tuple[Tensor, Any, Any, dict[str, Any]]:
        """The network's input, the loss's target, and the network's further arguments."""


class CostReport:
    """Logs, when training starts, the forward passes per crop and the time that an epoch's steps will take.

    The time is that of a forward and backward pass over a batch of noise, without loading and validation; weights,
    running statistics and random generators stay as they are. Under several processes only the main one measures.

    Args:
        network: the pre-training network, wrapped or not.
        masked_batch: as the trainer's.
        loss: as the trainer's.
        crop_size: voxels per axis.
        batch_size: crops that a process takes at a time.
        steps_per_epoch: steps.
        crops_per_step: of this process, where a step is taken in parts.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        masked_batch: PrepareBatch,
        loss: ObjectiveSum,
        crop_size: tuple[int, int, int],
        batch_size: int,
        steps_per_epoch: int,
        crops_per_step: int | None = None,
    ) -> None:
        self.network, self.masked_batch, self.loss = unwrap(network), masked_batch, loss
        self.crops_per_step = batch_size if crops_per_step is None else crops_per_step
        self.crop_size, self.batch_size = tuple(crop_size), min(batch_size, self.crops_per_step)
        self.steps_per_epoch = steps_per_epoch

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        if is_main_rank():
            engine.add_event_handler(Events.STARTED, self._report)

    def _report(self, engine: Engine) -> None:
        device = torch.device(engine.state.device)
        for line in cost_lines(self.masked_batch.masking, self.crop_size):
            logger.info("%s", line)
        try:
            seconds = self.seconds(device) * self.crops_per_step / self.batch_size
        except KeyError as missing:
            logger.info("the time of a step is not measured: an objective reads %s, which noise does not have", missing)
            return
        logger.info(
            "a step of %d crops takes about %.2f s, an epoch of %d steps about %.1f min, loading and validation apart",
            self.crops_per_step,
            seconds,
            self.steps_per_epoch,
            seconds * self.steps_per_epoch / 60,
        )

    def seconds(self, device: torch.device, *, repeats: int = 2) -> float:
        """What a step takes on a device that the network is on, the shortest of some.

        Raises:
            KeyError: if an objective reads what noise does not have.
        """
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return min(self._seconds(device) for _ in range(repeats))

    def _seconds(self, device: torch.device) -> float:
        was_training = self.network.training
        self.network.eval()  # running statistics stay
        try:
            synchronize(device)
            begin = time.perf_counter()
            image, target, _, arguments = self.masked_batch(self._noise(), device)
            with self.loss.on_this_process_alone():  # the other processes do not measure
                loss = self.loss(self.network(image, **arguments), target)
            parameters = [p for p in self.network.parameters() if p.requires_grad]
            torch.autograd.grad(loss, parameters, allow_unused=True)
            synchronize(device)
            return time.perf_counter() - begin
        finally:
            self.network.train(was_training)

    def _noise(self) -> dict[str, Tensor]:
        # the first convolution reads the image
        channels = next((weight.shape[1] for weight in self.network.parameters() if weight.ndim == 5), 1)
        image = torch.randn(self.batch_size, channels, *self.crop_size)
        everywhere = torch.ones_like(image[:, :1], dtype=torch.bool)
        batch = {"image": image, "valid": everywhere, "foreground": everywhere, "weight_map": everywhere.float()}
        batch["pretext_class"] = torch.zeros_like(everywhere, dtype=torch.uint8)
        draw = torch.arange(self.batch_size)
        place = torch.tensor([0.0, 1.0]).expand(self.batch_size, 3, 2)
        return batch | {"draw": draw, "volume": draw, "place": place, "spacing": torch.ones(self.batch_size, 3)}


def cost_lines(masking: Masking, crop_size: tuple[int, ...]) -> list[str]:
    """One line per level: forward passes per crop, and their voxels in per cent of the crop's."""
    sizes = [tuple(crop_size), *(level.size for level in masking.levels)]
    lines = []
    for number, (passes, size) in enumerate(zip(masking.passes, sizes), 1):
        share = passes * prod(size) / prod(crop_size)
        shape = "x".join(map(str, size))
        lines.append(f"level {number}: {passes} of {shape} voxels per crop, {share:.0%} of the crop's voxels")
    total = sum(n * prod(size) for n, size in zip(masking.passes, sizes)) / prod(crop_size)
    lines.append(f"in all {sum(masking.passes)} forward passes and {total:.0%} of the crop's voxels per crop")
    return lines
