# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The transforms of labelled scans, for scans without labels: one source for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from monai.transforms import Compose, MapTransform

__all__ = ["without_labels"]


def without_labels(
    transform: Compose | Sequence[Callable[..., Any]],
    *,
    key: str = "label",
    crop: Callable[[Mapping[Any, Any]], Any] | None = None,
) -> Compose:
    """Copies of the same transforms that do without the label map.

    A transform of the label map alone is left out. All others are copies that pass over keys that are not there.

    Args:
        transform: from labelled volumes, such as the config's `prepare` or `train#preprocessing`.
        key: of the label map.
        crop: in place of the first transform, which crops around labels; None keeps it.

    Example:
        >>> import torch
        >>> from monai.transforms import Compose, RandFlipd, ScaleIntensityd
        >>> from bundle.tasks.segmentation.unlabelled import without_labels
        >>> both = Compose([ScaleIntensityd(keys="image"), RandFlipd(keys=["image", "label"], prob=1)])
        >>> without_labels(both)({"image": torch.arange(8.0).view(1, 2, 2, 2)})["image"].flatten().tolist()[:2]
        [1.0, 0.8571428656578064]
    """
    steps = list(transform.transforms if isinstance(transform, Compose) else transform)
    if crop is not None:
        steps = steps[1:]
    kept = [copied for step in steps if (copied := _without(step, key)) is not None]
    return Compose([crop, *kept] if crop is not None else kept)


def _without(step: Any, key: str) -> Any:
    if isinstance(step, Compose):
        return without_labels(step, key=key)
    copied = deepcopy(step)  # each has its own random numbers
    if isinstance(copied, MapTransform):
        if set(copied.keys) == {key}:
            return None
        copied.allow_missing_keys = True
    return copied
