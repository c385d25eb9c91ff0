# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Tells the sampler which epoch begins."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events

__all__ = ["SetSamplerEpoch"]


class SetSamplerEpoch:
    """Calls `loader.sampler.set_epoch(epoch)`, counted from 0, when an epoch starts.

    Where a resume begins within an epoch, it calls ``set_epoch(epoch, taken)`` with what this process has had.

    Ignite asks the loader for its iterator after EPOCH_STARTED, in the first epoch, in later ones and after a resume,
    so the sampler always knows the epoch by then (provided an epoch is one pass over the loader).

    Args:
        loader: a data loader whose sampler has `set_epoch`.
    """

    def __init__(self, loader: Any) -> None:
        self.loader, self.sampler = loader, loader.sampler

    def attach(self, engine: Engine) -> None:
        """Registers at the start of each epoch of the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Sets the epoch, and where in it the next pass begins."""
        epoch = engine.state.epoch - 1
        steps = engine.state.iteration - epoch * engine.state.epoch_length
        if steps:
            self.sampler.set_epoch(epoch, steps * self.loader.batch_size)
        else:
            self.sampler.set_epoch(epoch)
