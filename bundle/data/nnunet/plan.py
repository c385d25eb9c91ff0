# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""An nnU-Net plan as plain settings: network, patch, spacing, intensities, and how arrays lie."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle.errors import UserError
from bundle.weights.nnunet_plan import CT_STATISTICS, NORMALIZATIONS, READER_AXES, array_axes, with_inherited

__all__ = ["Plan", "read_plan"]

_NETWORKS = ("ResidualEncoderUNet", "PlainConvUNet")
#: an old plan's names, in the order of a new one's
_OLD_BLOCKS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}


@dataclass(frozen=True)
class Plan:
    """What one configuration of an nnU-Net plan says of pre-training.

    All values by axis are in the order of nnU-Net's arrays after `transpose`: the order of the plan.

    Attributes:
        name: of the plan, such as "nnUNetPlans".
        configuration: such as "3d_fullres".
        network: "ResidualEncoderUNet" or "PlainConvUNet".
        arguments: of the network, as for `bundle.networks.build_encoder`.
        patch: voxels per axis that nnU-Net trains on.
        spacing: mm per axis.
        schemes: the name of nnU-Net's normalisation, for each channel.
        masked: whether a channel is normalised inside the part that is not 0, for each channel.
        intensities: of the foreground, for each channel: nnU-Net's own statistics.
        reader: nnU-Net's name of what reads files.
        transpose: which axis of what the reader gives each axis of an array is.
        resampling: nnU-Net's name of what resamples images.
        resampling_options: its arguments.
        data_identifier: name of the folder of preprocessed cases.
    """

    name: str
    configuration: str
    network: str
    arguments: Mapping[str, Any]
    patch: Sequence[int]
    spacing: Sequence[float]
    schemes: Sequence[str]
    masked: Sequence[bool]
    intensities: Sequence[Mapping[str, float]]
    reader: str = "SimpleITKIO"
    transpose: Sequence[int] = (0, 1, 2)
    resampling: str = "resample_data_or_seg_to_shape"
    resampling_options: Mapping[str, Any] = field(default_factory=dict)
    data_identifier: str = ""

    @property
    def channels(self) -> int:
        """Images of each case."""
        return len(self.schemes)

    @property
    def modality(self) -> str:
        """CT if the first channel is normalised as CT is, else MR."""
        return "CT" if self.schemes[0] == "CTNormalization" else "MR"

    @property
    def axes(self) -> str:
        """To where the axes of an array run, such as "SPL"; of a reader that reorients nothing, for a DICOM scan."""
        return array_axes(self.reader, self.transpose)

    @property
    def reorients(self) -> bool:
        """Whether nnU-Net's reader turns files to RAS before all else."""
        return self.reader.endswith("WithReorient")

    @property
    def patch_size(self) -> list[int]:
        """Voxels per axis of a crop.

        Raises:
            UserError: if an axis is no multiple of the network's strides.
        """
        strides = [math.prod(step[axis] for step in self.arguments["strides"]) for axis in range(3)]
        if any(size % stride for size, stride in zip(self.patch, strides, strict=True)):
            fitting = [-(-size // stride) * stride for size, stride in zip(self.patch, strides, strict=True)]
            raise UserError(
                f"the patch size {list(self.patch)} of {self.name}, {self.configuration} does not divide by its "
                f"network's strides {strides}: give --crop_size, such as {str(fitting).replace(' ', '')}"
            )
        return list(self.patch)

    @property
    def intensity_scheme(self) -> list[dict[str, Any]]:
        """How each channel is brought to scale, as for `bundle.data.NormalizeBySchemed`."""
        return [
            NORMALIZATIONS[name](masked, values)
            for name, masked, values in zip(self.schemes, self.masked, self.intensities, strict=True)
        ]

    @property
    def record(self) -> dict[str, Any]:
        """For `model.json`: by which nnU-Net's files are recognised as those that the weights are for."""
        return {
            "plans_name": self.name,
            "configuration": self.configuration,
            "reader": self.reader,
            "transpose_forward": list(self.transpose),
            "data_identifier": self.data_identifier,
        }


def read_plan(file: str | os.PathLike[str] | None, configuration: str = "3d_fullres") -> Plan:
    """Reads one configuration of an nnU-Net plan.

    Args:
        file: such as `nnUNet_preprocessed/Dataset004_Hippocampus/nnUNetPlans.json`.
        configuration: such as "3d_fullres" or "3d_lowres"; one that inherits from another is completed by that one.

    Raises:
        UserError: if there is no such plan or configuration, or it says what cannot be pre-trained: a 2D network, the
            second stage of a cascade, another network or normalisation than nnU-Net's own.

    """
    content = _read(file)
    where = f"--nnunet_plans {file}"
    chosen = _configuration(content, configuration, where)
    network, arguments = _architecture(chosen, where)
    schemes = list(chosen.get("normalization_schemes", ()))
    if unknown := [name for name in schemes if name not in NORMALIZATIONS] or not schemes:
        raise UserError(
            f"{where} normalises by {unknown if schemes else 'nothing'}: change normalization_schemes to those of "
            f"{', '.join(NORMALIZATIONS)}, or pre-train without the plan"
        )
    statistics = content.get(
        "foreground_intensity_properties_per_channel", content.get("foreground_intensity_properties_by_modality", {})
    )
    intensities = [dict(statistics.get(str(channel), {})) for channel in range(len(schemes))]
    if any(
        name == "CTNormalization" and not values.keys() >= CT_STATISTICS for name, values in zip(schemes, intensities)
    ):
        raise UserError(f"{where} lacks the intensities that CTNormalization needs: plan the data set again")
    reader = str(content.get("image_reader_writer", "SimpleITKIO"))
    if reader not in READER_AXES:
        raise UserError(f"{where} reads files by {reader}: pre-training knows {', '.join(READER_AXES)}")
    return Plan(
        name=str(content.get("plans_name", Path(str(file)).stem)),
        configuration=configuration,
        network=network,
        arguments={**arguments, "input_channels": len(schemes)},
        patch=[int(size) for size in chosen["patch_size"]],
        spacing=[float(mm) for mm in chosen["spacing"]],
        schemes=schemes,
        masked=list(chosen.get("use_mask_for_norm", [False] * len(schemes))),
        intensities=intensities,
        reader=reader,
        transpose=[int(axis) for axis in content.get("transpose_forward", (0, 1, 2))],
        resampling=str(chosen.get("resampling_fn_data", "resample_data_or_seg_to_shape")),
        resampling_options=dict(chosen.get("resampling_fn_data_kwargs", {})),
        data_identifier=str(chosen.get("data_identifier", "")),
    )


def _read(file: str | os.PathLike[str] | None) -> Mapping[str, Any]:
    if file is None:
        raise UserError(
            "configs/nnunet.yaml needs a plan: give --nnunet_plans, the nnUNetPlans.json in nnUNet_preprocessed"
        )
    try:
        content = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--nnunet_plans {file} is no readable json ({error}): give an nnUNetPlans.json") from error
    if not isinstance(content, dict) or not isinstance(content.get("configurations"), dict):
        raise UserError(f"--nnunet_plans {file} has no configurations, it is no plan: give an nnUNetPlans.json")
    return content


def _configuration(content: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """The configuration with all that it inherits."""
    known: Mapping[str, Any] = content["configurations"]
    chosen, missing = with_inherited(known, name)
    if not chosen or missing:
        raise UserError(
            f"{where} has no whole configuration {name!r}: give --nnunet_configuration one of {', '.join(known)}"
        )
    if chosen.get("previous_stage"):
        raise UserError(
            f"{where}: {name} is the second stage of a cascade, which also sees labels; give "
            f"--nnunet_configuration {chosen['previous_stage']}, or 3d_fullres"
        )
    if len(chosen.get("patch_size", ())) != 3 or len(chosen.get("spacing", ())) != 3:
        raise UserError(f"{where}: {name} is not three-dimensional; give --nnunet_configuration 3d_fullres")
    return chosen


def _architecture(chosen: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    about = chosen.get("architecture")
    if about is None:  # a plan of nnU-Net before 2.4
        network = str(chosen.get("UNet_class_name", ""))
        arguments = _old_arguments(chosen, network) if network in _NETWORKS else {}
    else:
        network, arguments = str(about.get("network_class_name", "")), dict(about.get("arch_kwargs", {}))
    if (name := network.rpartition(".")[2]) not in _NETWORKS or not arguments.get("strides"):
        raise UserError(
            f"{where} has the network {network or '(none)'}: pre-training knows nnU-Net's {' and '.join(_NETWORKS)}"
        )
    return name, arguments


def _old_arguments(chosen: Mapping[str, Any], network: str) -> dict[str, Any]:
    """The network's arguments from the keys of a plan that has no `architecture`, as nnU-Net itself converts them."""
    blocks = list(chosen["n_conv_per_stage_encoder"])
    width, widest = chosen["UNet_base_num_features"], chosen["unet_max_num_features"]
    return {
        "n_stages": len(blocks),
        "features_per_stage": [min(width * 2**stage, widest) for stage in range(len(blocks))],
        "kernel_sizes": chosen["conv_kernel_sizes"],
        "strides": chosen["pool_op_kernel_sizes"],
        _OLD_BLOCKS[network]: blocks,
        "n_conv_per_stage_decoder": list(chosen["n_conv_per_stage_decoder"]),
    }
