# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bundle.runs.components import list_missing_components

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_what_the_package_lacks_is_found_at_any_depth_once():
    config = {
        "device": {"_target_": "bundle.training.pick_device"},
        "again": {"_target_": "bundle.training.pick_device"},
        "list": [1, "text", {"a": {"_target_": "bundle.no_room.Thing", "b": [{"_target_": "bundle.runs.wrap"}]}}],
        "others": [{"_target_": "monai.no.such.Thing"}, {"_target_": "@name"}, {"_target_": None}],
    }
    assert list_missing_components(config) == ["bundle.training.pick_device", "bundle.no_room.Thing"]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_all_components_of_the_configs_exist(file: Path):
    assert list_missing_components(yaml.safe_load(file.read_text())) == []
