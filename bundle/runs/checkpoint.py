# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads checkpoints: whole, checked, and never executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import nn

from bundle.errors import UserError
from bundle.runs.recorded_config import named_config, newest_config
from bundle.weights import require_finite

__all__ = ["config_of_checkpoint", "load_network", "peek", "read_checkpoint"]


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


def config_of_checkpoint(folder: Path, checkpoint: Path) -> Path | None:
    """The settings that a checkpoint was trained with: the file that it names, else the newest.

    Args:
        folder: of the run.
        checkpoint: that `RunCheckpoint` wrote; versions before 0.2.0 named no settings in it.
    """
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)  # reads no weights yet
        return named_config(folder, saved["config"])
    except Exception:  # noqa: BLE001 - whoever loads the weights says what is wrong with the file
        return newest_config(folder)


def peek(checkpoint: Path, name: str) -> Any:
    """One entry of a checkpoint, without its weights; None where it has none, or is damaged.

    Whoever loads the weights says what is wrong with the file.
    """
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)[name]
    except Exception:  # noqa: BLE001 - damaged files raise anything
        return None


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
