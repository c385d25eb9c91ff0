# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""One small network of every kind of encoder, and where its own dense forward gives the features of its levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Case:
    """An encoder to test.

    Attributes:
        name: as `build_encoder` takes it.
        arguments: the network's own.
        outputs: modules whose outputs are the levels' features; with "<" before the name, whose inputs are.
        grid: cells of the test batch.
    """

    name: str
    arguments: dict[str, Any]
    outputs: tuple[str, ...]
    grid: tuple[int, int, int] = (2, 2, 1)


_RESNET = ("<maxpool", "layer1", "layer2", "layer3", "layer4")

CASES = {
    "SegResEncoder": Case(
        "SegResEncoder",
        {"init_filters": 4, "blocks_down": (1, 2, 1), "norm": "instance"},
        ("layers.0.blocks", "layers.1.blocks", "layers.2.blocks"),
        (2, 2, 2),
    ),
    "SegResEncoder, anisotropic": Case(
        "SegResEncoder",
        {"init_filters": 4, "blocks_down": (1, 1, 1), "anisotropic_scales": ((2, 2, 1), (2, 2, 2), (1, 1, 1))},
        ("layers.0.blocks", "layers.1.blocks", "layers.2.blocks"),
        (2, 2, 2),
    ),
    "SegResNetDS": Case(
        "SegResNetDS",
        {"init_filters": 4, "blocks_down": (1, 1, 1)},
        ("encoder.layers.0.blocks", "encoder.layers.1.blocks", "encoder.layers.2.blocks"),
        (2, 2, 2),
    ),
    "SegResNet": Case(
        "SegResNet",
        {"init_filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)},
        ("down_layers.0", "down_layers.1", "down_layers.2"),
        (2, 2, 2),
    ),
    "ResNet 10, basic block, shortcut B": Case(
        "ResNet",
        {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 6, 8, 10], "conv1_t_stride": 2},
        _RESNET,
    ),
    "ResNet 18, basic block, shortcut A": Case(
        "ResNet",
        {
            "block": "basic",
            "layers": [2, 2, 2, 2],
            "block_inplanes": [4, 6, 8, 10],
            "conv1_t_stride": 2,
            "shortcut_type": "A",
        },
        _RESNET,
    ),
    "ResNet, bottleneck": Case(
        "ResNet",
        {"block": "bottleneck", "layers": [1, 2, 1, 1], "block_inplanes": [2, 3, 4, 5], "conv1_t_stride": 2},
        _RESNET,
    ),
    "ResNet, bottleneck, shortcut A, full resolution": Case(
        "ResNet",
        {"block": "bottleneck", "layers": [1, 1, 1, 1], "block_inplanes": [2, 3, 4, 5], "shortcut_type": "A"},
        _RESNET,
        (2, 2, 2),
    ),
    "ResNet, anisotropic stem, no pooling": Case(
        "ResNet",
        {
            "block": "basic",
            "layers": [1, 1, 1, 1],
            "block_inplanes": [4, 6, 8, 10],
            "conv1_t_size": (7, 7, 3),
            "conv1_t_stride": (2, 2, 1),
            "no_max_pool": True,
        },
        ("layer1", "layer2", "layer3", "layer4"),
    ),
    "SENet, ResNeXt block": Case(
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
        ("<layer0.pool", "layer1", "layer2", "layer3", "layer4"),
    ),
    "DenseNet": Case(
        "DenseNet",
        {"init_features": 6, "growth_rate": 3, "bn_size": 2, "block_config": (2, 3, 2, 2)},
        ("features.relu0", *(f"features.denseblock{i}" for i in (1, 2, 3)), "features.norm5"),
    ),
    "EfficientNet": Case(
        "EfficientNet",  # the kinds of blocks that b0 has, at a quarter of its widths
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
        ("_blocks.0", "_blocks.1", "_blocks.3"),
        (2, 2, 2),
    ),
    "DynUNet, anisotropic": Case(
        "DynUNet",
        {
            "kernel_size": ((3, 3, 1), 3, 3),
            "strides": (1, (2, 2, 1), 2),
            "upsample_kernel_size": ((2, 2, 1), 2),
            "filters": (4, 6, 8),
        },
        ("input_block", "downsamples.0", "bottleneck"),
        (2, 2, 2),
    ),
    "DynUNet, residual": Case(
        "DynUNet",
        {
            "kernel_size": (3, 3, 3),
            "strides": (1, 2, 2),
            "upsample_kernel_size": (2, 2),
            "filters": (4, 6, 8),
            "res_block": True,
        },
        ("input_block", "downsamples.0", "bottleneck"),
        (2, 2, 2),
    ),
    "MedNeXt": Case(
        "MedNeXt",
        {
            "init_filters": 4,
            "blocks_down": (1, 1),
            "blocks_up": (1, 1),
            "kernel_size": 5,
            "use_residual_connection": True,
        },
        ("enc_stages.0", "enc_stages.1", "bottleneck"),
        (2, 2, 2),
    ),
    "MedNeXt, response norm": Case(
        "MedNeXt",
        {"init_filters": 4, "blocks_down": (1, 1), "blocks_up": (1, 1), "kernel_size": 3, "global_resp_norm": True},
        ("enc_stages.0", "enc_stages.1", "bottleneck"),
        (2, 2, 2),
    ),
    "VNet": Case(
        "VNet",
        {"act": "prelu", "bias": True, "dropout_prob_down": None},
        ("in_tr", "down_tr32", "down_tr64", "down_tr128", "down_tr256"),
    ),
    "BasicUNet": Case(
        "BasicUNet", {"features": (4, 4, 6, 6, 8, 4)}, ("conv_0", "down_1", "down_2", "down_3", "down_4"), (2, 2, 1)
    ),
}

CASES |= {
    "nnU-Net's ResidualEncoderUNet": Case(
        "ResidualEncoderUNet",
        {
            "n_stages": 4,
            "features_per_stage": [4, 6, 8, 8],
            "kernel_sizes": [[3, 3, 3]] * 4,
            "strides": [[1, 1, 1], *[[2, 2, 2]] * 3],
            "n_blocks_per_stage": [1, 2, 2, 1],
            "n_conv_per_stage_decoder": [1, 1, 1],
        },
        ("encoder.stages.0", "encoder.stages.1", "encoder.stages.2", "encoder.stages.3"),
        (2, 2, 2),  # a norm over two sites magnifies rounding
    ),
    "nnU-Net's ResidualEncoderUNet, anisotropic, as a plan writes it": Case(
        "ResidualEncoderUNet",
        {
            "n_stages": 4,
            "features_per_stage": [4, 6, 8, 10],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
            "n_blocks_per_stage": [1, 1, 2, 1],
            "n_conv_per_stage_decoder": [1, 1, 1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        ("encoder.stages.0", "encoder.stages.1", "encoder.stages.2", "encoder.stages.3"),
    ),
    "nnU-Net's PlainConvUNet, anisotropic": Case(
        "PlainConvUNet",
        {
            "n_stages": 3,
            "features_per_stage": [4, 6, 8],
            "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
            "n_conv_per_stage": [2, 2, 2],
            "n_conv_per_stage_decoder": [2, 2],
        },
        ("encoder.stages.0", "encoder.stages.1", "encoder.stages.2"),
        (2, 2, 2),
    ),
}


def dense_features(network: nn.Module, outputs: tuple[str, ...], image: torch.Tensor) -> list[torch.Tensor]:
    """What `network`'s own forward, decoder and all, has at the given places: no code of ours is involved."""
    caught: dict[str, torch.Tensor] = {}

    def catch(name: str, features: torch.Tensor) -> None:
        caught[name] = features.clone()  # before a later layer changes them in place

    hooks = []
    for name in outputs:
        module = network.get_submodule(name.removeprefix("<"))
        if name.startswith("<"):
            hooks.append(module.register_forward_pre_hook(lambda _, x, name=name: catch(name, x[0])))
        else:
            hooks.append(module.register_forward_hook(lambda _, __, x, name=name: catch(name, x)))
    network(image)
    for hook in hooks:
        hook.remove()
    return [caught[name] for name in outputs]
