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

__all__ = ["list_wrappers", "read_weights", "require_finite", "without_reconstruction"]

#: names under which others' checkpoints keep the weights
_NESTS = ("state_dict", "model_state_dict", "network_weights", "model", "network", "net")
#: what training libraries put before every name: DistributedDataParallel, torch.compile
_ALWAYS_STRIPPED = ("module.", "_orig_mod.")
#: what modules around a network are usually called
_WRAPPERS = ("module", "_orig_mod", "model", "encoder", "backbone", "image_encoder", "network", "net")


def read_weights(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads a state dict of tensors, with `weights_only=True`: nothing in the file is executed.

    A `.safetensors` file is read, too. A dict that holds the state dict under a usual name ("state_dict", "model",
    ...), and keys that all begin with "module." (DistributedDataParallel) or "_orig_mod." (`torch.compile`), are
    unpacked.

    Raises:
        UserError: if there is no such file, it is damaged, or holds something else, or values that are not finite.
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
    while prefix := next((one for one in _ALWAYS_STRIPPED if all(key.startswith(one) for key in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    require_finite(weights, path)
    return weights


def require_finite(weights: Mapping[str, Tensor], name: str | os.PathLike[str]) -> None:
    """Checks that all values are numbers.

    Args:
        weights: a state dict.
        name: what to call it in the message.

    Raises:
        UserError: if one is NaN or infinite.
    """
    for key, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(
                f"{os.fspath(name)} holds NaN or infinite values, in {key}: its training has diverged or the file is "
                "damaged, take an earlier checkpoint or train again with a lower learning rate"
            )


def list_wrappers(weights: Mapping[str, Tensor]) -> list[str]:
    """Lists what may stand before a network's names in a state dict, such as "model.encoder.": nothing comes first.

    Args:
        weights: a state dict, of others' training too, that may hold more than the network's tensors.
    """
    found = {"": None}
    for key in weights:
        parts = key.split(".")[:-1]
        for depth, part in enumerate(parts, 1):
            if part not in _WRAPPERS:
                break
            found[".".join([*parts[:depth], ""])] = None
    return list(found)


def without_reconstruction(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a pre-trained decoder's tensors that another task can use: not its last layer and mask tokens."""
    return {
        key: w for key, w in weights.items() if not key.startswith(("mask_tokens.", "head.")) and ".head." not in key
    }
