# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""MONAI's detector as one component of a config: anchors, matching, sampling, and whole volumes by sliding window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from torch import Tensor, nn

from bundle.errors import UserError

__all__ = ["AnchorSampling", "Detector"]


@dataclass(frozen=True)
class AnchorSampling:
    """Which anchors count in the loss of a crop.

    Attributes:
        candidates: anchors per level and box among which ATSS (Zhang et al. 2020, arXiv:1912.02424) chooses.
        samples: anchors per crop that count in the loss of the classes.
        positive_fraction: share of them that match a box, if there are as many.
        min_negatives: least number of others.
        negative_pool: how many times as many of the highest-scoring others to draw from: smaller is harder.
    """

    candidates: int = 4
    samples: int = 64
    positive_fraction: float = 0.3
    min_negatives: int = 16
    negative_pool: float = 20


class Detector(RetinaNetDetector):
    """`RetinaNetDetector` with the matcher, sampler and inferer that MONAI's LUNA16 detection uses.

    In training mode it takes images and targets and gives the losses, in evaluation mode it gives boxes. Targets and
    boxes are dicts with `box`, ``[N, 6]`` in voxels, and `label`, and boxes have `label_scores`.

    Args:
        network: a RetinaNet. It has all the parameters.
        anchor_shapes: sizes of the finest level's anchors, voxels per axis.
        scales: of the levels' anchors, relative to the finest level's.
        crop_size: of training and of the sliding window, voxels per axis.
        overlap: of windows, on each axis; rounded so that windows begin on a site of the coarsest level.
        sampling: which anchors count in training.
        score_threshold: boxes that score less are dropped.
        nms_threshold: of two boxes of one class that overlap by a larger IoU, the one that scores less is dropped.
        max_boxes: per volume.
        window_batch: windows that the network sees at a time.

    Raises:
        UserError: if the crop does not fit the network's strides.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        anchor_shapes: Sequence[Sequence[float]],
        scales: Sequence[int],
        crop_size: Sequence[int],
        overlap: float = 0.25,
        sampling: AnchorSampling = AnchorSampling(),
        score_threshold: float = 0.02,
        nms_threshold: float = 0.22,
        max_boxes: int = 100,
        window_batch: int = 1,
    ) -> None:
        anchors = AnchorGeneratorWithAnchorShape(scales, anchor_shapes)
        super().__init__(network, anchors)
        strides = self.size_divisible
        if len(crop_size) != 3 or any(size <= 0 or size % stride for size, stride in zip(crop_size, strides)):
            raise UserError(
                f"--crop_size {list(crop_size)} does not fit: give three whole multiples of {list(strides)}, the "
                "strides of the coarsest level"
            )
        self.set_target_keys(box_key="box", label_key="label")
        self.set_atss_matcher(num_candidates=sampling.candidates, center_in_gt=False)
        self.set_hard_negative_sampler(
            batch_size_per_image=sampling.samples,
            positive_fraction=sampling.positive_fraction,
            min_neg=sampling.min_negatives,
            pool_size=sampling.negative_pool,
        )
        self.set_box_selector_parameters(
            score_thresh=score_threshold, nms_thresh=nms_threshold, detections_per_img=max_boxes
        )
        overlaps = [whole_overlap(size, stride, overlap) for size, stride in zip(crop_size, strides)]
        self.set_sliding_window_inferer(
            roi_size=tuple(crop_size), sw_batch_size=window_batch, overlap=overlaps, mode="constant"
        )

    def compute_anchor_matched_idxs(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]], num_anchor_locs_per_level: Sequence[int]
    ) -> list[Tensor]:
        """For each crop and anchor the number of the box that it matches, below 0 for none, int64 ``[anchors]``.

        MONAI's own asks whether the matcher is torchvision's, which takes torchvision to be installed.
        """
        matched = []
        for placed, target in zip(anchors, targets, strict=True):
            boxes = target[self.target_box_key].to(placed.device)
            if len(boxes):
                _, indices = self.proposal_matcher(boxes, placed, num_anchor_locs_per_level, self.num_anchors_per_loc)
            else:
                indices = torch.full((len(placed),), -1, dtype=torch.int64, device=placed.device)
            matched.append(indices)
        return matched

    def compute_loss(
        self,
        head_outputs_reshape: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
        anchors: list[Tensor],
        num_anchor_locs_per_level: Sequence[int],
    ) -> dict[str, Any]:
        """The two losses, and `terms`, which the loss function fills with the metrics to log."""
        losses = super().compute_loss(head_outputs_reshape, targets, anchors, num_anchor_locs_per_level)
        # without a box MONAI's is a constant on the CPU: DistributedDataParallel would wait for the head's gradients
        outputs = head_outputs_reshape[self.box_reg_key]
        losses[self.box_reg_key] = losses[self.box_reg_key].to(outputs.device) + 0 * outputs.sum()
        return {**losses, "terms": {}}


def whole_overlap(size: int, stride: int, overlap: float) -> float:
    """The overlap of windows nearest to the one asked for, and no smaller, at which they start on whole sites.

    MONAI scales a window's place to each level of features and cuts off the fraction, so that the features of a window
    that starts between two sites land beside their place.
    """
    step = max(stride, int(size * (1 - overlap)) // stride * stride)
    return max(0.0, 1 - (step + 0.25) / size)  # MONAI cuts size * (1 - overlap) to a whole number
