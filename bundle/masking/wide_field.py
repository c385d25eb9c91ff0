# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A wide field: the network sees it at low resolution, and its children at the resolution of the prepared volume.

After MiM (Zhuang et al. 2024, arXiv:2404.15580, section 3.1), whose first level is a crop of twice the extent. Masks
and places are drawn in the process that reads the volume. So the field leaves it at low resolution, with its children.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.cells import Triple, triple
from bundle.errors import UserError
from bundle.masking.levels import LevelBatch, MaskInMask, Parents
from bundle.masking.sampler import BatchMask

__all__ = ["DRAWN", "WideField", "unpack_levels"]

#: the key of a batch that is there if its masks were drawn by the loader
DRAWN = "hidden"
#: what the keys of the children's tensors begin with
_CHILDREN = "children_"


class WideField:
    """What a loader does last with a wide crop: averages it, draws its mask, and cuts children from what that hides.

    The crop is a whole number of times, on each axis, as wide as what the network gets. A voxel of the first level is
    the mean of a block of its valid voxels; it is valid, or foreground, if at least half of the block is. Children are
    cut from the crop itself, so that they show all of its detail. Their centres lie in hidden cells of the first level.

    Args:
        masking: masks crops and cuts children; only the first level of children is cut here.
        size: voxels per axis of the first level, as the network gets it.

    Attributes:
        keys: the tensors of a crop that it can take.

    Examples:
        >>> import torch
        >>> from bundle.masking import ChildLevel, MaskInMask, MaskSampler, UniformCells, WideField
        >>> masking = MaskSampler(rule=UniformCells(), cell=(4, 4, 4))
        >>> children = ChildLevel(masking=masking, children=2, size=(8, 8, 8))
        >>> wide = WideField(masking=MaskInMask(masking=masking, levels=[children]), size=(16, 16, 16))
        >>> everywhere = torch.ones(1, 32, 32, 32, dtype=torch.bool)
        >>> crop = {"image": torch.rand(1, 32, 32, 32), "valid": everywhere, "foreground": everywhere}
        >>> seen = wide({**crop, "spacing": torch.tensor([1.0, 1.0, 3.0]), "draw": 0})
        >>> seen["image"].shape, seen["children_image"].shape
        (torch.Size([1, 16, 16, 16]), torch.Size([2, 1, 8, 8, 8]))
        >>> seen["spacing"].tolist(), seen["children_spacing"].tolist()
        ([2.0, 2.0, 6.0], [[1.0, 1.0, 3.0], [1.0, 1.0, 3.0]])
    """

    keys = ("image", "clean", "valid", "foreground", "weight_map")

    def __init__(self, *, masking: MaskInMask, size: Sequence[int]) -> None:
        self.masking, self.size = masking, triple(size)

    def __call__(self, crop: Mapping[str, Any]) -> dict[str, Any]:
        """The first level, its mask, and its children.

        Args:
            crop: `image` float ``[C, D, H, W]``, `clean` alike if it is there, bool ``[1, D, H, W]`` `valid` and
                `foreground`, `weight_map` alike if it is there, `spacing` ``[3]`` in mm, and the number `draw`.

        Returns:
            The crop with averaged tensors and the spacing of these in float64; bool ``[1, d, h, w]`` `visible` and
            `hidden` on cells; and ``[children, ...]`` each attribute of `LevelBatch`, and the children's `draw`, under
            its name with "children_" before it.

        Raises:
            UserError: if the crop is no whole number of times as wide as the first level.
        """
        field = self._find_field(crop["image"].shape[1:])
        valid = crop["valid"]
        seen = {**crop, **{name: _averaged(crop[name], valid, field) for name in self.keys if name in crop}}
        own = crop["spacing"].double()
        seen["spacing"] = own * torch.tensor(field)
        draw = torch.tensor([int(crop["draw"])])
        weight = self.masking.find_weight(seen)
        mask = self.masking.masking(
            seen["valid"][None], draw, seen["spacing"][None], None if weight is None else weight[None]
        )
        if self.masking.levels:
            images = {name: crop[name][None] for name in ("image", "clean") if name in crop}
            cell = triple(self.masking.masking.cell)
            parents = Parents(images, valid[None], crop["foreground"][None], own[None], draw, mask, cell, field)
            children, draws, mask = self.masking.cut_level(1, parents)
            seen |= {f"{_CHILDREN}{name}": getattr(children, name) for name in _kept(children)}
            for name in ("corner", "extent"):  # of one type, however wide the crop
                seen[f"{_CHILDREN}{name}"] = seen[f"{_CHILDREN}{name}"].double()
            seen[f"{_CHILDREN}draw"] = draws
        return {**seen, "visible": mask.visible[0], "hidden": mask.hidden[0]}

    def _find_field(self, wide: Sequence[int]) -> Triple:
        """How many times as wide as the first level a crop is on each axis."""
        if any(w % s for w, s in zip(wide, self.size)):
            raise UserError(
                f"a crop of {list(wide)} voxels is no whole number of times as wide as {list(self.size)}: cut it with "
                "bundle.data.RandWideCropd and the same crop_size"
            )
        return triple(w // s for w, s in zip(wide, self.size))


def unpack_levels(batch: Mapping[str, Any], masking: MaskInMask) -> tuple[dict[str, Any], BatchMask, list[LevelBatch]]:
    """What the loader has drawn, taken out of a batch, and what is still to be cut: children of the children.

    Args:
        batch: of what `WideField` gives for each crop.
        masking: the same that it had.

    Returns:
        The batch without them, the crops' masks, and the levels of children.
    """
    own = {key: value for key, value in batch.items() if key.startswith(_CHILDREN)}
    rest = {key: value for key, value in batch.items() if key not in own and key not in BatchMask._fields}
    mask = BatchMask(batch["visible"], batch["hidden"])
    if not own:
        return rest, mask, []
    crops, count = own[f"{_CHILDREN}image"].shape[:2]
    tensors = {key.removeprefix(_CHILDREN): value.flatten(0, 1) for key, value in own.items()}
    draw = tensors.pop("draw")
    children = LevelBatch(**tensors, parent=torch.arange(crops).repeat_interleave(count))
    parents = Parents.from_children(children, draw, masking.levels[0].masking.cell)
    (children.visible, children.hidden), further = masking.cut_levels(parents, first=2)
    return rest, mask, [children, *further]


def _kept(children: LevelBatch) -> list[str]:
    """The attributes to hand on; the row of the parent is another one in the batch."""
    without = {"parent", "clean"} if children.clean is children.image else {"parent"}
    return [name for name in vars(children) if name not in without]


def _averaged(x: Tensor, valid: Tensor, field: Triple) -> Tensor:
    """``[C, D, H, W]`` with blocks of `field` voxels as one: a mask by majority, anything else by its valid voxels."""
    if max(field) == 1:
        return x
    if x.dtype == torch.bool:
        return _means(x.float(), field) >= 0.5
    if valid.all():
        return _means(x, field)
    share = _means(valid.to(x.dtype), field)
    mean = _means(torch.where(valid, x, x.new_zeros(())), field) / share.clamp(min=1e-6)
    return torch.where(share > 0, mean, _means(x, field))


def _means(x: Tensor, field: Triple) -> Tensor:
    return F.avg_pool3d(x[None], field)[0]
