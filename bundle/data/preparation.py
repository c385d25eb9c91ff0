# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How one volume is prepared and kept, and how many are at a time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.data.utils import pickle_hashing
from monai.transforms import Compose
from tqdm import tqdm

from bundle.data.file_parts import all_files
from bundle.data.fingerprints import fingerprint
from bundle.data.formats import ITK
from bundle.data.found_volume import FoundVolume
from bundle.data.names import without_ending
from bundle.data.prepared_volume import ChangedFilesError, PreparedVolume, SkippedVolume, skipped_because
from bundle.errors import UserError, VolumeError
from bundle.processes import Lost, NoProcessesError, run_in_processes
from bundle.stores.store import Header, Store

__all__ = ["Preparation", "modules_to_load", "prepare_all"]

logger = logging.getLogger(__name__)

#: to be raised when the transforms' code changes what they compute: their settings are in the key, their code is not
_CACHE_VERSION = 3
#: bytes of the files to prepare from which on processes are worth the seconds that they take to start
_WORTH_PROCESSES = 2**25
_Result = PreparedVolume | SkippedVolume


@dataclass(frozen=True)
class Preparation:
    """Prepares volumes and keeps them in a store. It is sent to the processes that prepare, so it must pickle.

    Args:
        transform: see `VolumeSet`.
        store: where prepared volumes are kept.
    """

    transform: Callable[[dict[str, Any]], dict[str, Any]]
    store: Store

    def find(self, found: FoundVolume, *, verify: bool = False) -> _Result | None:
        """The volume if it is in the store, or what is wrong with its files; None if it must be prepared.

        Args:
            found: the volume.
            verify: also whether no bit of what is stored has changed.
        """
        try:
            item = found.to_item()
            key = self._key(item)
            header = self.store.describe(key)
            if header is None or (verify and not self.store.verify(key)):
                return None
            return self._prepared(found, key, header, header.content or _content(item))
        except Exception as error:  # noqa: BLE001  one broken volume must not end the run
            return skipped_because(found.name, error)

    def __call__(self, found: FoundVolume, again: PreparedVolume | None = None) -> _Result:
        """Prepares a volume, and keeps it.

        Args:
            found: the volume.
            again: what it was when the run began. It is kept under the same key, which also holds the time of change
                of its files, and only if they hold what they held.

        Raises:
            UserError: if the store takes no more.
            ChangedFilesError: if the files of a volume that is prepared again hold something else.
        """
        try:
            item = found.to_item()
            key = self._key(item) if again is None else again.key
            tensors = self.transform(item)
            content = _content(item)
            tensors["content"] = torch.tensor(list(content.encode()), dtype=torch.uint8)
            header = Header.from_tensors(tensors)
        except Exception as error:  # noqa: BLE001
            return skipped_because(found.name, error)
        if again is not None and content != again.content:
            raise ChangedFilesError(found.name)
        try:
            self.store.write(key, tensors)
        except (OSError, RuntimeError) as error:  # torch's writer raises the second where the disk is full
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--cache_dir takes no more prepared volumes ({reason}): make room there or give another one, and "
                "start again; what is prepared is kept"
            ) from error
        except Exception as error:  # noqa: BLE001
            return skipped_because(found.name, error)
        return self._prepared(found, key, header, content)

    def again(self, found: FoundVolume, before: PreparedVolume) -> None:
        """Prepares a volume whose stored tensors are damaged.

        Raises:
            UserError: if it cannot be prepared.
            ChangedFilesError: if its files hold something else than `before`.
        """
        result = self(found, before)
        if isinstance(result, SkippedVolume):
            raise UserError(f"{result.problem}: {result.remedy}")

    def _prepared(self, found: FoundVolume, key: str, header: Header, content: str) -> PreparedVolume:
        return PreparedVolume(
            name=found.name,
            store=self.store,
            key=key,
            modality=header.modality,
            size=header.size,
            padded=header.padded,
            group=found.group or found.name,
            part=found.part,
            notes=header.notes,
            fingerprint=fingerprint(found.files),
            content=content,
            ending=found.files[0][len(without_ending(found.files[0])) :] if found.files else "",
            columns={**found.columns, "folder": Path(found.name).parts[0] if len(Path(found.name).parts) > 1 else "."},
        )

    def _key(self, item: dict[str, Any]) -> str:
        annotations = _annotations(item)
        files = [_absolute(Path(file)) for file in _files(item)]
        stamp = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        # the steps of a Compose, not itself: it holds a random state, another one in each process
        steps: Any = self.transform
        if isinstance(steps, Compose):
            steps = tuple(_for_volume(step, item["name"]) for step in steps.flatten().transforms)
        more_settings = [annotations] if annotations else []
        return pickle_hashing([_CACHE_VERSION, stamp, item["modality"], steps, *more_settings]).decode()


def _for_volume(step: Any, name: str) -> Any:
    """A step with what it has for one volume alone, such as that volume's map of weights; others as they are."""
    return step.for_volume(name) if hasattr(step, "for_volume") else step


def _absolute(file: Path) -> Path:
    """The path that a file's key holds: one and the same with and without `..`."""
    return file.resolve() if ".." in file.parts else file.absolute()


def prepare_all(
    found: Sequence[FoundVolume],
    preparation: Preparation,
    *,
    workers: int = 1,
    memory_gb: float | None = None,
    verify: bool = False,
    quiet: bool = False,
    worth_processes: int = _WORTH_PROCESSES,
) -> tuple[list[_Result], set[str]]:
    """Prepares those volumes that are not in the store, in processes where that pays.

    A process that is killed, for example because the memory is used up, costs its volume a second try, by itself, and
    no other volume anything.

    Args:
        found: the volumes.
        preparation: prepares one.
        workers: volumes at a time.
        memory_gb: that all processes together may take; None sets no bound.
        verify: read all that is stored, and prepare what is damaged.
        quiet: show no progress.
        worth_processes: bytes of files to prepare from which on processes are started, if there are to be
            several; 0 starts them, even a single one, in any case. Else this process does it.

    Returns:
        A result for each volume, in their order, and the names of those that were prepared now.

    Raises:
        UserError: if the store takes no more.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:  # waits for the disk, and does no work
        looked_up = pool.map(partial(preparation.find, verify=verify), found)
        bar = tqdm(looked_up, total=len(found), desc="looking up prepared volumes", disable=quiet or len(found) < 1000)
        results = list(bar)
    missing = [number for number, result in enumerate(results) if result is None]
    tasks = [found[number] for number in missing]
    done = _prepare(tasks, preparation, workers, memory_gb, worth_processes)
    for task, result in tqdm(done, total=len(tasks), desc="preparing volumes", disable=quiet or not tasks):
        results[missing[task]] = result
    new = {found[number].name for number in missing if isinstance(results[number], PreparedVolume)}
    return [_repairable(preparation, one, result) for one, result in zip(found, results) if result], new


def _repairable(preparation: Preparation, found: FoundVolume, result: _Result) -> _Result:
    if isinstance(result, SkippedVolume):
        return result
    return replace(result, again=partial(preparation.again, found, result))  # here, so that no process sends it back


def _prepare(
    tasks: Sequence[FoundVolume], preparation: Preparation, workers: int, memory_gb: float | None, worth: int
) -> Iterator[tuple[int, _Result]]:
    left = dict(enumerate(tasks))
    sizes = [_size(task) for task in tasks]
    if tasks and (worth == 0 or (workers > 1 and sum(sizes) >= worth)):
        # the largest first, so that at the end no process waits for one that has just begun with it
        order = sorted(left, key=lambda number: -sizes[number])
        ordered = [tasks[number] for number in order]
        try:
            preload = modules_to_load(itk=any(file.lower().endswith(ITK) for task in tasks for file in task.files[:1]))
            done = run_in_processes(preparation, ordered, processes=workers, memory_gb=memory_gb, preload=preload)
            for place, result in done:
                number = order[place]
                name = left.pop(number).name
                yield number, _skipped_if_lost(name, result)
        except NoProcessesError as error:
            logger.warning("volumes are prepared in this process alone, as no other one can be started: %s", error)
    yield from ((number, preparation(task)) for number, task in left.items())


def modules_to_load(*, itk: bool = False) -> list[Path]:
    """What processes that prepare volumes need, for `run_in_processes`; with ITK, which reads NRRD and MetaImage."""
    folder = Path(__file__).parent / "forked"
    names = ["mask_in_mask_preload", *(["mask_in_mask_preload_itk"] if itk else [])]
    return [folder / f"{name}.py" for name in names]


def _skipped_if_lost(name: str, result: _Result | Lost) -> _Result:
    if isinstance(result, Lost):
        return skipped_because(name, VolumeError(name, result.problem, result.remedy))
    return result


def _size(found: FoundVolume) -> int:
    try:
        return sum(Path(file).stat().st_size for file in found.files)
    except OSError:
        return 0


def _annotations(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("image", "name", "modality")}


def _files(item: Mapping[str, Any]) -> list[str]:
    """All files of a volume: its image, those that its annotations name, its further channels; each with its voxels."""
    named = [file for key, value in _annotations(item).items() for file in _annotated(item["name"], key, value)]
    files = [*item["image"], *named, *(file for files in item.get("channels", ()) for file in files)]
    return [str(part) for file in files for part in all_files(file)]


def _content(item: Mapping[str, Any]) -> str:
    """A digest of the bytes of all files, and of the annotations that are none."""
    digest = hashlib.blake2b(digest_size=8)
    for file in _files(item):
        with Path(file).open("rb") as stream:
            while part := stream.read(2**20):
                digest.update(part)
    for key, value in sorted(_annotations(item).items()):
        if key not in ("channels", "from_folder") and not _annotated(item["name"], key, value):
            digest.update(repr((key, value)).encode())
    return digest.hexdigest()


def _annotated(name: str, key: str, value: object) -> list[str]:
    """The files of an annotation: one, or one of each class.

    Raises:
        VolumeError: for one that is not there, which is not the volume's own fault.
    """
    values = list(value.values()) if isinstance(value, Mapping) else [value]
    files = [str(file) for file in values if isinstance(file, str)]
    for file in files:
        if not Path(file).exists():
            raise VolumeError(
                name, f"lacks its {key}: {file} does not exist", "correct the data list or put the file there"
            )
    return files
