# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Bidirectional copy-paste: a box of an unlabelled crop in a labelled one, and the other way round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["IGNORED", "LABELLED", "UNLABELLED", "CopyPaste", "box_mask"]

#: what supervises a voxel: nothing, a person's label, or the teacher
IGNORED, LABELLED, UNLABELLED = 0, 1, 2


def box_mask(box: Tensor, size: torch.Size) -> Tensor:
    """Where the voxels of boxes are, bool ``[B, 1, D, H, W]``.

    Args:
        box: ``[B, 3, 2]``, the first voxel of each axis and the one after the last.
        size: of the volumes, ``[D, H, W]``.
    """
    inside = torch.ones(len(box), 1, *size, dtype=torch.bool, device=box.device)
    for axis, extent in enumerate(size):
        place = torch.arange(extent, device=box.device)
        within = (place >= box[:, axis, :1]) & (place < box[:, axis, 1:])
        shape = [len(box), 1, 1, 1, 1]
        shape[axis + 2] = extent
        inside &= within.view(shape)
    return inside


class CopyPaste:
    """Mixes labelled with unlabelled crops (Bai et al., CVPR 2023, arXiv:2305.00673): a trainer's `prepare_batch`.

    Of the crops ``l`` and ``u`` of a pair, and the mask ``m`` of its box, the network sees

        m u + (1 - m) l    the box of the unlabelled crop in the labelled one, or
        m l + (1 - m) u    the other way round.

    Labelled voxels have their labels, the others what the teacher says of ``u``. The target is ``[B, 2, D, H, W]``:
    the class of each voxel, and what supervises it, as `RegionLoss` takes it.

    Args:
        pseudo_labels: from a batch of images to label maps and where they are sure.
        both_ways: mixes every pair both ways, in a batch of twice the size. Else pairs with an even number of the draw
            are mixed the first way and the others the second, which is the paper's proportion and half the time.
    """

    def __init__(self, *, pseudo_labels: Callable[[Tensor], tuple[Tensor, Tensor]], both_ways: bool = False) -> None:
        self.pseudo_labels, self.both_ways = pseudo_labels, both_ways

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """The mixed images ``[B, C, D, H, W]`` and their target; of `both_ways` 2 B of them.

        Args:
            batch: of `PairedCrops`.
            device: where to.
            non_blocking: whether the copy may go on while the program does.
            kwargs: as `Tensor.to` takes them.
        """
        image, label, unlabelled, box = (
            batch[key].to(device=device, non_blocking=non_blocking, **kwargs)
            for key in ("image", "label", "unlabelled", "box")
        )
        pseudo, sure = self.pseudo_labels(unlabelled)
        region = torch.full_like(pseudo, UNLABELLED).masked_fill(~sure, IGNORED)
        inside = box_mask(box, image.shape[2:])
        if self.both_ways:
            places = [inside, ~inside]
        else:
            reverse = (batch["draw"].to(inside.device) % 2 == 1).view(-1, 1, 1, 1, 1)
            places = [inside ^ reverse]
        mixed = [torch.where(place, unlabelled, image) for place in places]
        labels = [torch.where(place, pseudo, label.to(pseudo.dtype)) for place in places]
        regions = [torch.where(place, region, torch.full_like(region, LABELLED)) for place in places]
        return torch.cat(mixed), torch.cat([torch.cat(labels), torch.cat(regions)], dim=1)
