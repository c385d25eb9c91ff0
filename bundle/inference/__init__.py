# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From trained weights and a folder of volumes to embeddings and feature maps."""

from bundle.inference.evaluator import VolumeEvaluator
from bundle.inference.grid import NoteOwnGridd, OwnGrid, ToPlainScand, own_grid
from bundle.inference.load_image import LoadImageAsTrainedd
from bundle.inference.manifest import Manifest
from bundle.inference.nifti import write_nifti
from bundle.inference.output import OutputFolder
from bundle.inference.prepare import PadToWindowd
from bundle.inference.save import CellStatisticsd, SaveEmbeddingd, SaveFeatureMapd
from bundle.inference.start import start_inference
from bundle.inference.straighten import Straightend
from bundle.inference.volumes import VolumeDataset, list_volumes
from bundle.inference.windows import whole_cell_overlap

__all__ = [
    "CellStatisticsd",
    "LoadImageAsTrainedd",
    "Manifest",
    "NoteOwnGridd",
    "OutputFolder",
    "OwnGrid",
    "PadToWindowd",
    "SaveEmbeddingd",
    "SaveFeatureMapd",
    "Straightend",
    "ToPlainScand",
    "VolumeDataset",
    "VolumeEvaluator",
    "list_volumes",
    "own_grid",
    "start_inference",
    "whole_cell_overlap",
    "write_nifti",
]
