# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/prediction/predict_first.py: which config predicts before an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from bundle.errors import UserError
from bundle.evaluation import EvaluationFolder
from bundle.prediction import predicted_folder

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("task", ["segmentation", "classification", "detection"])
def test_the_config_that_predicts_is_that_of_the_bundle_root(task: str, tmp_path: Path):
    """An installed package has no configs beside it."""
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / f"evaluate_{task}.yaml"))
    parser["bundle_root"] = str(tmp_path)
    assert parser.get_parsed_content("predicted#config") == f"{tmp_path}/configs/predict_{task}.yaml"
    assert (CONFIGS / f"predict_{task}.yaml").is_file()


def test_a_bundle_root_without_configs_is_named(tmp_path: Path):
    config, output = tmp_path / "configs/predict_detection.yaml", EvaluationFolder(tmp_path / "out")
    with pytest.raises(UserError, match="does not exist, so nothing says how to predict: give --bundle_root"):
        predicted_folder(
            predictions=None, model="run", config=config, find=lambda *_: [], dataset_dir=tmp_path, output=output
        )


def test_an_option_of_the_prediction_that_cannot_work_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"^--probabilities 'no' cannot work: give True or False"):
        predicted_folder(
            predictions=None, model="run", config=CONFIGS / "predict_segmentation.yaml", find=lambda *_: [],
            dataset_dir=tmp_path, output=EvaluationFolder(tmp_path / "out"), options={"probabilities": "no"},
        )  # fmt: skip
