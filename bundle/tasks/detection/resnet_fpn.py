# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A ResNet with a feature pyramid on top: the feature extractor of MONAI's RetinaNet, without torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from torch import Tensor, nn

from bundle.errors import UserError
from bundle.networks import build_encoder

__all__ = ["ResNetFPN"]

_LAYERS = 4


class ResNetFPN(nn.Module):
    """What MONAI's `resnet_fpn_feature_extractor` builds, weights and keys alike, from an encoder of this package.

    MONAI's takes two pure Python pieces of torchvision, of which PyPI's build cannot be imported beside a CPU build of
    PyTorch; and it runs max pooling also in a ResNet that was built without. The ResNet's modules lie below `body`
    under their own names, up to the last layer that is returned, and the pyramid's below `fpn`.

    Args:
        encoder: name ("ResNet" or "ResNetFeatures") and arguments, as for `build_encoder`.
        returned_layers: of the ResNet's four, one after the other: each gives a level of the pyramid, and max pooling
            of the last one a further level.
        out_channels: of each level; a multiple of 8, as MONAI's heads need.

    Attributes:
        returned_layers: as given.
        out_channels: of each level.
        size_divisible: voxels per site of the coarsest level, on each axis.
        scales: of the levels, relative to the finest.
        share: of the encoder's tensors that are in `body`: without the layers above the last one that is returned.
        min_matched: a little less: the share of a weights file that must fit.

    Raises:
        UserError: if the encoder is no ResNet, or an argument does not fit.
    """

    def __init__(
        self, encoder: Mapping[str, Any], *, returned_layers: Sequence[int] = (1, 2), out_channels: int = 256
    ) -> None:
        super().__init__()
        if encoder.get("name") not in ("ResNet", "ResNetFeatures"):
            raise UserError(
                f"detection needs a ResNet, and the encoder is {encoder.get('name')!r}: pre-train one with "
                "configs/encoder_resnet50.yaml and give its model.pt as --pretrained, or --pretrained None"
            )
        layers = list(returned_layers)
        if not layers or layers != list(range(layers[0], layers[-1] + 1)) or layers[0] < 1 or layers[-1] > _LAYERS:
            raise UserError(
                f"feature_extractor#returned_layers {layers} does not fit: give neighbours of 1 to {_LAYERS}"
            )
        if out_channels < 8 or out_channels % 8:
            raise UserError(f"feature_extractor#out_channels {out_channels} does not fit: give a multiple of 8")
        built = build_encoder(**encoder)
        last = len(built.stages) - _LAYERS + layers[-1]
        used = {id(module) for stage in built.stages[:last] for module in stage.modules}
        children = {name: child for name, child in built.network.named_children() if id(child) in used}
        self.body = nn.ModuleDict(children)
        self.returned_layers = layers
        levels = built.levels[last - len(layers) : last]
        self.fpn = FeaturePyramidNetwork(
            spatial_dims=3,
            in_channels_list=[level.channels for level in levels],
            out_channels=out_channels,
            extra_blocks=LastLevelMaxPool(3),
        )
        self.out_channels = out_channels
        self.size_divisible = [2 * stride for stride in levels[-1].stride]
        self.scales = [2**number for number in range(len(layers) + 1)]
        self.share = len(self.body.state_dict()) / len(built.network_state_dict())
        self.min_matched = 0.9 * self.share

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of every level, finest first.

        Args:
            x: ``[B, C, D, H, W]``.
        """
        returned = {f"layer{number}" for number in self.returned_layers}
        features: dict[str, Tensor] = {}
        for name, module in self.body.items():
            x = module(x)
            if name in returned:
                features[name] = x
        return list(self.fpn(features).values())
