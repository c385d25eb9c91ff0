# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The configs are short, and a reader need not read beyond one line of them."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigParser
from monai.utils.misc import CheckKeyDuplicatesYamlLoader

ROOT = Path(__file__).parents[1]
FINE_TUNING = [ROOT / f"configs/finetune_{task}.yaml" for task in ("segmentation", "classification", "detection")]
LONG = [ROOT / "configs/train.yaml", *FINE_TUNING]
WITH_FIRST_PART = [
    *LONG,
    *(ROOT / f"configs/{name}.yaml" for name in ("evaluate", "prepare", "reconstruct", "inference", "index")),
    *(ROOT / f"configs/predict_{task}.yaml" for task in ("segmentation", "classification", "detection")),
]
BORDER = "# You need not read below this line."

#: lines of each file in version 0.1.0
LINES_BEFORE = {"train": 348, "finetune_segmentation": 373, "finetune_classification": 333, "finetune_detection": 366}
#: what MONAI's properties of a training bundle, presets and users name
PUBLIC = (
    "bundle_root", "device", "dataset_dir", "network_def", "network", "loss", "optimizer", "lr_scheduler", "volumes",
    "prepare", "model_settings", "train#trainer", "train#dataset", "train#dataloader", "train#preprocessing",
    "train#inferer", "train#handlers", "validate#evaluator", "validate#dataset", "validate#dataloader",
    "validate#preprocessing", "validate#inferer", "validate#handlers",
)  # fmt: skip


def lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]


@pytest.mark.parametrize("file", LONG, ids=lambda file: file.stem)
def test_each_is_at_least_80_lines_shorter_than_in_0_1_0(file: Path):
    assert len(file.read_text().splitlines()) <= LINES_BEFORE[file.stem] - 80


def test_the_fine_tuning_configs_share_fewer_than_120_lines():
    counts = [Counter(lines(file)) for file in FINE_TUNING]
    assert sum((counts[0] & counts[1] & counts[2]).values()) < 120
    for one, other in itertools.combinations(counts, 2):
        assert sum((one & other).values()) < 140


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_users_read_what_tests_do(file: Path):
    """Tests have MONAI read by libyaml, see libyaml.py, and users by PyYAML's own loader."""
    assert issubclass(CheckKeyDuplicatesYamlLoader, yaml.CSafeLoader)
    assert yaml.load(file.read_text(), yaml.loader.SafeLoader) == ConfigParser.load_config_file(file)


@pytest.mark.parametrize("file", WITH_FIRST_PART, ids=lambda file: file.stem)
def test_the_first_part_is_values_and_ends_with_one_line(file: Path):
    text = file.read_text()
    assert text.count(BORDER) == 1
    first, _, rest = text.partition(BORDER)
    assert "\n# ---- " in first and rest.startswith("\n\n# ---- ")
    assert len(first.splitlines()) <= 60
    given = yaml.safe_load(first)
    assert len(given) >= 5
    # nothing to build but the encoder, which has a name and arguments
    assert [name for name, value in given.items() if isinstance(value, dict) and "_target_" in value] in (
        [],
        ["encoder"],
    )


@pytest.mark.parametrize("file", LONG, ids=lambda file: file.stem)
def test_public_ids_are_there(file: Path):
    parser = ConfigParser(ConfigParser.load_config_file(file))
    assert [name for name in PUBLIC if name not in parser] == []


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_handlers_guard_their_own_rank(file: Path):
    assert "rank" not in yaml.safe_dump(yaml.safe_load(file.read_text())).replace("across_ranks", "")


def test_from_scratch_and_classes_have_one_form():
    for file in FINE_TUNING:
        first = file.read_text().partition(BORDER)[0]
        (remark,) = [line for line in first.splitlines() if line.startswith("pretrained:")]
        assert "null (--pretrained None): from scratch" in remark and "False" not in first
    segmentation, classification, detection = (yaml.safe_load(file.read_text()) for file in FINE_TUNING)
    assert segmentation["classes"] == detection["classes"] == {} and classification["findings"] == []


def test_training_on_several_gpus_repeats_parts_of_train_and_changes_none():
    """MONAI's tools look for the file by its name."""
    files = [ROOT / "configs/multi_gpu_train.yaml", ROOT / "configs/train.yaml"]
    several, alone = (yaml.safe_load(file.read_text()) for file in files)
    assert several.keys() == {"device", "network", "initialize", "finalize"}
    assert several == {name: alone[name] for name in several}


def test_no_target_is_also_a_module():
    """From Python 3.12 on MONAI would be given the module."""
    files = [file for folder in ("configs", "docs", "bundle", "scripts") for file in (ROOT / folder).rglob("*.*")]
    text = "\n".join(file.read_text() for file in files if file.suffix in {".yaml", ".py", ".md"})
    targets = set(re.findall(r"""_target_["']?: ["']?(bundle(?:\.\w+)+)""", text))
    assert len(targets) > 80
    assert [target for target in targets if _is_module(target)] == []


def _is_module(target: str) -> bool:
    room, _, name = target.rpartition(".")
    return (ROOT / room.replace(".", "/") / f"{name}.py").exists()


@pytest.mark.parametrize("more", ["levels_wide", "appearance_regions"])
@pytest.mark.parametrize("is_first", [False, True])
def test_reconstruction_alone_leaves_what_other_configs_set(more: str, is_first: bool) -> None:
    """None of two files takes back what the other one has set, in any order."""
    names = ["objective_reconstruction", more]
    parser = ConfigParser()
    parser.read_config([ROOT / "configs" / f"{name}.yaml" for name in ["train", *(names[::-1] if is_first else names)]])
    steps = [step for step in parser["train"]["preprocessing"]["transforms"] if not step.get("_disabled_")]
    found = [step["_target_"].rpartition(".")[2] for step in steps]
    first = "RandWideCropd" if more == "levels_wide" else "RandForegroundCropd"
    last = ["RandRegionAppearanced", "RandSimulateLowResolutiond"] if more == "appearance_regions" else []
    assert found == [first, "Compose", "CopyItemsd", *last]
    assert [step["_target_"] for step in steps[1]["transforms"]] == ["monai.transforms.RandFlipd"] * 3
