# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Refuses settings that cannot work, before the volumes are prepared, which may take hours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bundle.errors import UserError

__all__ = ["check_settings"]


@dataclass(frozen=True)
class _Rule:
    """What a setting must be.

    Args:
        fits: whether a value is that.
        wanted: the same in words.
        or_null: whether null has a meaning, too.
    """

    fits: Callable[[Any], bool]
    wanted: str
    or_null: bool = False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("@", "$", "%"))


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == length


def _is_triple(value: Any) -> bool:
    return _is_list(value, 3)


def _is_mm(value: Any) -> bool:
    return value is None or (_is_number(value) and value > 0)


def _is_range(value: Any) -> bool:
    return _is_list(value, 2) and all(map(_is_number, value)) and value[0] < value[1]


_COUNT = _Rule(lambda value: _is_whole(value) and value >= 1, "a whole number from 1")
_COUNT_OR_0 = _Rule(lambda value: _is_whole(value) and value >= 0, "a whole number from 0")
_ABOVE_0 = _Rule(lambda value: _is_number(value) and value > 0, "a number above 0")
_FROM_0 = _Rule(lambda value: _is_number(value) and value >= 0, "a number from 0")
_SHARE = _Rule(lambda value: _is_number(value) and 0 <= value < 1, "a share from 0 to below 1, such as 0.2")
_SWITCH = _Rule(lambda value: isinstance(value, bool), "True or False")

#: by the ids of the configs; an id that a config lacks is not looked at
_RULES: dict[str, _Rule] = {
    "epochs": _COUNT,
    "steps_per_epoch": _COUNT,
    "batch_size": _COUNT,
    "global_batch": _Rule(_COUNT.fits, _COUNT.wanted, or_null=True),
    "save_minutes": _Rule(_ABOVE_0.fits, _ABOVE_0.wanted, or_null=True),
    "volumes_may_change": _SWITCH,
    "val_interval": _COUNT,
    "num_workers": _COUNT_OR_0,
    "sw_batch_size": _COUNT,
    "fit_heads": _COUNT_OR_0,
    "seed": _Rule(_COUNT_OR_0.fits, _COUNT_OR_0.wanted, or_null=True),
    "lr": _Rule(_FROM_0.fits, _FROM_0.wanted, or_null=True),  # fine-tuning's null chooses one
    "weight_decay": _FROM_0,
    "warmup_epochs": _Rule(_FROM_0.fits, _FROM_0.wanted, or_null=True),  # fine-tuning's null is a share of the run
    "alignment_warmup": _FROM_0,
    "max_gradient_norm": _ABOVE_0,
    "val_fraction": _SHARE,
    "folds": _Rule(lambda value: _is_whole(value) and value >= 2, "a whole number from 2", or_null=True),
    "fold": _COUNT_OR_0,
    "crop_size": _Rule(lambda value: _is_triple(value) and all(map(_COUNT.fits, value)),
                       "three whole numbers of voxels, such as [96, 96, 96]"),
    "spacing": _Rule(lambda value: value == "own" or (_is_triple(value) and all(map(_is_mm, value))),
                     "three numbers of mm, such as [1, 1, 1], with null for an axis to keep, or own", or_null=True),
    "mr_floor": _Rule(_ABOVE_0.fits, _ABOVE_0.wanted, or_null=True),
    "mr_percentiles": _Rule(lambda value: _is_range(value) and value[0] >= 0 and value[1] <= 100,
                            "two percentiles from 0 to 100, the lower one first, such as [0.5, 99.5]", or_null=True),
    "ct_window": _Rule(_is_range, "two numbers of HU, the lower one first, such as [-1000, 1000]",
                       or_null=True),
    "balance_weights": _Rule(lambda value: isinstance(value, Mapping),
                             "a share for each value, such as {CT: 2, MR: 1}", or_null=True),
    "include": _Rule(lambda value: isinstance(value, (str, Sequence)), "patterns of paths, such as ['labels/*']"),
    "replace_model": _SWITCH,
    "hash_names": _SWITCH,
    "sparse": _SWITCH,
    "pretrained_decoder": _SWITCH,
    "balance": _Rule(lambda value: isinstance(value, bool) or (isinstance(value, str) and value != ""),
                     "True or False, or in pre-training a column such as modality", or_null=True),
    "resume": _Rule(lambda value: isinstance(value, bool) or (isinstance(value, str) and value != ""),
                    "True, False or the folder of a run"),
}  # fmt: skip


def check_settings(config: Mapping[str, Any]) -> None:
    """Looks at the numbers and switches of a merged config. References and expressions are left to their components.

    Raises:
        UserError: for the first setting that cannot work.
    """
    for name, rule in _RULES.items():
        value = config.get(name, rule)
        if value is rule or (value is None and rule.or_null):
            continue
        if isinstance(value, Mapping) or any(
            map(_is_reference, value if isinstance(value, (list, tuple)) else [value])
        ):
            continue
        if not rule.fits(value):
            shown = repr(value) if isinstance(value, str) else value
            raise UserError(f"--{name} {shown} cannot work: give {rule.wanted}")
