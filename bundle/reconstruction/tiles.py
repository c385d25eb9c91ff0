# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Reconstructs a whole volume window by window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor, nn
from tqdm import tqdm

from bundle.errors import UserError
from bundle.masking import MaskSampler
from bundle.reconstruction.prepared import WholeVolume
from bundle.reconstruction.window_masks import draw_window_masks

__all__ = ["Reconstructed", "TiledReconstruction"]


@dataclass(frozen=True)
class Reconstructed:
    """A whole volume, on the CPU; values are prepared ones, float32 ``[1, d, h, w]``.

    Attributes:
        image: the reconstruction where `hidden`, the volume elsewhere.
        mean_predictor: in place of the reconstruction the mean of the voxels that were visible in the window.
        hidden: bool ``[1, d, h, w]``, what was hidden in one of the passes and has data.
        first_hidden: the same of the first passes alone: one mask of the run's ratio.
        terms: of the training's reconstruction loss, means over windows and passes.
    """

    image: Tensor
    mean_predictor: Tensor
    hidden: Tensor
    first_hidden: Tensor
    terms: dict[str, float]


class RestoringLoss(Protocol):
    """What is used of a run's loss; `bundle.losses.PretrainingLoss` is one.

    Attributes:
        reconstruction: from reconstruction, image, valid, hidden and foreground to the loss and its terms.
    """

    reconstruction: Callable[..., tuple[Tensor, dict[str, Tensor]]]

    def restore(self, output: Any, target: dict[str, Any]) -> Tensor:
        """The reconstruction in the image's own units."""


class TiledReconstruction:
    """Masks and reconstructs windows of the crop's size, and puts them together.

    The last window on an axis is moved inwards where the volume ends; a voxel then belongs to the first window that
    holds it. With `overlap`, the reconstructions of one voxel are averaged instead, with less weight towards the
    windows' borders. A voxel is never reconstructed by a pass that saw it.

    Args:
        network: the pre-training network.
        loss: the run's, which restores the units of the prepared image. As in training, the level and contrast of each
            window (of each cell, with target per_patch) are taken from the image itself.
        masking: the run's.
        crop_size: voxels of a window.
        device: where the network is.
        complementary: whether to hide every cell once, in as many passes as that takes.
        overlap: of neighbouring windows, a share of their size from 0 to below 1; for complementary masks only, as two
            windows' masks would hide more together than the run's ratio.
        seed: of the masks.

    Raises:
        UserError: if `overlap` does not fit.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        loss: RestoringLoss,
        masking: MaskSampler,
        crop_size: Sequence[int],
        device: torch.device,
        complementary: bool = False,
        overlap: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= overlap < 1:
            raise UserError(f"--overlap {overlap} does not fit: give a share from 0 to below 1, such as 0.25")
        if overlap and not complementary:
            raise UserError(f"--overlap {overlap} is for --complementary True: add that, or leave --overlap out")
        self.network, self.loss, self.masking = network, loss, masking
        self.crop_size, self.device = tuple(crop_size), device
        self.complementary, self.overlap, self.seed = complementary, overlap, seed

    def __call__(self, volume: WholeVolume) -> Reconstructed:
        """Reconstructs a volume, with a progress bar on a terminal.

        Raises:
            UserError: if nothing can be masked in it.
        """
        image = volume.image.as_subclass(Tensor)
        totals = torch.zeros(2, *image.shape)  # reconstruction, mean predictor
        weights, first = torch.zeros_like(image), torch.zeros_like(image, dtype=torch.bool)
        done = torch.zeros_like(first)
        mode = "gaussian" if self.overlap else "constant"
        importance = compute_importance_map(self.crop_size, mode=mode, device="cpu", dtype=torch.float32)[None]
        terms: dict[str, float] = {}
        passes = 0
        windows = self._windows(image.shape[1:])
        for number, window in enumerate(tqdm(windows, desc=volume.name, unit="window", leave=False, disable=None)):
            place = (slice(None), *window)
            values, wanted, found = self._window(volume, place, number)
            first[place] |= wanted[0] & ~done[place]
            if not self.overlap:
                wanted = wanted & ~done[place]
            done[place] = True
            totals[:, place[0], place[1], place[2], place[3]] += (values * wanted * importance).sum(1)
            weights[place] += (wanted * importance).sum(0)
            passes += len(wanted)
            terms = {name: terms.get(name, 0.0) + value * len(wanted) for name, value in found.items()}
        hidden = (weights > 0) & volume.valid
        pasted = torch.where(hidden, totals / weights.clamp(min=1e-12), image)
        return Reconstructed(
            image=pasted[0],
            mean_predictor=pasted[1],
            hidden=hidden,
            first_hidden=first & volume.valid,
            terms={name: value / passes for name, value in terms.items()},
        )

    def _windows(self, size: Sequence[int]) -> list[tuple[slice, ...]]:
        step = [max(1, round(voxels * (1 - self.overlap))) for voxels in self.crop_size]
        return dense_patch_slices(list(size), list(self.crop_size), step)

    @torch.no_grad()
    def _window(
        self, volume: WholeVolume, place: tuple[slice, ...], number: int
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Of one window: both predictions ``[2, P, 1, d, h, w]``, where they are wanted, and the loss's terms."""
        image, valid, foreground = (
            tensor[place].as_subclass(Tensor) for tensor in (volume.image, volume.valid, volume.foreground)
        )
        masks = draw_window_masks(
            self.masking, valid, volume.spacing, window=number, seed=self.seed, complementary=self.complementary
        )
        rows = len(masks.hidden)
        images, valids, foregrounds = (
            tensor.expand(rows, *tensor.shape).to(self.device) for tensor in (image, valid, foreground)
        )
        output = self.network(
            images,
            visible=masks.visible.to(self.device),
            hidden=masks.hidden.to(self.device),
            spacing=volume.spacing.expand(rows, 3).to(self.device),
        )
        restored = self.loss.restore(output, {"image": images, "valid": valids}).float().cpu()
        _, found = self.loss.reconstruction(output["reconstruction"], images, valids, output["hidden"], foregrounds)

        seen = self._on_voxels(masks.visible) & valid
        means = [image[row].mean() if row.any() else image.new_zeros(()) for row in seen]
        constant = torch.stack(means)[:, None, None, None, None].expand_as(restored)
        terms = {name: float(value) for name, value in found.items()}
        return torch.stack([restored, constant]), self._on_voxels(masks.wanted), terms

    def _on_voxels(self, cells: Tensor) -> Tensor:
        for axis, voxels in enumerate(self.masking.cell, start=2):
            cells = cells.repeat_interleave(voxels, axis)
        return cells
