# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Random mirror images, on the axes that a user names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monai.transforms import Compose

from bundle.errors import UserError

__all__ = ["mirrored_axes", "random_mirrors"]


def random_mirrors(flip: Callable[..., Any], *, axes: Sequence[int], probability: float = 0.5) -> Compose:
    """One random flip for each of `axes`.

    Args:
        flip: makes a random transform from `prob` and `spatial_axis`, such as MONAI's `RandFlipd` with its keys.
        axes: to mirror: 0 left to right, 1 front to back, 2 top to bottom, for volumes in RAS; none for [].
        probability: of a mirror image on each of them.

    Raises:
        UserError: for `axes` that are no list of different axes.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from monai.transforms import RandFlipd
        >>> from bundle.data import random_mirrors
        >>> mirrors = random_mirrors(partial(RandFlipd, keys="image"), axes=[0], probability=1)
        >>> mirrors({"image": torch.arange(4).view(1, 2, 2, 1)})["image"].flatten().tolist()
        [2, 3, 0, 1]
    """
    _check_axes(axes)
    return Compose([flip(prob=probability, spatial_axis=axis) for axis in axes])


def mirrored_axes(axes: Sequence[int]) -> list[int]:
    """The `axes` of `random_mirrors`, in rising order.

    Raises:
        UserError: as `random_mirrors`.

    Example:
        >>> mirrored_axes([2, 0])
        [0, 2]
    """
    _check_axes(axes)
    return sorted(axes)


def _check_axes(axes: Sequence[int]) -> None:
    listed = isinstance(axes, Sequence) and not isinstance(axes, str)
    if not listed or len(set(axes)) < len(axes) or not {0, 1, 2} >= set(axes):
        raise UserError(f"--mirror_axes {axes} does not fit: give different axes of 0, 1 and 2, such as [0], or []")
