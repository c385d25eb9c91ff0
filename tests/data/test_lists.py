# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/lists.py: what a list says of all its volumes; tests/tasks/test_find.py has its entries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bundle.data.lists import find_labelled, first_modality


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"modality": {"0": "CT"}}, "CT"),
        ({"modality": {"0": "MRI", "1": "CT"}}, "MR"),
        ({"channel_names": {"0": "ct"}}, "CT"),
        ({"modality": "MR"}, "MR"),
        ({"channel_names": {"0": "T1"}}, ""),
        ({}, ""),
    ],
)
def test_the_modality_is_that_of_the_first_channel(content: dict[str, Any], expected: str) -> None:
    assert first_modality(content) == expected


def test_wanted_keys_become_annotations_and_a_label_map_a_path(tmp_path: Path) -> None:
    entry = {"image": "a.nii", "label": "b.nii", "box": [[1, 2]], "age": 70}
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"training": [entry]}))
    (with_map,) = find_labelled(file, ("label",))
    (with_boxes,) = find_labelled(file, ("box", "label"))
    assert with_map.annotations == {"label": str(tmp_path / "b.nii")}
    assert with_boxes.annotations == {"box": [[1, 2]], "label": "b.nii"}
