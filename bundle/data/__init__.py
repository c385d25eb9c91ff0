# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From files to crops: find, read and check, prepare once, split, crop."""

from bundle.data.crops import CropDataset, DrawSampler, RandForegroundCropd, make_loader
from bundle.data.find import FoundVolume, find_volumes
from bundle.data.find_labelled import find_boxes, find_findings, find_segmentations
from bundle.data.geometry import OptionalSpacingd, PadToCropd, ToPlainTensorsd, crop_size, valid_cells
from bundle.data.intensity import Foregroundd, Modalityd, NormalizeByModalityd
from bundle.data.labels import FindingsTensord, LabelsInForegroundd, ReadLabelMapd, check_classes, check_labelled
from bundle.data.read import ReadVolumed, read_volume
from bundle.data.volume_set import PreparedVolume, SkippedVolume, VolumeSet, skipped_because
from bundle.data.weight_map import WeightMapd

__all__ = [
    "CropDataset",
    "DrawSampler",
    "FindingsTensord",
    "Foregroundd",
    "FoundVolume",
    "LabelsInForegroundd",
    "Modalityd",
    "NormalizeByModalityd",
    "OptionalSpacingd",
    "PadToCropd",
    "PreparedVolume",
    "RandForegroundCropd",
    "ReadLabelMapd",
    "ReadVolumed",
    "SkippedVolume",
    "ToPlainTensorsd",
    "VolumeSet",
    "WeightMapd",
    "check_classes",
    "check_labelled",
    "crop_size",
    "find_boxes",
    "find_findings",
    "find_segmentations",
    "find_volumes",
    "make_loader",
    "read_volume",
    "skipped_because",
    "valid_cells",
]
