# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A run that was trained before: its folder, its settings, and its network with a checkpoint's weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser
from torch import nn

from bundle.errors import UserError
from bundle.runs.checkpoint import config_of_checkpoint, load_network, read_checkpoint
from bundle.runs.components import list_missing_components
from bundle.runs.folder import RunFolder, newest_run

__all__ = ["TrainedRun", "state_folder"]

logger = logging.getLogger(__name__)

_CHECKPOINTS = ("last", "best")
_WITHOUT_HEADS: dict[str, Any] = {"objectives": {}, "network_def#alignment": None, "network_def#teacher_momentum": None}


class TrainedRun:
    """A run as its folder records it.

    The settings are those that the checkpoint was trained with: the run's `config.yaml`, or one that a resume with
    other settings has added. They are a config of MONAI's, so they are code: name runs of people you trust only.

    Args:
        bundle_root: where `runs/` is.
        run_folder: of the run; None takes the newest one under `runs/` that has a checkpoint.
        checkpoint: "last", after the last whole epoch, or "best", after that with the lowest validation loss.
        settings: replace those of the run, by id.
        heads: whether the network has those of alignment and of further objectives. Encoder and decoder reconstruct
            without them, while a head may need a teacher, or classes that are made from the run's volumes.

    Attributes:
        folder: the run's folder, as of a run that goes on: what it keeps there is read.
        checkpoint: the file.
        config: the file with the settings.

    Raises:
        UserError: if there is no such run, it was fine-tuned, it lacks the checkpoint or its settings, or an earlier
            version wrote them.
    """

    def __init__(
        self,
        *,
        bundle_root: str | os.PathLike[str] = ".",
        run_folder: str | os.PathLike[str] | None = None,
        checkpoint: str = "last",
        settings: Mapping[str, Any] | None = None,
        heads: bool = True,
    ) -> None:
        if checkpoint not in _CHECKPOINTS:
            raise UserError(f"--checkpoint {checkpoint!r} is not known: choose {' or '.join(_CHECKPOINTS)}")
        self.folder = _newest(Path(bundle_root)) if run_folder is None else RunFolder(Path(run_folder), resumed=True)
        last = checkpoint == "last"
        self.checkpoint = self.folder.last_checkpoint if last else self.folder.best_checkpoint
        if not self.checkpoint.is_file():
            raise UserError(
                f'--run_folder "{self.folder.path}" has no checkpoints/{checkpoint}.pt: name the folder of a run that '
                "completed an epoch" + ("" if last else ", or --checkpoint last")
            )
        config = config_of_checkpoint(self.folder.path, self.checkpoint)
        if config is None:
            raise UserError(
                f'--run_folder "{self.folder.path}" has no config.yaml: name the folder of a run of this bundle'
            )
        self.config = config
        self._check_pretraining()
        self._check_components()
        self._use(settings, heads)

    def _use(self, settings: Mapping[str, Any] | None, heads: bool) -> None:
        self._heads, self._settings = heads, {**({} if heads else _WITHOUT_HEADS), **(settings or {})}
        self._parser: ConfigParser | None = None
        self._saved: dict[str, Any] | None = None

    def _check_pretraining(self) -> None:
        try:
            content = self._content()
        except (OSError, ValueError, yaml.YAMLError):
            return  # `get` says that it cannot be read
        if isinstance(content, dict) and "transfer" in content and "masking" not in content:
            raise UserError(
                f'--run_folder "{self.folder.path}" was fine-tuned, so it has no reconstruction: name a run of '
                f"pre-training, use it with --model {self.folder.path} of predict, or embed with its encoder: "
                f"configs/inference.yaml --weights {self.folder.model}"
            )

    def _check_components(self) -> None:
        try:
            missing = list_missing_components(self._content())
        except (OSError, ValueError, yaml.YAMLError):
            return  # `get` says that it cannot be read
        if missing:
            raise UserError(
                f"{self.config} was written by an earlier version of this bundle (0.1.0), whose {missing[0]} has "
                f"moved: train again, use that version, or give the training's command with --resume "
                f"{self.folder.path}, which goes on from its checkpoint and writes the settings anew"
            )

    def _content(self) -> dict[str, Any]:
        """The config, as read."""
        content: dict[str, Any] = yaml.safe_load(self.config.read_text())
        return content

    def get(self, name: str) -> Any:
        """What the run's config defines under an id: a value, or the component, made once.

        Raises:
            UserError: if the config cannot be read or lacks the id.
        """
        if self._parser is None:
            try:
                self._parser = ConfigParser(self._content())
                self._parser.update(self._settings)
            except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
                raise UserError(f"{self.config} cannot be read ({type(error).__name__}): name another run") from error
        if name not in self._parser:
            raise UserError(f"{self.config} has no {name!r}: name a run of this bundle")
        return self._parser.get_parsed_content(name)

    @property
    def epoch(self) -> int:
        """How many epochs the checkpoint was trained for."""
        return int(self._read()["epoch"])

    @property
    def network(self) -> nn.Module:
        """The pre-training network with the checkpoint's weights, on the run's device, for evaluation."""
        network: nn.Module = self.get("network_def")
        self.load_into(network)
        return network.to(self.get("run_device")).eval()

    def load_into(self, network: nn.Module) -> None:
        """Loads the checkpoint's weights, all or none.

        Raises:
            UserError: if the checkpoint is damaged or of another network.
        """
        saved = self._read()["network"]
        if not self._heads:
            saved = {key: tensor for key, tensor in saved.items() if key.startswith(("encoder.", "decoder."))}
        load_network(network, saved, self.checkpoint)
        logger.info("weights of %s, after epoch %d", self.checkpoint, self.epoch)

    def _read(self) -> dict[str, Any]:
        if self._saved is None:
            saved = read_checkpoint(self.checkpoint)
            tensors = saved.get("network")
            if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
                raise UserError(f"{self.checkpoint} holds no network: name another run")
            self._saved = {"network": tensors, "epoch": saved.get("epoch", 0)}
        return self._saved


def state_folder(trained: TrainedRun | None, cache_dir: str | os.PathLike[str]) -> RunFolder:
    """Where what was made from the volumes lies, such as pretext classes: in the run or, without one, the cache."""
    return RunFolder(Path(cache_dir)) if trained is None else trained.folder


def _newest(bundle_root: Path) -> RunFolder:
    folder = newest_run(bundle_root / "runs")
    if folder is None:
        raise UserError(f'no run with a checkpoint in "{bundle_root / "runs"}": train one, or give its --run_folder')
    logger.info("the newest run is %s", folder.path)
    return folder
