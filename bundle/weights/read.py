# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reads a state dict of tensors from a file; nothing in the file is executed."""

from __future__ import annotations

import os
import pickle
import re
from argparse import Namespace
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bundle.errors import UserError

__all__ = [
    "list_wrappers",
    "read_checkpoint",
    "read_weights",
    "require_finite",
    "require_fractions",
    "without_reconstruction",
]

#: names under which others' checkpoints keep the weights
_NESTS = (
    *("state_dict", "model_state_dict", "network_weights", "model", "network", "net"),
    *("encoder_state_dict", "encoder", "teacher", "student"),
)
#: a file of torch.save's begins as a zip archive or, of old versions, as a pickle
_MAGIC = (b"PK", b"\x80")
#: what training libraries put before every name: DistributedDataParallel, torch.compile
_ALWAYS_STRIPPED = ("module.", "_orig_mod.")
#: what they put inside names, where a part alone is compiled, computed again or shared among processes. "module" is not
#: here: a network may have one of this name
_INSIDE = re.compile(r"(?<=\.)(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
#: makes one of numpy's numbers when it is read; its module has another name since NumPy 2
_SCALAR: Any = np.float64(0).__reduce__()[0]
#: and one of its arrays
_ARRAY: Any = np.zeros(1).__reduce__()[0]


def _plain_dict(default: Any = None) -> dict[Any, Any]:  # noqa: ARG001 - what a defaultdict is made of
    return {}


#: plain numbers of numpy, which nnU-Net keeps beside the weights
_SAFE: list[Any] = [
    *((_SCALAR, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")),
    # what Lightning and others keep beside them; such an object holds values and calls nothing when it is made
    *((_ARRAY, f"{module}.multiarray._reconstruct") for module in ("numpy.core", "numpy._core")),
    np.ndarray,
    *(Namespace, date, datetime, timedelta),
    (_plain_dict, "collections.defaultdict"),  # torch fills items into plain dicts alone
    *(dict, list, set, int, float, str),  # what a defaultdict begins with
]
#: what modules around a network are usually called
_WRAPPERS = (
    *("module", "_orig_mod", "model", "encoder", "backbone", "image_encoder", "network", "net"),
    *("feature_extractor", "encoder_q", "teacher", "student"),
)


def read_weights(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads a state dict of tensors, with `weights_only=True`: nothing in the file is executed.

    A file of safetensors is read, too, whatever its ending. A dict that holds the state dict under a usual name
    ("state_dict", "model", ...), and keys that all begin with "module." (DistributedDataParallel) or "_orig_mod."
    (`torch.compile`), are unpacked. So are keys with the latter inside them.

    Raises:
        UserError: if there is no such file, it is damaged, or holds something else, or values that are not finite.
    """
    return read_checkpoint(file)[0]


def read_checkpoint(file: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a state dict as `read_weights` does, and what stands beside it in the file.

    Returns:
        The tensors, and all else that the dict with the state dict holds, such as the plans of an nnU-Net.

    Raises:
        UserError: as `read_weights`.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the path of a model.pt, or pre-train one with scripts/train.sh")
    content, about = _load(path), dict[str, Any]()
    while name := next((one for one in _NESTS if _holds(content, one)), None):
        about |= {str(key): value for key, value in content.items() if key != name}
        content = content[name]
    if not (isinstance(content, Mapping) and content and all(_is_weight(*item) for item in content.items())):
        raise UserError(
            f"{path} holds no state dict of tensors, but {_describe(content)}: give the model.pt that pre-training "
            "wrote, or a file with the tensors by their names"
        )
    weights = {_INSIDE.sub("", key): value for key, value in content.items()}
    while prefix := next((one for one in _ALWAYS_STRIPPED if all(key.startswith(one) for key in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    require_finite(weights, path)
    return weights, about


def _is_weight(name: Any, value: Any) -> bool:
    """Whether this is a tensor with values in its memory, under a name."""
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _holds(content: Any, name: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(name), Mapping)


def _load(path: Path) -> Any:
    """The content of a file.

    Raises:
        UserError: if it is damaged, or holds what is not safe to load.
    """
    with path.open("rb") as opened:
        begins = opened.read(9)
    safetensors = begins[8:] == b"{"  # after the length of a json, which may begin as a pickle does
    if not safetensors and not begins.startswith(_MAGIC):  # such as the page of a failed download
        raise UserError(f"{path} is damaged or no weights file, by its first bytes: copy or download it again")
    try:
        if safetensors:
            return load_file(path)
        with path.open("rb") as opened, torch.serialization.safe_globals(_SAFE):  # of a path torch reads the ending
            return torch.load(opened, map_location="cpu", weights_only=True)
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
        if "weights_only" not in str(error).lower():
            raise UserError(f"{path} is damaged or no weights file: copy or download it again") from error
        named = re.search(r"GLOBAL (\S+)|<class '(\S+)'>", str(error))
        what = f"{named[1] or named[2]}, which is" if named else "objects that are"
        raise UserError(
            f"{path} holds more than tensors, {what} not safe to load: export its state dict alone, where it was "
            "made, with torch.save(network.state_dict(), file)"
        ) from error


def _describe(content: Any, most: int = 4) -> str:
    """What a file holds instead of tensors, in a few words."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not content:
        return "an empty dict"
    found = [f"{key} ({_kind(key, value)})" for key, value in content.items() if not _is_weight(key, value)]
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def _kind(name: Any, value: Any) -> str:
    """What is no weight, in a word or two."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if not isinstance(name, str):
        return "a tensor under no name"
    return "a tensor without values" if value.is_meta else f"a tensor of layout {value.layout}"


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


def require_fractions(
    weights: Mapping[str, Tensor], network: Mapping[str, Tensor], name: str | os.PathLike[str]
) -> None:
    """Checks that no whole numbers, such as those of quantised weights, take the place of a network's fractions.

    Args:
        weights: a state dict.
        network: the state dict of the network that they are for, by the same names.
        name: what to call the weights in the message.

    Raises:
        UserError: if they do: torch would copy them without a word.
    """
    for key, value in weights.items():
        if key in network and network[key].is_floating_point() and not value.is_floating_point():
            there, here = (str(tensor.dtype).removeprefix("torch.") for tensor in (value, network[key]))
            raise UserError(
                f"{os.fspath(name)} holds {there} values in {key}, where the network has {here}: give the weights as "
                "they were before they were quantised"
            )


def list_wrappers(weights: Mapping[str, Tensor]) -> list[str]:
    """Lists what may stand before a network's names in a state dict, such as "model.encoder.".

    Nothing comes first, and a student's last.

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
    # of a student and its teacher, which fit alike, the teacher is what its authors hand out
    return sorted(found, key=lambda wrapper: "student" in wrapper.split("."))


def without_reconstruction(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a pre-trained decoder's tensors that another task can use: not its last layer and mask tokens."""
    return {
        key: w for key, w in weights.items() if not key.startswith(("mask_tokens.", "head.")) and ".head." not in key
    }
