# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The product of pre-training: the encoder's weights, as a flat state dict of the plain MONAI network."""

from __future__ import annotations

import itertools
import logging
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from bundle.atomic import free_path
from bundle.errors import UserError
from bundle.runs import RunFolder
from bundle.runs.distributed import is_main_rank, unwrap
from bundle.runs.version import project_version
from bundle.weights import ModelFiles, checksum

__all__ = ["ExportEncoder"]

logger = logging.getLogger(__name__)


class ExportEncoder:
    """Writes `model.pt` into the run folder after every epoch, and publishes it in `models/` when training completes.

    So a run that is stopped early has a product, too, and the published one is always a complete run's: the weights
    after the last epoch, when the learning rate has come down, not those of the lowest reconstruction loss, which does
    not tell which features transfer best. `model.json` beside it says how the network wants its input, what it was
    trained on, this project's version, and the sha256 of `model.pt`. A decoder that is part of a MONAI network goes
    into `model_decoder.pt` alike, for fine-tuning to start from as well.

    A run that is resumed after its last epoch had a kill between the last checkpoint and its product, if `model.pt` is
    missing, is that of another epoch, or is not the file that `model.json` describes. It is then written and published.

    A published model is never lost: without `replace_model` it stays, with it it is kept as `model_previous.pt`
    (`model_previous_2.pt`, ...). Under several processes only the main one writes.

    Args:
        run_folder: where to.
        network: the trainable whole; its `products(images)` returns the encoder's weights by the plain network's names,
            and the decoder's, or nothing.
        models_dir: where models are published.
        settings: for `model.json`; dataclasses become their fields, other values that are no JSON text.
        replace_model: whether to publish where a model is already.
        loader: of unmasked crops under `image`. With it the two are given some of them, to bring features to unit scale
            and BatchNorm's statistics to those of whole crops.
        batches: of the loader.
    """

    def __init__(
        self,
        *,
        run_folder: RunFolder,
        network: nn.Module,
        models_dir: str | os.PathLike[str],
        settings: Mapping[str, Any],
        replace_model: bool = False,
        loader: Iterable[Mapping[str, Any]] | None = None,
        batches: int = 8,
    ) -> None:
        self.run_folder, self.model_files, self.network = run_folder, run_folder.model_files, unwrap(network)
        self.published = Path(models_dir) / "model.pt"
        self.settings, self.replace_model = settings, replace_model
        self.loader, self.batches = loader, batches

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        if not is_main_rank():
            return
        if self.run_folder.resumed:
            engine.add_event_handler(Events.STARTED, self._make_good)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._publish)

    def _make_good(self, engine: Engine) -> None:
        """Writes what a kill has prevented; `RunCheckpoint`, which comes before, has restored the last epoch."""
        if not engine.should_terminate:
            return  # the next epoch writes the product
        if not self._is_written(engine):
            logger.info("%s is not that of epoch %d: writing it again", self.model_files.weights, engine.state.epoch)
            self._write(engine)
            self._publish(engine)
        elif self.replace_model or not self.published.exists():
            self._publish(engine)

    def _is_written(self, engine: Engine) -> bool:
        """Whether the files are whole, and of the present epoch."""
        try:
            about = self.model_files.read_settings()
            self.model_files.verify_weights()
            self.model_files.verify_decoder()
        except UserError:
            return False
        reached = (engine.state.epoch, engine.state.iteration)
        found = (None, None) if about is None else (about.content.get("epochs"), about.content.get("iterations"))
        return self.model_files.weights.is_file() and found == reached

    def _write(self, engine: Engine) -> None:
        weights: Mapping[str, torch.Tensor]
        decoder: Mapping[str, torch.Tensor]
        weights, decoder = self.network.products(self._images(engine))  # type: ignore[operator]
        about = {
            **self.settings,
            "version": project_version(),
            "epochs": engine.state.epoch,
            "iterations": engine.state.iteration,
            "parameters": sum(parameter.numel() for parameter in weights.values()),
        }
        self.model_files.write(weights, about, decoder)

    def _images(self, engine: Engine) -> list[torch.Tensor]:
        """What `products` is given."""
        if self.loader is None:
            return []
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed, which training would miss after a resume
            batches = itertools.islice(self.loader, self.batches)
            return [batch["image"].to(engine.state.device) for batch in batches]

    def _publish(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        if self.published.exists():
            if checksum(self.published) == checksum(self.model_files.weights):
                return  # a kill came after it
            if not self.replace_model:
                logger.info(
                    "%s is another model and stays: fine-tune from this one with --pretrained %s, or publish it there "
                    "with --replace_model",
                    self.published,
                    shlex.quote(str(self.model_files.weights)),
                )
                return
            kept = free_path(self.published.with_name("model_previous.pt"))
            ModelFiles(self.published).copy_to(kept)
            logger.info("kept the earlier model as %s", kept)
        self.model_files.copy_to(self.published)
        logger.info("published %s", self.published)
