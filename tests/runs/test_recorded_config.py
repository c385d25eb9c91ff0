# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundle.errors import UserError
from bundle.runs.checkpoint import config_of_checkpoint
from bundle.runs.recorded_config import config_text, newest_config, next_config, read_config
from bundle.runs.same_settings import FIXED, check_same_settings

SETTINGS = {
    "classes": {"liver": 1}, "findings": ["stenosis"], "in_channels": 1, "input": "whole", "crop_size": [32, 32, 32],
    "spacing": [3, 3, 3], "modality": "CT", "ct_window": [-1000, 1000], "mr_percentiles": [0.5, 99.5],
    "mask_ratio": 0.6, "mask_weight": None, "sparse": True, "batch_size": 2, "steps_per_epoch": 10,
    "val_fraction": 0.2, "folds": 5, "fold": 0, "seed": 0, "hash_names": False, "pretrained": "models/model.pt",
    "init_from": None, "global_batch": None, "balance": None, "balance_weights": None, "mr_floor": None,
}  # fmt: skip
OTHER = {
    "classes": {"liver": 2}, "findings": ["aneurysm"], "in_channels": 2, "input": "crop", "crop_size": [32, 32, 48],
    "spacing": None, "modality": "MR", "ct_window": [-160, 240], "mr_percentiles": [1, 99],
    "mask_ratio": [0.5, 0.7], "mask_weight": "foreground", "sparse": False, "batch_size": 4, "steps_per_epoch": 20,
    "val_fraction": 0.5, "folds": None, "fold": 3, "seed": 1, "hash_names": True, "pretrained": None,
    "init_from": "runs/one", "global_batch": 8, "balance": "modality", "balance_weights": {"CT": 1, "MR": 2},
    "mr_floor": 3.0,
}  # fmt: skip


def record(folder: Path, name: str = "config.yaml", **settings: object) -> Path:
    (folder / name).write_text(config_text({**SETTINGS, "lr": 1.0, **settings}))
    return folder / name


@pytest.mark.parametrize("name", FIXED)
def test_a_resume_with_another_value_is_refused_in_one_line_with_both(tmp_path: Path, name: str):
    with pytest.raises(UserError) as caught:
        check_same_settings(record(tmp_path), {**SETTINGS, name: OTHER[name]})
    said = str(caught.value)
    assert said.startswith(f"{tmp_path} was trained with --{name} {SETTINGS[name]}, and this command has {OTHER[name]}")
    assert "\n" not in said


def test_the_same_values_in_other_types_are_the_same(tmp_path: Path):
    present = {**SETTINGS, "crop_size": (32, 32, 32), "spacing": [3.0, 3, 3]}
    check_same_settings(record(tmp_path), present)


PRETRAINING = {"ct_window": None, "mr_percentiles": None, "init_from": None}


@pytest.mark.parametrize("before", [{"ct_window": [-1000, 1000], "mr_percentiles": [0.5, 99.5]}, {"ct_window": None}])
def test_a_pretraining_whose_config_said_what_null_means_now_can_be_resumed(tmp_path: Path, before: dict[str, object]):
    (tmp_path / "config.yaml").write_text(config_text(before))
    check_same_settings(tmp_path / "config.yaml", PRETRAINING)
    (tmp_path / "config.yaml").write_text(config_text({**before, "ct_window": [-160, 240]}))
    with pytest.raises(UserError, match=r"--ct_window \[-160, 240\]"):
        check_same_settings(tmp_path / "config.yaml", PRETRAINING)


@pytest.mark.parametrize("more", [{"init_from": "runs/one"}, {"pretrained": "models/model.pt"}])
def test_null_is_no_window_where_weights_say_what_it_is(tmp_path: Path, more: dict[str, object]):
    (tmp_path / "config.yaml").write_text(config_text({**more, "ct_window": [-1000, 1000]}))
    with pytest.raises(UserError, match=r"--ct_window \[-1000, 1000\], and this command has None"):
        check_same_settings(tmp_path / "config.yaml", {**PRETRAINING, **more})


def test_what_a_resume_may_change_is_not_compared(tmp_path: Path):
    names = ("lr", "weight_decay", "epochs", "num_workers", "device", "val_interval", "output_dir", "dataset_dir")
    check_same_settings(record(tmp_path), {**SETTINGS, **dict.fromkeys(names, "other")})


def test_an_id_that_only_one_of_both_has_is_not_compared(tmp_path: Path):
    record(tmp_path).write_text("lr: 1\n")
    check_same_settings(tmp_path / "config.yaml", SETTINGS)


@pytest.mark.parametrize("text", ["\0", "a: [", "[1, 2]", ""])
def test_damaged_settings_are_one_line(tmp_path: Path, text: str):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config.yaml .*: name another run"):
        read_config(tmp_path / "config.yaml")


def test_files_are_numbered_on_and_the_newest_has_the_highest_number(tmp_path: Path):
    assert newest_config(tmp_path) is None and next_config(tmp_path) == tmp_path / "config.yaml"
    for name in ("config.yaml", "config_2.yaml", "config_10.yaml", "config_old.yaml"):
        record(tmp_path, name)
    assert newest_config(tmp_path) == tmp_path / "config_10.yaml"
    assert next_config(tmp_path) == tmp_path / "config_11.yaml"


def test_a_checkpoint_names_the_settings_that_it_was_trained_with(tmp_path: Path):
    for name in ("config.yaml", "config_2.yaml", "config_3.yaml"):
        record(tmp_path, name)
    torch.save({"config": "config_2.yaml"}, tmp_path / "last.pt")
    assert config_of_checkpoint(tmp_path, tmp_path / "last.pt") == tmp_path / "config_2.yaml"


@pytest.mark.parametrize("content", [{}, {"config": "../config_2.yaml"}, {"config": "config_9.yaml"}, [1]])
def test_a_checkpoint_that_names_none_of_its_folder_leaves_the_newest(tmp_path: Path, content: object):
    record(tmp_path)
    record(tmp_path, "config_2.yaml")
    torch.save(content, tmp_path / "last.pt")
    assert config_of_checkpoint(tmp_path, tmp_path / "last.pt") == tmp_path / "config_2.yaml"
    (tmp_path / "last.pt").write_bytes(b"damaged")
    assert config_of_checkpoint(tmp_path, tmp_path / "last.pt") == tmp_path / "config_2.yaml"


def test_a_section_that_differs_is_said_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    sections = {"loss": {"weight": 1}, "train": {"preprocessing": ["flip"]}, "masking": {"seed": 0}}
    recorded = record(tmp_path, **sections)
    check_same_settings(recorded, {**SETTINGS, **sections})
    assert not caplog.text
    check_same_settings(recorded, {**SETTINGS, **sections, "loss": {"weight": 2}, "train": {"preprocessing": []}})
    assert "was trained with another loss, another train#preprocessing: from here on" in caplog.text
