# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How large the parts' problems are: at full size for a GPU, and tiny for a dry run on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DRY", "FULL", "Settings"]


@dataclass(frozen=True)
class Settings:
    """What the parts measure. The defaults are the full size.

    Attributes:
        encoder: arguments of `build_encoder` for the `SegResEncoder` that is timed and profiled.
        resenc: the same for nnU-Net's ResEnc-L, in a part of its own.
        sizes: voxels per axis of the crops that are timed, the most telling first.
        ratios: shares that are masked.
        batch: crops.
        copied_mib: size of the copy that the bandwidth is measured with.
        matrix: rows and columns of the product that the peak rate is measured with.
        repeats: timed passes of each candidate, which take turns.
        small_encoders: names of `gpu_parts.encoders.SMALL` that are compared; None: all.
        train: overrides of configs/train.yaml with configs/preset_prod.yaml.
        steps: of that training, in two epochs.
        resume_steps: per epoch of the runs that are compared after a resume.
        finetune: overrides of configs/finetune_segmentation.yaml.
        finetune_steps: of that training.
        predict_seconds: in which to predict one volume after the other.
        predict: overrides of configs/predict_segmentation.yaml.
        recipe: overrides of the recipe for weights.
        trial_steps: from which the steps that fit into the time left are estimated.
        most_steps: of that pre-training.
        workers: processes that load; None: one per CPU core, at most 12.
    """

    encoder: Mapping[str, Any] = field(
        default_factory=lambda: {
            "name": "SegResEncoder",
            "init_filters": 32,
            "blocks_down": (1, 2, 2, 4, 4),
            "norm": "batch",
        }
    )
    resenc: Mapping[str, Any] = field(
        default_factory=lambda: {
            "name": "ResidualEncoderUNet",
            "n_stages": 6,
            "features_per_stage": (32, 64, 128, 256, 320, 320),
            "kernel_sizes": ((3, 3, 3),) * 6,
            "strides": ((1, 1, 1), *((2, 2, 2),) * 5),
            "n_blocks_per_stage": (1, 3, 4, 6, 6, 6),
        }
    )
    sizes: tuple[int, ...] = (128, 96, 160)
    ratios: tuple[float, ...] = (0.6, 0.75, 0.9)
    batch: int = 2
    copied_mib: int = 4096
    matrix: int = 8192
    repeats: int = 11
    small_encoders: tuple[str, ...] | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 200
    resume_steps: int = 10
    finetune: Mapping[str, Any] = field(default_factory=dict)
    finetune_steps: int = 60
    predict_seconds: float = 10
    predict: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    trial_steps: int = 30
    most_steps: int = 20_000
    workers: int | None = None


FULL = Settings()

_TINY = {
    "crop_size": [32, 32, 32],
    "encoder#init_filters": 4,
    "encoder#blocks_down": [1, 1, 1, 1, 1],
    "validate#dataloader#crops_per_volume": 1,
}
DRY = Settings(
    encoder={"name": "SegResEncoder", "init_filters": 4, "blocks_down": (1, 1, 1, 1, 1), "norm": "batch"},
    resenc={
        "name": "ResidualEncoderUNet",
        "n_stages": 4,
        "features_per_stage": (4, 4, 8, 8),
        "kernel_sizes": ((3, 3, 3),) * 4,
        "strides": ((1, 1, 1), *((2, 2, 2),) * 3),
        "n_blocks_per_stage": (1, 1, 1, 1),
    },
    sizes=(32,),
    ratios=(0.5,),
    copied_mib=4,
    matrix=64,
    repeats=1,
    small_encoders=("SegResEncoder", "ResNet, basic block"),
    train={**_TINY, "spacing": [4, 4, 4]},
    steps=8,
    resume_steps=2,
    finetune={"crop_size": [32, 32, 32], "encoder#init_filters": 4, "pretrained": None, "batch_size": 1},
    finetune_steps=3,
    predict_seconds=0,
    predict={"num_workers": 0, "overlap": 0.25},
    recipe={**_TINY, "spacing": [4, 4, 4], "batch_size": 2},
    trial_steps=3,
    most_steps=6,
    workers=0,
)
