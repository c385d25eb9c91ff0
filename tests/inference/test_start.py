# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from monai.bundle import create_workflow

from bundle.errors import UserError, user_error_in

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    start = {"_target_": "bundle.inference.start_inference", "device": "cpu", "keep_memory": False}
    content = {"spacing": [1, 1, 1], "num_workers": 1, "sw_batch_size": 4, "initialize": [start], "run": ["$None"]}
    (tmp_path / "inference.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "inference.yaml")


def test_an_option_none_is_set_though_monai_leaves_it_out(config: str):
    assert create_workflow(config_file=config, spacing=None).parser.get("spacing") is None
    assert create_workflow(config_file=config).parser.get("spacing") == [1, 1, 1]


@pytest.mark.parametrize(("name", "value"), [("num_workers", -1), ("sw_batch_size", 0), ("spacing", [1, 0, 1])])
def test_a_setting_that_cannot_work_is_refused(config: str, name: str, value: object):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        create_workflow(config_file=config, **{name: value})
    error = user_error_in(caught.value)
    assert isinstance(error, UserError)
    assert str(error).startswith(f"--{name} {value} cannot work: give ")


#: options that each config has, as a command line gives them, and what they are
SPELT = {
    "inference": {"overwrite": ("false", False), "hash_names": ("TRUE", True), "spacing": ("null", None)},
    "predict_segmentation": {"overwrite": ("false", False), "dicom_seg": ("False", False), "mirrors": ("null", None)},
    "predict_classification": {"overwrite": ("false", False), "hash_names": ("true", True)},
    "predict_detection": {"overwrite": ("false", False), "hash_names": ("true", True)},
    "evaluate_segmentation": {"overwrite": ("false", False), "resample": ("true", True)},
    "evaluate_classification": {"overwrite": ("false", False), "hash_names": ("true", True)},
    "evaluate_detection": {"overwrite": ("false", False), "hash_names": ("true", True)},
}


@pytest.mark.parametrize("name", SPELT)
def test_each_config_reads_its_options_before_anything_is_built(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    file = str(ROOT / f"configs/{name}.yaml")
    given = {key: text for key, (text, _) in SPELT[name].items()}
    parser = create_workflow(config_file=file, bundle_root=str(ROOT), device="cpu", **given).parser
    assert {key: parser.get(key) for key in given} == {key: value for key, (_, value) in SPELT[name].items()}
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        create_workflow(config_file=file, bundle_root=str(ROOT), device="cpu", overwrite="perhaps")
    assert str(user_error_in(caught.value)) == "--overwrite 'perhaps' cannot work: give True or False"
