# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/evaluation/: tables, results, the folder and the names that predictions may have."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bundle.data import FoundVolume
from bundle.data.names import name_digest
from bundle.data.safe_names import result_names
from bundle.errors import UserError
from bundle.evaluation import (
    Bootstrap,
    Estimate,
    EvaluationFolder,
    as_number,
    case_name,
    estimate_text,
    match_names,
    read_results,
    read_table,
    summary_rows,
    summary_table,
    write_results,
    write_table,
)
from bundle.evaluation.compare import read_result


def scan(name: str, label: str = "") -> FoundVolume:
    return FoundVolume(name=name, files=(name,), annotations={"label": label} if label else {})


def test_a_table_keeps_nine_digits_and_says_what_is_not_known(tmp_path: Path) -> None:
    rows = [{"case": "=1+1", "dice": 1 / 3, "note": "a, b"}, {"case": "b", "dice": math.nan}, {"dice": math.inf}]
    write_table(tmp_path / "t.csv", ["case", "dice", "note"], rows)
    one, two, three = read_table(tmp_path / "t.csv", ["dice"])
    assert one == {"case": "=1+1", "dice": "0.333333333", "note": "a, b"}
    assert math.isnan(as_number(two["dice"])) and as_number(three["dice"]) == math.inf
    assert list(tmp_path.iterdir()) == [tmp_path / "t.csv"]


def test_a_table_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"no column dice: its columns are a, b"):
        read_table(tmp_path / "t.csv", ["a", "dice"])
    with pytest.raises(UserError, match=r"no\.csv is no readable table"):
        read_table(tmp_path / "no.csv")


def test_results_are_valid_json_even_without_numbers(tmp_path: Path) -> None:
    metrics = {"dice": {"liver": Estimate(0.5, math.nan, math.nan, 1), "mean": Bootstrap([]).mean([])}}
    write_results(
        tmp_path / "r.json", task="segmentation", metrics=metrics, higher_is_better={"dice": True}, settings={}
    )
    text = (tmp_path / "r.json").read_text()
    assert "NaN" not in text and read_results(tmp_path / "r.json") == json.loads(text)
    assert json.loads(text)["metrics"]["dice"]["liver"] == {"mean": 0.5, "low": None, "high": None, "n": 1}
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(UserError, match="no readable result"):
        read_results(tmp_path / "r.json")


def test_a_folder_with_results_is_written_over_on_request_only(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "out")
    folder.panels.mkdir(parents=True)
    (folder.panels / "worst_01.png").write_bytes(b"")
    EvaluationFolder(tmp_path / "out")  # an evaluation that was killed has no tables yet
    folder.results.write_text("{}")
    with pytest.raises(UserError, match=r"already holds results\.json: .*--overwrite True"):
        EvaluationFolder(tmp_path / "out")
    EvaluationFolder(tmp_path / "out", overwrite=True).clear_panels()
    assert not list(folder.panels.iterdir())
    with pytest.raises(UserError, match="--output_dir is missing"):
        EvaluationFolder(None)


def test_an_interrupted_evaluation_is_done_again_by_the_same_command(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "out")
    folder.write_cases(["case"], [{"case": "a"}])
    again = EvaluationFolder(tmp_path / "out")
    again.write_cases(["case"], [{"case": "b"}])
    assert read_table(again.cases) == [{"case": "b"}]
    again.end()
    with pytest.raises(UserError, match=r"already holds cases\.csv"):
        EvaluationFolder(tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["cases.csv"]


@pytest.mark.parametrize(
    ("name", "label", "prediction"),
    [
        ("imagesTr/a b.nii.gz", "", "imagesTr/a b"),  # predict_segmentation, of the whole data set
        ("./imagesTr/a.nii.gz", "", "a"),  # nnU-Net, from a list
        ("a_0000.nii.gz", "labels/a.nii.gz", "a"),  # nnU-Net, from its folders
        ("a_0000.nii.gz", "", "a"),
        ("a.nii.gz", "labels/a_seg.nii.gz", "a_seg"),
        ("s1/ct.nii.gz", "", "s1"),  # TotalSegmentator
        ("s1/ct.nii.gz", "", "s1/ct"),
        ("site/s1/ct.nii.gz", "", "out/s1"),
        ("a.nii.gz", "", name_digest("a.nii.gz")),
        ("../x/a.nii.gz", "", "x/a"),
        ("imagesTr/a.nii.gz", "", "a_seg"),  # MONAI, and the bundles that are exported here
        ("imagesTr/a.nii.gz", "", "out/imagesTr/a_pred"),
        ("a_0000.nii.gz", "", "a_0000_seg.nii.gz"),
    ],
)
def test_a_prediction_is_found_under_the_usual_names(name: str, label: str, prediction: str) -> None:
    others = [scan("imagesTr/other.nii.gz"), scan("s2/ct.nii.gz")]
    assert match_names([scan(name, label), *others], ["nothing", prediction]) == [prediction, None, None]


def test_a_prediction_of_ours_is_found_whatever_it_had_to_be_called() -> None:
    names = ["Case_A.nii.gz", "case_a.nii.gz", "M\u00fcller.nii.gz", "Mu\u0308ller.nii.gz", "x.mha.nii.gz", "x.nrrd"]
    scans = [scan(name) for name in [*names, "twice.nii.gz", "twice.nii.gz"]]
    results = result_names(scans, files=lambda _: ())
    assert len(set(results)) == len(scans)
    assert match_names(scans, results[::-1]) == results
    assert match_names(scans, names) == [*names, None, None], "of the files themselves"


@given(st.lists(st.text(st.characters(exclude_categories=["C"])), min_size=2, max_size=2))
@example(["'=1", "''-1.5"])
@example(["-1.5", "''"])
def test_a_table_is_read_as_it_was_written(cells: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "t.csv"
        rows = [dict(zip(["=a", "b"], cells)), {"=a": "+1 scan", "b": "'quoted'"}]
        write_table(file, ["=a", "b"], rows)
        assert read_table(file) == rows


def test_a_word_behind_a_name_counts_only_where_nothing_else_has_it() -> None:
    scans = [scan("a.nii.gz"), scan("a_seg.nii.gz"), scan("b.nii.gz")]
    assert match_names(scans, ["a_seg", "b_seg", "b_pred"]) == [None, "a_seg", None], "b has two"
    assert match_names(scans, ["a", "a_seg", "b_seg"]) == ["a", "a_seg", "b_seg"]


def test_more_of_a_name_goes_before_less_and_what_several_share_decides_nothing() -> None:
    scans = [scan("p1/scan.nii.gz"), scan("p2/scan.nii.gz"), scan("q/one.nii.gz")]
    assert match_names(scans, ["p1/scan", "p2/scan", "one"]) == ["p1/scan", "p2/scan", "one"]
    assert match_names(scans, ["p2", "p1"]) == ["p1", "p2", None]
    assert match_names(scans, ["scan", "x/one", "y/one"]) == [None, None, None]
    assert match_names([scan("a.nii.gz"), scan("sub/a.nii.gz")], ["a", "sub/a"]) == ["a", "sub/a"]
    assert match_names([], ["a"]) == []


def test_what_two_scans_are_called_tells_nobody_apart_when_one_has_its_prediction() -> None:
    """s2 was skipped, and s3 is of another data set: its prediction must not stand in."""
    assert match_names([scan("s1/ct.nii.gz"), scan("s2/ct.nii.gz")], ["s1/ct", "s3/ct"]) == ["s1/ct", None]
    scans = [scan(f"{name}.nii.gz") for name in ("p1/t1", "p1/t2", "p2/t1")]
    assert match_names(scans, ["p1/t1", "p1/t2", "p3/t1"]) == ["p1/t1", "p1/t2", None]
    assert match_names([scan("p1/t1.nii.gz")], ["p1/t1", "p3/t1"]) == ["p1/t1"]


def test_a_case_with_a_name_like_a_formula_is_compared_with_a_table_of_others(tmp_path: Path) -> None:
    write_table(tmp_path / "cases.csv", ["case", "dice"], [{"case": "+C case", "dice": 0.5}])
    (tmp_path / "theirs.csv").write_text("case,dice\n+C case,0.6\n")
    ours, theirs = (read_result(tmp_path / name) for name in ("cases.csv", "theirs.csv"))
    assert ours.groups == theirs.groups == {"+C case": "+C case"}


def test_a_case_is_called_by_its_scan_or_a_digest() -> None:
    assert case_name(scan("./imagesTr/a.nii.gz")) == "imagesTr/a"
    assert case_name(scan("a.nii.gz"), hashed=True) == name_digest("a.nii.gz")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.8731, 0.861, 1.0), "0.873 (0.861 to 1.000)"),
        ((13.955, 11.1, 16.587), "13.96 (11.10 to 16.59)"),
        ((-0.5, -1.5, 0.5), "-0.50 (-1.50 to 0.50)"),
        ((97.26, 90, 104.31), "97.3 (90.0 to 104.3)"),
        ((0.5, math.nan, math.nan), "0.500"),
        ((math.nan, math.nan, math.nan), "-"),
    ],
)
def test_an_estimate_has_three_digits_or_so_and_its_interval_as_many(values: tuple[float, ...], text: str) -> None:
    assert estimate_text(Estimate(*values, n=3)) == text


def test_a_summary_has_a_row_for_each_class_and_straight_columns() -> None:
    metrics = {
        "dice": {"liver": Estimate(0.9, 0.85, 0.95, 4), "mean": Estimate(0.9, math.nan, math.nan, 4)},
        "distance": {"liver": Estimate(123.4, 100.2, 150.8, 3, infinite=1)},
    }
    rows = summary_rows(metrics, {"dice": "Dice", "distance": "mm"})
    assert rows == [
        ["class", "Dice", "mm", "n"],
        ["liver", "0.900 (0.850 to 0.950)", "123.4 (100.2 to 150.8), 1 infinite", "4"],
        ["mean", "0.900", "", "4"],
    ]
    assert len({len(line) for line in summary_table(rows).splitlines()}) == 1
