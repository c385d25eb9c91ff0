# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The encoder halves of the U-Nets: DynUNet (nnU-Net), MedNeXt, VNet and BasicUNet."""

from __future__ import annotations

from typing import Any

from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.mednext import MedNeXt
from monai.networks.nets.vnet import VNet

from bundle.cells import triple
from bundle.networks.encoders.encoder import Stage
from bundle.networks.encoders.scale import Stream

__all__ = ["basic_unet_stages", "dynunet_stages", "mednext_stages", "vnet_stages"]


def dynunet_stages(network: DynUNet) -> list[Stage]:
    """One level per entry of `strides`."""
    blocks = [network.input_block, *network.downsamples, network.bottleneck]
    return [
        Stage((block,), channels, triple(step))
        for block, channels, step in zip(blocks, network.filters, network.strides)
    ]


def mednext_stages(network: MedNeXt) -> list[Stage]:
    """One level per entry of `blocks_down`, and the bottleneck; each begins with the level before's down block."""
    before = [network.stem, *network.down_blocks]
    blocks = [*network.enc_stages, network.bottleneck]
    filters = network.stem.out_channels
    return [
        Stage(pair, filters * 2**depth, triple(1 if depth == 0 else 2), _mednext_stream(*pair))
        for depth, pair in enumerate(zip(before, blocks))
    ]


def _mednext_stream(before: Any, blocks: Any) -> Stream | None:
    """Of a down block and the blocks after it; none without the residual connections that make a stream."""
    if not all(block.do_res for block in blocks) or not getattr(before, "resample_do_res", True):
        return None
    down = (before.conv3,) if hasattr(before, "res_conv") else ()  # the stem is a convolution
    entry = (before.res_conv,) if hasattr(before, "res_conv") else (before,)
    return Stream(entry, (*down, *(block.conv3 for block in blocks)))


def vnet_stages(network: VNet) -> list[Stage]:
    """Five levels of 16 to 256 channels."""
    down = [network.down_tr32, network.down_tr64, network.down_tr128, network.down_tr256]
    first = Stage((network.in_tr,), network.in_tr.out_channels, triple(1))
    return [first] + [Stage((block,), block.down_conv.out_channels, triple(block.down_conv.stride)) for block in down]


def basic_unet_stages(network: BasicUNet) -> list[Stage]:
    """Five levels, of the first five entries of `features`."""
    down = [network.down_1, network.down_2, network.down_3, network.down_4]
    first = Stage((network.conv_0,), network.conv_0.conv_1.conv.out_channels, triple(1))
    return [first] + [Stage((block,), block.convs.conv_1.conv.out_channels, triple(2)) for block in down]
