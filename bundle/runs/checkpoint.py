# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads checkpoints: whole, checked, and never executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import nn

from bundle.errors import UserError
from bundle.weights import require_finite

__all__ = ["load_network", "read_checkpoint"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `RunCheckpoint` wrote, its tensors on the CPU.

    Raises:
        UserError: if the file is no such checkpoint.
    """
    remedy = "name or resume another run, or put checkpoints/best.pt in its place if it is there"
    try:
        _require_intact(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is truncated or no checkpoint, or bits of it have flipped: {remedy}") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} is no checkpoint of this training: {remedy}")
    return checkpoint


def _require_intact(path: Path) -> None:
    """Compares what the file holds with the checksums (CRC-32) in it, which `torch.load` does not."""
    with ZipFile(path) as records:
        if (damaged := records.testzip()) is not None:
            raise ValueError(damaged)


def load_network(network: nn.Module, saved: dict[str, torch.Tensor], path: Path) -> None:
    """Loads all of the network or nothing.

    Raises:
        UserError: if one tensor is missing, superfluous, of another shape or not finite.
    """
    current = network.state_dict()
    differences = [
        *(f"{name} is not in the checkpoint" for name in current if name not in saved),
        *(f"{name} is not in this network" for name in saved if name not in current),
        *(
            f"{name} is {list(saved[name].shape)} in the checkpoint, {list(tensor.shape)} in this network"
            for name, tensor in current.items()
            if name in saved and saved[name].shape != tensor.shape
        ),
    ]
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{path} holds another network ({'; '.join(differences[:3])}{more}): "
            "use the network settings of the run's config.yaml"
        )
    require_finite(saved, path)
    network.load_state_dict(saved)
