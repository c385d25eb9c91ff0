# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A store as a user would write it: numpy archives, and a note of each read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle.stores.store import Crop, Header, Store, cut


class NpzStore(Store):
    """One npz for each volume.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        #: the key, whether a crop was asked for, and the names
        self.reads: list[tuple[str, bool, tuple[str, ...] | None]] = []

    def describe(self, key: str) -> Header | None:
        try:
            with np.load(self.folder / f"{key}.npz") as file:
                return Header(str(file["modality"]), tuple(file["size"].tolist()), bool(file["padded"]))
        except FileNotFoundError:
            return None

    def read(self, key: str, crop: Crop | None = None, keys: Collection[str] | None = None) -> dict[str, Any]:
        self.reads.append((key, crop is not None, None if keys is None else tuple(keys)))
        with np.load(self.folder / f"{key}.npz") as file:
            size, modality = tuple(file["size"].tolist()), str(file["modality"])
            names = [name.removeprefix("tensor_") for name in file.files if name.startswith("tensor_")]
            tensors: dict[str, Any] = {
                name: torch.from_numpy(file[f"tensor_{name}"]) for name in names if keys is None or name in keys
            }
        return {"modality": modality, **(tensors if crop is None else cut(tensors, crop, size))}

    def write(self, key: str, tensors: Mapping[str, Any]) -> None:
        header = Header.from_tensors(tensors)
        arrays = {f"tensor_{name}": value.numpy() for name, value in tensors.items() if name != "modality"}
        np.savez(self.folder / f"{key}.npz", **header._asdict(), **arrays)
