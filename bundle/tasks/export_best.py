# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The product of fine-tuning: the network's weights after its best epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from bundle.errors import UserError
from bundle.runs import RunFolder
from bundle.runs.checkpoint import read_checkpoint
from bundle.runs.distributed import is_main_rank

__all__ = ["ExportBest"]

logger = logging.getLogger(__name__)

#: of `model.json`: what the network's channels stand for, in their order
_OUTPUTS = ("classes", "findings")


class ExportBest:
    """Writes `model.pt` and `model.json` into the run folder after each epoch with the best validation so far.

    So a run that is stopped early has a product, too. The weights are those of `checkpoints/best.pt`, or the last ones
    if nothing was ever validated: a flat state dict of the plain MONAI network. The json says how volumes are to be
    prepared for it and what its outputs mean. Put it after `RunCheckpoint`. A resumed run whose files are missing, are
    not those that belong together, or are of an earlier best epoch, gets them again. One whose outputs mean something
    else than this training's, such as after a change of a `dataset.json`, is refused.

    Args:
        run_folder: where to, and where the checkpoints are.
        settings: for `model.json`; values that are no JSON become text.
        product: which weights of a checkpoint: "network", or what else in it has a network, such as "teacher".
        of_epoch: gives, for the number of the epoch that is written, what `model.json` says besides.
    """

    def __init__(
        self,
        *,
        run_folder: RunFolder,
        settings: Mapping[str, Any],
        product: str = "network",
        of_epoch: Callable[[int], Mapping[str, Any]] | None = None,
    ) -> None:
        self.run_folder, self.settings, self.of_epoch = run_folder, settings, of_epoch
        self.product = product
        self._written = 0  # when the checkpoint that was written last was made

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        if self.run_folder.resumed:
            engine.add_event_handler(Events.STARTED, self._make_good)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write_best)
        engine.add_event_handler(Events.COMPLETED, self._write_last)

    def _make_good(self, engine: Engine) -> None:
        """Writes what a kill between a checkpoint and the product has prevented."""
        self._check_outputs()
        best, last = self.run_folder.best_checkpoint, self.run_folder.last_checkpoint
        if not is_main_rank() or not (best.exists() or engine.should_terminate):
            return
        file = best if best.exists() else last
        try:
            files = self.run_folder.model_files
            about = files.read_settings()
            files.verify_weights()
            whole = files.weights.is_file() and about is not None
        except UserError:
            whole = False
        if not whole or about is None or about.content.get("epoch") != read_checkpoint(file)["epoch"]:
            self._write(file)

    def _check_outputs(self) -> None:
        try:
            about = self.run_folder.model_files.read_settings()
        except UserError:
            return  # it is written anew
        if about is None:
            return
        for name in _OUTPUTS:
            before, now = about.content.get(name), self.settings.get(name)
            if before and now and _listed(before) != _listed(now):
                raise UserError(
                    f"{self.run_folder.path} was trained with the {name} {before}, and this command has {now}: resume "
                    f"it with the same --{name}, or leave --resume out to start a new run"
                )

    def _write_best(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        best = self.run_folder.best_checkpoint
        if is_main_rank() and best.exists() and best.stat().st_mtime_ns != self._written:
            self._written = best.stat().st_mtime_ns
            self._write(best)

    def _write_last(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        if is_main_rank() and not self.run_folder.best_checkpoint.exists():
            logger.warning("no epoch was validated, so %s holds the last weights", self.run_folder.model)
            self._write(self.run_folder.last_checkpoint)

    def _write(self, file: Path) -> None:
        checkpoint = read_checkpoint(file)
        more = {} if self.of_epoch is None else self.of_epoch(int(checkpoint["epoch"]))
        settings = {**self.settings, **more, "epoch": checkpoint["epoch"]}
        owner = checkpoint if self.product == "network" else checkpoint["further"][self.product]
        self.run_folder.model_files.write(owner["network"], settings)


def _listed(outputs: Any) -> list[Any]:
    return list(outputs.items()) if isinstance(outputs, Mapping) else list(outputs)
