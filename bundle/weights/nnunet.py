# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The encoder in a checkpoint of nnU-Net or of nnssl, and what its plan says of volumes.

Both keep the tensors below `network_weights`. nnU-Net's plan is below `init_args`, with the name of its configuration.
nnssl's is below `nnssl_adaptation_plan`. A module is there under two names, `conv` and `all_modules.0`, and the encoder
once more inside the decoder. One of these names is enough here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bundle.errors import UserError
from bundle.weights.nnunet_plan import NnunetPlan, read_plan
from bundle.weights.orientation import axis_order, turn_kernels

__all__ = ["NnunetEncoder", "find_nnunet"]

logger = logging.getLogger(__name__)

_Weights = Mapping[str, Tensor]

#: the first convolution of either network's encoder
_FIRST = re.compile(r"(.*?)(stem\.convs\.0\.conv|stages\.0\.0\.convs\.0\.conv)\.weight")
#: names of a network's blocks and of their convolutions, which tell how it was built
_BLOCKS = {
    "ResidualEncoderUNet": r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv1\.conv\.weight",
    "PlainConvUNet": r"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.conv\.weight",
}
_COUNTS = {"ResidualEncoderUNet": "n_blocks_per_stage", "PlainConvUNet": "n_conv_per_stage"}
_LAYER = re.compile(r"(.+)\.(conv|norm)\.(\w+)")
#: arguments with a value for each axis, in a list with one for each stage
_BY_AXIS = ("kernel_sizes", "strides")
_TO = "RAS"


@dataclass(frozen=True)
class NnunetEncoder:
    """An encoder of nnU-Net's, as it was found in a file.

    Attributes:
        encoder: name and arguments, as for `build_encoder`, for RAS axes, or others in the order x, y, z.
        weights: the encoder's tensors, with kernels turned to RAS axes, under all of the names that nnU-Net has.
        rest: the other tensors, such as the decoder's, turned as well.
        plan: what the file says of volumes.
    """

    encoder: Mapping[str, Any]
    weights: _Weights
    rest: _Weights
    plan: NnunetPlan


def find_nnunet(weights: _Weights, about: Mapping[str, Any]) -> NnunetEncoder | None:
    """Finds the encoder of a ResidualEncoderUNet or a PlainConvUNet of three dimensions.

    Args:
        weights: a state dict.
        about: what else the file holds, as `read_checkpoint` returns it.

    Returns:
        The encoder, or None if these are no tensors of nnU-Net's.

    Raises:
        UserError: if the plan in the file is another network's than the tensors, nothing says what the strides are, or
            the network has two dimensions.
    """
    plan = read_plan(about)
    firsts = [m for key in weights if (m := _FIRST.fullmatch(key))]
    if not firsts:
        _refuse_transformer(plan)
        return None
    first = min(firsts, key=lambda found: len(found[1]))  # not the one inside the decoder
    if weights[first[0]].ndim != 5:
        raise UserError(
            f"these are weights of a {weights[first[0]].ndim - 2}D network, and the encoders here are 3D: take "
            "those of nnU-Net's configuration 3d_fullres"
        )
    prefix, name = first[1], "ResidualEncoderUNet" if first[2].startswith("stem") else "PlainConvUNet"
    one_name = {key: value for key, value in weights.items() if ".all_modules." not in key}
    inside = {f"encoder.{key[len(prefix) :]}": one_name[key] for key in one_name if _of_encoder(key, prefix)}
    _drop_masks(inside, f"encoder.{first[2]}.weight", plan)
    rest = {
        key: value
        for key, value in one_name.items()
        if not _of_encoder(key, prefix) and not key.startswith("decoder.encoder.")
    }
    arguments = _arguments(inside, rest, name, plan)
    order = axis_order(plan.axes, _TO)
    turned = turn_kernels(inside, plan.axes, to=_TO)
    for key in _BY_AXIS:
        arguments[key] = [[step[axis] for axis in order] for step in arguments[key]]
    dropout = arguments.get("dropout_op") is not None
    named = _all_names(turned, dropout=dropout)
    return NnunetEncoder(
        encoder={"name": name, **arguments},
        weights={**named, **{f"decoder.{key}": value for key, value in named.items()}},
        rest=_all_names(turn_kernels(rest, plan.axes, to=_TO), dropout=dropout),
        plan=plan,
    )


def _drop_masks(inside: dict[str, Tensor], stem: str, plan: NnunetPlan) -> None:
    """Leaves of a cascade's first convolution the inputs that see images: the others see masks of the stage before."""
    inputs = inside[stem].shape[1]
    if plan.kind == "nnunet" and 0 < plan.channels < inputs:
        logger.warning(
            "the first convolution of these weights has %d inputs, and their plan %d images: the last %d inputs, masks "
            "of a cascade's stage before, are left out",
            inputs,
            plan.channels,
            inputs - plan.channels,
        )
        inside[stem] = inside[stem][:, : plan.channels]


def _of_encoder(key: str, prefix: str) -> bool:
    return key.startswith((f"{prefix}stem.", f"{prefix}stages."))


def _refuse_transformer(plan: NnunetPlan) -> None:
    if "primus" in plan.architecture.lower():
        raise UserError(
            f"these weights are of {plan.architecture}, a transformer, and the encoders here are CNNs: take weights of "
            "a ResEnc network, such as nnFoundationCNN"
        )


def _arguments(inside: _Weights, rest: _Weights, name: str, plan: NnunetPlan) -> dict[str, Any]:
    """What the network was built with, axes as in the file: what the tensors tell, and what the plan adds.

    Raises:
        UserError: if the two contradict each other, or nothing tells the strides.
    """
    told = _from_tensors(inside, name)
    for key in (_COUNTS[name], "features_per_stage", "n_stages"):
        said = plan.arguments.get(key, told[key])
        if _list(said, told["n_stages"]) != _list(told[key], told["n_stages"]):
            raise UserError(
                f"the plan in this file says {key} {said}, and its tensors have {told[key]}: it was put together from "
                "two networks, download it again"
            )
    strides = plan.arguments.get("strides") or _decoder_strides(rest, told["n_stages"])
    if strides is None and all(kernel == [3, 3, 3] for kernel in told["kernel_sizes"]):
        strides = [[1, 1, 1], *[[2, 2, 2]] * (told["n_stages"] - 1)]  # nnU-Net's own for such kernels
    if strides is None:
        raise UserError(
            "nothing in this file tells the strides of its network, as it holds neither a plan nor a decoder: put a "
            'model.json beside it, with {"encoder": {"name": ..., "strides": ..., ...}}'
        )
    return {**plan.arguments, **told, "strides": [_three(step) for step in strides]}


def _from_tensors(inside: _Weights, name: str) -> dict[str, Any]:
    blocks = {(int(m[1]), int(m[2])): w for key, w in inside.items() if (m := re.fullmatch(_BLOCKS[name], key))}
    stages = sorted({stage for stage, _ in blocks})
    first = [blocks[stage, 0] for stage in stages]
    found = {
        "input_channels": next(w for key, w in inside.items() if key.endswith("convs.0.conv.weight")).shape[1],
        "n_stages": len(stages),
        "features_per_stage": [w.shape[0] for w in first],
        "kernel_sizes": [list(w.shape[2:]) for w in first],
        _COUNTS[name]: [sum(stage == one for one, _ in blocks) for stage in stages],
        "conv_bias": any(key.endswith("conv.bias") for key in inside),
    }
    if any(key.endswith("norm.running_mean") for key in inside):  # nnUNetTrainerBN leaves the plan as it is
        found["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm3d"
    return {key: value for key, value in found.items() if (key, value) != ("input_channels", 1)}


def _decoder_strides(rest: _Weights, stages: int) -> list[list[int]] | None:
    """Those of the encoder, by the decoder's transposed convolutions, the coarsest one first."""
    kernels = [rest.get(f"decoder.transpconvs.{number}.weight") for number in range(stages - 1)]
    found = [list(kernel.shape[2:]) for kernel in kernels if kernel is not None]
    return [[1, 1, 1], *found[::-1]] if len(found) == stages - 1 else None


def _all_names(weights: _Weights, *, dropout: bool) -> dict[str, Tensor]:
    """The tensors under both names that a block has for its layers; no tensor is copied."""
    places = {"conv": 0, "norm": 2 if dropout else 1}
    found = dict(weights)
    for key, value in weights.items():
        named = _LAYER.fullmatch(key)
        if named and named[2] in places:
            found[f"{named[1]}.all_modules.{places[named[2]]}.{named[3]}"] = value
    return found


def _list(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, Sequence) else [value] * count


def _three(step: int | Sequence[int]) -> list[int]:
    return [int(step)] * 3 if isinstance(step, int) else [int(one) for one in step]
