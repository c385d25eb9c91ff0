# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The error for an operation without a rule."""

from __future__ import annotations

import pytest
from torch import nn

from bundle.sparse import SparseVolume, UnsupportedOperation
from tests.sparse.examples import example


class _Upsampler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Identity(), nn.Upsample(scale_factor=2))

    def forward(self, x):
        return self.body(x)


def test_an_operation_without_a_rule_names_itself_its_module_and_the_file(executor):
    with pytest.raises(
        UnsupportedOperation, match=r"interpolate.*body\.1 \(Upsample\) of _Upsampler.*rules/pointwise\.py"
    ):
        _Upsampler()(SparseVolume.from_dense(*example(), executor))


def test_a_tensor_method_without_a_rule_says_so():
    with pytest.raises(UnsupportedOperation, match="permute"):
        SparseVolume.from_dense(*example()).permute(0, 1, 2, 4, 3)
