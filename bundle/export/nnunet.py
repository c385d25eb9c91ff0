# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""One file that nnU-Net's own training begins with: `nnUNetv2_train ... -pretrained_weights FILE`.

nnU-Net (2.2 to 2.8) wants every tensor of the network that it builds from its plan, under all of its names, but the
segmentation layers. A decoder that was pre-trained by `NnunetDecoder` is in it; else it comes with nnU-Net's own
initialisation. The file also holds what nnU-Net's tools for nnssl's checkpoints read (`nnssl_adaptation_plan`), and can
be loaded with `weights_only=True`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bundle.atomic import replace_file
from bundle.errors import UserError
from bundle.export.plain import PlainEncoder, PlainModel, plain_network
from bundle.networks import build_encoder, nnunet_arguments
from bundle.weights import axis_order, read_weights, turn_kernels, without_reconstruction
from bundle.weights.nnunet_plan import array_axes, reader_of

__all__ = ["NNUNET_ENCODERS", "architecture", "copy_trainer", "fit_plans", "plan_axes", "verify_nnunet", "write_nnunet"]

#: what nnU-Net's variable nnUNet_extTrainer must name: a folder with the trainer that begins with these weights
TRAINERS = "nnunet_trainers"

#: encoders that nnU-Net has, too
NNUNET_ENCODERS = ("ResidualEncoderUNet", "PlainConvUNet")

#: how nnU-Net's arrays lie where the scan's axes are the patient's: it reads files as slices, rows, columns
_AXES = "SPL"
#: arguments with a value for each axis, in a list with one for each stage
_BY_AXIS = ("kernel_sizes", "strides")
_CLASSES = ("conv_op", "norm_op", "dropout_op", "nonlin")
_NOT_IN_PLANS = ("input_channels", "num_classes", "deep_supervision")
_ROUNDING = 1e-6  # of a level's largest feature
_CITATION = {
    "type": "code",
    "name": "ct_mr_sparse_mim_pretraining",
    "apa_citations": ["The Mask-in-Mask bundle contributors: Sparse Mask-in-Mask pre-training for CT and MR (2026)."],
}


def architecture(settings: Mapping[str, Any], axes: str | None = None) -> dict[str, Any]:
    """The `arch_kwargs` of an nnU-Net plan for the network that an encoder is part of, with axes as nnU-Net has them.

    Args:
        settings: of `model.json`: `encoder`, and `orientation`, by default RAS.
        axes: of nnU-Net's arrays; None for those of the plan of the pre-training, or SPL.

    Raises:
        UserError: if the encoder is none of nnU-Net's.
    """
    encoder = dict(settings.get("encoder", {}))
    name = encoder.pop("name", "")
    if name not in NNUNET_ENCODERS:
        raise UserError(
            f"nnU-Net has no network with the encoder {name or '(not named)'}: pre-train "
            f"{' or '.join(NNUNET_ENCODERS)}, or use another of --formats"
        )
    given = nnunet_arguments(name, encoder)
    order = axis_order(_orientation(settings), axes or _target(settings))
    for key in _BY_AXIS:
        steps = [given[key]] * given["n_stages"] if isinstance(given[key], int) else given[key]  # one for all stages
        given[key] = [[step[axis] for axis in order] for step in map(_three, steps)]
    return given


def write_nnunet(model: PlainModel, path: Path, input_channels: int | None = None, *, axes: str | None = None) -> str:
    """Writes a checkpoint that `nnUNetv2_train -pretrained_weights` takes; says how in a few words.

    Args:
        model: the encoder is one of nnU-Net's.
        path: of the file.
        input_channels: of the network that nnU-Net trains, by default of the pre-trained one; where they differ, the
            stem's weights are averaged, repeated and divided by their number.
        axes: of the arrays that nnU-Net trains on, as `plan_axes` tells them; by default those of the plan of the
            pre-training, or SPL.

    Raises:
        UserError: if the encoder is none of nnU-Net's.
    """
    target = axes or _target(model.settings)
    arguments = architecture(model.settings, target)
    channels = model.network.in_channels if input_channels is None else input_channels
    network = _whole_network(model, arguments, channels, target)
    torch.save(
        {
            "network_weights": {key: value.detach() for key, value in network.state_dict().items()},
            "nnssl_adaptation_plan": _adaptation_plan(model.settings, arguments, network, channels, target),
            "citations": [_CITATION],
            "model.json": dict(model.settings),
        },
        path,
    )
    if _orientation(model.settings) == target:
        return "axes as pre-trained"
    return "axes as nnU-Net reads files" if axes is None else "axes as your plan has them"


def verify_nnunet(
    path: Path, name: str, model: PlainModel, images: Sequence[Tensor], *, axes: str | None = None
) -> tuple[float, float]:
    """Compares a written file with its model.

    All names that nnU-Net asks for must be there, and the encoder's values equal bit for bit. The features of nnU-Net's
    own network with the file's weights are compared with those of the plain encoder, both with nnU-Net's axes.

    Args:
        path: of the file.
        name: of its format.
        model: what it was made from.
        images: ``[B, 1, D, H, W]``, with the axes of the pre-training, to compare features on.
        axes: as for `write_nnunet`.

    Raises:
        UserError: if the two differ.
    """
    given, target = read_weights(path), axes or _target(model.settings)
    arguments = architecture(model.settings, target)
    channels = next(value for key, value in given.items() if key.startswith("encoder.") and value.ndim == 5).shape[1]
    network = _whole_network(model, arguments, channels, target)
    expected = network.state_dict()
    wrong = [key for key, value in expected.items() if key not in given or given[key].shape != value.shape]
    wrong += [
        key
        for key in expected
        if key.startswith("encoder.") and key not in wrong and not torch.equal(given[key], expected[key])
    ]
    if wrong:
        raise UserError(
            f"the {name} file differs from the model in {len(wrong)} tensors, such as {wrong[0]}: export it again"
        )
    network.load_state_dict(given)
    turned = turn_kernels(model.weights, _orientation(model.settings), to=target)
    plain = plain_network({"encoder": {"name": model.settings["encoder"]["name"], **arguments}}, turned)
    order = axis_order(_orientation(model.settings), target)
    difference = relative = 0.0
    for image in images if channels == model.network.in_channels else ():
        apart, share = _compare(network, plain, image.permute(0, 1, *(2 + axis for axis in order)))
        difference, relative = max(difference, apart), max(relative, share)
    if not relative <= _ROUNDING:
        raise UserError(
            f"nnU-Net's network gives other features with the {name} file, by {relative:.1e}: export it again"
        )
    return difference, relative


def fit_plans(
    plans: Mapping[str, Any],
    settings: Mapping[str, Any],
    configuration: str = "3d_fullres",
    name: str = "SparseMimPlans",
) -> dict[str, Any]:
    """A plan for `nnUNetv2_train -p` whose network is the pre-trained one, where the user's own plan has another.

    Everything else is the user's: spacing, normalisation, patch and batch size, the preprocessed data. Kernels and
    strides follow the plan's axes; the weights must, too: give `write_nnunet` what `plan_axes` tells.

    Args:
        plans: the content of the user's `nnUNetPlans.json`.
        settings: of `model.json`.
        configuration: whose network is replaced; the others are left out.
        name: of the new plan, and of its file.

    Returns:
        The content of `<name>.json`, to be put beside the user's plan.

    Raises:
        UserError: if the plan has no such configuration, its patch does not divide by the network's strides, or as
            `plan_axes`.
    """
    found = plans.get("configurations") if isinstance(plans, Mapping) else None
    if not isinstance(found, Mapping) or not all(isinstance(one, Mapping) for one in found.values()):
        raise UserError("--nnunet_plans is a json without configurations: give an nnUNetPlans.json of nnU-Net 2")
    if configuration not in found or "patch_size" not in found[configuration]:
        raise UserError(
            f"--nnunet_plans has no configuration {configuration!r} of its own: give --nnunet_configuration one of "
            f"{', '.join(key for key in found if 'patch_size' in found[key]) or 'another plan'}"
        )
    arguments, chosen = architecture(settings, plan_axes(plans)), dict(found[configuration])
    total = [math.prod(step[axis] for step in arguments["strides"]) for axis in range(3)]
    patch = [int(size) for size in chosen["patch_size"]]
    if len(patch) != 3 or any(size % stride for size, stride in zip(patch, total)):
        raise UserError(
            f"the plan's patch size {patch} does not divide by the network's strides {total}: change patch_size of "
            f"{configuration} in a copy of the plan, for example to {[-(-s // t) * t for s, t in zip(patch, total)]}"
        )
    chosen["architecture"] = {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{settings['encoder']['name']}",
        "arch_kwargs": {key: value for key, value in arguments.items() if key not in _NOT_IN_PLANS},
        "_kw_requires_import": list(_CLASSES),
    }
    return {**plans, "plans_name": name, "configurations": {configuration: chosen}}


def plan_axes(plans: Mapping[str, Any]) -> str:
    """To where the axes of the arrays run that nnU-Net makes by a plan, such as "LSP".

    Args:
        plans: the content of the user's `nnUNetPlans.json`. Its reader gives the axes, and `transpose_forward` their
            order: nnU-Net puts the axis with the thickest voxels first.

    Raises:
        UserError: if `transpose_forward` is no order of three axes.

    Example:
        >>> from bundle.export import plan_axes
        >>> plan_axes({"image_reader_writer": "SimpleITKIO", "transpose_forward": [2, 0, 1]})
        'LSP'
    """
    order = plans.get("transpose_forward") or [0, 1, 2]
    if not isinstance(order, Sequence) or sorted(map(str, order)) != ["0", "1", "2"]:
        raise UserError(
            f"--nnunet_plans has transpose_forward {order!r}, which is no order of three axes: plan the data set again"
        )
    return array_axes(str(plans.get("image_reader_writer")), [int(axis) for axis in order])


def copy_trainer(folder: str | os.PathLike[str]) -> Path:
    """Puts the trainer for nnU-Net beside an exported file, for the variable nnUNet_extTrainer.

    Args:
        folder: of the exported file.

    Returns:
        The folder that the variable must name. What lies there is replaced: it is of this project alone.
    """
    source = Path(__file__).parent / TRAINERS / "sparse_mim.py"
    target = Path(folder) / TRAINERS / source.name
    with replace_file(target) as temporary:
        temporary.write_bytes(source.read_bytes())
    return target.parent


def _compare(network: Any, plain: PlainEncoder, image: Tensor) -> tuple[float, float]:
    with torch.no_grad():
        pairs = list(zip(network.encoder(image), plain(image), strict=True))
    apart = [float((given - expected).abs().max()) for given, expected in pairs]
    return max(apart), max(a / max(float(b.abs().max()), 1e-30) for a, (_, b) in zip(apart, pairs, strict=True))


def _whole_network(model: PlainModel, arguments: Mapping[str, Any], input_channels: int, axes: str) -> Any:
    """nnU-Net's network with its own first weights, and the encoder's in their place."""
    name = model.settings["encoder"]["name"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same file each time
        network: Any = build_encoder(name, **{**arguments, "input_channels": input_channels}).network
        network.apply(network.initialize)
    weights = turn_kernels(model.weights, _orientation(model.settings), to=axes)
    current = network.state_dict()
    fitted = {key: _repeated(value, current[key]) for key, value in weights.items() if key in current}
    network.load_state_dict(current | fitted | _decoder(model, current, axes))
    return network.eval()


def _decoder(model: PlainModel, current: Mapping[str, Tensor], axes: str) -> dict[str, Tensor]:
    """The pre-trained decoder under nnU-Net's names, but for its last layer, if it is nnU-Net's own; else nothing."""
    given = turn_kernels(without_reconstruction(model.decoder), _orientation(model.settings), to=axes)
    named = {f"decoder.{key}": value for key, value in given.items()}
    fits = all(key in current and current[key].shape == value.shape for key, value in named.items())
    return named if fits else {}


def _repeated(value: Tensor, target: Tensor) -> Tensor:
    if value.shape == target.shape:
        return value
    return value.mean(1, keepdim=True).expand_as(target) * (value.shape[1] / target.shape[1])


def _adaptation_plan(
    settings: Mapping[str, Any], arguments: Mapping[str, Any], network: Any, input_channels: int, axes: str
) -> dict[str, Any]:
    """What nnU-Net's tools for checkpoints of nnssl ask for.

    They load the parts of their network that its class names as encoder and stem, strictly and by these keys.
    """
    name = settings["encoder"]["name"]
    order = axis_order(_orientation(settings), axes)
    spacing, patch = settings.get("spacing"), settings.get("crop_size")
    reader, transpose = reader_of(axes)
    return {
        "architecture_plans": {
            "arch_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
            "arch_kwargs": {key: value for key, value in arguments.items() if key not in _NOT_IN_PLANS},
            "arch_kwargs_requiring_import": list(_CLASSES),
        },
        "pretrain_plan": {
            "image_reader_writer": reader,
            "transpose_forward": transpose,
            "configurations": {
                "3d_fullres": {
                    "spacing": None if spacing is None else [spacing[axis] for axis in order],
                    "patch_size": None if not patch else [int(patch[axis]) for axis in order],
                }
            },
        },
        "pretrain_num_input_channels": input_channels,
        "recommended_downstream_patchsize": None if not patch else [int(patch[axis]) for axis in order],
        "key_to_encoder": network.key_to_encoder,
        "key_to_stem": network.key_to_stem,
        "keys_to_in_proj": list(network.keys_to_in_proj),
        "key_to_lpe": None,
    }


def _target(settings: Mapping[str, Any]) -> str:
    """The axes of nnU-Net's arrays; where the pre-training followed a plan, it has seen such arrays."""
    return _orientation(settings) if "nnunet" in settings else _AXES


def _orientation(settings: Mapping[str, Any]) -> str:
    return str(settings.get("orientation", "RAS"))


def _three(step: int | Sequence[int]) -> list[int]:
    return [step] * 3 if isinstance(step, int) else list(step)
