# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Boxes of several detectors, and of mirror images, made one set."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.data.box_utils import box_iou
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.tasks.detection.detector import Detector

__all__ = ["BoxEnsemble", "fuse_boxes"]

#: boxes that score less are not even looked at; several detectors can only agree on what each of them gives
_LOWEST = 0.02


class BoxEnsemble(nn.Module):
    """The boxes of a scan, by one detector or several, each shown the scan and its mirror images.

    Args:
        networks: as `build_retinanet` gives them.
        anchor_shapes: of each network.
        crop_size: of the sliding window, voxels per axis.
        score_threshold: boxes that score less are dropped.
        nms_threshold: boxes of one class that overlap by a larger IoU are one.
        max_boxes: per scan.
        mirror_axes: spatial axes, from 0, that are mirrored, alone and together.
        window_batch: windows that a network sees at a time.

    Raises:
        UserError: if the score threshold is none from 0 to 1, or the crop does not fit.
    """

    def __init__(
        self,
        networks: Sequence[RetinaNet],
        *,
        anchor_shapes: Sequence[Sequence[Sequence[float]]],
        crop_size: Sequence[int],
        score_threshold: float = 0.1,
        nms_threshold: float = 0.22,
        max_boxes: int = 100,
        mirror_axes: Sequence[int] = (),
        window_batch: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(score_threshold, (int, float)) or not 0 <= score_threshold <= 1:
            raise UserError(f"--score_threshold {score_threshold} does not fit: give a number from 0 to 1, such as 0.3")
        self.detectors = nn.ModuleList([
            Detector(
                network,
                anchor_shapes=shape,
                scales=network.feature_extractor.scales,
                crop_size=crop_size,
                score_threshold=min(score_threshold, _LOWEST),
                nms_threshold=nms_threshold,
                max_boxes=max_boxes,
                window_batch=window_batch,
            )
            for network, shape in zip(networks, anchor_shapes, strict=True)
        ])  # fmt: skip
        self.score_threshold, self.nms_threshold, self.max_boxes = score_threshold, nms_threshold, max_boxes
        self.mirrors = [axes for count in range(len(mirror_axes) + 1) for axes in combinations(mirror_axes, count)]

    def forward(self, image: Tensor) -> Tensor:
        """The boxes, the highest score first.

        Args:
            image: ``[1, 1, D, H, W]``, the whole scan.

        Returns:
            Float32 ``[1, N, 8]``: borders in voxels [x0, y0, z0, x1, y1, z1], the class from 0, the score.
        """
        found = []
        for axes in self.mirrors:
            mirrored = image.flip([axis + 2 for axis in axes]) if axes else image
            for detector in self.detectors:
                (boxes,) = detector(mirrored, use_inferer=True)
                rows = torch.cat([boxes["box"], boxes["label"][:, None], boxes["label_scores"][:, None]], 1)
                found.append(_flipped(rows.float(), axes, image.shape[2:]))
        fused = found[0] if len(found) == 1 else fuse_boxes(found, iou_threshold=self.nms_threshold)
        fused = fused[fused[:, 7] >= self.score_threshold]
        return fused[fused[:, 7].argsort(descending=True, stable=True)][None, : self.max_boxes]


def fuse_boxes(found: Sequence[Tensor], *, iou_threshold: float) -> Tensor:
    r"""Weighted boxes fusion (Solovyev et al. 2021, arXiv:1910.13302): boxes of one place and class become one.

    In the order of their scores, each box joins the fused box that it overlaps most, if by more than the threshold. A
    fused box is the mean of its boxes, weighted by their scores :math:`s`. Its score is the mean over the detectors,
    :math:`\frac{1}{K} \sum_k \max_{i \in k} s_i`: what one of them alone has seen scores a K-th.

    Args:
        found: of each detector ``[N, 8]``: borders, class, score.
        iou_threshold: above which two boxes are one.

    Returns:
        ``[M, 8]``.

    Example:
        >>> import torch
        >>> from bundle.tasks.detection import fuse_boxes
        >>> one = torch.tensor([[0.0, 0, 0, 10, 10, 10, 0, 0.9]])
        >>> other = torch.tensor([[0.0, 0, 0, 10, 10, 13, 0, 0.3], [50, 50, 50, 60, 60, 60, 0, 0.4]])
        >>> fuse_boxes([one, other], iou_threshold=0.2)[:, 5:].tolist()
        [[10.75, 0.0, 0.6000000238418579], [60.0, 0.0, 0.20000000298023224]]
    """
    rows = torch.cat(list(found))
    sources = torch.cat([torch.full((len(one),), number) for number, one in enumerate(found)]).to(rows.device)
    clusters: list[list[int]] = []
    fused = rows.new_zeros((0, 8))
    for index in rows[:, 7].argsort(descending=True, stable=True).tolist():
        overlaps = torch.where(fused[:, 6] == rows[index, 6], _iou(rows[index, :6], fused[:, :6]), 0)
        number = int(overlaps.argmax()) if clusters and overlaps.max() > iou_threshold else len(clusters)
        if number == len(clusters):
            clusters.append([])
            fused = torch.cat([fused, rows[index][None]])
        clusters[number].append(index)
        members = rows[clusters[number]]
        weights = members[:, 7:] / members[:, 7].sum().clamp(min=1e-12)
        fused[number, :6] = (members[:, :6] * weights).sum(0)
    for number, indices in enumerate(clusters):
        best = [rows[indices][sources[indices] == source, 7] for source in range(len(found))]
        fused[number, 7] = sum(scores.max() for scores in best if len(scores)) / len(found)
    return fused


def _iou(box: Tensor, others: Tensor) -> Tensor:
    overlaps: Tensor = box_iou(box[None], others)[0] if len(others) else others.new_zeros(0)
    return overlaps


def _flipped(rows: Tensor, axes: Sequence[int], size: Sequence[int]) -> Tensor:
    """Boxes of a mirrored scan at their places in the scan."""
    rows = rows.clone()
    for axis in axes:
        rows[:, [axis, axis + 3]] = size[axis] - rows[:, [axis + 3, axis]]
    return rows
