# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a trained network reconstructs of whole volumes, on their own grid and in their own units."""

from bundle.reconstruction.prepared import WholeVolume, find_inputs, prepare_volume
from bundle.reconstruction.reconstruct import Reconstruct
from bundle.reconstruction.tiles import Reconstructed, TiledReconstruction
from bundle.reconstruction.window_masks import WindowMasks, draw_window_masks

__all__ = [
    "Reconstruct",
    "Reconstructed",
    "TiledReconstruction",
    "WholeVolume",
    "WindowMasks",
    "draw_window_masks",
    "find_inputs",
    "prepare_volume",
]
