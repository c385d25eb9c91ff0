# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigWorkflow, create_workflow

from bundle.errors import UserError, user_error_in
from bundle.runs import CheckedWorkflow
from tests.commands import run_python

ROOT = Path(__file__).parents[2]
BASE = {
    "epochs": 3,
    "lr": 1.0e-3,
    "table": {},
    "spacing": [1, 1, 1],
    "network": {"_target_": "monai.networks.nets.BasicUNet", "in_channels": 1, "features": [4, 4, 4, 4, 4, 4]},
    "train": {"handlers": [{"_target_": "monai.handlers.StatsHandler", "name": "x"}], "trainer": {"steps": 1}},
    "initialize": [{"_target_": "bundle.runs.start_run", "device": "cpu"}],
    "training": ["$None"],
    "run": "%training",
}


@pytest.fixture
def configs(tmp_path):
    folder = tmp_path / "elsewhere" / "configs"
    (folder / "presets").mkdir(parents=True)
    (folder / "train.yaml").write_text(yaml.safe_dump(BASE, sort_keys=False))
    return folder


@pytest.fixture(autouse=True)
def keep_excepthook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def message(make) -> str:
    """What the user reads."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        make()
    error = user_error_in(caught.value)
    assert isinstance(error, UserError)
    return str(error)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"epoch": 3}, "unknown option --epoch: did you mean --epochs?"),
        ({"network#nrom": "batch"}, "unknown option --network#nrom: did you mean --network#norm?"),
        ({"network::feature": 4}, "unknown option --network#feature: did you mean --network#features?"),
        ({"train#trainer#step": 2}, "unknown option --train#trainer#step: did you mean --train#trainer#steps?"),
        ({"train#handlers#0#nam": 2}, "unknown option --train#handlers#0#nam: did you mean --train#handlers#0#name?"),
        ({"features": [1]}, "unknown option --features: did you mean --network#features?"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest(configs, option, said):
    assert message(lambda: create_workflow(config_file=str(configs / "train.yaml"), **option)) == said
    assert message(lambda: ConfigWorkflow(config_file=str(configs / "train.yaml"), **option).initialize()) == said


@pytest.mark.parametrize("option", ["network", "train#handlers#0"])
def test_a_component_given_as_text_is_refused(configs, option):
    """The command line makes text of `{_target_: my.Class}`, as a dot needs quotes around it."""
    text = "{_target_: my.Class}"
    said = message(lambda: create_workflow(config_file=str(configs / "train.yaml"), **{option: text}))
    assert said.startswith(f"--{option} is a component, and was given as text: write a mapping with quotes")


def test_a_component_may_be_a_reference_or_a_mapping(configs):
    file = str(configs / "train.yaml")
    flow = create_workflow(config_file=file, network="$dict(features=[1])")
    assert flow.parser.get("network") == "$dict(features=[1])"
    assert create_workflow(config_file=file, network={"_target_": "dict", "a": 1}).parser.get("network") == {
        "_target_": "dict",
        "a": 1,
    }


def test_components_by_name_may_become_more(configs):
    """As `objectives` do; what is no component is taken for a mistake."""
    more = {"_target_": "monai.losses.DiceLoss", "sigmoid": True}
    (configs / "named.yaml").write_text(
        yaml.safe_dump({**BASE, "losses": {"first": {"_target_": "monai.losses.DiceLoss"}}})
    )
    flow = create_workflow(config_file=str(configs / "named.yaml"), **{"losses#second": more})
    assert flow.parser.get("losses").keys() == {"first", "second"}
    said = message(lambda: create_workflow(config_file=str(configs / "named.yaml"), **{"losses#frist": 3}))
    assert said == "unknown option --losses#frist: did you mean --losses#first?"
    said = message(
        lambda: create_workflow(config_file=str(configs / "named.yaml"), **{"losses#second": more | {"no": 1}})
    )
    assert said.startswith("unknown option --losses#second#no")


def test_what_is_like_nothing_points_to_the_config(configs):
    said = message(lambda: create_workflow(config_file=str(configs / "train.yaml"), dryrun=True))
    assert said == f"unknown option --dryrun: see {configs / 'train.yaml'} for all options"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"epochs": 4, "network#norm": "batch", "network::dropout": 0.1},
        {"table#anything": 1},
        {"lr": {"_target_": "builtins.float"}},
        {"network": {"_target_": "monai.networks.nets.VNet", "in_channels": 2}},
        {"tracking": None, "_meta_": {}},
    ],
)
def test_known_options_pass(configs, options):
    create_workflow(config_file=str(configs / "train.yaml"), **options)


def test_an_argument_the_new_component_has_not_got_is_refused(configs):
    other = {"_target_": "monai.networks.nets.VNet", "features": [2]}
    said = message(lambda: create_workflow(config_file=str(configs / "train.yaml"), network=other))
    assert said.startswith("unknown option --network#features: the component chosen in its place does not take it")


def test_a_preset_may_add_handlers_and_arguments_but_no_ids(configs):
    preset = configs / "presets" / "small.yaml"
    files = [str(configs / "train.yaml"), str(preset)]
    known = {"epochs": 9, "network#norm": "batch", "+train#handlers": [{"_target_": "monai.handlers.StatsHandler"}]}
    preset.write_text(yaml.safe_dump(known))
    create_workflow(config_file=files)
    preset.write_text(yaml.safe_dump({**known, "+network": {"nrom": "batch"}}))
    said = message(lambda: create_workflow(config_file=files))
    assert said == f"unknown option network#nrom in {preset}: did you mean network#norm?"


def test_a_copied_config_of_another_name_is_its_own_base(configs):
    copy = configs / "mine.yaml"
    copy.write_text(yaml.safe_dump({**BASE, "my_value": 1}))
    create_workflow(config_file=str(copy), my_value=2)


def test_the_command_line_and_an_args_file_say_it_in_one_line(configs, tmp_path):
    args = tmp_path / "args.yaml"
    args.write_text(yaml.safe_dump({"config_file": str(configs / "train.yaml"), "epoch": 7}))
    command = ["-m", "monai.bundle", "run", "training", "--args_file", args]
    done = run_python(*command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: unknown option --epoch: did you mean --epochs?"
    assert "Traceback" not in done.stderr


def test_an_option_of_none_is_set_where_monai_drops_it(configs):
    done = create_workflow(
        config_file=str(configs / "train.yaml"), spacing=None, workflow_type="train", run_id="training"
    )
    assert done.parser.get_parsed_content("spacing") is None and done.parser.get_parsed_content("epochs") == 3


def test_null_is_none_as_in_a_config(configs):
    """A command line makes a text of it, alone and in a list or mapping."""
    network = {**BASE["network"], "dropout": "null"}
    given = {"spacing": "null", "network": network, "network#features": ["null", 4], "network#in_channels": "null"}
    done = create_workflow(config_file=str(configs / "train.yaml"), workflow_type="train", run_id="training", **given)
    assert done.parser["spacing"] is None
    expected = {**BASE["network"], "dropout": None, "features": [None, 4], "in_channels": None}
    assert done.parser["network"] == expected


def test_true_and_false_are_no_texts(configs):
    """A command line makes texts of those that are spelt as in a config, which all count as true."""
    given = {
        "train#trainer#steps": "false",
        "network": {**BASE["network"], "dropout": "False", "features": ["TRUE", 4]},
    }
    done = create_workflow(config_file=str(configs / "train.yaml"), workflow_type="train", run_id="training", **given)
    assert done.parser["train#trainer#steps"] is False
    assert done.parser["network"] == {**BASE["network"], "dropout": False, "features": [True, 4]}


@pytest.mark.parametrize("value", [None, "null"])
def test_an_unknown_option_of_none_is_refused(configs, value):
    def make():
        create_workflow(config_file=str(configs / "train.yaml"), epoch=value, workflow_type="train", run_id="training")

    assert message(make) == "unknown option --epoch: did you mean --epochs?"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("netwrok#norm", "unknown option --netwrok#norm: did you mean --network#norm?"),
        ("netwrok::nrom", "unknown option --netwrok#nrom: did you mean --network#norm?"),
        ("train#trainr#step", "unknown option --train#trainr#step: did you mean --train#trainer#steps?"),
        ("trainer#steps", "unknown option --trainer#steps: did you mean --train#trainer#steps?"),
        ("netwrok#x", "unknown option --netwrok#x: did you mean --network?"),
        ("train#handlers#1#name", "unknown option --train#handlers#1#name: did you mean --train#handlers#0#name?"),
        ("epochs#x", "unknown option --epochs#x: did you mean --epochs?"),
    ],
)
def test_a_mistyped_parent_is_refused_with_the_nearest(configs, option, said):
    def make():
        CheckedWorkflow(str(configs / "train.yaml"), **{option: 1})

    assert message(make) == said


def test_a_parent_like_nothing_points_to_the_config(configs):
    said = message(lambda: CheckedWorkflow(str(configs / "train.yaml"), **{"zzz#yyy": 1}))
    assert said == f"unknown option --zzz#yyy: see {configs / 'train.yaml'} for all options"


def test_a_mistyped_parent_in_a_preset_is_refused_with_the_file(configs):
    preset = configs / "presets" / "small.yaml"
    preset.write_text(yaml.safe_dump({"train#trainr#steps": 2}))
    said = message(lambda: CheckedWorkflow([str(configs / "train.yaml"), str(preset)]))
    assert said == f"unknown option train#trainr#steps in {preset}: did you mean train#trainer#steps?"


@pytest.mark.parametrize("option", ["epochs", "network#norm", "train#handlers#0#name", "table#anything", "new"])
def test_what_has_a_parent_is_merged_as_by_monai(configs, option):
    files = [str(configs / "train.yaml")]
    checked, plain = (make(files, **{option: 1}).parser.get() for make in (CheckedWorkflow, ConfigWorkflow))
    assert checked == plain


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--train#trainr#steps", "error: unknown option --train#trainr#steps: did you mean --train#trainer#steps?"),
        ("--epoch", "error: unknown option --epoch: did you mean --epochs?"),
    ],
)
def test_the_command_line_says_it_in_one_line_with_the_checked_workflow(configs, tmp_path, option, said):
    command = ["-m", "monai.bundle", "run", "training", "--config_file", configs / "train.yaml"]
    command += ["--workflow_name", "bundle.runs.CheckedWorkflow", option, 2]
    done = run_python(*command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == said
    assert "Traceback" not in done.stderr
