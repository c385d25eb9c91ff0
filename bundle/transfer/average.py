# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The average of two models of one network, such as of a training and of what it went on from."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bundle.errors import UserError
from bundle.transfer.start import origin
from bundle.weights import ModelFiles, read_weights

__all__ = ["AveragedModel", "average_models"]

logger = logging.getLogger(__name__)

#: what volumes or outputs mean to both models alike
_ALIKE = (
    "task", "classes", "findings", "in_channels", "modality", "input", "spacing", "ct_window", "mr_percentiles",
    "mr_floor", "intensity_scheme", "encoder", "network",
)  # fmt: skip
#: of these, what is called by its arguments
_BUILT = ("encoder", "network")


class AveragedModel(NamedTuple):
    """What `ModelFiles.write` takes.

    Attributes:
        weights: of the encoder.
        settings: for `model.json`.
        decoder: its weights; empty where one of the two models has none.
    """

    weights: dict[str, Tensor]
    settings: dict[str, Any]
    decoder: dict[str, Tensor]


def average_models(
    first: str | os.PathLike[str], second: str | os.PathLike[str], *, share: float = 0.5
) -> AveragedModel:
    """Averages the weights of two models, tensor by tensor.

    Between a training and what it went on from, the average often does better than both, on what either was trained for
    and on what neither was: Wortsman et al., Robust fine-tuning of zero-shot models, arXiv:2109.01903. Two trainings
    that began at random have no common average. Where the models name no weights that both come from, a warning says
    so.

    Args:
        first: a run's folder, or its `model.pt`.
        second: the other; its settings are kept, and both models are named in them as the origin.
        share: of the second, between 0 and 1.

    Raises:
        UserError: if one cannot be read, they are of different networks, want other volumes or mean other outputs, or
            the share is none.

    Example:
        >>> from bundle.transfer import average_models
        >>> average_models("models/model.pt", "models/model.pt").settings["average"]
        {'share': 0.5}
    """
    if not 0 <= share <= 1:
        raise UserError(f"--share {share} is no share: give a number between 0 and 1")
    files = [ModelFiles(first), ModelFiles(second)]
    abouts = [_settings(each) for each in files]
    if len({str(about.get("orientation") or "RAS") for about in abouts}) > 1:
        raise UserError(
            f"{files[0].weights} and {files[1].weights} want different axes: average models that want the same"
        )
    if found := _difference(*abouts):
        raise UserError(
            f"{files[0].weights} and {files[1].weights} differ in {found}: average a training and what it went on from"
        )
    weights = _lerp(files[0].weights, files[0].read_weights(), files[1].weights, files[1].read_weights(), share)
    decoder = {}
    if all(each.decoder.is_file() for each in files):
        decoder = _lerp(files[0].decoder, _decoder(files[0]), files[1].decoder, _decoder(files[1]), share)
    lines = [{step["sha256"]: step for step in origin(each.weights)["origin"]} for each in files]
    if not lines[0].keys() & lines[1].keys():
        # two copies of one run, of different epochs, do not say it either: so this is no error
        logger.warning(
            "%s and %s name no weights that both come from: if these trainings began at random, their average is as "
            "good as random weights; average a training and what it went on from (--init_from)",
            *(each.weights for each in files),
        )
    steps = lines[0] | lines[1]
    licences = {str(about.get("licence")) for about in abouts}
    settings = {
        **{key: value for key, value in abouts[1].items() if key not in ("sha256", "decoder_sha256", "versions")},
        "licence": licences.pop()
        if len(licences) == 1
        else f"those of the averaged weights: {'; '.join(sorted(licences))}",
        "average": {"share": share},
        "origin": list(steps.values()),
    }
    return AveragedModel(weights, settings, decoder)


def _settings(files: ModelFiles) -> dict[str, Any]:
    if not files.weights.exists():
        raise UserError(f"{files.weights} does not exist: give a run's folder, or its model.pt")
    about = files.read_settings()
    if about is None:
        raise UserError(f"{files.settings} is missing: copy it beside {files.weights.name} from the run's folder")
    return dict(about.content)


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What two models mean otherwise, and how either has it; "" if there is nothing. What one does not say is alike."""
    for key in _ALIKE:
        if key not in one or key not in other:
            continue
        a, b = one[key], other[key]
        if key in _BUILT and isinstance(a, Mapping) and isinstance(b, Mapping):
            names = sorted(name for name in a.keys() | b.keys() if a and b and a.get(name) != b.get(name))
            if names:
                return f"{key}#{names[0]} ({a.get(names[0])} and {b.get(names[0])})"
        elif not _is_alike(key, a, b):
            return f"{key} ({a} and {b})"
    return ""


def _is_alike(key: str, a: Any, b: Any) -> bool:
    if key == "modality" and "auto" in (a, b):  # looks at each volume, and prepares it as the other does
        return True
    same_order = not (isinstance(a, Mapping) and isinstance(b, Mapping)) or list(a) == list(b)  # of the outputs
    return bool(a == b) and same_order


def _decoder(files: ModelFiles) -> dict[str, Tensor]:
    """The decoder's weights as they lie in the file: the axes of both models stay, as the encoder's do."""
    files.verify_decoder()
    return read_weights(files.decoder)


def _lerp(
    first: os.PathLike[str], a: Mapping[str, Tensor], second: os.PathLike[str], b: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    other = sorted(
        name for name in a.keys() | b.keys() if name not in a or name not in b or a[name].shape != b[name].shape
    )
    if other:
        raise UserError(
            f"{first} and {second} are of different networks, {len(other)} tensors such as {other[0]} differ: average "
            "models of one network"
        )
    return {k: torch.lerp(a[k], b[k], share) if a[k].is_floating_point() else b[k] for k in b}
