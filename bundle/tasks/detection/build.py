# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The network of a fine-tuned detector, built as its model.json says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai.apps.detection.networks.retinanet_network import RetinaNet

from bundle.tasks.detection.boxes import check_box_classes
from bundle.tasks.detection.resnet_fpn import ResNetFPN

__all__ = ["build_retinanet"]


def build_retinanet(content: Mapping[str, Any]) -> RetinaNet:
    """The RetinaNet that a `model.json` describes.

    Args:
        content: of the file: `encoder`, `returned_layers`, `out_channels`, `anchor_shapes` and `classes`.

    Raises:
        UserError: if the encoder is no ResNet, or an argument does not fit.
    """
    pyramid = ResNetFPN(
        content["encoder"], returned_layers=content["returned_layers"], out_channels=content["out_channels"]
    )
    return RetinaNet(
        spatial_dims=3,
        num_classes=check_box_classes(content["classes"]),
        num_anchors=len(content["anchor_shapes"]),
        feature_extractor=pyramid,
        size_divisible=pyramid.size_divisible,
    )
