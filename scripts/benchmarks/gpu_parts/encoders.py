# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""One small network of every kind of encoder, and a batch for it."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from bundle.networks import Encoder, build_encoder

__all__ = ["SMALL", "make_batch", "make_encoder"]

#: encoder and arguments by a name for the reader; each kind of stages in bundle/networks/encoders once
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "SegResEncoder": ("SegResEncoder", {"init_filters": 8, "blocks_down": (1, 2, 1), "norm": "instance"}),
    "SegResNetDS": ("SegResNetDS", {"init_filters": 8, "blocks_down": (1, 1, 1)}),
    "SegResNet": ("SegResNet", {"init_filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}),
    "ResNet, basic block": (
        "ResNet",
        {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 8, 8, 16], "conv1_t_stride": 2},
    ),
    "ResNet, bottleneck": (
        "ResNet",
        {"block": "bottleneck", "layers": [1, 2, 1, 1], "block_inplanes": [2, 4, 4, 8], "conv1_t_stride": 2},
    ),
    "nnU-Net's ResidualEncoderUNet": (
        "ResidualEncoderUNet",
        {
            "n_stages": 3,
            "features_per_stage": [8, 8, 16],
            "kernel_sizes": [[3, 3, 3]] * 3,
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
            "n_blocks_per_stage": [1, 2, 1],
        },
    ),
    "nnU-Net's PlainConvUNet": (
        "PlainConvUNet",
        {
            "n_stages": 3,
            "features_per_stage": [8, 8, 16],
            "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
            "n_conv_per_stage": [2, 2, 2],
        },
    ),
    "SENet": (
        "SENet",
        {
            "block": "se_resnetxt_bottleneck",
            "layers": (1, 1, 1, 1),
            "groups": 8,
            "reduction": 16,
            "inplanes": 8,
            "downsample_kernel_size": 1,
            "input_3x3": False,
            "num_classes": 2,
        },
    ),
    "DenseNet": ("DenseNet", {"init_features": 8, "growth_rate": 4, "bn_size": 2, "block_config": (2, 3, 2, 2)}),
    "EfficientNet": (
        "EfficientNet",
        {
            "blocks_args_str": [
                "r1_k3_s11_e1_i32_o16_se0.25",
                "r2_k3_s22_e6_i16_o24_se0.25",
                "r2_k5_s22_e6_i24_o40_se0.25",
                "r1_k5_s11_e6_i40_o48_se0.25",
            ],
            "width_coefficient": 0.25,
            "num_classes": 2,
        },
    ),
    "DynUNet": (
        "DynUNet",
        {
            "kernel_size": (3, 3, 3),
            "strides": (1, 2, 2),
            "upsample_kernel_size": (2, 2),
            "filters": (4, 8, 8),
            "res_block": True,
        },
    ),
    "MedNeXt": (
        "MedNeXt",
        {
            "init_filters": 4,
            "blocks_down": (1, 1),
            "blocks_up": (1, 1),
            "kernel_size": 5,
            "use_residual_connection": True,
        },
    ),
    "VNet": ("VNet", {"act": "prelu", "bias": True, "dropout_prob_down": None}),
    "BasicUNet": ("BasicUNet", {"features": (4, 4, 8, 8, 8, 4)}),
}


def make_encoder(name: str, device: torch.device, dtype: torch.dtype) -> Encoder:
    """The small encoder of that name, every time with the same weights."""
    kind, arguments = SMALL[name]
    torch.manual_seed(0)
    encoder = build_encoder(kind, **arguments)
    with torch.no_grad():  # not the initial zeros and ones, with which a forgotten parameter would not show
        for parameter in encoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return encoder.to(device, dtype)


def make_batch(encoder: Encoder, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two images of 2 x 2 x 2 cells, and which cells are visible: seven of the first, four of the second."""
    generator = torch.Generator().manual_seed(3)
    grid = (2, 2, 2)
    image = torch.randn(2, 1, *(g * s for g, s in zip(grid, encoder.total_stride)), generator=generator)
    visible = torch.zeros(2, prod(grid), dtype=torch.bool)
    for sample, hidden in enumerate((1, prod(grid) // 2)):
        visible[sample, torch.randperm(prod(grid), generator=generator)[hidden:]] = True
    return image.to(device, dtype), visible.view(2, 1, *grid).to(device)
