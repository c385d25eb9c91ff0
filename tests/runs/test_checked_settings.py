# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from bundle.errors import UserError
from bundle.runs.checked_settings import check_settings

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_gradient_norm", -1.0),
        ("max_gradient_norm", 0),
        ("max_gradient_norm", math.nan),
        ("steps_per_epoch", 0),
        ("steps_per_epoch", None),
        ("replace_model", "yes"),
        ("replace_model", 1),
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", True),
        ("batch_size", -2),
        ("batch_size", "2"),
        ("val_interval", 0),
        ("num_workers", -1),
        ("sw_batch_size", 0),
        ("seed", -1),
        ("lr", -0.1),
        ("lr", "fast"),
        ("weight_decay", -1),
        ("warmup_epochs", -5),
        ("val_fraction", 1),
        ("folds", 1),
        ("fold", -1),
        ("resume", 1),
        ("resume", ""),
        ("crop_size", 96),
        ("crop_size", [96, 96]),
        ("crop_size", [96, 96, 0]),
        ("spacing", "isotropic"),
        ("spacing", [1, 1, "abc"]),
        ("spacing", [1, 1, 0]),
        ("mr_floor", "abc"),
        ("mr_percentiles", [0.5, 200]),
        ("mr_percentiles", [99, 1]),
        ("ct_window", [240, -160]),
        ("ct_window", 400),
        ("balance_weights", "CT:1"),
        ("include", 5),
    ],
)
def test_a_setting_that_cannot_work_is_one_line_with_what_would(name: str, value: object):
    with pytest.raises(UserError, match=f"^--{name} .* cannot work: give ") as caught:
        check_settings({"epochs": 2, name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [{}, {"seed": None}, {"lr": None}, {"lr": 0}, {"epochs": "@more"}, {"lr": "$1 / 3"}, {"resume": "runs/a"},
     {"lr": {"_target_": "builtins.float"}}, {"weight_decay": 0}, {"max_gradient_norm": 1.0e-3},
     {"warmup_epochs": None}, {"spacing": [1, 1, None]}, {"spacing": "own"}, {"crop_size": ["$2 * @side", 8, 8]},
     {"mr_percentiles": [0, 100]}, {"balance_weights": {"CT": 1}}, {"include": "*_seg*"}, {"ct_window": (-160, 240)}],
    ids=str,
)  # fmt: skip
def test_what_can_work_passes(config: dict):
    check_settings(config)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_settings_of_every_config_pass(file: Path):
    check_settings(yaml.safe_load(file.read_text()))
