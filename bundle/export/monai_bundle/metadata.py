# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""configs/metadata.json, after the schema of the Model Zoo: what goes in, what comes out, with which versions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bundle.export.monai_bundle.finished_run import FinishedRun
from bundle.export.monai_bundle.intensities import value_range

__all__ = ["SCHEMA", "metadata"]

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
_PACKAGES = ("nibabel", "pytorch-ignite")
_OF_COMPONENTS = ("itk", "pydicom", "scipy")
_INTENDED_USE = "Research only. Not a medical device, not for diagnosis"


def metadata(run: FinishedRun, *, title: str, components: str) -> dict[str, Any]:
    """The content of metadata.json.

    Args:
        run: to be handed on.
        title: what to call the model.
        components: as for `inference_config`.

    Returns:
        The schema's keys, and `classes`: the value in label maps by the name of each class, and `origin`: the weights
        that training began with and those before, each with its licence.
    """
    names = list(run.classes)
    packages = [*_PACKAGES, *(_OF_COMPONENTS if components == "bundle" else ())]
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported from a fine-tuning run"},
        "monai_version": _plain_version("monai"),
        "pytorch_version": _plain_version("torch"),
        "numpy_version": _plain_version("numpy"),
        "required_packages_version": {name: found for name in packages if (found := _plain_version(name))},
        "name": title,
        "task": f"Segmentation of {', '.join(names)}",
        "description": _description(run),
        "authors": "those who trained the model; exported by the Mask-in-Mask bundle",
        "copyright": "see docs/data_license.txt for the weights, LICENSE for everything else",
        "data_source": "the data of those who trained the model, see docs/README.md",
        "data_type": "nifti",
        "image_classes": f"{run.in_channels} channel(s), {' or '.join(run.modalities)}, as inference.json prepares it",
        "label_classes": ", ".join(f"{value}: {name}" for name, value in {"background": 0, **run.classes}.items()),
        "pred_classes": f"channel 0: background, then {', '.join(names)}",
        "eval_metrics": {_metric(name, run): round(value, 4) for name, value in run.dice().items()},
        "intended_use": _INTENDED_USE,
        "references": [],
        "supported_apps": {},
        "classes": run.classes,
        "origin": run.origin,
        "network_data_format": _network(run),
    }


def _description(run: FinishedRun) -> str:
    counted = " and ".join(f"{number} {name}" for name, number in run.counts("training").items() if number)
    return (
        f"A {run.content['network']['name']} that segments {', '.join(run.classes)} in {' and '.join(run.modalities)}"
        f"{f', trained on {counted} volumes' if counted else ''}."
    )


def _metric(name: str, run: FinishedRun) -> str:
    of = "mean of the classes" if name == "mean" else name
    return f"{'validation' if run.is_held_out else 'training'} Dice, {of}"


def _network(run: FinishedRun) -> dict[str, Any]:
    channels = len(run.classes) + 1
    common = {"type": "image", "spatial_shape": list(run.content["crop_size"]), "dtype": "float32"}
    modality = run.modalities[0] if len(run.modalities) == 1 else "image"
    of_image = {"0": modality} if run.in_channels == 1 else {str(n): f"image {n}" for n in range(run.in_channels)}
    return {
        "inputs": {
            "image": {
                **common,
                "format": "hounsfield" if run.modality == "CT" else "magnitude",
                "modality": ", ".join(run.modalities),
                "num_channels": run.in_channels,
                "value_range": value_range(run),
                "is_patch_data": True,
                "channel_def": of_image,
            }
        },
        "outputs": {
            "pred": {
                **common,
                "format": "segmentation",
                "num_channels": channels,
                "value_range": [0, 1],
                "is_patch_data": True,
                "channel_def": dict(zip(map(str, range(channels)), ["background", *run.classes], strict=True)),
            }
        },
    }


def _plain_version(package: str) -> str:
    """An installed package's version without what a build adds, such as +cpu; "" where it is not installed."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return ""
