# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Explicit padding on its way to a convolution, on every executor, against loops and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bundle.sparse import SparseVolume, UnsupportedOperation
from tests.sparse.examples import CELL_SHAPE, example, run
from tests.sparse.oracle import site_mask, submanifold_conv


@pytest.mark.parametrize(("kernel", "low", "high"), [(3, 0, 1), (5, 1, 2), (2, 1, 0)])
def test_uneven_padding_before_a_convolution_is_carried_to_it(executor, kernel, low, high):
    image, visible = example()
    stride = 1 if kernel == 2 else 2
    layer = nn.Sequential(nn.ConstantPad3d((low, high) * 3, 0.0), nn.Conv3d(4, 4, kernel, stride)).double()
    forward = lambda x: run(layer, x, visible, executor)  # noqa: E731
    in_mask, out_mask = (site_mask(visible, tuple(b // s for b in CELL_SHAPE)).numpy() for s in (1, stride))
    weight, bias = (p.detach().numpy() for p in layer.parameters())
    expected = submanifold_conv(image.numpy(), in_mask, out_mask, weight, bias, (stride,) * 3, (low,) * 3, (1, 1, 1))
    np.testing.assert_allclose(forward(image).detach().numpy(), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(forward, image.requires_grad_(), fast_mode=True)


def test_padding_with_other_values_or_before_something_else_is_refused(executor):
    volume = SparseVolume.from_dense(*example(), executor)
    for operation, message in (
        (lambda: F.pad(volume, (1, 1), mode="reflect"), "padded with zeros"),
        (lambda: F.pad(volume, (-1, 1)), "padded with zeros"),  # a convolution's own padding would hide the cut
        (lambda: F.relu(F.pad(volume, (1, 1))), "only a convolution"),
    ):
        with pytest.raises(UnsupportedOperation, match=message):
            operation()
