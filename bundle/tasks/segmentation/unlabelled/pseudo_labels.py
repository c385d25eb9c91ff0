# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What the teacher says of unlabelled scans, as label maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from bundle.data import PreparedVolume
from bundle.errors import UserError
from bundle.tasks.segmentation.components import clean_components, component_sizes

__all__ = ["PseudoLabels", "single_components"]

#: volumes that are looked at, and the share of a class that its largest component has in each of them
_LOOKED_AT, _WHOLE = 20, 0.98


def single_components(
    volumes: Sequence[PreparedVolume], classes: Mapping[str, int], wanted: Sequence[str] | str | bool = "auto"
) -> list[int]:
    """The classes of which the teacher's largest component alone counts, by their numbers from 1.

    Args:
        volumes: labelled ones, prepared.
        classes: value by the name of each class.
        wanted: "auto": classes that are of one piece in the first 20 volumes, where every further component is less
            than 2 % of the class; or names of classes; or True for all and False for none.

    Raises:
        UserError: for a name that is no class.
    """
    names = list(classes)
    if wanted == "auto":
        found = [_largest_shares(volume, len(names)) for volume in volumes[:_LOOKED_AT]]
        return [number for number in range(1, len(names) + 1) if _is_whole([shares[number] for shares in found])]
    if isinstance(wanted, (bool, type(None))):
        return list(range(1, len(names) + 1)) if wanted else []
    chosen = [wanted] if isinstance(wanted, str) else list(wanted)
    if unknown := [str(name) for name in chosen if name not in names]:
        raise UserError(
            f"--unlabelled_largest_component names {', '.join(unknown)}: give auto, True, False, or some of "
            f"{', '.join(names)}"
        )
    return [names.index(name) + 1 for name in chosen]


def _largest_shares(volume: PreparedVolume, count: int) -> dict[int, float | None]:
    """For each class the share that its largest component has; None where the class is not there."""
    label = volume.load(keys=["label"])["label"][0].numpy()
    sizes = component_sizes(label, {str(number): number for number in range(1, count + 1)})
    return {int(name): (found.max() / found.sum() if len(found) else None) for name, found in sizes.items()}


def _is_whole(shares: Sequence[float | None]) -> bool:
    there = [share for share in shares if share is not None]
    return bool(there) and min(there) >= _WHOLE


class PseudoLabels:
    """Label maps of unlabelled crops: the teacher's most probable class, where it is sure enough.

    Args:
        teacher: from an image ``[B, C, D, H, W]`` to scores ``[B, classes, D, H, W]``.
        threshold: the least probability of the class. With two classes 0.5 leaves out nothing.
        largest: numbers of the classes of which only the largest component in the crop stays, as `single_components`
            gives them. The rest of such a class becomes background.
        autocast: the teacher's dtype, None for float32.

    Raises:
        UserError: if the threshold is no probability.
    """

    def __init__(
        self,
        *,
        teacher: Callable[[Tensor], Tensor],
        threshold: float = 0.5,
        largest: Sequence[int] = (),
        autocast: torch.dtype | None = None,
    ) -> None:
        if not 0 <= threshold < 1:
            raise UserError(f"--unlabelled_threshold {threshold} does not fit: give 0 to below 1, such as 0.5")
        self.teacher, self.threshold, self.autocast = teacher, threshold, autocast
        self.largest = {str(number): number for number in largest}

    @torch.no_grad()
    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The label maps, and where the teacher is sure.

        Args:
            image: ``[B, C, D, H, W]``.

        Returns:
            Numbers of classes as float, 0 for the background, and bool, both ``[B, 1, D, H, W]``.
        """
        with torch.autocast(image.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            scores = self.teacher(image)
        dtype = scores.dtype if scores.dtype == torch.float64 else torch.float32
        probability, label = scores.to(dtype).softmax(1).max(1, keepdim=True)
        if self.largest:
            maps = label.to(torch.int32).cpu().numpy()
            cleaned = [
                clean_components(one[0], np.eye(4), classes=self.largest, largest_component=True)[None] for one in maps
            ]
            label = torch.from_numpy(np.stack(cleaned)).to(label.device)
        return label.to(image.dtype), probability >= self.threshold
