# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a segmentation run has left: its weights, how volumes are prepared for them, and how well they did."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from monai.networks import nets
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.export.private import without_private
from bundle.runs import RunFolder
from bundle.weights import ModelFiles

__all__ = ["FinishedRun"]

_NEEDED = ("network", "classes", "crop_size", "ct_window", "mr_percentiles")
_DICE = "validation/dice"


@dataclass(frozen=True)
class FinishedRun:
    """A fine-tuned segmentation run that has come to its end.

    Attributes:
        folder: of the run.
        weights: of the network, a flat state dict.
        content: of its `model.json`.
        options: the values in the run's `config.yaml`; empty where there is none.
        metrics: of the epoch whose weights these are, by their names in `metrics.csv`.
        pretrained: the `model.json` of the weights that training began with; empty where it is not there any more.
    """

    folder: Path
    weights: Mapping[str, Tensor]
    content: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    pretrained: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, run: str | os.PathLike[str]) -> FinishedRun:
        """Reads a run folder.

        Raises:
            UserError: if it is no segmentation run, it has not come to its end, or its files are damaged.
        """
        folder = Path(run)
        if folder.is_file():
            folder = folder.parent
        files = ModelFiles(folder / "model.pt")
        settings = files.read_settings()
        if settings is None or not files.weights.is_file():
            raise UserError(
                f'--run "{folder}" has no model.pt with its model.json: give the folder of a run of '
                "configs/finetune_segmentation.yaml that has validated an epoch"
            )
        content = settings.content
        _require_segmentation(content, folder)
        _require_end(folder)
        return cls(
            folder=folder,
            weights=files.read_weights(),
            content=content,
            options=_read_options(folder / "config.yaml"),
            metrics=_read_metrics(folder / "metrics.csv", content.get("epoch")),
            pretrained=_read_pretrained(content.get("pretrained")),
        )

    @property
    def classes(self) -> dict[str, int]:
        """The value in label maps of each class, in the order of the network's channels after the background."""
        return dict(self.content["classes"])

    @property
    def origin(self) -> list[Mapping[str, Any]]:
        """The weights that training began with, and those that these went on from, the first ones first.

        Each with its licence, and without what is private; empty from scratch. A run of an earlier version did not
        record them: what the json beside the weights says, if it is still there.
        """
        recorded = list(without_private(self.content).get("origin") or [])
        if recorded or not self.content.get("pretrained"):
            return recorded
        step = {key: self.pretrained[key] for key in ("sha256", "licence", "volumes") if key in self.pretrained}
        before = without_private(self.pretrained).get("origin", [])
        return [*before, {"file": Path(self.content["pretrained"]).name, **step}]

    @property
    def in_channels(self) -> int:
        """How many images of one grid a scan has."""
        return int(self.content.get("in_channels") or self.content["network"].get("in_channels") or 1)

    @property
    def modality(self) -> str:
        """The modality of every scan, "CT" or "MR", or "auto" where the run took both and looked at each scan."""
        given = str(self.content.get("modality") or self.options.get("modality") or "auto")
        counted = self.counts("training")
        if given == "auto" and counted.get("CT") and not counted.get("MR"):
            return "CT"
        return given

    @property
    def modalities(self) -> list[str]:
        """Those of the volumes that it was trained on."""
        if self.modality in ("CT", "MR"):
            return [self.modality]
        return [name for name, number in self.counts("training").items() if number] or ["CT", "MR"]

    @property
    def is_held_out(self) -> bool:
        """Whether the validation volumes are others than those it was trained on."""
        return self.options.get("val_fraction") != 0 or self.options.get("folds") is not None

    def counts(self, part: str) -> dict[str, int]:
        """The number of volumes by modality, of "training" or "validation"."""
        return dict(self.content.get("volumes", {}).get(part, {}))

    def dice(self) -> dict[str, float]:
        """The validation Dice of each class that it is known of, and "mean" over the classes; may be empty."""
        named = {"mean": _DICE, **{name: f"{_DICE}/{name}" for name in self.classes}}
        return {name: self.metrics[column] for name, column in named.items() if column in self.metrics}

    def build_network(self) -> nn.Module:
        """The network with its weights, in eval mode.

        Raises:
            UserError: if they do not fit.
        """
        arguments = dict(self.content["network"])
        name = arguments.pop("name")
        try:
            made: Any = locate(name) if "." in name else getattr(nets, name)
            network: nn.Module = made(**arguments)
            network.load_state_dict(dict(self.weights), strict=True)
        except (AttributeError, TypeError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f'--run "{self.folder}": its weights do not fit {name} ({reason}): install the versions that '
                "model.json names, and what the network comes from"
            ) from error
        return network.eval()


def _require_segmentation(content: Mapping[str, Any], folder: Path) -> None:
    task = content.get("task") or ("classification" if "findings" in content else "")
    if task in ("classification", "detection") or not isinstance(content.get("classes"), Mapping):
        kind = f"a {task} run" if task in ("classification", "detection") else "no segmentation run"
        raise UserError(
            f'--run "{folder}" is {kind}: give one of configs/finetune_segmentation.yaml; a model of another kind is '
            "used with this package itself"
        )
    lacking = [name for name in _NEEDED if name not in content]
    if lacking or len(content["network"]) < 2:
        raise UserError(
            f"{folder / 'model.json'} does not tell {', '.join(lacking) or 'the arguments of its network'}: train "
            "again with a config such as configs/finetune_segmentation.yaml"
        )


def _require_end(folder: Path) -> None:
    if not RunFolder(folder).has_ended():
        raise UserError(
            f'--run "{folder}" has not come to its end: go on with it by its own command and --resume True '
            f'--output_dir "{folder}", with fewer --epochs if it is good enough'
        )


def _read_options(file: Path) -> dict[str, Any]:
    """The values of a config; nothing in it is evaluated."""
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_metrics(file: Path, epoch: Any) -> dict[str, float]:
    if not file.is_file():
        return {}
    with file.open(newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if row.get("epoch") and float(row["epoch"]) == epoch]
    return {name: float(cell) for name, cell in rows[-1].items() if name and cell} if rows else {}


def _read_pretrained(weights: Any) -> Mapping[str, Any]:
    if not weights:
        return {}
    try:
        found = ModelFiles(str(weights)).read_settings()
    except UserError:
        return {}
    return {} if found is None else found.content
