# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What the plan inside a checkpoint of nnU-Net or nnssl says: the network, and how volumes were prepared."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bundle.weights.orientation import axis_order

__all__ = ["NnunetPlan", "read_plan"]

logger = logging.getLogger(__name__)

#: how nnU-Net's arrays lie where the scan's axes are the patient's: it reads files as slices, rows, columns
_AXES = "SPL"
_REORIENTED = "SAR"  # by a reader whose name says that it reorients
#: arguments of a network that say nothing of its encoder, or that the tensors tell
_LEFT_OUT = ("input_channels", "num_classes", "deep_supervision")


@dataclass(frozen=True)
class NnunetPlan:
    """What a plan says.

    Attributes:
        kind: "nnssl" or "nnunet"; "" where the file has no plan.
        architecture: the name of the network's class, without its module; "" if the plan does not say.
        arguments: of the network, as they stand in the plan.
        axes: of the arrays, one letter for each axis.
        spacing: mm per axis (R, A, S); None for each volume's own, or not known.
        intensity_scheme: for `bundle.data.NormalizeBySchemed`; None if it is not known.
        modality: "CT", or "" where it is another or several.
        dataset: the name of the data set that was trained on, or "".
    """

    kind: str = ""
    architecture: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    axes: str = _AXES
    spacing: Sequence[float] | None = None
    intensity_scheme: Any = None
    modality: str = ""
    dataset: str = ""


def read_plan(about: Mapping[str, Any]) -> NnunetPlan:
    """Reads the plan beside the weights in a checkpoint.

    Args:
        about: what a checkpoint holds besides its weights.

    Returns:
        What it says; an empty plan if there is none.
    """
    adaptation, arguments = _map(about.get("nnssl_adaptation_plan")), _map(about.get("init_args"))
    if adaptation:
        network, plan = _map(adaptation.get("architecture_plans")), _map(adaptation.get("pretrain_plan"))
        configurations = _map(plan.get("configurations"))
        configuration = _map(next(iter(configurations.values()), None))
        name, given = str(network.get("arch_class_name") or ""), _map(network.get("arch_kwargs"))
        return _plan("nnssl", name, given, plan, configuration)
    plan = _map(arguments.get("plans", arguments.get("plan")))
    if not plan:
        return NnunetPlan()
    configuration = _inherited(_map(plan.get("configurations")), str(arguments.get("configuration", "3d_fullres")))
    network = _map(configuration.get("architecture"))
    given = dict(_map(network.get("arch_kwargs")))
    if "pool_op_kernel_sizes" in configuration:  # plans before nnU-Net 2.5 have no `architecture`
        given["strides"] = configuration["pool_op_kernel_sizes"]
    return _plan("nnunet", str(network.get("network_class_name", "")), given, plan, configuration)


def _plan(
    kind: str, name: str, arguments: Mapping[str, Any], plan: Mapping[str, Any], configuration: Mapping[str, Any]
) -> NnunetPlan:
    turn = plan.get("transpose_forward") or [0, 1, 2]
    read = _REORIENTED if "WithReorient" in str(plan.get("image_reader_writer")) else _AXES
    axes = "".join(read[axis] for axis in turn)
    spacing = configuration.get("spacing")
    properties = _map(plan.get("foreground_intensity_properties_per_channel"))
    schemes = configuration.get("normalization_schemes") or []
    masked = configuration.get("use_mask_for_norm") or [False] * len(schemes)
    found = [
        _scheme(str(scheme), bool(mask), _map(properties.get(str(channel))))
        for channel, (scheme, mask) in enumerate(zip(schemes, masked, strict=False))
    ]
    return NnunetPlan(
        kind=kind,
        architecture=name.rpartition(".")[2],
        arguments={key: value for key, value in arguments.items() if key not in _LEFT_OUT},
        axes=axes,
        spacing=None if not spacing else [float(spacing[axis]) for axis in axis_order(axes, "RAS")],
        intensity_scheme=None if not found or None in found else found[0] if len(found) == 1 else found,
        modality="CT" if schemes and set(schemes) == {"CTNormalization"} else "",
        dataset=str(plan.get("dataset_name", "")),
    )


def _scheme(name: str, masked: bool, properties: Mapping[str, Any]) -> dict[str, Any] | None:
    """One of nnU-Net's normalizations, as `bundle.data.NormalizeBySchemed` has it; None if it has none like it."""
    if name == "ZScoreNormalization":
        return {"kind": "z_score", "over": "inside" if masked else "nonzero_box"}
    if name == "CTNormalization" and {"percentile_00_5", "percentile_99_5", "mean", "std"} <= properties.keys():
        window = [float(properties["percentile_00_5"]), float(properties["percentile_99_5"])]
        mean, deviation = float(properties["mean"]), float(properties["std"])
        return {"kind": "statistics", "window": window, "mean": mean, "deviation": deviation}
    logger.warning(
        "the normalization %s of nnU-Net's plan is not known here: intensities are brought to our scale", name
    )
    return None


def _inherited(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits from others."""
    found: dict[str, Any] = {}
    seen: set[str] = set()
    while name in configurations and name not in seen:
        seen.add(name)
        found = {**_map(configurations[name]), **found}
        name = str(_map(configurations[name]).get("inherits_from", ""))
    return found


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
