# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""From a folder of volumes to their reconstructions, pictures and errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from matplotlib.image import imsave
from monai.transforms import Compose
from torch import Tensor

from bundle.atomic import free_path, replace_file
from bundle.data import FoundVolume, SkippedVolume, result_names, skipped_because
from bundle.data.names import pseudonymous, without_paths
from bundle.errors import UserError
from bundle.figures.reconstruction import PanelCrop, draw_volume
from bundle.inference import OwnGrid, write_nifti
from bundle.reconstruction.error_table import error_row, error_text, write_errors
from bundle.reconstruction.page import write_page
from bundle.reconstruction.prepared import WholeVolume, find_inputs, prepare_volume
from bundle.reconstruction.tiles import Reconstructed, TiledReconstruction
from bundle.runs import TrainedRun

__all__ = ["Reconstruct"]

logger = logging.getLogger(__name__)


class Reconstruct:
    """Reconstructs volumes with a trained run's network.

    For each volume it writes, on the grid and in the units of its file, `<name>_masked.nii.gz` (hidden voxels have the
    volume's lowest value) and `<name>_reconstruction.nii.gz` (hidden voxels are the network's, the others untouched),
    and the picture `<name>.png`; for all together `errors.csv`. A volume that cannot be used is skipped and reported.

    Args:
        trained: the run, whose name heads the pictures and whose folder is the default for the results.
        dataset_dir: a folder, an MSD-style json, or one file.
        prepare: the run's transforms.
        tiles: reconstructs a prepared volume.
        output_dir: where to; None is `reconstruction` in the run's folder, or `reconstruction_2`, ...
        overwrite: whether `output_dir` may hold files already.
        panels: whether to draw pictures.
        hash_names: whether a volume's name is `bundle.data.names.name_digest` of it, in files, tables and pictures.
        include: as for `bundle.data.find_scans`.
        where: as for `bundle.data.find_scans`.

    Raises:
        UserError: when run, if `output_dir` holds files, or no volume can be used.
    """

    def __init__(
        self,
        *,
        trained: TrainedRun,
        dataset_dir: str | os.PathLike[str],
        prepare: Compose,
        tiles: TiledReconstruction,
        output_dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        panels: bool = True,
        hash_names: bool = False,
        include: Sequence[str] | str = (),
        where: str = "",
    ) -> None:
        self.trained, self.dataset_dir, self.prepare, self.tiles = trained, dataset_dir, prepare, tiles
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.overwrite, self.panels, self.hash_names = overwrite, panels, hash_names
        self.include, self.where = include, where

    def run(self) -> Path:
        """Reconstructs all volumes; returns the folder of the results."""
        found = find_inputs(self.dataset_dir, self.include, self.where)
        if self.hash_names:
            found = [pseudonymous(volume) for volume in found]
        folder = self._folder()
        rows: list[dict[str, Any]] = []
        skipped: list[SkippedVolume] = []
        pictures: dict[str, Path] = {}
        names = result_names(found, files=lambda name: _files(folder / name).values())
        for number, (volume, name) in enumerate(zip(found, names, strict=True), 1):
            try:
                row = self._one(volume, _files(folder / name))
            except _Unusable as error:
                skipped.append(error.skipped)
                logger.warning("skipped %s: %s; %s", *error.skipped)
                continue
            rows.append(row)
            pictures[volume.name] = _files(folder / name)["panel"]
            write_errors(rows, folder / "errors.csv")  # after each volume: an interruption loses one at most
            logger.info("%d of %d: %s", number, len(found), volume.name)
        if not rows:
            raise UserError(
                f"none of the {len(found)} volumes in --dataset_dir {self.dataset_dir} can be reconstructed; the "
                f"first: {skipped[0].name} {skipped[0].problem}; {skipped[0].remedy}"
            )
        logger.info("errors on hidden voxels, also in %s\n%s", folder / "errors.csv", error_text(rows))
        if skipped:
            lines = "\n".join(f"- {name}: {problem}; {remedy}" for name, problem, remedy in skipped)
            logger.warning("%d of %d volumes were skipped:\n%s", len(skipped), len(found), lines)
        shown = pictures if self.panels else {}
        logger.info("report: %s", write_page(folder, rows, shown, skipped, hash_names=self.hash_names))
        return folder

    def _folder(self) -> Path:
        if self.output_dir is None:
            return free_path(self.trained.folder.path / "reconstruction")
        if self.output_dir.is_dir() and any(self.output_dir.iterdir()) and not self.overwrite:
            raise UserError(f'--output_dir "{self.output_dir}" holds files: name another, or add --overwrite True')
        return self.output_dir

    def _one(self, found: FoundVolume, files: Mapping[str, Path]) -> dict[str, Any]:
        try:
            volume = prepare_volume(found, self.prepare)
        except Exception as error:  # one broken volume must not end the run
            skipped = skipped_because(found.name, error)
            if self.hash_names:
                skipped = SkippedVolume(*(without_paths(text, found, found.name) for text in skipped))
            raise _Unusable(skipped) from error
        try:
            result = self.tiles(volume)
        except UserError as error:  # nothing to mask
            raise _Unusable(SkippedVolume(found.name, str(error), "leave it out")) from error
        self._write_volumes(volume, result, files)
        if self.panels:
            self._write_panel(volume, result, files["panel"])
        return error_row(volume, result)

    def _write_volumes(self, volume: WholeVolume, result: Reconstructed, files: Mapping[str, Path]) -> None:
        original = volume.original.as_subclass(Tensor)
        values = volume.on_own_grid(volume.in_units(result.image))
        hidden = volume.on_own_grid(result.hidden, nearest=True) > 0
        _write(torch.where(hidden, values, original), volume.grid, files["reconstruction"])
        masked = volume.on_own_grid(result.first_hidden, nearest=True) > 0
        _write(torch.where(masked, original.min(), original), volume.grid, files["masked"])

    def _write_panel(self, volume: WholeVolume, result: Reconstructed, file: Path) -> None:
        to_ras = nibabel.io_orientation(np.asarray(volume.image.affine))
        shown = {
            "image": volume.in_units(volume.image.as_subclass(Tensor)),
            "reconstruction": volume.in_units(result.image),
            "foreground": volume.foreground,
            "valid": volume.valid,
            "visible": ~result.first_hidden,
            "hidden": result.hidden,
        }
        crop = PanelCrop(
            name=volume.name,
            spacing=tuple(volume.spacing[np.argsort(to_ras[:, 0])].tolist()),
            **{
                name: nibabel.orientations.apply_orientation(tensor[0].numpy(), to_ras)
                for name, tensor in shown.items()
            },
        )
        with replace_file(file) as temporary:
            imsave(temporary, draw_volume(crop, title=self.trained.folder.path.name))


class _Unusable(Exception):
    """One volume is to be skipped."""

    def __init__(self, skipped: SkippedVolume) -> None:
        super().__init__(skipped)
        self.skipped = skipped


def _write(values: Tensor, grid: OwnGrid, path: Path) -> None:
    """Writes ``[1, D, H, W]`` on a grid as a NIfTI file of float32."""
    write_nifti(path, [values[0].numpy()], affine=grid.affine.numpy(), shape=grid.shape, dtype=np.dtype(np.float32))


def _files(stem: Path) -> dict[str, Path]:
    """What is written of a volume."""
    endings = {"masked": "_masked.nii.gz", "reconstruction": "_reconstruction.nii.gz", "panel": ".png"}
    return {kind: stem.parent / f"{stem.name}{ending}" for kind, ending in endings.items()}
