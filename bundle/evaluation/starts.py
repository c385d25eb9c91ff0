# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The arms of a comparison of weights: each with its own network, and a training of that network from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.errors import UserError
from bundle.weights import ModelFiles, ModelSettings

__all__ = ["SCRATCH", "Start", "find_starts"]

SCRATCH = "scratch"
#: the config that fine-tunes a network with this encoder, beside configs/finetune_segmentation.yaml
_CONFIGS = {
    "SegResEncoder": "",
    "SegResNetDS": "",
    "DynUNet": "finetune_dynunet.yaml",
    "ResNetFeatures": "finetune_flexibleunet.yaml",
    "EfficientNetBNFeatures": "finetune_flexibleunet.yaml",
    "SegResNet": "finetune_segresnet.yaml",
    "ResidualEncoderUNet": "finetune_nnunet.yaml",
    "PlainConvUNet": "finetune_nnunet.yaml",
}


@dataclass(frozen=True)
class Start:
    """One arm: where its network begins.

    Attributes:
        name: of the arm.
        weights: the file, or None from scratch.
        scratch: the name of the arm from scratch that has the same network and preparation.
        settings: of the weights, or for scratch of the weights that it is compared with.
    """

    name: str
    weights: str | None
    scratch: str
    settings: ModelSettings

    @property
    def config(self) -> str:
        """The name of the config that builds the network; "" for that of finetune_segmentation.yaml itself."""
        return _CONFIGS[self.settings.encoder["name"]]

    @property
    def origin(self) -> str:
        """In a few words: whose weights, and under which licence."""
        if self.weights is None:
            return "from scratch"
        content = self.settings.content
        whose = content.get("card") or f"version {content.get('version', 'not known')} of this project"
        began = [str(step.get("card", step.get("file", ""))) for step in content.get("origin", [])]
        through = f", which went on from {', then '.join(began)}" if began else ""
        return f"{whose}{through}; licence: {content.get('licence', 'not known')}"

    def overrides(self, spacing: Any = None) -> dict[str, Any]:
        """Options of the config: the network, and how volumes are prepared, alike with and without the weights.

        Args:
            spacing: in place of the weights' own; None keeps that.
        """
        own = "own" if self.settings.spacing is None else list(self.settings.spacing)
        found: dict[str, Any] = {
            "encoder": {"_target_": "builtins.dict", **self.settings.encoder},
            "spacing": own if spacing is None else spacing,
        }
        if self.settings.intensity_scheme is None:
            window, percentiles = list(self.settings.ct_window), list(self.settings.mr_percentiles)
            return {**found, "ct_window": window, "mr_percentiles": percentiles}
        if self.weights is None:
            found["settings#intensity_scheme"] = self.settings.intensity_scheme
        return found


def find_starts(weights: Sequence[str]) -> dict[str, Start]:
    """The arms by their names, a training from scratch before the weights of its network.

    Args:
        weights: files, each with its model.json, or of a source that `bundle.weights.CARDS` knows.

    Raises:
        UserError: if nothing says what a file's network is, no config fine-tunes it, or two would be called alike.
    """
    settings = {file: _describe(file) for file in weights}
    kinds: list[dict[str, Any]] = []
    for about in settings.values():
        if (kind := _preparation(about)) not in kinds:
            kinds.append(kind)
    starts: dict[str, Start] = {}
    for kind in kinds:
        mine = {file: about for file, about in settings.items() if _preparation(about) == kind}
        names = {file: _arm_name(file) for file in mine}
        first = next(iter(mine.values()))
        scratch = SCRATCH if len(kinds) == 1 else f"{SCRATCH}, network of {next(iter(names.values()))}"
        starts[scratch] = Start(scratch, None, scratch, first)
        starts |= {names[file]: Start(names[file], file, scratch, about) for file, about in mine.items()}
    if len(starts) < len(kinds) + len(weights):
        raise UserError("--weights names two files that are called alike: put them into folders with other names")
    return starts


def _describe(file: str) -> ModelSettings:
    files = ModelFiles(file)
    found = files.describe() if files.weights.is_file() else files.read_settings()
    if found is None or not found.encoder:
        raise UserError(
            f"{Path(file).with_suffix('.json')} is missing or names no encoder, and the weights have no layout that is "
            "known: copy it from the run"
        )
    files.verify_weights()
    if found.encoder["name"] not in _CONFIGS:
        raise UserError(
            f"{file} is of {found.encoder['name']}, and no config fine-tunes a segmentation network with that encoder: "
            f"give weights of {', '.join(_CONFIGS)}"
        )
    return found


def _preparation(about: ModelSettings) -> dict[str, Any]:
    """What a training from scratch has to share with weights, so that only the weights differ."""
    names = ("spacing", "ct_window", "mr_percentiles", "intensity_scheme")
    return {"encoder": dict(about.encoder), **{name: getattr(about, name) for name in names}}


def _arm_name(weights: str) -> str:
    """What to call weights: the file, and its folder where that says more."""
    path = Path(weights)
    plain = path.stem in ("model", "checkpoint_final", "checkpoint_best", "checkpoint_latest")
    return str(Path(path.parent.name, path.name)) if plain else path.name
