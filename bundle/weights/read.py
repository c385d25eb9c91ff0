# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads a state dict of tensors from a file; nothing in the file is executed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bundle.errors import UserError

__all__ = ["read_weights", "without_reconstruction"]

#: names under which others' checkpoints keep the weights
_NESTS = ("state_dict", "model_state_dict", "network_weights", "model", "network", "net")


def read_weights(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads a state dict of tensors, with `weights_only=True`: nothing in the file is executed.

    A `.safetensors` file is read, too. A dict that holds the state dict under a usual name ("state_dict", "model",
    ...), and keys that all begin with "module." (DistributedDataParallel), are unpacked.

    Raises:
        UserError: if there is no such file, it is damaged, or holds something else.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the path of a model.pt, or pre-train one with scripts/train.sh")
    try:
        safe = path.suffix == ".safetensors"
        content = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        BadZipFile,
        ValueError,
        KeyError,
        SafetensorError,
    ) as error:
        hint = "holds more than tensors" if "weights_only" in str(error).lower() else "is damaged or no weights file"
        raise UserError(f"{path} {hint}: copy or download it again, or export its state dict alone") from error
    for name in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())
    if not tensors:
        raise UserError(f"{path} holds no state dict of tensors: give the model.pt that pre-training wrote")
    weights = dict(content)
    if all(key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return weights


def without_reconstruction(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a pre-trained decoder's tensors that another task can use: not its last layer and mask tokens."""
    return {key: w for key, w in weights.items() if not key.startswith("mask_tokens.") and ".head." not in key}
