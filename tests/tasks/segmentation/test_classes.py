# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bundle.data import FoundVolume
from bundle.errors import UserError
from bundle.tasks.segmentation import check_classes, pick_classes
from bundle.tasks.segmentation.evaluated_classes import check_evaluated, check_ignored, same_names


def write(folder: Path, **content: Any) -> Path:
    (folder / "dataset.json").write_text(json.dumps({"training": [], **content}))
    return folder


@pytest.mark.parametrize("as_folder", [True, False])
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"0": "background", "2": "tumour", "1": "liver"}, {"liver": 1, "tumour": 2}),  # MSD
        ({"background": 0, "tumour": 2, "liver": 1}, {"liver": 1, "tumour": 2}),  # nnU-Net
        ({"0": "Background", "1": "1"}, {"1": 1}),
    ],
)
def test_the_json_names_the_classes_in_the_order_of_their_values(
    tmp_path: Path, labels: dict[str, Any], expected: dict[str, int], as_folder: bool
):
    root = write(tmp_path, labels=labels)
    found = pick_classes({}, root if as_folder else root / "dataset.json")
    assert list(found.items()) == list(expected.items())
    assert check_classes(found) == len(expected) + 1


def test_classes_that_are_given_go_first(tmp_path: Path):
    write(tmp_path, labels={"whole": [1, 2]})
    assert pick_classes({"spleen": 4}, tmp_path) == {"spleen": 4}


@pytest.mark.parametrize("content", [{}, {"labels": ["a"]}, None])
def test_without_labels_nothing_is_invented(tmp_path: Path, content: dict[str, Any] | None):
    if content is not None:
        write(tmp_path, **content)
    assert pick_classes({}, tmp_path) == {}
    with pytest.raises(UserError, match="--classes"):
        check_classes(pick_classes({}, tmp_path))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"background": 0, "whole tumor": [1, 2, 3]}, r"the region 'whole tumor' of the values \[1, 2, 3\]"),
        ({"background": 0, "liver": 1, "ignore": 2}, "the label 'ignore'"),
        ({"background": 0, "liver": 1.5}, "the label 'liver' the value 1.5"),
        ({"background": 0, "liver": True}, "the label 'liver' the value True"),
        ({"0": "background", "1": None}, "the label '1' the value None"),
    ],
)
def test_regions_and_labels_to_ignore_are_refused_by_name(tmp_path: Path, labels: dict[str, Any], said: str):
    write(tmp_path, labels=labels)
    with pytest.raises(UserError, match=said) as raised:
        pick_classes({}, tmp_path)
    assert "--classes" in str(raised.value) and "\n" not in str(raised.value)


#: as nnU-Net lists them
REGIONS = {"background": 0, "enhancing": [3], "core": [2, 3], "whole": [1, 2, 3], "ignore": 4}


def test_an_evaluation_takes_regions_the_widest_first_and_what_to_ignore(tmp_path: Path):
    write(tmp_path, labels=REGIONS)
    (tmp_path / "labelsTr").mkdir()
    found = pick_classes({}, tmp_path, regions=True)
    assert list(found.items()) == [("whole", [1, 2, 3]), ("core", [2, 3]), ("enhancing", 3)]
    check_evaluated(found)
    assert check_ignored(None, found, tmp_path) == check_ignored(None, found, tmp_path / "labelsTr") == 4
    assert check_ignored(9, found, tmp_path) == 9
    for value in (3, 0, True, "4"):  # a class's, the background's, and no numbers
        with pytest.raises(UserError, match=f"--ignore {value!r} does not fit"):
            check_ignored(value, found, tmp_path)  # type: ignore[arg-type]


def test_what_to_ignore_is_no_value_of_masks(tmp_path: Path):
    masks = FoundVolume(name="s1", files=(), annotations={"label": {"liver": "liver.nii.gz"}})
    with pytest.raises(UserError, match="--ignore is a value of label maps"):
        check_ignored(255, {"liver": 1}, tmp_path, [masks])


@pytest.mark.parametrize("classes", [{"a": [1, 2], "b": [2, 1]}, {"a": [], "b": 1}, {"a": [0, 1]}, {"a": ["1"]}])
def test_regions_that_are_none_are_refused(classes: dict[str, Any]):
    with pytest.raises(UserError, match="does not fit: give each class its own value, or a list"):
        check_evaluated(classes)


def test_predictions_that_do_not_name_a_region_have_it_where_they_have_its_values():
    wanted = {"whole": [1, 2], "core": 2}
    assert same_names({}, wanted, {"oedema": 1, "core": 2}) == wanted
    assert same_names({}, wanted, {"whole": 7, "core": 2}) == {"whole": 7, "core": 2}
    for predicted in ({"oedema": 2, "core": 1}, {"core": 2}):  # other values, and some of the region's alone
        with pytest.raises(UserError, match="--classes has 'whole', and the predictions have"):
            same_names({}, wanted, predicted)
