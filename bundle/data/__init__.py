# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From files to crops: find, read and check, prepare once, split, crop."""

from bundle.data.anchors import anchor_shapes
from bundle.data.box_crops import RandBoxCropd, collate_boxes
from bundle.data.boxes import BoxesToVoxelsd, ReadBoxesd, as_targets, boxes_in_voxels, boxes_in_world, check_box_classes
from bundle.data.crops import CropDataset, DrawSampler, RandForegroundCropd, make_loader
from bundle.data.find import FoundVolume, find_volumes
from bundle.data.find_labelled import check_findings, find_boxes, find_findings, find_segmentations
from bundle.data.finding_counts import FindingCounts
from bundle.data.geometry import OptionalSpacingd, PadToCropd, ToPlainTensorsd, crop_size, valid_cells
from bundle.data.input_size import FitInputd
from bundle.data.intensity import Foregroundd, Modalityd, NormalizeByModalityd
from bundle.data.labels import FindingsTensord, LabelsInForegroundd, ReadLabelMapd, check_classes, check_labelled
from bundle.data.read import ReadVolumed, read_volume
from bundle.data.volume_set import PreparedVolume, SkippedVolume, VolumeSet, skipped_because
from bundle.data.weight_map import WeightMapd

__all__ = [
    "BoxesToVoxelsd",
    "CropDataset",
    "DrawSampler",
    "FindingCounts",
    "FindingsTensord",
    "FitInputd",
    "Foregroundd",
    "FoundVolume",
    "LabelsInForegroundd",
    "Modalityd",
    "NormalizeByModalityd",
    "OptionalSpacingd",
    "PadToCropd",
    "PreparedVolume",
    "RandBoxCropd",
    "RandForegroundCropd",
    "ReadBoxesd",
    "ReadLabelMapd",
    "ReadVolumed",
    "SkippedVolume",
    "ToPlainTensorsd",
    "VolumeSet",
    "WeightMapd",
    "anchor_shapes",
    "as_targets",
    "boxes_in_voxels",
    "boxes_in_world",
    "check_box_classes",
    "check_classes",
    "check_findings",
    "check_labelled",
    "collate_boxes",
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
