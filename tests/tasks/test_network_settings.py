# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import copy

import torch
from monai.bundle import ConfigParser
from monai.networks import nets

from bundle.tasks import network_settings

CONFIG = {
    "channels": 2,
    "sizes": [4, 8],
    "network_def": {
        "_target_": "BasicUNet",
        "_desc_": "not an argument",
        "spatial_dims": 3,
        "in_channels": "@channels",
        "out_channels": "$@channels + 1",
        "features": "$@sizes + [8, 8, 8, 4]",
        "norm": ["instance", {"affine": "$True"}],
    },
    "wrapped": {"_target_": "bundle.runs.wrap", "network": "@network_def", "device": "$torch.device('cpu')"},
    "settings": {"network": {"_target_": "bundle.tasks.network_settings", "network": "@wrapped"}},
}


def test_name_and_resolved_arguments_build_the_same_network_again():
    parser = ConfigParser(copy.deepcopy(CONFIG))
    settings = parser.get_parsed_content("settings")["network"]
    assert settings == {
        "name": "BasicUNet",
        "spatial_dims": 3,
        "in_channels": 2,
        "out_channels": 3,
        "features": [4, 8, 8, 8, 8, 4],
        "norm": ["instance", {"affine": True}],
    }
    weights = parser.get_parsed_content("network_def").state_dict()
    getattr(nets, settings.pop("name"))(**settings).load_state_dict(weights, strict=True)


def test_an_override_of_the_network_is_followed():
    parser = ConfigParser(copy.deepcopy(CONFIG))
    parser["network_def"] = {"_target_": "monai.networks.nets.VNet", "in_channels": 1, "out_channels": 2}
    settings = parser.get_parsed_content("settings")["network"]
    assert settings == {"name": "VNet", "in_channels": 1, "out_channels": 2}


def test_a_network_that_no_config_has_made_has_its_name():
    assert network_settings(torch.nn.Linear(1, 1)) == {"name": "Linear"}


def test_a_network_of_ones_own_has_the_name_by_which_it_is_imported():
    parser = ConfigParser(copy.deepcopy(CONFIG))
    parser["network_def"] = {"_target_": "tests.prediction.models.Thresholds", "in_channels": 2}
    settings = parser.get_parsed_content("settings")["network"]
    assert settings == {"name": "tests.prediction.models.Thresholds", "in_channels": 2}
