# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Weights into the network that they are for: all of them, or an error.

MONAI's `CheckpointLoader` shows a wrong file as pages of keys, or, with `strict_shape=False`, takes it without a word.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import torch
from torch import nn

from bundle.errors import UserError
from bundle.weights import read_weights

__all__ = ["load_strictly", "sha256_of"]

logger = logging.getLogger(__name__)


def load_strictly(
    network: nn.Module, weights: str | os.PathLike[str], *, device: torch.device | str = "cpu", sha256: str = ""
) -> nn.Module:
    """Loads a state dict of exactly the network's tensors, and moves the network to a device.

    Args:
        network: to be loaded into, in place.
        weights: a file that `bundle.weights.read_weights` reads.
        device: where the network shall run.
        sha256: what the settings beside the file say of it, or "".

    Raises:
        UserError: if the file cannot be read, or holds another network's tensors.
    """
    given, own = read_weights(weights), network.state_dict()
    problems = [
        *(
            f"{key} {list(given[key].shape)}, not {list(own[key].shape)}"
            for key in sorted(given.keys() & own.keys())
            if given[key].shape != own[key].shape
        ),
        *(f"no {key}" for key in sorted(own.keys() - given.keys())),
        *(f"{key}, which it has not" for key in sorted(given.keys() - own.keys())),
    ]
    if problems:
        raise UserError(
            f"{weights} does not fit the network in {len(problems)} of its {len(own)} tensors (it holds {problems[0]}):"
            " put the model.json of these weights beside them, or correct `encoder`"
        )
    if sha256 and sha256_of(weights) != sha256:
        logger.warning("%s is not the file that the json beside it was written for: are its settings right?", weights)
    network.load_state_dict(given)
    return network.to(device).eval()


def sha256_of(file: str | os.PathLike[str]) -> str:
    """The file's sha256 in hexadecimal digits."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
