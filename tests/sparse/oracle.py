# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Sparse semantics in plain loops: what every executor must compute, written without any of their code."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch


def site_mask(visible: torch.Tensor, cell_shape: tuple[int, int, int]) -> torch.Tensor:
    """Bool [B, D, H, W] by asking, for each site, whether its cell is visible."""
    b, _, gd, gh, gw = visible.shape
    mask = torch.zeros(b, gd * cell_shape[0], gh * cell_shape[1], gw * cell_shape[2], dtype=torch.bool)
    for n, z, y, x in itertools.product(*(range(s) for s in mask.shape)):
        mask[n, z, y, x] = visible[n, 0, z // cell_shape[0], y // cell_shape[1], x // cell_shape[2]]
    return mask


def submanifold_conv(x, mask_in, mask_out, weight, bias, stride, padding, dilation, groups=1):
    """Convolution site by site: absent inputs are skipped, absent outputs stay zero. All numpy, [B, C, D, H, W]."""
    b, _, d, h, w = x.shape
    c_out, per_group, kd, kh, kw = weight.shape
    out = np.zeros((b, c_out, *mask_out.shape[1:]))
    for n, z, y, xx in zip(*np.nonzero(mask_out)):
        for o in range(c_out):
            first = o // (c_out // groups) * per_group
            total = 0.0 if bias is None else bias[o]
            for i, j, k in itertools.product(range(kd), range(kh), range(kw)):
                p = z * stride[0] - padding[0] + i * dilation[0]
                q = y * stride[1] - padding[1] + j * dilation[1]
                r = xx * stride[2] - padding[2] + k * dilation[2]
                if 0 <= p < d and 0 <= q < h and 0 <= r < w and mask_in[n, p, q, r]:
                    total += (weight[o, :, i, j, k] * x[n, first : first + per_group, p, q, r]).sum()
            out[n, o, z, y, xx] = total
    return out


def pool(x, counted, mask_out, kernel, stride, padding, statistic: Callable[[np.ndarray], np.ndarray]):
    """Pooling window by window: `statistic` ([sites, C] to [C]) of the window's counted sites. All numpy.

    Args:
        x: [B, C, D, H, W].
        counted: bool [B, D + 2p, H + 2p, W + 2p] or more, sites that take part; those in the padding are zeros.
        mask_out: bool [B, d, h, w], which sites to give.
        kernel: of the window.
        stride: of the window.
        padding: of the layer.
        statistic: of the values that take part.
    """
    beyond = [(p, n - p - size) for p, n, size in zip(padding, counted.shape[1:], x.shape[2:])]
    padded = np.pad(x, [(0, 0), (0, 0), *beyond])
    out = np.zeros((*x.shape[:2], *mask_out.shape[1:]))
    for n, z, y, xx in zip(*np.nonzero(mask_out)):
        window = (n, *(slice(o * s, o * s + k) for o, s, k in zip((z, y, xx), stride, kernel)))
        values = padded[window[0], :, window[1], window[2], window[3]][:, counted[window]]
        out[n, :, z, y, xx] = statistic(values.T)
    return out
