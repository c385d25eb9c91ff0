# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Findings as tensors."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

__all__ = ["FindingsTensord"]


class FindingsTensord(MapTransform):
    """A list of findings, 1, 0 or NaN where not known, as a float32 tensor ``[findings]``.

    Args:
        keys: of the list.
    """

    def __init__(self, keys: KeysCollection = "label") -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = torch.tensor(item[key], dtype=torch.float32)
        return item
