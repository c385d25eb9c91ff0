# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Preparation apart from a training: of a part of an archive, by as many machines as there are."""

from __future__ import annotations

import json
import logging
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bundle.atomic import replace_file
from bundle.data.found_volume import FoundVolume
from bundle.data.preparation import Preparation, prepare_all
from bundle.data.prepared_volume import SkippedVolume
from bundle.data.scans import find_scans
from bundle.data.volume_set import hashed
from bundle.errors import UserError
from bundle.ranks import this_rank, world_size
from bundle.stores.open_store import open_store
from bundle.stores.store import Store

__all__ = ["prepare_archive"]

logger = logging.getLogger(__name__)


def prepare_archive(
    *,
    dataset_dir: str | os.PathLike[str],
    transform: Callable[[dict[str, Any]], dict[str, Any]],
    cache_dir: str | os.PathLike[str],
    find: Callable[[str | os.PathLike[str]], list[FoundVolume]] = find_scans,
    store: str | Store = "blosc2",
    workers: int | None = None,
    memory_gb: float | None = None,
    part: int = 1,
    of: int = 1,
    verify: bool = False,
    hash_names: bool = False,
) -> dict[str, Any]:
    """Prepares the volumes of a dataset, or a part of them, so that a training with the same settings finds them ready.

    It may be killed and started again: what is prepared stays. Which part a volume belongs to depends on its name only,
    so volumes may come while parts are prepared. Under torchrun each process takes its share of the part.

    Args:
        dataset_dir: as for `find_scans`.
        transform: as for `VolumeSet`.
        cache_dir: folder of the prepared volumes. The summary is written there, too: prepared_<part>_of_<of>.json.
        find: what finds the volumes.
        store: as for `VolumeSet`.
        workers: processes; None takes one for each core that this process may use.
        memory_gb: that they may take together; None sets no bound.
        part: which part, from 1.
        of: number of parts.
        verify: also read all that is prepared, and prepare again what is damaged.
        hash_names: name volumes by a digest in the summary and in the log.

    Returns:
        The summary: numbers of volumes `found`, `ready` before, `prepared` now, what was `skipped` and why, `seconds`
        and `part`.

    Raises:
        UserError: if there is no such part, no volume of it can be used by any process, or the store takes no more.
    """
    if not isinstance(part, int) or not 1 <= part <= of:
        raise UserError(f"--part {part} --of {of} does not fit: parts are numbered from 1 to --of")
    rank, world = this_rank(), world_size()
    part, of = (part - 1) * world + rank + 1, of * world
    started, preparation = time.monotonic(), Preparation(transform, open_store(store, Path(cache_dir)))
    found = [volume for volume in find(dataset_dir) if zlib.crc32(volume.name.encode()) % of == part - 1]
    workers = len(os.sched_getaffinity(0)) if workers is None else max(1, workers)
    results, new = prepare_all(
        found, preparation, workers=workers, memory_gb=memory_gb, verify=verify, quiet=rank > 0, worth_processes=0
    )
    if hash_names:
        results = [hashed(result, found) for result in results]
    skipped = [result for result in results if isinstance(result, SkippedVolume)]
    summary = {
        "part": f"{part} of {of}",
        "found": len(found),
        "ready": len(found) - len(new) - len(skipped),
        "prepared": len(new),
        "skipped": [one._asdict() for one in skipped],
        "seconds": round(time.monotonic() - started, 1),
    }
    with replace_file(Path(cache_dir) / f"prepared_{part}_of_{of}.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    for one in skipped:
        logger.warning("skipped %s: %s; %s", *one)
    logger.info(
        "part %s: %d volumes, %d were ready, %d are prepared now, %d skipped; %.0f s",
        summary["part"], len(found), summary["ready"], summary["prepared"], len(skipped), summary["seconds"],
    )  # fmt: skip
    _check_any(len(found), skipped, world)
    return summary


def _check_any(found: int, skipped: list[SkippedVolume], world: int) -> None:
    """Raises an error if all processes together have no volume that can be used: one of them may have none alone."""
    shares: list[Any] = [(found, skipped)] * world
    if world > 1:
        dist.all_gather_object(shares, (found, skipped))
    of_all, skipped = sum(count for count, _ in shares), [one for _, some in shares for one in some]
    if of_all and len(skipped) == of_all:
        name, problem, remedy = skipped[0]
        raise UserError(f"none of the {of_all} volumes can be used; the first: {name} {problem}; {remedy}")
