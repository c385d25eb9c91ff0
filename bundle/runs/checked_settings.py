# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Refuses settings that cannot work, before the volumes are prepared, which may take hours."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.networks.layers.factories import Norm

from bundle.errors import UserError

__all__ = ["check_settings", "read_defaults"]


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


def _is_names(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(one, str) for one in value)


def _is_filled(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0


def _is_triple(value: Any) -> bool:
    return _is_list(value, 3)


def _is_size(value: Any) -> bool:
    return _is_triple(value) and all(map(_is_whole, value))


def _is_mm(value: Any) -> bool:
    return value is None or (_is_number(value) and value > 0)


def _is_path(value: Any) -> bool:
    return isinstance(value, os.PathLike) or (isinstance(value, str) and value != "")


def _is_ratio(value: Any) -> bool:
    ends = value if _is_list(value, 2) else (value, value)
    return all(map(_is_number, ends)) and 0 < ends[0] <= ends[1] < 1


def _is_norm(value: Any) -> bool:
    """Whether MONAI knows it: a name, or a name and its arguments."""
    named = value if isinstance(value, str) else value[0] if _is_list(value, 2) and value else None
    return isinstance(named, str) and named.upper() in Norm.names


def _is_range(value: Any) -> bool:
    return _is_list(value, 2) and all(map(_is_number, value)) and value[0] < value[1]


_COUNT = _Rule(lambda value: _is_whole(value) and value >= 1, "a whole number from 1")
_COUNT_OR_0 = _Rule(lambda value: _is_whole(value) and value >= 0, "a whole number from 0")
_ABOVE_0 = _Rule(lambda value: _is_number(value) and value > 0, "a number above 0")
_FROM_0 = _Rule(lambda value: _is_number(value) and value >= 0, "a number from 0")
_SHARE = _Rule(lambda value: _is_number(value) and 0 <= value < 1, "a share from 0 to below 1, such as 0.2")
_SHARE_OR_1 = _Rule(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1, such as 0.5")
_PATH = _Rule(_is_path, "a path")
_SWITCH = _Rule(lambda value: isinstance(value, bool), "True or False")
#: of an argument of a component, which may know more than these: MONAI's own take None, or a number
_INNER_SWITCH = _Rule(lambda value: not isinstance(value, str), _SWITCH.wanted, or_null=True)
_MAPPING = _Rule(lambda value: isinstance(value, Mapping), "values by name, such as {name: 1}", or_null=True)

#: by the ids of the configs; an id that a config lacks is not looked at. What is True or False in a config needs no
#: rule, unless it may be something else as well
_RULES: dict[str, _Rule] = {
    "dataset_dir": _PATH,
    "output_dir": _Rule(_is_path, "a folder; one that is called by a number as ./2026", or_null=True),
    "cache_dir": _PATH,
    "weights": _PATH,
    "init_from": _Rule(lambda value: _is_path(value) and any(Path(value, file).is_file() for file in ("", "model.pt")),
                       "a run's folder, which has a model.pt, or a file of weights", or_null=True),
    "epochs": _COUNT,
    "steps_per_epoch": _COUNT,
    "batch_size": _COUNT,
    "global_batch": _Rule(_COUNT.fits, _COUNT.wanted, or_null=True),
    "save_minutes": _Rule(_ABOVE_0.fits, _ABOVE_0.wanted, or_null=True),
    "val_interval": _COUNT,
    "num_workers": _COUNT_OR_0,
    "workers": _Rule(_COUNT_OR_0.fits, _COUNT_OR_0.wanted, or_null=True),
    "memory_gb": _Rule(_ABOVE_0.fits, _ABOVE_0.wanted, or_null=True),
    "of": _COUNT,
    "sample": _COUNT_OR_0,
    "in_channels": _COUNT,
    "anchor_count": _COUNT,
    "dropout": _SHARE,
    "overlap": _SHARE,
    "report_scans": _COUNT_OR_0,
    "report_megabytes": _ABOVE_0,
    "score_threshold": _SHARE_OR_1,
    "nms_threshold": _SHARE_OR_1,
    "min_score": _SHARE_OR_1,
    "max_boxes": _COUNT,
    "worst": _COUNT_OR_0,
    "resamples": _COUNT,
    "confidence": _Rule(lambda value: _is_number(value) and 0 < value < 1, "a share between 0 and 1, such as 0.95"),
    "sw_batch_size": _COUNT,
    "fit_heads": _COUNT_OR_0,
    "seed": _Rule(_COUNT_OR_0.fits, _COUNT_OR_0.wanted, or_null=True),
    "lr": _Rule(_FROM_0.fits, _FROM_0.wanted, or_null=True),  # fine-tuning's null chooses one
    "encoder_lr_factor": _ABOVE_0,
    "head_lr_factor": _ABOVE_0,
    "layer_decay": _Rule(lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and up to 1"),
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
    "mask_ratio": _Rule(_is_ratio, "a share between 0 and 1, such as 0.6, or a range such as [0.6, 0.9]"),
    "mask_weight": _Rule(lambda value: value in ("foreground", "weight_map"), "foreground or weight_map", or_null=True),
    "balance_weights": _Rule(lambda value: isinstance(value, Mapping),
                             "a share for each value, such as {CT: 2, MR: 1}", or_null=True),
    "include": _Rule(lambda value: isinstance(value, (str, Sequence)), "patterns of paths, such as ['labels/*']"),
    "classes": _Rule(lambda value: isinstance(value, (Mapping, list, tuple)),
                     "values by name, such as {liver: 1} or {'left kidney': 2}", or_null=True),  # of boxes names may do
    "amp": _Rule(lambda value: isinstance(value, bool) or value in ("bfloat16", "float16"),
                 "True, False, bfloat16 or float16"),
    "largest_component": _Rule(lambda value: isinstance(value, (bool, str)) or _is_names(value),
                               "True, False or names of classes, such as [liver]", or_null=True),
    "balance": _Rule(lambda value: isinstance(value, bool) or (isinstance(value, str) and value != ""),
                     "True or False, or in pre-training a column such as modality", or_null=True),
    "resume": _Rule(lambda value: isinstance(value, bool) or (isinstance(value, str) and value != ""),
                    "True, False or the folder of a run"),
}  # fmt: skip


#: arguments of MONAI's encoders, and of every objective
_ENCODER_RULES = {
    "init_filters": _COUNT,
    "blocks_down": _Rule(lambda value: _is_filled(value) and len(value) > 1 and all(map(_COUNT_OR_0.fits, value)),
                         "the number of blocks of each level, such as [1, 2, 2, 4, 4]"),
    "norm": _Rule(_is_norm, f"one of {', '.join(Norm.names).lower()}, or that with its arguments, such as "
                            "[instance, {affine: true}]"),
}  # fmt: skip
_OBJECTIVE_RULES = {"weight": _FROM_0}
_LOSS_RULES = {
    "level_weights": _Rule(lambda value: _is_filled(value) and all(map(_FROM_0.fits, value)),
                           "numbers from 0, such as [1, 0.5, 0.5]"),
}  # fmt: skip
#: null has a meaning only where a config has it
_NULL_BY_DEFAULT = ("seed", "lr")


def read_defaults(files: Sequence[Path]) -> dict[str, Any]:
    """What each id is in the first of the config files that has it."""
    defaults: dict[str, Any] = {}
    for file in files:
        defaults = {**ConfigParser.load_config_file(file), **defaults}
    return defaults


def check_settings(config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Looks at the numbers and switches of a merged config. References and expressions are left to their components.

    Args:
        config: as it is run.
        defaults: as `read_defaults` reads them. What is True or False there must stay one of these, and a mapping a
            mapping.

    Raises:
        UserError: for the first setting that cannot work.
    """
    for name, rule in _RULES.items():
        if name in config:
            _check(name, config[name], rule)
    for name, rule, value in (*_list_arguments(config), *_list_kinds(defaults or {}, config)):
        _check(name, value, rule)
    for name in _NULL_BY_DEFAULT:
        if name in config and config[name] is None and (defaults or {}).get(name) is not None:
            raise UserError(f"--{name} None cannot work: give {_RULES[name].wanted}")
    _check_together(config)
    _check_alignment(config, defaults or {})


def _check_together(config: Mapping[str, Any]) -> None:
    """Refuses settings of which one needs another, which is not there."""
    if config.get("balance_weights") and "balance" in config and not config["balance"]:
        raise UserError("--balance_weights needs the column of their values: give --balance too, such as modality")
    if "mask_weight" in config and "weight_maps" in config:
        uses_maps, has_maps = config["mask_weight"] == "weight_map", config["weight_maps"] is not None
        if uses_maps and not has_maps:
            raise UserError("--mask_weight weight_map needs the maps: give their folder as --weight_maps")
        if has_maps and not uses_maps:
            raise UserError("--weight_maps has no effect by itself: give --mask_weight weight_map too, or leave it out")
    _check_histogram(config)
    _check_children(config)


def _check_alignment(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuses settings of an alignment where there is none."""
    if _mapping(config, "network_def").get("alignment", "") is not None:
        return
    changed = ["--alignment_warmup"] if config.get("alignment_warmup") else []
    for name in ("loss#alignment", "alignment_heads"):
        now, before = (reduce(_mapping, name.split("#"), values) for values in (config, defaults))
        changed += [f"{name}#{key}" for key in now if before and now[key] != before.get(key)]
    if changed:
        raise UserError(
            f"{changed[0]} has no effect without an alignment: add a config of one before it, such as "
            "alignment_depth.yaml, or leave it out"
        )


def _check_histogram(config: Mapping[str, Any]) -> None:
    """Refuses a decoder whose channels are not those of the histogram that the loss reads from them."""
    decoder, loss, encoder = (_mapping(config, name) for name in ("decoder", "loss", "encoder"))
    reconstruction = _mapping(loss, "reconstruction")
    channels, images = decoder.get("channels"), encoder.get("in_channels", 1)
    bins = _mapping(reconstruction, "histogram").get("bins") if reconstruction.get("histogram") else 1
    known = "histogram" in reconstruction and str(decoder.get("_target_")).startswith("bundle.")
    if known and all(map(_is_whole, (channels, images, bins))) and channels != bins * images:
        raise UserError(
            f"--decoder#channels {channels} cannot work: give {bins * images}, for each channel of the image the bins "
            "of loss#reconstruction#histogram, or 1 where that is null"
        )


def _check_children(config: Mapping[str, Any]) -> None:
    """Refuses children that are larger than what they are cut from, and their alignment where there are none."""
    levels = _mapping(config, "mask_in_mask").get("levels")
    if not isinstance(levels, list):
        return
    is_aligned = _mapping(config, "network_def").get("alignment") == "@alignment_heads"
    if is_aligned and not levels and str(_mapping(config, "alignment_heads").get("_target_")).endswith("LevelPairs"):
        raise UserError(
            "the alignment of levels needs children: put mask_in_mask.yaml before alignment_levels.yaml in "
            "--config_file, or give mask_in_mask#levels"
        )
    parent: Any = None if "wide_field" in config else config.get("crop_size")  # a wide field has more than the crop
    for number, level in enumerate(levels):
        size: Any = _mapping(levels, number).get("size")
        if not (_is_size(parent) and _is_size(size)):
            return
        extent: Any = size if level.get("extent") is None else level["extent"]
        if level.get("extent_mm") is None and _is_size(extent) and any(map(operator.gt, extent, parent)):
            raise UserError(
                f"mask_in_mask#levels#{number}: a child of {list(extent)} voxels does not fit into its parent of "
                f"{list(parent)}: give a larger --crop_size, or a smaller mask_in_mask#levels#{number}#size"
            )
        parent = size


def _mapping(values: Any, key: Any) -> Mapping[str, Any]:
    """What a part of a config is, where it is a mapping; else, as for a reference, nothing."""
    found = values.get(key) if isinstance(values, Mapping) else values[key]
    return found if isinstance(found, Mapping) else {}


def _list_arguments(config: Mapping[str, Any]) -> Iterator[tuple[str, _Rule, Any]]:
    """The arguments of components that have a rule: their ids, their rules and their values."""
    encoder, objectives = config.get("encoder"), config.get("objectives")
    parts: dict[str, tuple[Any, dict[str, _Rule]]] = {"loss": (config.get("loss"), _LOSS_RULES)}
    if isinstance(encoder, Mapping) and "." not in str(encoder.get("name", ".")):  # another's may take what it likes
        parts["encoder"] = (encoder, _ENCODER_RULES)
    if isinstance(objectives, Mapping):
        parts |= {f"objectives#{name}": (part, _OBJECTIVE_RULES) for name, part in objectives.items()}
    for name, (part, rules) in parts.items():
        for key in rules.keys() & part.keys() if isinstance(part, Mapping) else ():
            yield f"{name}#{key}", rules[key], part[key]


def _list_kinds(default: Any, value: Any, prefix: str = "") -> Iterator[tuple[str, _Rule, Any]]:
    """What is a switch, or a mapping of values, in a config file: its id, its rule, and its value now."""
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(default, Mapping) and isinstance(value, Mapping):
        pairs = ((key, one) for key, one in default.items() if key in value)
    elif isinstance(default, list) and isinstance(value, list):
        pairs = zip(range(len(value)), default)
    for key, one in pairs:
        name = f"{prefix}{key}"
        if isinstance(one, bool):
            yield name, _RULES.get(name, _INNER_SWITCH if prefix else _SWITCH), value[key]
        elif isinstance(one, Mapping) and not prefix and "_target_" not in one:
            yield name, _RULES.get(name, _MAPPING), value[key]
        yield from _list_kinds(one, value[key], f"{name}#")


def _check(name: str, value: Any, rule: _Rule) -> None:
    if (value is None and rule.or_null) or (isinstance(value, Mapping) and "_target_" in value):
        return
    if any(map(_is_reference, value if isinstance(value, (list, tuple)) else [value])):
        return
    if not rule.fits(value):
        shown = repr(value) if isinstance(value, str) else value
        raise UserError(f"--{name} {shown} cannot work: give {rule.wanted}")
