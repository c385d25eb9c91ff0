# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The product of pre-training: the encoder's weights, as a flat state dict of the plain MONAI network."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import monai
import torch
from ignite.engine import Engine, Events
from torch import nn

from bundle.atomic import free_path, replace_file
from bundle.runs import RunFolder
from bundle.runs.distributed import is_main_rank, unwrap
from bundle.weights import decoder_file

__all__ = ["ExportEncoder"]

logger = logging.getLogger(__name__)


class ExportEncoder:
    """Writes `model.pt` into the run folder after every epoch, and publishes it in `models/` when training completes.

    So a run that is stopped early has a product, too, and the published one is always a complete run's: the weights
    after the last epoch, when the learning rate has come down, not those of the lowest reconstruction loss, which does
    not tell which features transfer best. `model.json` beside it says how the network wants its input, what it was
    trained on, this project's version, and the sha256 of `model.pt`. A decoder that is part of a MONAI network goes
    into `model_decoder.pt` alike, for fine-tuning to start from as well.

    A published model is never lost: without `replace_model` it stays, with it it is kept as `model_previous.pt`
    (`model_previous_2.pt`, ...). Under several processes only the main one writes.

    Args:
        run_folder: where to.
        network: the trainable whole; its `encoder_state_dict()` returns the encoder's weights by the plain network's
            names, and `decoder_state_dict()` the decoder's, or nothing.
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
        self.model, self.network = run_folder.model, unwrap(network)
        self.published = Path(models_dir) / "model.pt"
        self.settings, self.replace_model = settings, replace_model
        self.loader, self.batches = loader, batches

    def attach(self, engine: Engine) -> None:
        """Registers with the trainer."""
        if not is_main_rank():
            return
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._publish)

    def _write(self, engine: Engine) -> None:
        images = self._images(engine)
        weights: Mapping[str, torch.Tensor] = self.network.encoder_state_dict(*images)  # type: ignore[operator]
        decoder: Mapping[str, torch.Tensor] = self.network.decoder_state_dict(*images)  # type: ignore[operator]
        digest = _save(weights, self.model)
        about = {
            **self.settings,
            "version": _version(),
            "epochs": engine.state.epoch,
            "iterations": engine.state.iteration,
            "parameters": sum(parameter.numel() for parameter in weights.values()),
            "sha256": digest,
            **({"decoder_sha256": _save(decoder, decoder_file(self.model))} if decoder else {}),
            "versions": {"monai": monai.__version__, "torch": torch.__version__},
        }
        with replace_file(self.model.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(about, indent=4, default=_as_json) + "\n")

    def _images(self, engine: Engine) -> tuple[list[torch.Tensor], ...]:
        """The arguments of `encoder_state_dict` and `decoder_state_dict`."""
        if self.loader is None:
            return ()
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed, which training would miss after a resume
            batches = itertools.islice(self.loader, self.batches)
            return ([batch["image"].to(engine.state.device) for batch in batches],)

    def _publish(self, engine: Engine) -> None:  # noqa: ARG002 - the signature of a handler
        if self.published.exists():
            if not self.replace_model:
                logger.warning(
                    "%s is from an earlier run and stays; to publish this one, copy %s over it (and model.json), "
                    "or run with --replace_model",
                    self.published,
                    self.model,
                )
                return
            kept = free_path(self.published.with_name("model_previous.pt"))
            _copy(self.published, kept)
            logger.info("kept the earlier model as %s", kept)
        _copy(self.model, self.published)
        logger.info("published %s", self.published)


def _version() -> str:
    """This project's version: as the bundle's metadata says, or where only the package is installed, the package's."""
    metadata = Path(__file__).parents[2] / "configs" / "metadata.json"
    if metadata.is_file():
        return str(json.loads(metadata.read_text())["version"])
    try:
        return importlib.metadata.version("ct_mr_sparse_mim_pretraining")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def _save(weights: Mapping[str, torch.Tensor], file: Path) -> str:
    """Writes a state dict; gives the file's sha256."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    with replace_file(file) as temporary:
        torch.save(weights, temporary)
        return hashlib.sha256(temporary.read_bytes()).hexdigest()


def _copy(model: Path, target: Path) -> None:
    """Copies a model and what is beside it: the JSON file and the decoder, each if it has one."""
    pairs = [
        (model.with_suffix(".json"), target.with_suffix(".json")),
        (decoder_file(model), decoder_file(target)),
        (model, target),
    ]
    for source, copy in pairs:
        if source.exists():
            with replace_file(copy) as temporary:
                shutil.copyfile(source, temporary)
        else:
            copy.unlink(missing_ok=True)  # another model's
