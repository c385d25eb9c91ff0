# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Which volumes are for training and which for validation: volumes of one patient are never on both sides."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bundle.data.found_volume import BY_NAME
from bundle.errors import UserError
from bundle.stores.store import DamagedVolumeError

if TYPE_CHECKING:
    from bundle.data.found_volume import FoundVolume
    from bundle.data.prepared_volume import PreparedVolume

__all__ = ["check_fold", "deal_folds", "join_copies", "split_volumes"]

logger = logging.getLogger(__name__)

#: of two volumes of one size these many voxels per axis around the middle are compared
_MIDDLE = 12
#: more volumes of one size are a set that was brought to one grid, and of more in all an index finds the copies
_MOST_OF_ONE_SIZE, _MOST = 64, 2000
#: values that differ by less differ by the order in which a mean was taken
_SAME_VALUE = 1e-3

#: of the order in which patients are dealt to folds; fixed, so that runs with other seeds have the same folds
_FOLD_SEED = 5
#: an anonymiser may have given one id to all
_ONE_PATIENT = (
    "DICOM with one PatientID is one patient, and so is a subject in BIDS: where it is not, list the volumes in a "
    "json, each with its group"
)


def check_fold(folds: int | None, fold: int) -> None:
    """Refuses a fold that does not exist.

    Raises:
        UserError: if there is no such fold.
    """
    if folds is None:
        if fold != 0:
            raise UserError(f"--fold {fold} means nothing without --folds: give both, such as --folds 5 --fold {fold}")
    elif folds < 2:
        raise UserError(f"--folds {folds} cannot work: give at least 2, or leave it out to use val_fraction")
    elif not 0 <= fold < folds:
        raise UserError(f"--fold {fold} does not exist with --folds {folds}: give 0 to {folds - 1}")


def join_copies(volumes: Sequence[PreparedVolume]) -> list[PreparedVolume]:
    """The volumes, in their order; copies of one scan, whatever their labels, are in one group, and the log says so.

    Copies have the same bytes, or, as a DICOM series and the NIfTI file that was made of it, the same prepared voxels.
    Where all are copies of one scan they stay as they are.
    """
    alike: dict[str, list[PreparedVolume]] = {}
    for volume in volumes:
        alike.setdefault(volume.fingerprint or volume.name, []).append(volume)
    copies = [same for same in alike.values() if len(same) > 1]
    converted = _find_converted([same[0] for same in alike.values()])
    joined: dict[str, str] = {}  # the group that a group is in now

    def group_of(group: str) -> str:
        while group in joined:
            group = joined[group]
        return group

    for first, *others in [*copies, *converted]:
        for other in others:
            if (own := group_of(other.group)) != (group := group_of(first.group)):
                joined[own] = group
    _warn_of_copies(copies)
    _warn_of_converted(converted)
    if len({group_of(volume.group) for volume in volumes}) == 1:
        return list(volumes)  # all of one scan, as who tries something out has them: there is no other split
    return [replace(volume, group=group_of(volume.group)) for volume in volumes]


def _warn_of_copies(copies: Sequence[Sequence[PreparedVolume]]) -> None:
    if not copies:
        return
    first, second, *_ = copies[0]
    count = sum(map(len, copies)) - len(copies)
    logger.warning(
        "%s the same bytes as another, such as %s and %s: remove copies; they stay on one side of the split",
        "1 volume has" if count == 1 else f"{count} volumes have", first.name, second.name,
    )  # fmt: skip
    if differ := [same[0].name for same in copies if len({v.content for v in same}) > 1]:
        logger.warning("the copies of %s have different labels: correct them", ", ".join(differ[:5]))
    if both := [same[0].name for same in copies if {v.part for v in same} >= {"training", "validation"}]:
        logger.warning(
            "%s is listed for training and for validation: what the validation says is no test of unseen volumes",
            ", ".join(both[:5]),
        )


def _find_converted(volumes: Sequence[PreparedVolume]) -> list[list[PreparedVolume]]:
    """Those of one size, in files of different kinds, that have the same voxels around the middle.

    Volumes in files of one kind are not read for it: a store may have to read all of a volume.
    """
    of_one_size: dict[tuple[Any, ...], list[PreparedVolume]] = {}
    for volume in volumes if len(volumes) <= _MOST else ():
        of_one_size.setdefault((volume.modality, *volume.size), []).append(volume)
    found: list[list[PreparedVolume]] = []
    for same_size in of_one_size.values():
        seen: list[tuple[np.ndarray, list[PreparedVolume]]] = []
        is_mixed = len({volume.ending for volume in same_size}) > 1
        for volume in same_size if is_mixed and len(same_size) <= _MOST_OF_ONE_SIZE else ():
            middle = _middle(volume)
            alike = next((one for values, one in seen if _are_equal(values, middle)), None)
            if alike is None:
                seen.append((middle, [volume]))
            else:
                alike.append(volume)
        found += [same for _, same in seen if len(same) > 1]
    return found


def _middle(volume: PreparedVolume) -> np.ndarray:
    """The voxels around the middle, and the voxel size; nothing of a volume that cannot be read."""
    depth, height, width = (slice(max(0, (size - _MIDDLE) // 2), (size + _MIDDLE) // 2) for size in volume.size)
    try:
        tensors = volume.store.read(volume.key, (depth, height, width), ("image", "spacing"))
    except (DamagedVolumeError, UserError):  # training says so, or prepares it again
        return np.empty(0)
    return np.concatenate([tensors[name].numpy().ravel() for name in ("spacing", "image") if name in tensors])


def _are_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two have the same values, and more than the one of background or of a mask."""
    if one.shape != other.shape or not one.size or len(np.unique(one)) < _MIDDLE:
        return False
    return bool(np.abs(one - other).max() < _SAME_VALUE)


def _warn_of_converted(converted: Sequence[Sequence[PreparedVolume]]) -> None:
    if converted:
        count = sum(map(len, converted)) - len(converted)
        logger.warning(
            "%s the voxels of another file, such as %s and %s: remove copies; they stay on one side of the split",
            "1 volume has" if count == 1 else f"{count} volumes have", *(one.name for one in converted[0][:2]),
        )  # fmt: skip


def _warn_of_shared_patients(training: Sequence[PreparedVolume], validation: Sequence[PreparedVolume]) -> None:
    of_training = {volume.group: volume for volume in training}
    shared = [volume for volume in validation if volume.group in of_training]
    if not shared:
        return
    first = shared[0]
    logger.warning(
        "%d of %d volumes that are listed for validation are of patients who have others listed for training, such as "
        "%s and %s: what the validation says is no test of unseen patients",
        len(shared), len(validation), first.name, of_training[first.group].name,
    )  # fmt: skip


def split_volumes(
    volumes: Sequence[PreparedVolume],
    *,
    val_fraction: float,
    seed: int,
    folds: int | None = None,
    fold: int = 0,
    earlier: Callable[[PreparedVolume], str] | None = None,
) -> tuple[list[PreparedVolume], list[PreparedVolume]]:
    """The volumes to train on and those to validate on.

    With `folds` the lists of a json make no difference: each of their volumes is validated in one fold. Without, its
    lists are the split, where it has any. Else `val_fraction` of each modality is drawn.

    Args:
        volumes: all that can be used.
        val_fraction: share for validation; 0 validates on all volumes, those to train on as well.
        seed: of the draw; folds do not depend on it.
        folds: number of folds.
        fold: the one that is validated, from 0.
        earlier: the part that a volume had before, "" for a new one. What was drawn then stays, with the volumes of one
            group; `val_fraction` is drawn of the others.

    Raises:
        UserError: if nothing is left to train or to validate on, or there are fewer patients than folds.
    """
    subjects = Counter(v.group for v in volumes if v.group.startswith(BY_NAME))
    if subjects.total() > len(subjects):
        logger.info(
            "%d volumes are of %d subjects by their paths (sub-... as in BIDS): those of one stay on one side",
            subjects.total(), len(subjects),
        )  # fmt: skip
    if folds is not None:
        fold_by_group = deal_folds(volumes, folds)
        logger.info("fold %d of %d: the other folds are for training", fold, folds)
        held_out = {group for group, number in fold_by_group.items() if number == fold}
    elif any(volume.part for volume in volumes):
        named = [[v for v in volumes if v.part == part] for part in ("training", "validation")]
        _warn_of_shared_patients(*named)
        return _both(*named, remedy="correct the lists in the json, or the column part of a table")
    elif val_fraction == 0:
        logger.warning("val_fraction is 0: validation takes all volumes, those to train on as well")
        return list(volumes), list(volumes)
    else:
        before = {} if earlier is None else {v.group: part for v in volumes if (part := earlier(v))}
        held_out = _draw_groups([v for v in volumes if v.group not in before], val_fraction, seed)
        held_out |= {group for group, part in before.items() if part == "validation"}
    return _both(
        [v for v in volumes if v.group not in held_out],
        [v for v in volumes if v.group in held_out],
        remedy=f"add volumes of one modality from at least two patients ({_ONE_PATIENT}), or pass --val_fraction 0 to "
        "validate on the training volumes",
    )


def deal_folds(volumes: Sequence[FoundVolume | PreparedVolume], folds: int) -> dict[str, int]:
    """The fold of each group, which is validated in that fold and trained on in all others.

    Groups with many volumes are dealt first, the rest in an order that depends on nothing but the groups' names. Each
    goes to the fold that has the fewest volumes of its modality, and among those to the smallest.

    Raises:
        UserError: if there are fewer groups than folds.
    """
    groups: dict[str, Counter[str]] = {}
    for volume in volumes:
        groups.setdefault(volume.group, Counter())[volume.modality] += 1
    if len(groups) < folds:
        fewer = f"give --folds {len(groups)}, or " if len(groups) > 1 else ""
        raise UserError(
            f"--folds {folds} needs {folds} patients, and the {len(volumes)} volumes that can be used are of "
            f"{len(groups)}: {fewer}add volumes of more patients ({_ONE_PATIENT})"
        )
    names = sorted(groups)
    order = [names[i] for i in np.random.default_rng(_FOLD_SEED).permutation(len(names))]
    order.sort(key=lambda name: -groups[name].total())
    filled = [Counter[str]() for _ in range(folds)]
    dealt: dict[str, int] = {}
    for name in order:
        alike = [sum(here[modality] for modality in groups[name]) for here in filled]
        dealt[name] = min(range(folds), key=lambda number: (alike[number], filled[number].total(), number))
        filled[dealt[name]].update(groups[name])
    return dealt


def _draw_groups(volumes: Sequence[PreparedVolume], val_fraction: float, seed: int) -> set[str]:
    """Groups to hold out: of each modality about that share of the volumes, and one at least where there are two.

    A group that would leave nothing of a modality to train on stays in training.
    """
    sizes: dict[str, Counter[str]] = {}
    for volume in volumes:
        sizes.setdefault(volume.group, Counter())[volume.modality] += 1
    left = sum(sizes.values(), Counter[str]())  # to train on
    whole = dict(left)
    held_out: set[str] = set()

    def hold_out(group: str) -> None:
        held_out.add(group)
        left.subtract(sizes[group])

    for modality in ("CT", "MR"):
        groups = sorted(group for group in sizes if sizes[group][modality])
        drawn = [groups[i] for i in np.random.default_rng((seed, 3)).permutation(len(groups))]
        for group in drawn:
            missing = val_fraction * whole[modality] - (whole[modality] - left[modality])
            nearer = abs(missing - sizes[group][modality]) < abs(missing)
            if group not in held_out and nearer and _spares(left, sizes[group]):
                hold_out(group)
        if groups and left[modality] == whole[modality]:  # all are too large
            spared = [group for group in drawn if _spares(left, sizes[group])]
            if spared:
                hold_out(min(spared, key=lambda group: sizes[group][modality]))
        _warn_of_share(modality, whole.get(modality, 0), left[modality], val_fraction)
    return held_out


def _spares(left: Mapping[str, int], group: Mapping[str, int]) -> bool:
    """Whether holding out a group leaves something to train on of each of its modalities."""
    return all(left[modality] > count for modality, count in group.items())


def _warn_of_share(modality: str, count: int, left: int, val_fraction: float) -> None:
    held_out = count - left
    if held_out > max(2, 1.5 * val_fraction * count):
        logger.warning(
            "%d of %d %s volumes are for validation, where --val_fraction is %g: patients have unequal numbers of "
            "them, or one PatientID stands for many (%s)",
            held_out, count, modality, val_fraction, _ONE_PATIENT,
        )  # fmt: skip


def _both(
    training: list[PreparedVolume], validation: list[PreparedVolume], *, remedy: str
) -> tuple[list[PreparedVolume], list[PreparedVolume]]:
    if not training or not validation:
        raise UserError(
            f"{len(training)} volumes to train on and {len(validation)} to validate on can be used: {remedy}"
        )
    return training, validation
