# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Detection of boxes."""

from bundle.tasks.detection.anchors import anchor_shapes
from bundle.tasks.detection.batch import BoxBatch
from bundle.tasks.detection.box_crops import RandBoxCropd, collate_boxes
from bundle.tasks.detection.boxes import (
    BoxesToVoxelsd,
    ReadBoxesd,
    as_targets,
    boxes_in_voxels,
    boxes_in_world,
    check_box_classes,
    list_labels,
)
from bundle.tasks.detection.build import build_retinanet
from bundle.tasks.detection.detector import AnchorSampling, Detector
from bundle.tasks.detection.ensemble import BoxEnsemble, fuse_boxes
from bundle.tasks.detection.evaluate import DetectionEvaluation
from bundle.tasks.detection.find import find_boxes
from bundle.tasks.detection.loss import DetectionLoss
from bundle.tasks.detection.markups import box_markups
from bundle.tasks.detection.metrics import AveragePrecision
from bundle.tasks.detection.panels import DetectionPanels
from bundle.tasks.detection.predict import BOX_COLUMNS, BoxList, SaveBoxesd
from bundle.tasks.detection.resnet_fpn import ResNetFPN
from bundle.tasks.detection.table import PredictedBoxes

__all__ = [
    "BOX_COLUMNS",
    "AnchorSampling",
    "AveragePrecision",
    "BoxBatch",
    "BoxEnsemble",
    "BoxList",
    "BoxesToVoxelsd",
    "DetectionEvaluation",
    "DetectionLoss",
    "DetectionPanels",
    "Detector",
    "PredictedBoxes",
    "RandBoxCropd",
    "ReadBoxesd",
    "ResNetFPN",
    "SaveBoxesd",
    "anchor_shapes",
    "as_targets",
    "box_markups",
    "boxes_in_voxels",
    "boxes_in_world",
    "build_retinanet",
    "check_box_classes",
    "collate_boxes",
    "find_boxes",
    "fuse_boxes",
    "list_labels",
]
