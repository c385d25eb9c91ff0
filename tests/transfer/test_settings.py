# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from bundle.errors import UserError
from bundle.transfer import PretrainedSettings

GIVEN = {"name": "SegResEncoder", "init_filters": 16}
RECORDED = {
    "encoder": {"name": "DynUNet", "strides": [1, 2]},
    "spacing": [1, 1, 2],
    "ct_window": [-200, 300],
    "mr_percentiles": [1, 99],
}


def recorded(folder: Path, content: object = RECORDED) -> Path:
    (folder / "model.json").write_text(json.dumps(content))
    return folder / "model.pt"


def test_what_was_recorded_holds(tmp_path: Path, caplog):
    settings = PretrainedSettings(recorded(tmp_path), encoder=GIVEN)
    assert settings.encoder == RECORDED["encoder"] and settings.spacing == [1, 1, 2]
    assert settings.ct_window == [-200, 300] and settings.mr_percentiles == [1, 99]
    assert not caplog.records


def test_from_scratch_the_config_holds_with_defaults_for_the_rest(caplog):
    settings = PretrainedSettings(None, encoder=GIVEN, ct_window=(-150, 250))
    assert settings.encoder == GIVEN and settings.spacing is None
    assert settings.ct_window == [-150, 250] and settings.mr_percentiles == [0.5, 99.5]
    assert not caplog.records


def test_weights_without_a_json_are_used_as_the_config_says_with_a_warning(tmp_path: Path, caplog):
    settings = PretrainedSettings(tmp_path / "model.pt", encoder=GIVEN, spacing=[3, 3, 3])
    assert settings.encoder == GIVEN and settings.spacing == [3, 3, 3]
    assert "model.json does not exist" in caplog.text


@pytest.mark.parametrize(
    ("option", "value", "used"),
    [
        ("spacing", [1, 1, 3], [1, 1, 3]),
        ("spacing", "own", None),
        ("ct_window", [-100, 300], [-100, 300]),
        ("mr_percentiles", (0, 100), [0, 100]),
    ],
)
def test_another_value_is_used_with_a_warning_that_names_both(tmp_path: Path, caplog, option: str, value, used):
    with caplog.at_level(logging.WARNING):
        settings = PretrainedSettings(recorded(tmp_path), encoder=GIVEN, **{option: value})
    assert getattr(settings, option) == used
    (record,) = caplog.records
    told = "own" if value == "own" else used
    assert f"{option} is {told} here, but the encoder was pre-trained with {RECORDED[option]}" in record.getMessage()


def test_the_same_value_is_no_mismatch(tmp_path: Path, caplog):
    PretrainedSettings(recorded(tmp_path), encoder=GIVEN, spacing=(1.0, 1.0, 2.0), ct_window=[-200.0, 300.0])
    assert not caplog.records


@pytest.mark.parametrize(
    ("option", "value"),
    [("spacing", "finest"), ("spacing", [1, 1]), ("spacing", 1.5), ("ct_window", "own"), ("mr_percentiles", [1])],
)
def test_a_value_that_does_not_fit_is_one_line(option: str, value):
    with pytest.raises(UserError, match=f"--{option} .* does not fit"):
        PretrainedSettings(None, encoder=GIVEN, **{option: value})


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_json_is_one_line(tmp_path: Path, text: str):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.json is no"):
        PretrainedSettings(tmp_path / "model.pt", encoder=GIVEN)


def test_an_argument_of_the_encoder_is_the_recorded_one_or_the_default(tmp_path: Path):
    settings = PretrainedSettings(recorded(tmp_path), encoder=GIVEN)
    assert settings.argument("strides") == settings.argument("strides", None) == [1, 2]
    assert settings.argument("filters", None) is None
    with pytest.raises(UserError, match="the network asks for 'init_filters' of the encoder DynUNet"):
        settings.argument("init_filters")


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_truth_value_is_no_file(pretrained: bool):
    with pytest.raises(UserError, match=f"--pretrained {pretrained} names no file: .* --pretrained None"):
        PretrainedSettings(pretrained, encoder=GIVEN)
