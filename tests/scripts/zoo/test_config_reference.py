# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/zoo/config_reference.py: the page of options says what the configs say, and is up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from config_reference import Option, first_part, main, opening, options, page

from bundle.errors import UserError

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/reference/configs.md"
MAIN = ["train", "finetune_segmentation", "finetune_classification", "finetune_detection", "inference", "reconstruct"]
MAIN += ["evaluate", "evaluate_segmentation", "evaluate_classification", "evaluate_detection"]
EXAMPLE = """\
# Trains a thing. More about it.
#
#   a command

# ---- where ----------------------------------------
bundle_root: .
folder: $@bundle_root + '/data/volumes'  # a folder, or a json

# ---- what to change -------------------------------
lr: 1.0e-4
mode: "a # b"    # a or b
    # second line
norm: [instance, {affine: true}]
nothing: null
encoder:         # only from scratch
  _target_: builtins.dict
  name: X
  size: [1, 2]  # inner

# You need not read below this line.
inner: 3  # no option
"""


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(ROOT / "configs"), "run `python scripts/zoo/config_reference.py`"


@pytest.mark.parametrize("name", MAIN)
def test_every_option_of_a_config_has_a_row_with_its_meaning(name: str) -> None:
    text = (ROOT / f"configs/{name}.yaml").read_text()
    wanted = list(yaml.safe_load("\n".join(first_part(text))))
    (section,) = [
        part for part in PAGE.read_text().split("\n## ") if f"`configs/{name}.yaml`" in part.partition("|")[0]
    ]
    rows = re.findall(r"^\| `(\w+)` \| `.*` \| (.*) \|$", section, re.MULTILINE)
    assert [row for row, _ in rows] == wanted and len(wanted) >= 5
    assert all(meaning.strip() for _, meaning in rows), [row for row, meaning in rows if not meaning.strip()]


def test_the_first_part_ends_where_one_need_not_read_further() -> None:
    assert first_part(EXAMPLE)[-1] == ""
    assert "inner: 3  # no option" not in first_part(EXAMPLE)
    assert first_part("a: 1\n# ---- set-up ----\nb: 2\n") == ["a: 1"]
    assert first_part("a: 1\nb: 2\n") == ["a: 1", "b: 2"]


def test_an_option_has_its_section_default_and_remark() -> None:
    root, *others = options(EXAMPLE)
    assert (root.id, root.default) == ("bundle_root", ".") and "folder" in root.remark
    assert others == [
        Option("where", "folder", "data/volumes", "a folder, or a json"),
        Option("what to change", "lr", "1.0e-4", "learning rate at its peak"),
        Option("what to change", "mode", "'a # b'", "a or b second line"),
        Option("what to change", "norm", "[instance, {affine: true}]", ""),
        Option("what to change", "nothing", "null", ""),
        Option("what to change", "encoder", "{name: X, size: [1, 2]}", "only from scratch"),
    ]


def test_what_a_config_is_for_is_its_first_sentence() -> None:
    assert opening(EXAMPLE) == "Trains a thing"


def test_the_command_writes_the_page_and_refuses_a_folder_without_the_configs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.yaml does not exist: give"):
        page(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "docs/reference").mkdir(parents=True)
    assert main([], tmp_path) == 0
    assert (tmp_path / "docs/reference/configs.md").read_text() == PAGE.read_text()
