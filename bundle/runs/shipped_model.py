# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The shipped weights as a trained network that can reconstruct, where there is no run of one's own yet."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from bundle.errors import UserError
from bundle.runs.checkpoint import load_network
from bundle.runs.folder import RunFolder, newest_run
from bundle.runs.trained_run import TrainedRun
from bundle.weights import ModelFiles

__all__ = ["ShippedModel", "find_trained"]

logger = logging.getLogger(__name__)


class ShippedModel(TrainedRun):
    """`models/model.pt` and `model_decoder.pt`, with the configs that they were made with.

    Args:
        bundle_root: where `models/` and `configs/` are; results go into its `runs/shipped`.
        configs: names of the files in `configs/`, in their order.
        settings: replace those of the configs, by id.

    Raises:
        UserError: if the weights are not there, or not those that `model.json` describes.
    """

    def __init__(
        self,
        *,
        configs: Sequence[str],
        bundle_root: str | os.PathLike[str] = ".",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        root = Path(bundle_root)
        self.folder = RunFolder(root / "runs" / "shipped")
        self.checkpoint = root / "models/model.pt"
        self.config = root / "configs" / configs[-1]
        self._files = [root / "configs" / name for name in configs]
        super()._use({**(settings or {}), "bundle_root": str(root)}, heads=False)  # which are not shipped
        self._model = ModelFiles(self.checkpoint)
        for file in (self._model.weights, self._model.settings, self._model.decoder):
            if not file.is_file():
                raise UserError(
                    f"{file} is missing: name a run with --run_folder, or download the bundle's models/ again"
                )
        self._model.verify_weights()
        self._model.verify_decoder()
        about = self._model.read_settings()
        self._epochs = 0 if about is None else int(about.content.get("epochs", 0))

    def _content(self) -> dict[str, Any]:
        return dict(ConfigParser.load_config_files([str(file) for file in self._files]))

    @property
    def epoch(self) -> int:
        """How many epochs the weights were trained for."""
        return self._epochs

    def load_into(self, network: torch.nn.Module) -> None:
        """Loads encoder and decoder, all or none.

        Raises:
            UserError: if they are of another network, as those of a run that replaced the shipped ones may be.
        """
        given = {f"encoder.network.{key}": value for key, value in self._model.read_weights().items()}
        given |= {f"decoder.{key}": value for key, value in self._model.read_decoder().items()}
        load_network(network, given, self.checkpoint)
        logger.info("shipped weights %s, after epoch %d", self.checkpoint, self.epoch)


def find_trained(
    *,
    configs: Sequence[str],
    bundle_root: str | os.PathLike[str] = ".",
    run_folder: str | os.PathLike[str] | None = None,
    checkpoint: str = "last",
    settings: Mapping[str, Any] | None = None,
) -> TrainedRun:
    """A run, or the shipped weights, to reconstruct with: encoder and decoder, no other heads.

    Args:
        configs: that the shipped weights were made with, as for `ShippedModel`.
        bundle_root: where `runs/` and `models/` are.
        run_folder: of the run; None takes the newest, or where there is none the shipped weights, "shipped" those.
        checkpoint: of a run, as for `TrainedRun`.
        settings: as for both.

    Raises:
        UserError: as both do.
    """
    if run_folder == "shipped" or (run_folder is None and newest_run(Path(bundle_root, "runs")) is None):
        if run_folder is None:
            logger.info("no run in %s: takes the shipped weights", Path(bundle_root) / "runs")
        return ShippedModel(configs=configs, bundle_root=bundle_root, settings=settings)
    return TrainedRun(
        bundle_root=bundle_root, run_folder=run_folder, checkpoint=checkpoint, settings=settings, heads=False
    )
