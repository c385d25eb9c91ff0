# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/dataset_json.py: pre-training and every task read a list of volumes alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.data import find_volumes
from bundle.data.dataset_json import list_entries
from bundle.errors import UserError
from bundle.tasks.detection import find_boxes
from bundle.tasks.segmentation import find_segmentations


@pytest.mark.parametrize("find", [find_volumes, find_segmentations, find_boxes])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"^--dataset_dir \S+ is no readable json"),
        ("[]", r"^--dataset_dir \S+ is not the json of a dataset, it has no list 'training'"),
        ('{"training": 1}', r"^--dataset_dir \S+ has no list 'training': "),
        ('{"training": [], "validation": 3}', r"^--dataset_dir \S+ has a 'validation' that is no list"),
    ],
)
def test_what_cannot_be_a_list_is_said_in_the_same_words(
    find: Callable[[Path], Any], content: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=said):
        find(tmp_path / "dataset.json")


@pytest.mark.parametrize("validation", [None, [], ["c"]])
def test_entries_have_a_part_where_both_lists_have_some(validation: list[str] | None) -> None:
    content = json.loads(json.dumps({"training": ["a", {"image": "b"}], "validation": validation}))
    found = list(list_entries(Path("dataset.json"), content, ""))
    part = "training" if validation else ""
    expected = [("training", part, "a"), ("training", part, {"image": "b"})]
    assert found == expected + ([("validation", "validation", "c")] if validation else [])
