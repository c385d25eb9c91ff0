# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The volumes to embed, under the names that their results will have."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from bundle.data import FoundVolume, find_scans, skipped_because
from bundle.data.names import without_paths
from bundle.data.printable import printable
from bundle.data.safe_names import name_results
from bundle.inference.output import OutputFolder

__all__ = ["VolumeDataset", "list_volumes"]

logger = logging.getLogger(__name__)


def list_volumes(
    dataset_dir: str | os.PathLike[str],
    *,
    hash_names: bool = False,
    include: Sequence[str] | str = (),
    where: str = "",
    output: OutputFolder | None = None,
) -> list[FoundVolume]:
    """Finds volumes and names each by its path below the folder, or by a digest of that.

    A name is a path below the output folder, too: see `bundle.data.result_names`.

    Args:
        dataset_dir: as for `bundle.data.find_scans`.
        hash_names: the first 16 digits of the path's sha256 instead of the path. The same path has the same digest,
            so whoever can guess a path can recognise it.
        include: as for `bundle.data.find_scans`.
        where: as for `bundle.data.find_scans`.
        output: where the results go; none of their files is one of the volumes, nor are those of an earlier run.
    """
    found = find_scans(dataset_dir, include, where=where)
    if output is None:
        return name_results(found, hash_names=hash_names)
    folders = output.embedding, output.feature_map
    return name_results(
        found, hash_names=hash_names, files=lambda name: [place(name) for place in folders], written=output.written()
    )


class VolumeDataset(Dataset[dict[str, Any]]):
    """Prepared volumes; for one that cannot be used, its name, the `problem` and the `remedy` instead.

    Args:
        data: volumes to prepare.
        transform: from `image` (a list of files), `name` and `modality` to the network's input.
    """

    def __init__(self, *, data: Sequence[FoundVolume], transform: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.data, self.transform = list(data), transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        volume, start = self.data[index], time.perf_counter()
        try:
            item = self.transform(volume.to_item())
        except Exception as error:  # noqa: BLE001  one broken volume must not end the run
            skipped = skipped_because(volume.name, error)
            texts = (skipped.problem, skipped.remedy)
            problem, remedy = (printable(without_paths(text, volume, volume.name)) for text in texts)
            return {"name": volume.name, "problem": problem, "remedy": remedy}
        notes = item.pop("notes", None)
        if notes is not None:
            item["notes"] = bytes(notes.tolist()).decode()
            logger.warning("%s: %s", volume.name, item["notes"])
        return {**item, "seconds": time.perf_counter() - start}
