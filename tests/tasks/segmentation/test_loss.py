# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import torch
from torch import nn

from bundle.tasks.segmentation import StackedSupervisionLoss


def test_stacked_outputs_are_weighted_by_halves():
    outputs, target = torch.randn(2, 3, 1, 4, 4, 4), torch.randn(2, 1, 4, 4, 4)
    plain = [((outputs[:, i] - target) ** 2).mean() for i in range(3)]
    assert torch.allclose(StackedSupervisionLoss(nn.MSELoss())(outputs, target), plain[0] + plain[1] / 2 + plain[2] / 4)


def test_a_single_output_has_the_plain_loss():
    output, target = torch.randn(2, 1, 1, 4, 4, 4).unbind(0)
    assert torch.allclose(StackedSupervisionLoss(nn.MSELoss())(output, target), ((output - target) ** 2).mean())
