# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What a resumed run may not change: with it, the rest of the training would be another one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bundle.errors import UserError
from bundle.ranks import world_size
from bundle.runs.recorded_config import config_text, read_config

__all__ = ["FIXED", "check_same_settings"]

logger = logging.getLogger(__name__)

#: ids of the configs, of pre-training and of fine-tuning
FIXED = (
    "classes",
    "findings",
    "in_channels",
    "input",
    "crop_size",
    "spacing",
    "modality",
    "ct_window",
    "mr_percentiles",
    "mr_floor",
    "mask_ratio",
    "mask_weight",
    "sparse",
    "batch_size",
    "global_batch",
    "steps_per_epoch",
    "val_fraction",
    "folds",
    "fold",
    "seed",
    "hash_names",
    "balance",
    "balance_weights",
    "pretrained",
    "init_from",
)

#: components that say what is trained on and for what: where they differ, a resume says so and goes on, since another
#: version of the bundle may only write them differently
_SECTIONS = ("prepare", "masking", "mask_in_mask", "objectives", "pretext_classes", "loss", "train#preprocessing")

#: of `FIXED`, what may change where a step of all processes takes as many crops as before
_CROPS = ("batch_size", "global_batch")

#: what pre-training's configs said before their null meant it
_MEANT_BY_NULL: Mapping[str, Any] = {"ct_window": [-1000, 1000], "mr_percentiles": [0.5, 99.5]}


def check_same_settings(recorded: Path, present: Mapping[str, Any], *, crops: int | None = None) -> None:
    """Compares a config with the one that a run was trained with. An id that one of them lacks is not compared.

    Sections such as `loss` and `masking` may differ: the log says which do.

    Args:
        recorded: the run's file of settings.
        present: the merged config of the resume.
        crops: per step of all processes, that the run was trained on; None if that is not known.

    Raises:
        UserError: for the first of `FIXED` that differs.
    """
    alike = bool(crops) and crops == _crops(present)
    fixed = [name for name in FIXED if not (alike and name in _CROPS)]
    now = yaml.safe_load(config_text({name: present[name] for name in fixed if name in present}))
    sections = _sections(yaml.safe_load(config_text(present)) if now else {})
    before = read_config(recorded) if now else {}
    were = _sections(before)
    if present.get("init_from") is None and "pretrained" not in present:
        now, before = _without_null(now), _without_null(before)
    for name in fixed:
        if name in before and name in now and _in_order(name, before[name]) != _in_order(name, now[name]):
            raise UserError(
                f"{recorded.parent} was trained with --{name} {_shown(before[name])}, and this command has "
                f"{_shown(now[name])}: resume it with the same value, or leave --resume out to start a new run"
            )

    if differ := [name for name in sections if name in were and were[name] != sections[name]]:
        logger.warning(
            "%s was trained with another %s: from here on it is trained with this command's",
            recorded.parent, ", another ".join(differ),
        )  # fmt: skip


def _in_order(name: str, value: Any) -> Any:
    """Of classes the order counts: it is that of the network's channels."""
    return list(value.items()) if name == "classes" and isinstance(value, Mapping) else value


def _sections(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `_SECTIONS` that a config has."""
    whole = {**config, "train#preprocessing": (config.get("train") or {}).get("preprocessing")}
    return {name: whole[name] for name in _SECTIONS if whole.get(name) is not None}


def _without_null(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a pre-training from scratch, with the values that null means."""
    return {name: _MEANT_BY_NULL.get(name) if value is None else value for name, value in settings.items()}


def _crops(present: Mapping[str, Any]) -> int | None:
    """Crops per step of all processes; None where the config does not say it in numbers."""
    whole, each = (present.get(name) for name in ("global_batch", "batch_size"))
    if isinstance(whole, int):
        return whole
    return each * world_size() if whole is None and isinstance(each, int) else None


def _shown(value: Any) -> str:
    """A value as it is given on the command line."""
    return str(value).replace("\n", " ")
