# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a plan of nnU-Net or nnssl says: the network, and how volumes are prepared.

`read_plan` reads the plan inside a checkpoint, as far as it goes. `bundle.data.nnunet.read_plan` reads the user's own,
and refuses what cannot be pre-trained. Both know inheritance, axes and normalisations from here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from bundle.errors import UserError
from bundle.weights.orientation import axis_order

__all__ = [
    "CT_STATISTICS",
    "NORMALIZATIONS",
    "READER_AXES",
    "NnunetPlan",
    "array_axes",
    "read_plan",
    "reader_of",
    "with_inherited",
]

logger = logging.getLogger(__name__)

#: how nnU-Net's arrays lie before a plan transposes them, by its reader. It reads a file as slices, rows, columns. A
#: reader that does not reorient leaves the file's own directions; these are those of a scan as DICOM stores it.
READER_AXES = {
    "SimpleITKIO": "SPL",
    "NibabelIO": "SPL",
    "SimpleITKIOWithReorient": "SAR",
    "NibabelIOWithReorient": "SAR",
}
_AXES = READER_AXES["SimpleITKIO"]  # of nnssl, whose plans name no reader
#: of the foreground's intensities, by nnU-Net's names
CT_STATISTICS = {"percentile_00_5", "percentile_99_5", "mean", "std"}
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
        spacing: mm per axis (R, A, S), None in it for a volume's own; None for each volume's own, or not known.
        intensity_scheme: for `bundle.data.NormalizeBySchemed`; None if it is not known.
        channels: images per scan; 0 if it is not known. A cascade's network has further inputs, for the masks of the
            stage before it.
        modality: "CT", or "" where it is another or several.
        dataset: the name of the data set that was trained on, or "".
    """

    kind: str = ""
    architecture: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    axes: str = _AXES
    spacing: Sequence[float | None] | None = None
    intensity_scheme: Any = None
    channels: int = 0
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
        network = _map(adaptation.get("architecture_plans"))
        plan: Mapping[str, Any] = {**_axes_of_export(about), **_map(adaptation.get("pretrain_plan"))}
        configurations = _map(plan.get("configurations"))
        configuration = _map(next(iter(configurations.values()), None))
        name, given = str(network.get("arch_class_name") or ""), _map(network.get("arch_kwargs"))
        return _plan("nnssl", name, given, plan, configuration)
    plan = _map(arguments.get("plans", arguments.get("plan")))
    if not plan:
        return NnunetPlan()
    wanted = str(arguments.get("configuration", "3d_fullres"))
    configuration, _ = with_inherited(_map(plan.get("configurations")), wanted)
    network = _map(configuration.get("architecture"))
    given = dict(_map(network.get("arch_kwargs")))
    if "pool_op_kernel_sizes" in configuration:  # plans before nnU-Net 2.5 have no `architecture`
        given["strides"] = configuration["pool_op_kernel_sizes"]
    return _plan("nnunet", str(network.get("network_class_name", "")), given, plan, configuration)


def _axes_of_export(about: Mapping[str, Any]) -> dict[str, Any]:
    """Where an export of this project has its axes from. Early ones do not tell it in their adaptation plan."""
    record = _map(_map(about.get("model.json")).get("nnunet"))
    return {"image_reader_writer": record.get("reader"), "transpose_forward": record.get("transpose_forward")}


def _plan(
    kind: str, name: str, arguments: Mapping[str, Any], plan: Mapping[str, Any], configuration: Mapping[str, Any]
) -> NnunetPlan:
    axes = array_axes(str(plan.get("image_reader_writer")), plan.get("transpose_forward") or (0, 1, 2))
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
        spacing=None if not spacing else [_float(spacing[axis]) for axis in axis_order(axes, "RAS")],
        intensity_scheme=None if None in found else _one_if_alike(found),
        channels=len(schemes),
        modality="CT" if schemes and set(schemes) == {"CTNormalization"} else "",
        dataset=str(plan.get("dataset_name", "")),
    )


def _one_if_alike(schemes: list[Any]) -> Any:
    """One scheme where all are the same, which fits any number of images; None of none."""
    return schemes if any(one != schemes[0] for one in schemes) else next(iter(schemes), None)


def array_axes(reader: str, transpose: Sequence[int]) -> str:
    """To where the axes of nnU-Net's arrays run, such as "SPL".

    Args:
        reader: nnU-Net's name of what reads files; one that is not known reads as nnU-Net's usual one.
        transpose: which axis of what the reader gives each axis of an array is.
    """
    return "".join(READER_AXES.get(reader, _AXES)[axis] for axis in transpose)


def reader_of(axes: str) -> tuple[str, list[int]]:
    """By which reader and transposition a plan has arrays with these axes: the inverse of `array_axes`.

    Args:
        axes: one letter for each array axis, such as "LSP".

    Returns:
        The reader's name, and which axis of what it gives each axis of an array is.

    Raises:
        UserError: if no reader gives them in any order.
    """
    for reader, given in READER_AXES.items():
        if sorted(given) == sorted(axes):
            return reader, [given.index(code) for code in axes]
    raise UserError(
        f"nnU-Net has no reader whose arrays run to {axes!r}: give axes of SPL or SAR in any order as the orientation"
    )


def with_inherited(configurations: Mapping[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """A configuration of a plan with what it inherits from others.

    Args:
        configurations: of the plan.
        name: of the configuration.

    Returns:
        The configuration, and the name of one that is missing, or inherits from itself; "" if none is.
    """
    found: dict[str, Any] = {}
    seen: set[str] = set()
    while name in configurations and name not in seen:
        seen.add(name)
        one = _map(configurations[name])
        found, name = {**one, **found}, str(one.get("inherits_from") or "")
    return found, name


def _z_score(masked: bool, statistics: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001 - one signature for all
    return {"kind": "z_score", "over": "inside" if masked else "nonzero_box"}


def _ct(masked: bool, statistics: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    window = [float(statistics["percentile_00_5"]), float(statistics["percentile_99_5"])]
    return {
        "kind": "statistics",
        "window": window,
        "mean": float(statistics["mean"]),
        "deviation": float(statistics["std"]),
    }


#: nnU-Net's normalisations by their names, as `bundle.data.NormalizeBySchemed` has them: of whether a channel is
#: normalised inside its mask, and of the foreground's statistics, which CTNormalization needs
NORMALIZATIONS: dict[str, Callable[[bool, Mapping[str, Any]], dict[str, Any]]] = {
    "ZScoreNormalization": _z_score,
    "CTNormalization": _ct,
    "NoNormalization": lambda masked, statistics: {"kind": "none"},  # noqa: ARG005
    "RescaleTo01Normalization": lambda masked, statistics: {"kind": "rescale"},  # noqa: ARG005
    "RGBTo01Normalization": lambda masked, statistics: {"kind": "range", "window": [0, 255], "to": [0, 1]},  # noqa: ARG005
}


def _scheme(name: str, masked: bool, statistics: Mapping[str, Any]) -> dict[str, Any] | None:
    """One of `NORMALIZATIONS`; None where it is not known, or lacks its statistics."""
    if name in NORMALIZATIONS and (name != "CTNormalization" or statistics.keys() >= CT_STATISTICS):
        return NORMALIZATIONS[name](masked, statistics)
    _warn_of_scheme(name)
    return None


@cache  # a file is read several times in a run
def _warn_of_scheme(name: str) -> None:
    lacks = "lacks its statistics" if name in NORMALIZATIONS else "is not known here"
    logger.warning("the normalization %s of nnU-Net's plan %s: intensities are brought to our scale", name, lacks)


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
