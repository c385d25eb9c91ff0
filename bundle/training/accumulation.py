# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A step of the optimizer on more crops than fit into memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Accumulate", "parts_of_batches"]


class Accumulate:
    """`iteration_update` of MONAI's trainer: takes the batch in parts, and steps the optimizer once.

    The gradient is that of the whole batch at once, for losses that are means over crops, and for those that count over
    the whole step by `share_step`, as `bundle.losses.PretrainingLoss` does. The exceptions are those of several
    processes: BatchNorm sees the crops of a part, an alignment contrasts the places within a part, and a Dice over the
    batch or a mean over what is labelled is one of a part.

    An iteration is a step, so schedules, clipping, logs and checkpoints need not know of it. The terms that are logged
    are means over the parts, weighted by their crops. A batch of one part is MONAI's own iteration.

    Args:
        crops: taken at a time, at most.
    """

    def __init__(self, *, crops: int) -> None:
        self.crops = crops

    def __call__(self, engine: SupervisedTrainer, batch: Mapping[str, Any]) -> dict[str, Any]:
        """One step of the trainer.

        Args:
            engine: the trainer.
            batch: a collated batch; its tensors and lists have a row for each crop.
        """
        count = len(batch[CommonKeys.IMAGE])
        if count <= self.crops:
            whole: dict[str, Any] = engine._iteration(engine, dict(batch))  # noqa: SLF001 - has no public name
            return whole
        prepared = [self._prepare(engine, part) for part in parts_of_batches([batch], self.crops)]
        shares = [min(self.crops, count - start) / count for start in range(0, count, self.crops)]
        if hasattr(engine.loss_function, "share_step"):
            targets = [{**target, **further} for _, target, _, further in prepared]
            for (_, target, _, _), known in zip(prepared, engine.loss_function.share_step(targets, shares)):
                target.update(known)

        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
        engine.state.output = {CommonKeys.IMAGE: batch[CommonKeys.IMAGE], CommonKeys.LABEL: None}
        terms = []
        for number, (part, share) in enumerate(zip(prepared, shares), 1):
            with _synchronized(engine.network, last=number == len(prepared)):
                terms.append(self._backward(engine, part, share))
        engine.state.output[CommonKeys.PRED] = {"terms": _mean_terms(terms, shares)}
        engine.state.output[CommonKeys.LOSS] = sum(found["loss"] * share for found, share in zip(terms, shares))
        self._step(engine)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return dict(engine.state.output)

    def _prepare(self, engine: SupervisedTrainer, part: dict[str, Any]) -> tuple[Any, Any, Any, dict[str, Any]]:
        made = engine.prepare_batch(part, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        image, target, args, further = made if len(made) == 4 else (*made, (), {})
        return image, target, args, further

    def _backward(self, engine: SupervisedTrainer, part: tuple[Any, Any, Any, dict[str, Any]], share: float) -> Any:
        """Adds a part's gradient, and returns what is to be logged of it; what the network made is let go."""
        image, target, args, further = part
        scaled = engine.amp and engine.scaler is not None
        with torch.autocast("cuda", **engine.amp_kwargs) if scaled else nullcontext():
            pred = engine.inferer(image, engine.network, *args, **further)
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
            loss = engine.loss_function(pred, target).mean()
            engine.fire_event(IterationEvents.LOSS_COMPLETED)
        (engine.scaler.scale(loss * share) if scaled else loss * share).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        known = pred.get("terms", {}) if isinstance(pred, Mapping) else {}
        return {"loss": loss.detach(), **known}

    def _step(self, engine: SupervisedTrainer) -> None:
        if engine.amp and engine.scaler is not None:
            engine.scaler.step(engine.optimizer)
            engine.scaler.update()
        else:
            engine.optimizer.step()


def parts_of_batches(batches: Iterable[Mapping[str, Any]], crops: int | None) -> Iterator[dict[str, Any]]:
    """The parts in which a step would take batches, one after another; None takes each batch as a whole.

    Args:
        batches: collated; tensors and lists have a row for each crop.
        crops: of a part, at most.
    """
    for batch in batches:
        count = len(batch[CommonKeys.IMAGE])
        size = crops or count
        yield from (_rows(batch, start, start + size) for start in range(0, count, size))


def _rows(batch: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    return {key: value[start:stop] if isinstance(value, (Tensor, list)) else value for key, value in batch.items()}


def _synchronized(network: torch.nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """DDP averages the gradients over the processes once, in the last part's backward pass."""
    return nullcontext() if last or not isinstance(network, DistributedDataParallel) else network.no_sync()


def _mean_terms(parts: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Means weighted by the shares; a term that only some parts have is the mean over those."""
    means = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        having = [(part[name], share) for part, share in zip(parts, shares) if name in part]
        weighted = torch.stack([value.detach() * share for value, share in having])
        means[name] = weighted.sum() / sum(share for _, share in having)
    return means
