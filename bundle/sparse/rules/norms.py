# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Rules for norms: their statistics are over visible sites."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.sparse.unsupported import UnsupportedOperation
from bundle.sparse.volume import SparseVolume, rule


@rule(F.batch_norm)
def _batch_norm(
    volume: SparseVolume,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> SparseVolume:
    return volume.normalize_batch(running_mean, running_var, weight, bias, training, momentum, eps)


@rule(torch.batch_norm)
def _builtin_batch_norm(
    volume: SparseVolume,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> SparseVolume:
    return volume.normalize_batch(running_mean, running_var, weight, bias, training, momentum, eps)


@rule(F.instance_norm)
def _instance_norm(
    volume: SparseVolume,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> SparseVolume:
    if running_mean is not None or not use_input_stats:
        raise UnsupportedOperation("instance_norm with running statistics: build the layer without track_running_stats")
    return volume.normalize_sample(None, weight, bias, eps)


@rule(torch.instance_norm)
def _builtin_instance_norm(
    volume: SparseVolume,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> SparseVolume:
    return _instance_norm(volume, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


@rule(F.group_norm, torch.group_norm)
def _group_norm(
    volume: SparseVolume,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> SparseVolume:
    return volume.normalize_sample(num_groups, weight, bias, eps)


@rule(F.layer_norm, torch.layer_norm)
def _layer_norm(
    volume: SparseVolume,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> SparseVolume:
    if tuple(normalized_shape) != tuple(volume.shape[1:]):
        raise UnsupportedOperation(
            f"layer_norm over {list(normalized_shape)} of a sparse volume {list(volume.shape)}: only over all channels "
            "and sites of a sample, or over the channels alone where they are last: permute(0, 2, 3, 4, 1)"
        )
    normal = volume.normalize_sample(1, None, None, eps)
    if weight is not None:
        normal = normal * weight  # both [C, D, H, W]: a dense map beside the volume
    return normal if bias is None else normal + bias
