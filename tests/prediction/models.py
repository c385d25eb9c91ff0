# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Fine-tuned models on disk: a network that knows the answer, and MONAI's with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import SegResNetDS
from torch import Tensor, nn

from bundle.weights import ModelFiles

ABOUT: dict[str, Any] = {
    "task": "segmentation",
    "outputs": "channel 0 is the background, then one channel per class, in the order of classes",
    "classes": {"bone": 300, "soft tissue": 7},
    "in_channels": 1,
    "crop_size": [32, 32, 32],
    "spacing": None,
    "orientation": "RAS",
    "modality": "CT",
    "ct_window": [-1000, 1000],
    "mr_percentiles": [0.5, 99.5],
    "mr_floor": None,
    "mirror_axes": [],
}
RANDOM = {"name": "SegResNetDS", "init_filters": 4, "blocks_down": [1, 1], "in_channels": 1, "out_channels": 3}


class Thresholds(nn.Module):
    """Air below -500 HU, soft tissue up to 200 HU, and bone: of images whose window is -1000 to 1000 HU."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.thresholds = nn.Parameter(torch.tensor([-0.5, 0.2]))
        self.in_channels = in_channels

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.thresholds
        # the last channel, so that the order of channels matters
        image = x[:, self.in_channels - 1 :]
        bone, air = 40 * (image - high), 40 * (low - image)
        return torch.cat([air, bone, -torch.maximum(air, bone)], 1)


def write_fine_tuned(folder: Path, *, random: bool = False, seed: int = 0, **changed: Any) -> Path:
    """A folder with `model.pt` and `model.json`: of `Thresholds`, or of a SegResNetDS with random weights."""
    about = {**ABOUT, **changed}
    network: nn.Module
    if random:
        torch.manual_seed(seed)
        settings = {**RANDOM, "in_channels": about["in_channels"], "out_channels": len(about["classes"]) + 1}
        network = SegResNetDS(**{key: value for key, value in settings.items() if key != "name"})
    else:
        settings = {"name": "tests.prediction.models.Thresholds", "in_channels": about["in_channels"]}
        network = Thresholds(about["in_channels"])
    ModelFiles(folder / "model.pt").write(network.state_dict(), {**about, "network": settings})
    return folder
