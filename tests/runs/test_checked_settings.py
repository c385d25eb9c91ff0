# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from monai.bundle import ConfigParser

from bundle.errors import UserError
from bundle.runs.checked_settings import check_settings, read_defaults

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_gradient_norm", -1.0),
        ("max_gradient_norm", 0),
        ("max_gradient_norm", math.nan),
        ("steps_per_epoch", 0),
        ("steps_per_epoch", None),
        ("classes", 5),
        ("dataset_dir", ""),
        ("dataset_dir", True),
        ("cache_dir", 5),
        ("weights", 5),
        ("init_from", "/nowhere"),
        ("mask_ratio", 1.2),
        ("mask_ratio", None),
        ("mask_ratio", [0.9, 0.6]),
        ("mask_ratio", ["a", "b"]),
        ("mask_weight", "x"),
        ("encoder_lr_factor", "a"),
        ("head_lr_factor", 0),
        ("layer_decay", 2),
        ("in_channels", "a"),
        ("report_scans", -1),
        ("report_megabytes", "a"),
        ("overlap", 1.5),
        ("sample", "a"),
        ("worst", "a"),
        ("resamples", 0),
        ("confidence", "a"),
        ("score_threshold", 2),
        ("max_boxes", 0),
        ("workers", -1),
        ("amp", "maybe"),
        ("amp", 1),
        ("largest_component", 5),
        ("largest_component", [5]),
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
     {"mask_ratio": [0.6, 0.9]}, {"mask_weight": "foreground"},
     {"classes": ["a"]}, {"init_from": __file__}, {"dataset_dir": Path("a")},
     {"mr_percentiles": [0, 100]}, {"balance_weights": {"CT": 1}}, {"include": "*_seg*"}, {"ct_window": (-160, 240)}],
    ids=str,
)  # fmt: skip
def test_what_can_work_passes(config: dict):
    check_settings(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [("init_filters", 0), ("init_filters", "a"), ("blocks_down", []), ("blocks_down", "a"), ("norm", "nonorm"),
     ("norm", [])],
)  # fmt: skip
def test_an_argument_of_the_encoder_that_cannot_work_is_one_line(name: str, value: object):
    encoder = {"name": "SegResEncoder", "init_filters": 8, "blocks_down": [1, 2], "norm": ["instance", {}]}
    check_settings({"encoder": encoder})
    with pytest.raises(UserError, match=f"^--encoder#{name} .* cannot work: give "):
        check_settings({"encoder": {**encoder, name: value}})
    check_settings({"encoder": {**encoder, "name": "my_file.my_encoder", name: value}})


@pytest.mark.parametrize("weight", ["a", -1, None])
def test_a_weight_of_an_objective_that_cannot_work_is_one_line(weight: object):
    check_settings({"objectives": {"pretext": {"weight": 0.5}, "decorrelation": None}})
    with pytest.raises(UserError, match=r"^--objectives#pretext#weight .* cannot work: give a number from 0"):
        check_settings({"objectives": {"pretext": {"weight": weight}}})


@pytest.mark.parametrize("value", [0.1, [], [1, -1], "1"])
def test_weights_of_levels_that_cannot_work_are_one_line(value: object):
    check_settings({"loss": {"level_weights": [1, 0.5]}})
    with pytest.raises(UserError, match=r"^--loss#level_weights .* cannot work: give numbers from 0"):
        check_settings({"loss": {"level_weights": value}})


@pytest.mark.parametrize("name", ["seed", "lr"])
def test_null_is_refused_where_the_config_has_no_meaning_for_it(name: str):
    check_settings({name: None}, {name: None})
    with pytest.raises(UserError, match=rf"^--{name} None cannot work: give a "):
        check_settings({name: None}, {name: 1})


def test_a_folder_without_weights_is_no_start(tmp_path: Path):
    with pytest.raises(UserError, match=r"^--init_from .* cannot work: give a run's folder, which has a model.pt"):
        check_settings({"init_from": str(tmp_path)})
    (tmp_path / "model.pt").touch()
    check_settings({"init_from": str(tmp_path)})


def children(*sizes: list[int], **more: Any) -> dict[str, Any]:
    return {"crop_size": [48, 48, 32], "mask_in_mask": {"levels": [{"size": size, **more} for size in sizes]}}


def test_children_larger_than_their_crop_are_refused_before_volumes_are_prepared():
    with pytest.raises(
        UserError, match=r"levels#0: a child of \[48, 48, 48\] .* parent of \[48, 48, 32\]: .* --crop_size"
    ):
        check_settings(children([48, 48, 48]))
    with pytest.raises(UserError, match=r"levels#1: a child of \[48, 48, 32\] .* parent of \[32, 32, 32\]"):
        check_settings(children([32, 32, 32], [48, 48, 32]))
    with pytest.raises(UserError, match=r"levels#0: a child of \[64, 64, 32\]"):
        check_settings(children([32, 32, 32], extent=[64, 64, 32]))
    check_settings(children([48, 48, 48], extent=[32, 32, 32]))
    check_settings(children([48, 48, 48], extent_mm=30))
    check_settings(children([48, 48, 48]) | {"wide_field": {}})
    check_settings(children("@checked_crop_size") | {"crop_size": [48, 48, 32]})


@pytest.mark.parametrize(
    ("channels", "histogram", "images", "wanted"),
    [
        (32, {"bins": 16}, 1, 16),
        (32, None, 1, 1),
        (32, {"bins": 32}, 2, 64),
        (16, {"bins": 16}, 1, None),
        (2, None, 2, None),
        ("@channels", {"bins": 16}, 1, None),
        (32, "@histogram", 1, None),
    ],
)
def test_a_decoder_and_its_histogram_fit_before_volumes_are_prepared(channels, histogram, images, wanted):
    config = {
        "encoder": {"in_channels": images},
        "decoder": {"_target_": "bundle.networks.build_decoder", "channels": channels},
        "loss": {"reconstruction": {"histogram": histogram}},
    }
    if wanted is None:
        check_settings(config)
    else:
        with pytest.raises(UserError, match=rf"^--decoder#channels {channels} cannot work: give {wanted},"):
            check_settings(config)


def test_an_alignment_of_levels_without_children_is_refused_before_volumes_are_prepared():
    config = {
        "alignment_heads": {"_target_": "bundle.networks.VolumeLevelPairs"},
        "network_def": {"alignment": "@alignment_heads"},
    }
    with pytest.raises(UserError, match=r"needs children: put mask_in_mask.yaml before alignment_levels.yaml"):
        check_settings(config | {"mask_in_mask": {"levels": []}})
    check_settings(config | children([32, 32, 32]))
    check_settings({"network_def": {"alignment": None}, "alignment_heads": config["alignment_heads"]} | children())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"mask_weight": "weight_map", "weight_maps": None}, "--mask_weight weight_map needs the maps"),
        ({"mask_weight": "foreground", "weight_maps": "maps"}, "--weight_maps has no effect by itself"),
        ({"alignment_warmup": 3, "network_def": {"alignment": None}}, "--alignment_warmup has no effect without an"),
    ],
)
def test_what_needs_another_setting_says_so(config: dict, said: str):
    with pytest.raises(UserError, match=f"^{said}"):
        check_settings(config)


def test_what_is_set_together_passes():
    check_settings({"mask_weight": "weight_map", "weight_maps": "maps"})
    check_settings({"alignment_warmup": 3, "network_def": {"alignment": "@alignment_heads"}})


def test_settings_of_an_alignment_without_one_are_refused():
    def config(name: str, alignment: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        parser = ConfigParser()
        parser.read_config([str(file) for file in CONFIGS if file.stem in ("train", name)][::-1])
        files = [file for file in CONFIGS if file.stem == "train"]
        parser["network_def"]["alignment"] = alignment
        return parser.get(), read_defaults(files)

    with pytest.raises(UserError, match=r"^loss#alignment#negatives has no effect without an alignment: add"):
        check_settings(*config("alignment_place"))
    check_settings(*config("alignment_place", "@alignment_heads"))
    check_settings(*config("preset_dev"))


def test_weights_of_a_column_need_the_column():
    check_settings({"balance": "modality", "balance_weights": {"CT": 1}})
    with pytest.raises(UserError, match=r"^--balance_weights needs the column of their values: give --balance too"):
        check_settings({"balance": None, "balance_weights": {"CT": 1}})


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_settings_of_every_config_pass(file: Path):
    check_settings(yaml.safe_load(file.read_text()), read_defaults([file]))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_switch_of_every_config_refuses_what_is_neither(file: Path):
    """A text counts as true: --overwrite no would remove what was there."""
    config = yaml.safe_load(file.read_text())
    either = {"resume": "", "balance": "", "amp": "maybe", "largest_component": 5}
    for name in [name for name, value in config.items() if isinstance(value, bool)]:
        for value in [either[name]] if name in either else ["no", "false", 1, None]:
            with pytest.raises(UserError, match=f"^--{name} .* cannot work: give "):
                check_settings({**config, name: value}, config)
        check_settings({**config, name: not config[name]}, config)
        check_settings({**config, name: "@another"}, config)


def test_the_first_file_with_an_id_says_whether_it_is_a_switch(tmp_path: Path):
    base, user = tmp_path / "base.yaml", tmp_path / "user.yaml"
    base.write_text("mirrors: auto\nnorm: [instance, {affine: true}]\nthresholds: {}")
    user.write_text("mirrors: false\nworse: true")
    defaults = read_defaults([base, user])
    check_settings(
        {"mirrors": "auto", "worse": False, "norm": ["batch", {"affine": 1}], "thresholds": {"a": 1}}, defaults
    )
    with pytest.raises(UserError, match=r"^--worse 'auto' cannot work: give True or False$"):
        check_settings({"worse": "auto"}, defaults)
    with pytest.raises(UserError, match=r"^--norm#1#affine 'no' cannot work: give True or False$"):
        check_settings({"norm": ["instance", {"affine": "no"}]}, defaults)
    with pytest.raises(UserError, match=r"^--thresholds .* cannot work: give values by name"):
        check_settings({"thresholds": ["a"]}, defaults)
