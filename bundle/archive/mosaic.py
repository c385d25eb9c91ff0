# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Middle slices of volumes, beside one another."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from bundle.archive.pool import Pool
from bundle.data.dicom.pixels import stored_frames
from bundle.data.formats import NIBABEL
from bundle.data.read import read_volume

__all__ = ["draw_mosaic", "draw_sample", "middle_slice"]

_TILE, _GAP, _ACROSS = 128, 4, 8
_PERCENTILES = (1, 99.5)


def draw_sample(volumes: Sequence[Mapping[str, Any]], count: int, seed: int = 0) -> list[Mapping[str, Any]]:
    """So many of the usable volumes, as evenly over modalities and sites as they go; the same ones every time."""
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    random = np.random.default_rng(seed)
    for volume in volumes:
        if volume["usable"]:
            kinds[volume["modality"], volume["site"]].append(volume)
    shuffled = [[kind[i] for i in random.permutation(len(kind))] for _, kind in sorted(kinds.items())]
    turns = [kind[turn] for turn in range(max(map(len, shuffled), default=0)) for kind in shuffled if turn < len(kind)]
    return sorted(turns[:count], key=lambda volume: str(volume["name"]))


def draw_mosaic(volumes: Sequence[tuple[Mapping[str, Any], Sequence[str]]], processes: int) -> np.ndarray | None:
    """The middle slices of volumes, uint8 ``[height, width, 3]``, row by row, each with its number; None without any.

    They are numbered from 1 in the order of `volumes`; one that cannot be read is left out, and its number is not used.

    Args:
        volumes: the columns of each, and its files.
        processes: that read slices; 0: none beside this one.
    """
    tasks = [(place, volume, files) for place, (volume, files) in enumerate(volumes)]
    tiles: list[np.ndarray | None] = [None] * len(tasks)
    pool = Pool(min(processes, len(tasks)))
    try:
        results = pool.run(_tile, tasks, split=lambda task: [task], dead=lambda task: (task[0], None))
        for place, tile in tqdm(results, desc="drawing slices", total=len(tasks)):
            tiles[place] = None if tile is None else _numbered(tile, place + 1)
    finally:
        pool.close()
    drawn = [tile for tile in tiles if tile is not None]
    if not drawn:
        return None
    step = _TILE + _GAP
    mosaic = np.full((math.ceil(len(drawn) / _ACROSS) * step, min(len(drawn), _ACROSS) * step), 255, dtype=np.uint8)
    for place, tile in enumerate(drawn):
        top, left = step * (place // _ACROSS), step * (place % _ACROSS)
        mosaic[top : top + _TILE, left : left + _TILE] = tile
    return np.repeat(mosaic[..., None], 3, axis=2)


def _numbered(tile: np.ndarray, number: int) -> np.ndarray:
    """A tile with a number in its upper left corner, white in black."""
    picture = Image.fromarray(tile)
    ImageDraw.Draw(picture).text((3, 2), str(number), fill=255, stroke_width=1, stroke_fill=0)
    return np.asarray(picture)


def _tile(task: tuple[int, Mapping[str, Any], Sequence[str]]) -> tuple[int, np.ndarray | None]:
    place, volume, files = task
    try:
        pixels = middle_slice(files)
    except Exception:  # noqa: BLE001 - readers raise anything on a broken file; preparation will say so
        return place, None
    low, high = np.percentile(pixels, _PERCENTILES)
    grey = np.clip((pixels - low) / max(high - low, 1e-6), 0, 1) * 255
    size = np.array(grey.shape[::-1]) * (volume["spacing_x"], volume["spacing_y"])  # mm across and down
    width, height = np.maximum(1, np.round(size * _TILE / size.max())).astype(int)
    scaled = np.asarray(Image.fromarray(grey.astype(np.uint8)).resize((int(width), int(height))))
    tile = np.zeros((_TILE, _TILE), dtype=np.uint8)
    top, left = (_TILE - height) // 2, (_TILE - width) // 2
    tile[top : top + height, left : left + width] = scaled
    return place, tile


def middle_slice(files: Sequence[str]) -> np.ndarray:
    """The middle slice of a volume, float32 ``[rows, columns]``.

    The patient's right, front and head are on the left and above. DICOM is taken as it is stored, which is so in most
    series. Which axes are rows and columns is as stored, too.

    Of a DICOM series only the middle file is read, of a NIfTI file only that slice.
    """
    middle = files[len(files) // 2]
    if len(files) > 1:
        frames = stored_frames(middle)
        return frames[len(frames) // 2].astype(np.float32)
    if middle.lower().endswith(NIBABEL):
        image: Any = nibabel.load(middle)
        pixels = np.asarray(image.dataobj[:, :, image.shape[2] // 2], dtype=np.float32)
        return _turned(pixels.reshape(*pixels.shape[:2], -1)[..., 0], image.affine)
    volume = read_volume([middle], Path(middle).name)
    return _turned(np.asarray(volume[0, :, :, volume.shape[3] // 2]), np.asarray(volume.affine))


def _turned(pixels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """``[x, y]`` as rows and columns, each axis running away from the patient's right, front and head."""
    codes = nibabel.aff2axcodes(affine)[:2]
    away = tuple(slice(None, None, -1 if code in ("R", "A", "S") else None) for code in codes)
    turned: np.ndarray = pixels[away].T
    return turned
