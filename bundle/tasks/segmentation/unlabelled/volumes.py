# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The scans without labels that a fine-tuning may train on: none that is held out, unless that is asked for."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bundle.data import FoundVolume, PreparedVolume, VolumeSet
from bundle.data.fingerprints import fingerprint
from bundle.data.found_volume import BY_NAME
from bundle.data.lists import find_unlabelled
from bundle.data.names import name_digest, without_ending
from bundle.data.preparation import Preparation
from bundle.data.volume_set import listed_by_one, prepare_usable
from bundle.errors import UserError
from bundle.prediction.scans import find_scans_to_predict
from bundle.stores.open_store import open_store
from bundle.stores.store import Store

__all__ = ["UnlabelledVolumes"]

logger = logging.getLogger(__name__)

_HELD_OUT = ("leave_out", "use")
_NAMED = 50  # so many scans are named


class UnlabelledVolumes:
    """Scans without labels, prepared as the labelled ones are, less those that must not be trained on.

    A scan is held out if it is one of the validation volumes, by the bytes of its file or by its patient; or one that
    the labelled data set, or a json that lists the unlabelled scans, has for validation or test. It is left out, or
    used if that is asked for, which is said in the log, in the summary and in `model.json`. A scan that is labelled
    and trained on is always left out here. A scan that was converted has other bytes and is not recognised; if it
    bears the name of a validation volume, the log warns of it.

    Args:
        unlabelled_dir: as for `find_scans_to_predict`: a folder of scans or of DICOM series, nnU-Net's `imagesTr`, an
            index, or a json.
        volumes: the labelled ones, split.
        dataset_dir: where these come from; its test part is held out, too.
        transform: as for `VolumeSet`, without labels.
        cache_dir: as for `VolumeSet`.
        channels: images per scan.
        find: finds them, and may give them annotations, such as a label map that a network has made; then `transform`
            has to read it.
        held_out: "leave_out", or "use" (transductive).
        workers: as for `VolumeSet`.
        hash_names: as for `VolumeSet`.
        store: as for `VolumeSet`.

    Attributes:
        training: the prepared scans.
        skipped: scans that cannot be used.
        transductive: names of held-out scans that are trained on.

    Raises:
        UserError: if nothing is found, can be used, or is left.
    """

    def __init__(
        self,
        *,
        unlabelled_dir: str | os.PathLike[str] | None,
        volumes: VolumeSet,
        dataset_dir: str | os.PathLike[str],
        transform: Callable[[dict[str, Any]], dict[str, Any]],
        cache_dir: str | os.PathLike[str],
        channels: int = 1,
        find: Callable[..., list[FoundVolume]] = find_scans_to_predict,
        held_out: str = "leave_out",
        workers: int = 1,
        hash_names: bool = False,
        store: str | Store = "blosc2",
    ) -> None:
        if not unlabelled_dir:
            raise UserError("--unlabelled_dir is not given: name a folder, an index or a json of scans without labels")
        if held_out not in _HELD_OUT:
            raise UserError(f"--unlabelled_held_out {held_out!r} is not known: choose one of {', '.join(_HELD_OUT)}")
        found = listed_by_one(lambda: _find(unlabelled_dir, channels, find))
        usable, self.skipped = prepare_usable(
            found,
            Preparation(transform, open_store(store, Path(cache_dir))),
            source=f"--unlabelled_dir {unlabelled_dir}",
            kind="unlabelled ",
            workers=workers,
            hash_names=hash_names,
        )
        self._labelled, self._held_out = _Recognised(volumes.training), _Recognised(volumes.validation)
        if not volumes.held_out:
            self._held_out = _Recognised(())
        self._held_out.digests |= {fingerprint(one.files) for one in listed_by_one(lambda: _test_scans(dataset_dir))}
        kept = [volume for volume in usable if not self._labelled.has(volume)]
        marked = [v for v in kept if self._held_out.has(v) or v.part in ("validation", "test")]
        self.transductive = [volume.name for volume in marked] if held_out == "use" else []
        self.training = [volume for volume in kept if held_out == "use" or volume not in marked]
        self.counts = {
            "found": len(found),
            "used": len(self.training),
            "not usable": len(self.skipped),
            "labelled and trained on": len(usable) - len(kept),
            "held out": 0 if self.transductive else len(marked),
            "held out, but trained on without labels": len(self.transductive),
        }
        self._report(marked, volumes)
        if not self.training:
            raise UserError(
                f"--unlabelled_dir {unlabelled_dir} leaves no scan to train on ({self.facts['unlabelled']}): give "
                "other scans, or --unlabelled_held_out use to train on held-out scans without their labels"
            )

    @property
    def facts(self) -> dict[str, str]:
        """For the run's summary."""
        left = [f"{count} {name}" for name, count in self.counts.items() if count and name not in ("found", "used")]
        more = f"; of {self.counts['found']} found: {', '.join(left)}" if left else ""
        facts = {"unlabelled": f"{len(self.training)} volumes{more}"}
        if self.transductive:
            facts["trained on without labels though held out"] = _listed(self.transductive)
        if self.skipped:
            facts["unlabelled, not usable"] = _listed([f"{one.name} ({one.problem})" for one in self.skipped])
        return facts

    def summary(self, volumes: VolumeSet) -> dict[str, Any]:
        """As `VolumeSet.summary`, with what became of the unlabelled scans."""
        return {**volumes.summary, "unlabelled": self.counts}

    def fingerprints(self, volumes: VolumeSet) -> dict[str, list[str]]:
        """By part, as `VolumeSet.fingerprints`, with those of the unlabelled scans."""
        return {**volumes.fingerprints, "unlabelled": sorted({v.fingerprint for v in self.training if v.fingerprint})}

    def state_dict(self) -> dict[str, Any]:
        """Digests of the scans, for a checkpoint: it tells no names."""
        return {"contents": sorted(volume.content for volume in self.training)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Refuses a resume with other scans.

        Raises:
            UserError: if a scan is new, changed or missing.
        """
        before, now = Counter(saved["contents"]), Counter(self.state_dict()["contents"])
        if before != now:
            raise UserError(
                f"the run was trained with other unlabelled scans ({(now - before).total()} of these {now.total()} are "
                f"new or changed, {(before - now).total()} are missing): resume with the same --unlabelled_dir, or "
                "leave --resume out to start a new run"
            )

    def _report(self, marked: Sequence[PreparedVolume], volumes: VolumeSet) -> None:
        logger.info("scans without labels: %s", self.facts["unlabelled"])
        if marked:
            names = _listed([volume.name for volume in marked])
            done = "TRAINED ON without their labels (transductive)" if self.transductive else "left out"
            logger.warning(
                "%d unlabelled scans are held out for validation or test, and %s: %s", len(marked), done, names
            )
        stems = {_stem(volume) for volume in volumes.validation} if volumes.held_out else set()
        if alike := [v.name for v in self.training if _stem(v) in stems and v.name not in self.transductive]:
            logger.warning(
                "%d unlabelled scans have the names of validation volumes, but other bytes: make sure that they are of "
                "other people: %s",
                len(alike),
                _listed(alike),
            )
        if new := {v.modality for v in self.training} - {v.modality for v in volumes.training}:
            logger.warning(
                "unlabelled scans are %s, and no labelled one is: see whether they belong", " and ".join(new)
            )


class _Recognised:
    """Scans that are recognised by the bytes of their files, or by the patient where that is known."""

    def __init__(self, volumes: Sequence[PreparedVolume]) -> None:
        self.digests = {volume.fingerprint for volume in volumes}
        self.patients = {patient for volume in volumes if (patient := _patient(volume))}

    def has(self, volume: PreparedVolume) -> bool:
        same = volume.fingerprint in self.digests and volume.fingerprint != ""
        return same or _patient(volume) in self.patients


def _patient(volume: PreparedVolume) -> str:
    """The group of a volume, or "" where its path is all that tells it: that may be another's in another folder.

    Of its own name a volume may show a digest.
    """
    by_path = volume.group.startswith(BY_NAME) or volume.name in (volume.group, name_digest(volume.group))
    return "" if by_path else volume.group


def _find(
    unlabelled_dir: str | os.PathLike[str],
    channels: int,
    find: Callable[..., list[FoundVolume]] = find_scans_to_predict,
) -> list[FoundVolume]:
    try:
        return find(unlabelled_dir, channels=channels)
    except UserError as error:  # the finders name the option that all other commands have
        raise UserError(str(error).replace("--dataset_dir", "--unlabelled_dir")) from error


def _test_scans(dataset_dir: str | os.PathLike[str]) -> list[FoundVolume]:
    """What a labelled data set has for a test: the list in its json, or its folder `imagesTs`."""
    root = Path(dataset_dir)
    listed = root / "dataset.json" if (root / "dataset.json").is_file() else root
    found: list[FoundVolume] = []
    with suppress(UserError):  # an empty folder
        if (root / "imagesTs").is_dir():
            found += find_scans_to_predict(root / "imagesTs")
    with suppress(UserError):  # no such list
        if listed.is_file() and listed.suffix == ".json":
            found += find_unlabelled(listed, "test")
    return found


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _stem(volume: PreparedVolume) -> str:
    return without_ending(Path(volume.name).name)
