# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Tilted slices and padding, there and back by MONAI's own `Invertd`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from bundle.data import PadToCropd
from bundle.inference import Straightend


def ramp(tilt: float) -> MetaTensor:
    """An image whose values are a linear function of the place in mm: linear interpolation keeps it."""
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3], affine[1, 2] = (-20, 5, 40), tilt
    places = affine[:3, :3] @ np.indices((10, 12, 8)).reshape(3, -1) + affine[:3, 3:]
    values = (np.array([1.0, 2.0, -0.5]) @ places).reshape(1, 10, 12, 8)
    return MetaTensor(torch.from_numpy(values), affine=torch.from_numpy(affine))


@pytest.mark.parametrize("tilt", [0.0, 1.0, -2.5])
def test_what_was_found_comes_back_onto_the_tilted_grid(tilt: float):
    steps = Compose([Straightend("image"), PadToCropd("image", spatial_size=(16, 8, 24))])
    item = steps({"image": ramp(tilt), "name": "scan"})
    inside = item["image"].as_tensor() if tilt == 0 else None
    item["pred"] = item["image"].clone()
    back = Invertd("pred", steps, orig_keys="image", nearest_interp=False)(item)["pred"]
    assert back.shape == (1, 10, 12, 8) and np.abs(np.asarray(back.affine) - np.asarray(ramp(tilt).affine)).max() < 1e-9
    difference = (back.as_tensor() - ramp(tilt).as_tensor()).abs()
    assert inside is None or difference.max() == 0
    assert difference[..., 1:-1, 2:-2, 1:-1].max() < 1e-4  # a voxel at the border is half of what lies around


def test_a_label_map_comes_back_by_nearest_values():
    steps = Compose([Straightend("image")])
    item = steps({"image": ramp(1.0)})
    item["pred"] = MetaTensor((item["image"].as_tensor() > 0).float())
    back = Invertd("pred", steps, orig_keys="image")(item)["pred"]
    assert set(back.unique().tolist()) == {0.0, 1.0}
    assert ((back.as_tensor() > 0.5) == (ramp(1.0).as_tensor() > 0)).float().mean() > 0.95
