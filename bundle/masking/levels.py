# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Mask-in-Mask: children volumes, cut where their parent could not see, and masked in their turn.

After MiM (Zhuang et al. 2024, arXiv:2404.15580, section 3.2), with what its published code gets wrong set right: a
child's centre always lies in a masked cell of its parent, and which one is drawn anew each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple, triple
from bundle.errors import UserError
from bundle.masking.places import place_centre, place_inside
from bundle.masking.sampler import BatchMask, MaskSampler, make_generator

__all__ = ["ChildLevel", "LevelBatch", "MaskInMask", "Parents"]

#: sets the places of children apart from masks and crops, which derive from the same seed and draw
_PLACE_STREAM = 3


class ChildLevel:
    """One level of children.

    Args:
        masking: masks the children; with another ratio than the crops, if you like.
        children: number of children per parent.
        size: voxels of a child as the network gets it, on each axis; whole multiples of the encoder's total stride.
        extent: voxels of the parent's that a child covers on each axis; None takes `size`. Another than `size` is
            resampled, so that children show more or less detail than the parent.
        extent_mm: the same in mm, on all axes or on each, rounded to voxels of the parent's; instead of `extent`.
        inside: children lie in hidden cells with all that they cover, where there is such a place. False, and where
            there is none: with their centres.

    Raises:
        UserError: if a size does not fit.
    """

    def __init__(
        self,
        *,
        masking: MaskSampler,
        children: int = 2,
        size: Sequence[int] = (32, 32, 32),
        extent: Sequence[int] | None = None,
        extent_mm: float | Sequence[float] | None = None,
        inside: bool = False,
    ) -> None:
        cell = masking.cell
        if len(size) != 3 or any(s <= 0 or s % c for s, c in zip(size, cell)) or tuple(size) == tuple(cell):
            raise UserError(
                f"a child's size {list(size)} does not fit: give three whole multiples of the encoder's total stride "
                f"{list(cell)}, and more than one cell in all"
            )
        if children < 1:
            raise UserError(f"children {children} does not fit: give at least 1, or leave the level out")
        if extent is not None and extent_mm is not None:
            raise UserError("a child has both extent and extent_mm: give one of them")
        self.masking, self.children, self.size, self.inside = masking, children, triple(size), inside
        self.extent = None if extent is None else triple(extent)
        self.extent_mm: tuple[float, ...] | None = None
        if extent_mm is not None:
            self.extent_mm = (float(extent_mm),) * 3 if isinstance(extent_mm, (int, float)) else tuple(extent_mm)

    def find_extent(self, spacing: Sequence[float], parent: Triple) -> Triple:
        """Voxels of the parent's that a child covers, at the parent's voxel size in mm.

        Raises:
            UserError: if that is more than the parent has.
        """
        extent = self.size if self.extent is None else self.extent
        if self.extent_mm is not None:
            extent = triple(max(1, round(wide / mm)) for wide, mm in zip(self.extent_mm, spacing))
        if any(e > p for e, p in zip(extent, parent)):
            raise UserError(
                f"a child of {list(extent)} voxels does not fit into its parent of {list(parent)}: choose a smaller "
                "extent or a larger --crop_size"
            )
        return extent


def _no_tensor() -> Tensor:
    return torch.empty(0)


@dataclass
class LevelBatch:
    """The children of one level, of all samples, as one batch of ``B * children`` rows.

    Attributes:
        image: ``[N, C, D, H, W]``.
        valid: bool ``[N, 1, D, H, W]``.
        foreground: bool ``[N, 1, D, H, W]``.
        visible: bool ``[N, 1, d, h, w]`` on cells.
        hidden: bool ``[N, 1, d, h, w]`` on cells.
        spacing: ``[N, 3]``, voxel size in mm.
        parent: int64 ``[N]``, the row of the level before that a child was cut from.
        corner: ``[N, 3]``, the child's first corner in voxels of that parent; float64 if its voxels are finer, so that
            the corner may lie within one of the parent's, else int64.
        extent: ``[N, 3]``, what it covers in voxels of that parent; of the same type.
        clean: ``[N, C, D, H, W]``, what is to be reconstructed; the image, unless that was degraded.
    """

    image: Tensor
    valid: Tensor
    foreground: Tensor
    visible: Tensor
    hidden: Tensor
    spacing: Tensor
    parent: Tensor
    corner: Tensor
    extent: Tensor
    clean: Tensor = field(default_factory=_no_tensor)

    def __post_init__(self) -> None:
        if not self.clean.numel():
            self.clean = self.image

    def to(self, *args: object, **kwargs: object) -> LevelBatch:
        """With every tensor moved as `torch.Tensor.to` does, each of them once."""
        tensors = {name: value for name, value in vars(self).items() if name != "clean" or value is not self.image}
        return LevelBatch(**{name: value.to(*args, **kwargs) for name, value in tensors.items()})


class MaskInMask:
    """Masks the crops of a batch, and the children cut from what is hidden there, level by level.

    Args:
        masking: masks the crops.
        levels: of children, each cut from the one before; none is plain masked reconstruction.
        weight: the batch's key of a map, on voxels, of what to hide more often in the crops, such as "foreground" or
            "weight_map"; None hides evenly.
    """

    def __init__(self, *, masking: MaskSampler, levels: Sequence[ChildLevel] = (), weight: str | None = None) -> None:
        if len(levels) > 2:
            raise UserError(f"{len(levels)} levels of children: at most two, so three levels in all")
        self.masking, self.levels, self.weight = masking, list(levels), weight

    @property
    def passes(self) -> list[int]:
        """Forward passes per crop at each level, the crop itself first."""
        passes = [1]
        for level in self.levels:
            passes.append(passes[-1] * level.children)
        return passes

    def __call__(
        self,
        image: Tensor,
        valid: Tensor,
        foreground: Tensor,
        draw: Tensor,
        spacing: Tensor,
        weight: Tensor | None,
        clean: Tensor | None = None,
    ) -> tuple[BatchMask, list[LevelBatch]]:
        """The crops' masks and the levels of children.

        Args:
            image: ``[B, C, D, H, W]``.
            valid: bool ``[B, 1, D, H, W]``.
            foreground: bool ``[B, 1, D, H, W]``.
            draw: int64 ``[B]``, the number of each sample's draw, on which all randomness depends.
            spacing: ``[B, 3]``, voxel size in mm.
            weight: ``[B, 1, D, H, W]`` or None.
            clean: as `image`, what is to be reconstructed where that was degraded.
        """
        mask = self.masking(valid, draw, spacing, weight)
        images = {"image": image} if clean is None else {"image": image, "clean": clean}
        return self.cut_levels(Parents(images, valid, foreground, spacing, draw, mask, triple(self.masking.cell)))

    def find_weight(self, batch: Mapping[str, Any]) -> Tensor | None:
        """What `weight` names in a batch, or in a crop; None if it names nothing.

        Raises:
            UserError: if it is not there.
        """
        if self.weight is None:
            return None
        if self.weight not in batch:
            raise UserError(
                f"mask_in_mask#weight asks for {self.weight!r}, which the crops do not have: choose "
                "foreground, or give --weight_maps"
            )
        found: Tensor = batch[self.weight]
        return found

    def cut_levels(self, parents: Parents, first: int = 1) -> tuple[BatchMask, list[LevelBatch]]:
        """The levels of children from number `first` on, and the masks of the parents, which may have changed."""
        mask = parents.mask
        batches: list[LevelBatch] = []
        for number in range(first, len(self.levels) + 1):
            batch, draws, seen_anew = self.cut_level(number, parents)
            if number == first:
                mask = seen_anew
            else:
                batches[-1].visible, batches[-1].hidden = seen_anew
            batches.append(batch)
            parents = Parents.from_children(batch, draws, self.levels[number - 1].masking.cell)
        return mask, batches

    def cut_level(self, number: int, parents: Parents) -> tuple[LevelBatch, Tensor, BatchMask]:
        """The children of a level, the numbers of their draws, and their parents' masks, which may have changed."""
        level, size = self.levels[number - 1], triple(parents.valid.shape[2:])
        hidden, valid = parents.mask.hidden.clone(), parents.mask.visible | parents.mask.hidden
        cell = triple(c * g for c, g in zip(parents.cell, parents.grain))
        cut: dict[str, list[Tensor]] = {name: [] for name in (*parents.images, "valid", "foreground")}
        corners, extents, draws = [], [], []
        for row, draw in enumerate(parents.draw.tolist()):
            extent = level.find_extent(parents.spacing[row].tolist(), size)
            generator = make_generator(self.masking.seed, _PLACE_STREAM, number, draw)
            for child in range(level.children):
                corner = place_inside(hidden[row, 0], cell, size, extent, generator) if level.inside else None
                if corner is None:
                    corner = place_centre(hidden[row, 0], valid[row, 0], cell, size, extent, generator)
                place = [slice(c, c + e) for c, e in zip(corner, extent)]
                window = (row, slice(None), place[0], place[1], place[2])
                for name, image in parents.images.items():
                    cut[name].append(_resized(image[window], level.size))
                cut["valid"].append(_resized(parents.valid[window].float(), level.size) >= 0.5)
                cut["foreground"].append(_resized(parents.foreground[window].float(), level.size) >= 0.5)
                corners.append(corner)
                extents.append(extent)
                draws.append(draw * level.children + child)
        tensors = {key: torch.stack(values) for key, values in cut.items()}
        empty = ~tensors["valid"].flatten(1).any(1)  # nothing but padding: then the padding is what there is
        tensors["valid"] = tensors["valid"] | empty[:, None, None, None, None]
        child_draws, wide = torch.tensor(draws), torch.tensor(extents)
        spacing = parents.spacing.repeat_interleave(level.children, 0) * wide / torch.tensor(level.size)
        masked = level.masking(tensors["valid"], child_draws, spacing, stream=(number,))
        batch = LevelBatch(
            **tensors,
            visible=masked.visible,
            hidden=masked.hidden,
            spacing=spacing.to(parents.spacing.dtype),
            parent=torch.arange(len(parents.valid)).repeat_interleave(level.children),
            corner=_in_voxels_of_the_parent(torch.tensor(corners), parents.grain),
            extent=_in_voxels_of_the_parent(wide, parents.grain),
        )
        return batch, child_draws, BatchMask(visible=valid & ~hidden, hidden=hidden)


class Parents(NamedTuple):
    """What children are cut from: a batch of crops, or of children.

    Attributes:
        images: by name, ``[N, C, D, H, W]`` each.
        valid: bool ``[N, 1, D, H, W]``.
        foreground: bool ``[N, 1, D, H, W]``.
        spacing: ``[N, 3]``, voxel size of these in mm.
        draw: int64 ``[N]``.
        mask: of what the network sees of them.
        cell: voxels of a cell on each axis, as the network sees them.
        grain: voxels of these for each voxel that the network sees, on each axis.
    """

    images: Mapping[str, Tensor]
    valid: Tensor
    foreground: Tensor
    spacing: Tensor
    draw: Tensor
    mask: BatchMask
    cell: Triple
    grain: Triple = (1, 1, 1)

    @classmethod
    def from_children(cls, batch: LevelBatch, draw: Tensor, cell: Sequence[int]) -> Parents:
        """The children of one level as parents of the next."""
        images = {"image": batch.image} if batch.clean is batch.image else {"image": batch.image, "clean": batch.clean}
        mask = BatchMask(batch.visible, batch.hidden)
        return cls(images, batch.valid, batch.foreground, batch.spacing, draw, mask, triple(cell))


def _in_voxels_of_the_parent(voxels: Tensor, grain: Triple) -> Tensor:
    return voxels if max(grain) == 1 else voxels.double() / torch.tensor(grain)


def _resized(x: Tensor, size: Triple) -> Tensor:
    """``[C, d, h, w]`` on a grid of `size` voxels over the same extent; untouched if it has that many already."""
    if tuple(x.shape[1:]) == size:
        return x.clone()
    shrinks = all(a >= b for a, b in zip(x.shape[1:], size))
    if shrinks:
        return F.interpolate(x[None], size=size, mode="area")[0]
    return F.interpolate(x[None], size=size, mode="trilinear", align_corners=False)[0]
