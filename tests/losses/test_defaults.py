# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Who builds a component in Python gets what configs/train.yaml trains with."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser
from monai.utils import optional_import

CONFIG = ConfigParser(ConfigParser.load_config_file(Path(__file__).parents[2] / "configs/train.yaml"))


@pytest.mark.parametrize("name", ["loss", "loss#reconstruction", "loss#alignment", "pretext_classes"])
def test_the_defaults_are_those_of_the_config(name: str):
    content: dict[str, Any] = CONFIG[name]
    module, _, attribute = content["_target_"].rpartition(".")
    parameters = inspect.signature(optional_import(module, name=attribute)[0]).parameters
    plain = {key: value for key, value in content.items() if key != "_target_" and not isinstance(value, dict)}
    given = {key: value for key, value in plain.items() if not str(value).startswith(("@", "$", "%"))}
    compared = {key: value for key, value in given.items() if parameters[key].default is not inspect.Parameter.empty}
    assert compared
    for key, value in compared.items():
        default = parameters[key].default
        assert (list(default) if isinstance(default, tuple) else default) == value, key
