# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Rules for convolution, and for zero padding on its way to one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import triple
from bundle.sparse.rules.padded import PaddedVolume
from bundle.sparse.unsupported import UnsupportedOperation
from bundle.sparse.volume import SparseVolume, rule
from bundle.sparse.windows import Window, require_whole_cells

_ONE = (1, 1, 1)


@rule(torch.conv3d, F.conv3d)
def _conv3d(
    volume: SparseVolume | PaddedVolume,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> SparseVolume:
    kernel, dilation = triple(weight.shape[2:]), triple(dilation)
    if isinstance(padding, str) and (
        padding not in {"same", "valid"} or (padding == "same" and triple(stride) != _ONE)
    ):
        raise UnsupportedOperation(
            f"conv3d with stride {stride} and padding {padding!r}: torch has no such convolution"
        )
    if padding == "same":  # what is left over of an even kernel comes after, as in torch
        around = [d * (k - 1) for d, k in zip(dilation, kernel)]
        low, high = triple([w // 2 for w in around]), triple([w - w // 2 for w in around])
    else:
        low = high = triple(0 if isinstance(padding, str) else padding)
    if isinstance(volume, PaddedVolume):
        low, high = (triple(a + b for a, b in zip(low, beyond)) for beyond in (volume.low, volume.high))
        volume = volume.volume
    window = Window(kernel, triple(stride), low, dilation)
    require_whole_cells(volume.shape[2:], window, padding_after=high)
    return volume.convolve(weight, bias, window, groups)


@rule(F.pad)
def _pad(
    volume: SparseVolume, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> SparseVolume | PaddedVolume:
    widths = [*pad, *[0] * (6 - len(pad))]
    if not any(widths):
        return volume
    if mode != "constant" or value or len(widths) > 6 or min(widths) < 0:
        raise UnsupportedOperation(f"a sparse volume can be padded with zeros on its spatial axes, not {pad}, {mode}")
    return PaddedVolume(volume, low=triple(widths[4::-2]), high=triple(widths[5::-2]))
