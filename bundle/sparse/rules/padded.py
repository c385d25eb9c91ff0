# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A sparse volume with explicit zero padding, on its way to the convolution that takes it away again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bundle.cells import Triple
from bundle.sparse.operators import Operators, as_torch_takes
from bundle.sparse.unsupported import UnsupportedOperation
from bundle.sparse.volume import RULES, SparseVolume

__all__ = ["PaddedVolume"]


@dataclass(frozen=True, eq=False)
class PaddedVolume(Operators):
    """What ``F.pad`` makes of a `SparseVolume`, as EfficientNet's uneven "same" padding does before a convolution.

    A padded map lies on no cells, so nothing but a convolution can follow: its rule adds the widths to the layer's.

    Attributes:
        volume: without the padding.
        low: zeros before the first site of each axis.
        high: zeros after the last one.
    """

    volume: SparseVolume
    low: Triple
    high: Triple

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is not torch.conv3d:
            name = getattr(function, "__name__", function)
            raise UnsupportedOperation(f"{name} of a padded sparse volume: only a convolution may follow a padding")
        args, kwargs = as_torch_takes(function, args, kwargs or {})
        return RULES[function](*args, **kwargs)
