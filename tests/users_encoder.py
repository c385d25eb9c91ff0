# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a user writes to pre-train a network of their own: a residual CNN in plain PyTorch, and what fine-tunes it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FILE = '''
import torch.nn.functional as F
from torch import nn

from bundle.networks import Encoder, Stage


class Block(nn.Module):
    def __init__(self, before, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv3d(before, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.InstanceNorm3d(channels, affine=True)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.InstanceNorm3d(channels, affine=True)
        self.shortcut = nn.Conv3d(before, channels, 1, stride, bias=False)
        self.act = nn.ReLU()

    def forward(self, x):
        y = self.act(self.norm1(self.conv1(x)))
        return self.act(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResidualNetwork(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.stem = nn.Conv3d(1, width, 3, padding=1)
        self.levels = nn.ModuleList(
            Block(width * 2 ** max(0, i - 1), width * 2**i, 1 if i == 0 else 2) for i in range(depth)
        )

    def forward(self, x):
        features, x = [], self.stem(x)
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


def residual(width=8, depth=4):
    """The encoder, for pre-training."""
    network = ResidualNetwork(width, depth)
    stages = [Stage((network.stem, network.levels[0]), width, (1, 1, 1))]
    stages += [Stage((level,), width * 2**i, (2, 2, 2)) for i, level in enumerate(network.levels) if i > 0]
    return Encoder(network, stages)


class Segmentation(nn.Module):
    """The encoder with a decoder that adds up what a convolution makes of each level."""

    def __init__(self, width, depth, classes):
        super().__init__()
        self.encoder = ResidualNetwork(width, depth)
        self.lateral = nn.ModuleList(nn.Conv3d(width * 2**i, width, 1) for i in range(depth))
        self.head = nn.Conv3d(width, classes, 1)

    def forward(self, x):
        levels = [conv(features) for conv, features in zip(self.lateral, self.encoder(x))]
        return self.head(sum(F.interpolate(level, x.shape[2:], mode="trilinear") for level in levels))
'''


def write_encoder_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "my_encoder", text: str = FILE
) -> str:
    """Writes the user's file where Python finds it; gives the name of its module."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name
