# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A model's settings and weights for the network that they are for: all of the weights, or an error."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.weights.files import ModelFiles
from bundle.weights.read import list_wrappers, require_fractions
from bundle.weights.settings import ModelSettings

__all__ = ["load_strictly", "read_settings"]

logger = logging.getLogger(__name__)


def read_settings(weights: str | os.PathLike[str], defaults: Mapping[str, Any]) -> ModelSettings:
    """Reads what applying a model needs: from the json beside its weights, or what is known of published ones.

    All is for volumes with the axes of `orientation`, those of the training in the order x, y, z.

    Args:
        weights: path of the weights, such as "models/model.pt"; they need not exist.
        defaults: content of the json where there is none; of published weights what their card does not say.

    Raises:
        UserError: if the json cannot be read, or says nothing of the encoder, crop size, spacing or intensities; if
            there is none and the weights cannot be read.
    """
    files = ModelFiles(weights)
    found = files.describe()
    if found is not None and not files.settings.is_file():
        found = ModelSettings.from_content({**defaults, **found.content})
    elif found is None:
        if files.weights.is_file():
            name = files.settings.name
            logger.warning("no %s beside the weights: taking the encoder and the settings from the config", name)
        found = ModelSettings.from_content(defaults)
    found.require("encoder", "crop_size", "spacing", "ct_window", "mr_percentiles", where=files.settings)
    return found


def load_strictly(
    network: nn.Module, weights: str | os.PathLike[str], *, device: torch.device | str = "cpu", axes: str | None = None
) -> nn.Module:
    """Loads a state dict of exactly the network's tensors, and moves the network to a device.

    What a wrapper has put before all names, such as "model.", is left out. Of a fine-tuned network, as `model.json`
    says, the encoder is taken where `network` is that. MONAI's `CheckpointLoader` shows a wrong
    file as pages of keys, or, with `strict_shape=False`, takes it without a word.

    Args:
        network: to be loaded into, in place.
        weights: a file that `read_weights` reads.
        device: where the network shall run.
        axes: of the volumes that the network will see: kernels that were trained with others are turned, and of
            published weights without a `model.json` the encoder is taken. None: the axes are the weights' own.

    Returns:
        The same network, in eval mode.

    Raises:
        UserError: if the file cannot be read, is not the one that the json beside it describes, or holds another
            network's tensors.
    """
    files, current = ModelFiles(weights), network.state_dict()
    given = files.read_weights() if axes is None else files.read_encoder(axes)
    for wrapper in list_wrappers(given):
        if {f"{wrapper}{key}" for key in current} == given.keys():
            given = {key.removeprefix(wrapper): value for key, value in given.items()}
            break
    about = files.read_settings()
    if about is not None and {"classes", "findings"} & about.content.keys():
        given = _below(given, current)
        _check_channels(given, current, weights)
    problems = [
        *(
            f"{key} {list(given[key].shape)}, not {list(current[key].shape)}"
            for key in sorted(given.keys() & current.keys())
            if given[key].shape != current[key].shape
        ),
        *(f"no {key}" for key in sorted(current.keys() - given.keys())),
        *(f"{key}, which it has not" for key in sorted(given.keys() - current.keys())),
    ]
    if problems and about is not None and about.content.get("task") == "detection":
        raise UserError(
            f"{weights} is of a detector, which keeps the first layers of its encoder only: take the run that it was "
            "fine-tuned from"
        )
    if problems:
        raise UserError(
            f"{weights} does not fit the network of `encoder`, the two differ in {len(problems)} tensors (it holds "
            f"{problems[0]}): put a model.json beside the weights that says how they were made, or correct `encoder`"
        )
    require_fractions(given, current, weights)
    network.load_state_dict(given)
    return network.to(device).eval()


def _below(given: dict[str, Tensor], current: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network below the name of that part of it which has all of `current`, or all tensors."""
    first = next(iter(current))
    for place in (key.removesuffix(first) for key in given if key.endswith(first)):
        if all(f"{place}{key}" in given for key in current):
            return {key: given[f"{place}{key}"] for key in current}
    return given


def _check_channels(
    given: Mapping[str, Tensor], current: Mapping[str, Tensor], weights: str | os.PathLike[str]
) -> None:
    """Says it in the user's words where only the number of images per volume differs.

    Raises:
        UserError: if it does.
    """
    different = [key for key in current if key in given and given[key].shape != current[key].shape]
    if given.keys() != current.keys() or len(different) != 1:
        return
    there, here = given[different[0]].shape, current[different[0]].shape
    if len(there) == 5 and (there[0], *there[2:]) == (here[0], *here[2:]):
        raise UserError(
            f"{weights} was fine-tuned on volumes of {there[1]} channels, and a volume here has {here[1]}: give "
            "weights that take one image, such as those it was fine-tuned from"
        )
