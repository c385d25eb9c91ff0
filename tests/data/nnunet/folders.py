# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""nnU-Net's files as it writes them: a plan, scans, and a folder of preprocessed cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np

#: as nnU-Net 2.8.1 planned thick slices along the first axis of a file: axes in another order, kernels of one voxel
KERNELS = [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
STRIDES = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 1, 2]]
STATISTICS = {"max": 900.0, "mean": 60.0, "median": 70.0, "min": -900.0}
STATISTICS |= {"percentile_00_5": -120.0, "percentile_99_5": 240.0, "std": 80.0}


def plan(
    network: str = "PlainConvUNet",
    *,
    patch: Sequence[int] = (4, 16, 32),
    schemes: Sequence[str] = ("ZScoreNormalization", "CTNormalization"),
    masked: Sequence[bool] = (False, False),
    features: Sequence[int] = (4, 4, 6, 6, 8),
    **more: Any,
) -> dict[str, Any]:
    """The content of an nnUNetPlans.json."""
    blocks = "n_conv_per_stage" if network == "PlainConvUNet" else "n_blocks_per_stage"
    fullres = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 4,
        "patch_size": list(patch),
        "spacing": [3.0, 1.0, 0.8],
        "normalization_schemes": list(schemes),
        "use_mask_for_norm": list(masked),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
            "arch_kwargs": {
                "n_stages": len(features),
                "features_per_stage": list(features),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": KERNELS[: len(features)],
                "strides": STRIDES[: len(features)],
                blocks: [1] * len(features),
                "n_conv_per_stage_decoder": [1] * (len(features) - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": "Dataset005_Thick",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [2, 0, 1],
        "transpose_backward": [1, 2, 0],
        "configurations": {
            "2d": {**fullres, "patch_size": [56, 88], "spacing": [0.6, 0.5]},
            "3d_fullres": fullres,
            "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [6.0, 2.0, 1.6], "data_identifier": "low"},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        "foreground_intensity_properties_per_channel": {str(channel): STATISTICS for channel in range(len(schemes))},
        **more,
    }


def write_plan(folder: Path, content: dict[str, Any] | None = None) -> Path:
    """Puts a plan into a folder; gives its file."""
    file = folder / "nnUNetPlans.json"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(plan() if content is None else content))
    return file


def scan(channel: int = 0, size: tuple[int, int, int] = (12, 26, 30)) -> np.ndarray:
    """A scan that is a formula, with air that is 0 around it and a hole in it."""
    grids = np.meshgrid(*(np.arange(count, dtype=np.float64) for count in size), indexing="ij")
    i, j, k = grids
    values = 100 * np.sin(0.7 * i + channel) + 150 * np.cos(0.3 * j + 0.1 * i) + 3 * k + 40 * channel
    radius = sum(((grid - (count - 1) / 2) / (count / 2.3)) ** 2 for grid, count in zip(grids, size))
    return np.where((radius < 1) & (radius > 0.02), np.round(values), 0).astype(np.float32)


def write_scans(
    folder: Path, name: str = "case 1", channels: int = 2, spacing: Sequence[float] = (2.5, 1.1, 0.9)
) -> Path:
    """A raw case as nnU-Net names it, one file for each channel, with the first axis towards the left."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    for channel in range(channels):
        nib.save(nib.Nifti1Image(scan(channel), affine), folder / f"{name}_{channel:04d}.nii.gz")
    return folder


def write_case(folder: Path, name: str, image: np.ndarray, kind: str = "b2nd") -> Path:
    """A preprocessed case ``[C, D, H, W]``: "b2nd", "npz", or "npy" for an npz that was unpacked, too."""
    folder.mkdir(parents=True, exist_ok=True)
    image, labels = image.astype(np.float32), np.zeros_like(image[:1], dtype=np.int16)
    (folder / f"{name}.pkl").write_bytes(b"not read")
    if kind == "b2nd":
        for ending, array in (("", image), ("_seg", labels)):
            part = tuple(max(1, count // 2) for count in array.shape[1:])
            options = {
                "chunks": (1, *part),
                "blocks": (1, *part),
                "cparams": {"codec": blosc2.Codec.LZ4HC, "clevel": 5},
            }
            blosc2.asarray(array, urlpath=str(folder / f"{name}{ending}.b2nd"), mmap_mode="w+", **options)
        return folder / f"{name}.b2nd"
    np.savez_compressed(folder / f"{name}.npz", data=image, seg=labels)
    if kind == "npy":
        np.save(folder / f"{name}.npy", image)
        np.save(folder / f"{name}_seg.npy", labels)
    return folder / f"{name}.npz"
