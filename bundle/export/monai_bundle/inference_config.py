# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""configs/inference.json, by the names that MONAI's command, the Model Zoo, MONAI Label and MONAI Deploy look for."""

from __future__ import annotations

from typing import Any

from bundle.errors import UserError
from bundle.export.monai_bundle.finished_run import FinishedRun

__all__ = ["inference_config", "needs_package"]

#: HU between air and everything else, as `bundle.data.Foregroundd` has it
_CT_BODY = -500
_MARGIN = 4
#: with more channels, label maps are resampled onto the scan's grid, and not probabilities: those would fill the memory
_MOST_PROBABILITIES = 8
_AXES = ("x", "y", "z")
_NO_LIMIT = 1e6
_FILES = (".nii.gz", ".nii", ".nrrd", ".mha")

Transform = dict[str, Any]


def needs_package(run: FinishedRun) -> str:
    """Why this package must prepare the scans; "" if MONAI's own transforms can."""
    if run.content.get("intensity_scheme") is not None:
        return "it keeps the intensity scale of its pre-trained weights"
    if run.modality != "CT":
        return "MR is scaled by the percentiles of the body, which no transform of MONAI's does"
    if run.in_channels > 1:
        return "several channels are read from files that belong together"
    return ""


def inference_config(run: FinishedRun, *, components: str) -> dict[str, Any]:
    """The config that segments a folder with the run's network.

    Args:
        run: to be handed on.
        components: "monai" uses MONAI's own transforms only, "bundle" this package's, which read and check scans as
            training did.

    Raises:
        UserError: if MONAI's own transforms cannot prepare scans for it.
    """
    if components == "monai" and (reason := needs_package(run)):
        raise UserError(f"--components monai does not fit this run: {reason}; leave the option out")
    by_monai = components == "monai"
    arguments = dict(run.content["network"])
    return {
        "imports": ["$import pathlib", "$import operator", "$import functools"] if by_monai else [],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "num_workers": 0,
        "sw_batch_size": 2,
        "overlap": 0.5,
        "datalist": _files_below() if by_monai else _items_below(run.in_channels),
        "network_def": {"_target_": arguments.pop("name"), **arguments},
        "network": "$@network_def.to(@device)",
        "preprocessing": _compose(_prepare_by_monai(run) if by_monai else _prepare_by_package(run)),
        "dataset": {"_target_": "Dataset", "data": _data(by_monai), "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": "@num_workers",
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(run.content["crop_size"]),
            "sw_batch_size": "@sw_batch_size",
            "overlap": "@overlap",
            "mode": "gaussian",
        },
        **_postprocessing(run),
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            },
            {"_target_": "StatsHandler", "iteration_log": False},
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": False,
        },
        "initialize": [
            _one_of_each_name() if by_monai else {"_target_": "bundle.errors.install_excepthook"},
            "$monai.utils.set_determinism(seed=0)",
        ],
        "run": ["$@evaluator.run()"],
    }


def _compose(transforms: list[Transform]) -> Transform:
    return {"_target_": "Compose", "transforms": transforms}


def _files_below() -> str:
    """The files of a folder that MONAI reads; no characters of its name have a meaning. Without one it is an error.

    Results of an earlier run are none of them.
    """
    is_scan = f"f.name.lower().endswith({_FILES}) and not f.name.lower().endswith('_seg.nii.gz')"
    is_outside = "pathlib.Path(@output_dir).resolve() not in f.resolve().parents"
    listed = f"sorted(str(f) for f in pathlib.Path(@dataset_dir).rglob('*') if {is_scan} and {is_outside})"
    return f"${listed} or pathlib.Path(@dataset_dir, 'a NIfTI, NRRD or MetaImage file').resolve(strict=True)"


def _one_of_each_name() -> str:
    """Two files whose results would have one name are an error, told as MONAI's own configs can."""
    names = "set(f.removesuffix('.gz').removesuffix('.GZ').rpartition('.')[0] for f in @datalist)"
    asked = "other names, as the results of two files would have the same one"
    return f"$len({names}) == len(@datalist) or pathlib.Path(@dataset_dir, '{asked}').resolve(strict=True)"


def _items_below(channels: int) -> Transform:
    return {"_target_": "bundle.prediction.list_items", "dataset_dir": "@dataset_dir", "channels": channels}


def _data(by_monai: bool) -> str:
    return "$[{'image': file} for file in @datalist]" if by_monai else "@datalist"


def _spacing(run: FinishedRun) -> list[Transform]:
    """To the voxel size of training; an axis that keeps its own is allowed any."""
    spacing = run.content.get("spacing")
    if spacing is None or all(size is None for size in spacing):
        return []
    limits: dict[str, Any] = {}
    if any(size is None for size in spacing):
        limits["min_pixdim"] = [1 / _NO_LIMIT if size is None else size for size in spacing]
        limits["max_pixdim"] = [_NO_LIMIT if size is None else size for size in spacing]
    pixdim = [1.0 if size is None else size for size in spacing]
    resample = {"keys": "image", "pixdim": pixdim, "mode": "bilinear", "padding_mode": "border"}
    hidden = "path_of_image"
    return [
        # MONAI Label puts a text under image_path, which MONAI 1.6's Spacingd takes for metadata of the image
        {"_target_": "CopyItemsd", "keys": "image_path", "names": hidden, "allow_missing_keys": True},
        {"_target_": "DeleteItemsd", "keys": "image_path"},
        {"_target_": "Spacingd", **resample, **limits},
        {"_target_": "CopyItemsd", "keys": hidden, "names": "image_path", "allow_missing_keys": True},
    ]


def _oriented(run: FinishedRun) -> list[Transform]:
    axes = run.content.get("orientation", "RAS")
    return [{"_target_": "Orientationd", "keys": "image", "axcodes": axes, "labels": None}, *_spacing(run)]


def _prepare_by_monai(run: FinishedRun) -> list[Transform]:
    low, high = run.content["ct_window"]
    window = {"a_min": low, "a_max": high, "b_min": -1.0, "b_max": 1.0, "clip": True}
    above = f"$functools.partial(operator.lt, {_CT_BODY})"
    return [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        *_oriented(run),
        {
            "_target_": "CropForegroundd",
            "keys": "image",
            "source_key": "image",
            "select_fn": above,
            "margin": _MARGIN,
            "allow_smaller": True,
        },
        {"_target_": "ScaleIntensityRanged", "keys": "image", **window},
        {
            "_target_": "SpatialPadd",
            "keys": "image",
            "spatial_size": list(run.content["crop_size"]),
            "mode": "constant",
            "value": -1.0,
        },
    ]


def _prepare_by_package(run: FinishedRun) -> list[Transform]:
    about = run.content
    scale = {
        "scheme": about.get("intensity_scheme"),
        "ct_window": list(about["ct_window"]),
        "mr_percentiles": list(about["mr_percentiles"]),
        "mr_floor": about.get("mr_floor", 3.0),
    }
    return [
        {"_target_": "bundle.inference.LoadImageAsTrainedd", "keys": "image", "channels": run.in_channels},
        *([{"_target_": "EnsureChannelFirstd", "keys": "image"}] if run.in_channels == 1 else []),
        {"_target_": "bundle.inference.Straightend", "keys": "image"},
        *_oriented(run),
        {"_target_": "bundle.data.Modalityd", "keys": "image", "modality": run.modality},
        {"_target_": "bundle.data.Foregroundd", "keys": "image"},
        {"_target_": "bundle.data.normalization", "keys": "image", **scale},
        {
            "_target_": "CropForegroundd",
            "keys": "image",
            "source_key": "foreground",
            "margin": _MARGIN,
            "allow_smaller": True,
        },
        {"_target_": "DeleteItemsd", "keys": ["foreground", "intensity"]},
        {"_target_": "bundle.data.PadToCropd", "keys": "image", "spatial_size": list(about["crop_size"])},
        {"_target_": "DeleteItemsd", "keys": "valid"},
    ]


def _postprocessing(run: FinishedRun) -> dict[str, Transform]:
    """`postprocessing`, and `post_transforms` where label maps hold other values than the classes' numbers.

    MONAI Label takes the second if it is there, and MONAI Deploy on request: both name a class by its number.
    """
    numbers, values = list(range(1, len(run.classes) + 1)), list(run.classes.values())
    dtype = f"$np.{'uint8' if max(values) < 256 else 'uint16'}"
    save: Transform = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "seg",
        "output_ext": ".nii.gz",
        "output_dtype": dtype,
        "resample": False,
        "separate_folder": False,
        "data_root_dir": "@dataset_dir",
    }
    label_map = _label_map(len(numbers) + 1)
    if values == numbers:
        return {"postprocessing": _compose([*label_map, save])}
    to_values = {
        "_target_": "MapLabelValued",
        "keys": "pred",
        "orig_labels": [0, *numbers],
        "target_labels": [0, *values],
        "dtype": dtype,
    }
    return {"postprocessing": _compose([*label_map, to_values, save]), "post_transforms": _compose(label_map)}


def _label_map(channels: int) -> list[Transform]:
    """From what the network says to the classes' numbers on the scan's own grid."""
    undo: Transform = {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": channels > _MOST_PROBABILITIES,
        "to_tensor": True,
        "device": "cpu",
    }
    largest: Transform = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
    if channels > _MOST_PROBABILITIES:
        return [largest, undo]
    return [{"_target_": "Activationsd", "keys": "pred", "softmax": True}, undo, largest]
