# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Feature maps stay channels last from layer to layer, and a convolution gathers once: nothing else copies them.

Allowed: an instance norm joins its samples again, and the input's gradient of a strided convolution is cut to its
block. Both are one copy, in each direction and in the backward pass alone.
"""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import nn

from bundle.networks import build_encoder
from bundle.sparse import CellLayout, SparseVolume
from bundle.sparse.convolution import blocks, methods
from tests.sparse.calls import ENCODERS, Calls

COPIES = ("clone", "_to_copy", "copy_", "contiguous")


@pytest.mark.parametrize("name", ENCODERS)
def test_maps_are_gathered_once_per_convolution_and_copied_nowhere_else(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(methods, "usual_method", lambda *_: "blocks")  # as on a GPU
    monkeypatch.setattr(blocks, "PART_BYTES", 2**40)  # as on a GPU: all cells at once
    encoder = build_encoder(**ENCODERS[name]).to(memory_format=torch.channels_last_3d)
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv3d)]
    wide = [m for m in convolutions if prod(m.kernel_size) > 1 or prod(m.stride) > 1]
    pools = [m for m in encoder.modules() if isinstance(m, nn.MaxPool3d)]  # whose windows overlap
    norms = [m for m in encoder.modules() if isinstance(m, nn.InstanceNorm3d)]
    strided = [m for m in wide if prod(m.stride) > 1]
    image = torch.randn(2, 1, *(2 * s for s in encoder.total_stride))
    volume = SparseVolume.from_dense(image, CellLayout(torch.ones(2, 1, 2, 2, 2, dtype=torch.bool)))

    with Calls() as forward:
        features = [level.features for level in encoder(volume)]
    assert forward.counts["convolution"] == len(convolutions)
    assert forward.counts["index_select"] == len(wide) + len(pools)
    assert forward.counts.get("cat", 0) == len(norms)
    assert not [name for name in COPIES if name in forward.counts]
    assert all(f.is_contiguous(memory_format=torch.channels_last_3d) for f in features)

    slopes = [torch.randn_like(f) for f in features]
    with Calls() as backward:
        torch.autograd.backward(features, slopes)
    # of the output's gradient and of the input; the first layer needs the latter alone
    assert backward.counts["index_select"] == 2 * len(wide) - 1
    assert backward.counts.get("cat", 0) == len(norms)
    assert sum(backward.counts.get(name, 0) for name in COPIES) <= len(strided)
