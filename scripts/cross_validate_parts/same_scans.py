# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A cross-validation is of the scans that it was begun with: dealt anew, a fold would validate what it trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from cross_validate_parts.plan import Plan

from bundle.atomic import replace_file
from bundle.data.fingerprints import fingerprint, labelled_fingerprint
from bundle.data.names import name_digest
from bundle.data.split import deal_folds
from bundle.errors import UserError

__all__ = ["begin_scans", "check_folds", "check_once", "check_scans", "recorded_parts"]


def begin_scans(plan: Plan) -> None:
    """Records the scans while no fold has trained, and later sees that they are the same.

    A folder of an earlier version has no record. Its scans are then compared with those of its finished folds.

    Raises:
        UserError: if they are others, or finished folds do not belong together.
    """
    check_folds(plan)
    content = json.loads(plan.settings.read_text())
    begun = any(plan.is_done(fold) or plan.folder(fold).last_checkpoint.is_file() for fold in range(plan.folds))
    if begun and "scans" in content:
        check_scans(plan)
    elif not begun or _same_as_folds(plan):
        with replace_file(plan.settings) as temporary:
            temporary.write_text(json.dumps({**content, "scans": _list_scans(plan)}, indent=1) + "\n")


def check_scans(plan: Plan) -> None:
    """Compares the scans with those that the folder was begun with, where these are recorded.

    Raises:
        UserError: if one is new, gone or changed, or they are dealt otherwise.
    """
    before = json.loads(plan.settings.read_text()).get("scans")
    if before is None:
        return
    now = _list_scans(plan)
    new, gone = sorted(now.keys() - before.keys()), sorted(before.keys() - now.keys())
    both = sorted(now.keys() & before.keys())
    changed = [name for name in both if now[name][0] != before[name][0]]
    moved = [name for name in both if now[name][1] != before[name][1]]
    if new or gone or changed or moved:
        counts = f"{len(new)} new, {len(gone)} gone, {len(changed)} changed, {len(moved)} in another fold"
        _refuse(plan, f"{counts}; such as {(new + gone + changed + moved)[0]}")


def recorded_parts(plan: Plan, fold: int) -> dict[str, set[str]]:
    """The fingerprints of the scans that a finished fold trained on, and of those that it validated."""
    about = json.loads(plan.folder(fold).model_files.settings.read_text())
    found: Mapping[str, Sequence[str]] = about.get("fingerprints") or {}
    return {part: set(found.get(part, ())) for part in ("training", "validation")}


def check_folds(plan: Plan) -> None:
    """Finished folds must have had the same scans, each of them in one fold.

    Raises:
        UserError: if two of them do not belong together.
    """
    done = {fold: recorded_parts(plan, fold) for fold in range(plan.folds) if plan.is_done(fold)}
    known = {fold: parts for fold, parts in done.items() if parts["validation"]}
    for (first, one), (second, other) in combinations(known.items(), 2):
        differ = (one["training"] | one["validation"]) ^ (other["training"] | other["validation"])
        # of copies of one scan, all that there are, each fold trains on some
        twice = (one["validation"] & other["validation"]) - (one["training"] & other["training"])
        if differ or twice:
            _refuse_fold(plan, second, f"{len(differ)} scans were used in one of folds {first} and {second} only, and "
                                       f"{len(twice)} were validated in both")  # fmt: skip


def check_once(plan: Plan, pairs: Sequence[tuple[str, int]]) -> None:
    """Each scan must be of one fold.

    Args:
        plan: of the folds.
        pairs: names of scans, and the fold that each was validated in.

    Raises:
        UserError: if a scan is of several folds.
    """
    of: dict[str, int] = {}
    for name, fold in pairs:
        if of.setdefault(name, fold) != fold:
            _refuse_fold(plan, fold, f"{name} was validated in folds {of[name]} and {fold}")


def _list_scans(plan: Plan) -> dict[str, list[Any]]:
    """Of each scan, by its name, a digest of its files and labels, and its fold if all scans can be used."""
    usable = [replace(scan, group=scan.group or scan.name) for scan in plan.find_scans()]
    folds = deal_folds(usable, plan.folds)  # which asks for group and modality alone
    hashed = plan.hashes_names
    return {
        name_digest(scan.name) if hashed else scan.name: [labelled_fingerprint(scan), folds[scan.group]]
        for scan in usable
    }


def _same_as_folds(plan: Plan) -> bool:
    """Whether the scans are those of the finished folds, as far as these tell; what none of them used is warned of.

    Raises:
        UserError: if a scan of theirs is gone.
    """
    parts = [recorded_parts(plan, fold) for fold in range(plan.folds) if plan.is_done(fold)]
    known = {one for found in parts for scans in found.values() for one in scans}
    now = {fingerprint(scan.files): scan.name for scan in plan.find_scans()}
    if gone := known - now.keys():
        _refuse(plan, f"{len(gone)} that finished folds used are gone or changed")
    unused = sorted(name for one, name in now.items() if one not in known) if known else []
    if unused:
        name = name_digest(unused[0]) if plan.hashes_names else unused[0]
        print(f"warning: no finished fold used {len(unused)} of the scans, such as {name}: if they are new, stop and "
              "give another --output_dir, as folds that are trained now will not fit the finished ones")  # fmt: skip
    return not unused


def _refuse(plan: Plan, what: str) -> None:
    raise UserError(
        f"{plan.output} was begun with other scans than --dataset_dir {plan.dataset_dir} holds now ({what}): dealt "
        "anew, a fold would be judged on scans that it was trained on; put the data back, or give another --output_dir"
    )


def _refuse_fold(plan: Plan, fold: int, what: str) -> None:
    raise UserError(
        f"the folds in {plan.output} were trained on different scans ({what}): give another --output_dir, or remove "
        f"{plan.folder(fold).path} and {plan.mark(fold)} to train that fold again"
    )
