# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/compare.py: two tables of cases in, a page, numbers and a picture out."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from compare import main

from bundle.evaluation.compare import compare_results, read_result


def write(folder: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    folder.mkdir(parents=True)
    with (folder / "cases.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder


def segmentation(folder: Path, shift: float, cases: Sequence[int] = range(12), **more: object) -> Path:
    generator = np.random.default_rng(0)
    noise = {(case, of): generator.normal(0, 0.05) for case in range(20) for of in ("liver", "spleen")}
    return write(folder, [
        {"case": f"scan {case}", "class": of, "dice": 0.7 + noise[case, of] + shift * (1 + 0.1 * (case % 3)),
         "hausdorff95_mm": "inf" if case == 3 and of == "liver" else 9 - 10 * shift, "volume_ml": 5,
         "reference_ml": 5 + case, "volume_error_ml": -2 if shift else 1, "note": "", **more}
        for case in cases for of in ("liver", "spleen")
    ])  # fmt: skip


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    return segmentation(tmp_path / "scratch", 0.0), segmentation(tmp_path / "pre, trained", 0.04, range(1, 14))


def test_the_page_says_which_is_better_by_how_much_and_what_was_not_compared(
    both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*map(str, both), "--output_dir", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/comparison.md").read_text()
    assert text in capsys.readouterr().out
    assert "11 cases are in both" in text and "| dice | mean | pre, trained is better | 11 | 11 |" in text
    lines = {tuple(line.split(" | ")[:2]): line for line in text.splitlines() if line.startswith("| ")}
    assert lines["| dice", "liver"].startswith("| dice | liver | pre, trained is better |")
    assert " | scratch is better | " in lines["| absolute_volume_error_ml", "liver"]
    assert re.search(r"\| hausdorff95_mm \| liver \| [^|]+ \| 10 \|", text)
    assert "hausdorff95_mm, liver: 1 cases are left out" in text
    assert "1 cases are in scratch only, and not compared: scan 0" in text
    assert "2 cases are in pre, trained only, and not compared: scan 12, scan 13" in text
    assert "reference_ml" not in text and "volume_ml |" not in text
    numbers = json.loads((tmp_path / "out/comparison.json").read_text())
    assert numbers["differences"]["dice"]["liver"]["mean"] == pytest.approx(0.044, abs=0.003)
    assert (tmp_path / "out/comparison.png").stat().st_size > 5000
    assert "pre, trained is better" in (tmp_path / "out/comparison.html").read_text()
    assert main([*map(str, both), "--output_dir", str(tmp_path / "out")]) == 1
    assert "holds a comparison: give another one, or --overwrite" in capsys.readouterr().err


def test_fewer_missed_lesions_and_false_positives_are_better(tmp_path: Path):
    few, many = (
        write(tmp_path / name, [
            {"case": case, "class": "a", "boxes": 3, "hits": 3 - wrong, "missed": wrong, "false_positives": wrong}
            for case in range(12)
        ])
        for name, wrong in (("few", 0), ("many", 2))
    )  # fmt: skip
    assert main([str(few), str(many), "--output_dir", str(tmp_path / "out")]) == 0
    lines = [line for line in (tmp_path / "out/comparison.md").read_text().splitlines() if " better | " in line]
    assert {line.split(" | ")[0].strip("| ") for line in lines} >= {"hits", "missed", "false_positives"}
    assert all(" | few is better | " in line for line in lines)


def test_other_references_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = segmentation(tmp_path / "a", 0.0)
    second = segmentation(tmp_path / "b", 0.0, reference_ml=7)
    assert main([str(first), str(second)]) == 0
    out = capsys.readouterr().out
    assert "the references of 11 cases differ between both" in out and "| no difference seen |" in out


def test_few_people_give_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    paths = [segmentation(tmp_path / str(shift), shift, range(4)) for shift in (0.0, 0.2)]
    assert main([*map(str, paths), "--names", "before", "after"]) == 0
    out = capsys.readouterr().out
    assert "too few people (4) to tell" in out and "is better" not in out


def test_probabilities_are_compared_by_area_and_squared_error(tmp_path: Path):
    generator = np.random.default_rng(0)
    labels, noise = np.repeat([0, 1], 20), generator.uniform(0, 1, 40)
    paths = [
        write(tmp_path / str(weight), [
            {"case": n, "finding": "stenosis", "label": label, "probability": (1 - weight) * value + weight * label}
            for n, (label, value) in enumerate(zip(labels, noise))
        ])
        for weight in (0.0, 0.6)
    ]  # fmt: skip
    found = compare_results(*map(read_result, map(str, paths)), resamples=499)
    area, error = found.differences["roc_auc"]["stenosis"], found.differences["squared_error"]["stenosis"]
    assert area.mean > 0.2 and area.p < 0.01 and area.second == 1.0
    assert error.first == pytest.approx(np.mean((noise - labels) ** 2)) and error.mean < 0
    assert found.higher_is_better == {"squared_error": False, "roc_auc": True, "probability": None} or (
        found.higher_is_better["roc_auc"] and found.higher_is_better["squared_error"] is False
    )


def test_what_cannot_be_compared_is_one_line(both: tuple[Path, Path], tmp_path: Path, capsys):
    other = segmentation(tmp_path / "other", 0.0, [15, 16])
    (tmp_path / "none.csv").write_text("name,dice\na,0.5\n")
    german = write(tmp_path / "german", [{"case": f"scan {n}", "class": "Leber", "dice": 1} for n in range(12)])
    twice = write(tmp_path / "twice", [{"case": "a", "dice": 1}] * 2)
    said = {
        (str(both[0]), str(other)): "have no case in common",
        (str(both[0]), str(german)): "have no class in common, such as liver and Leber",
        (str(both[0]), str(tmp_path / "nowhere")): "cannot be read",
        (str(both[0]), str(tmp_path / "none.csv")): "has no column case or scan",
        (str(both[0]), str(twice)): "has a (all) twice",
        (str(both[0]), str(both[0])): "both results are called scratch",
        (*map(str, both), "--metric", "speed"): "--metric speed is not in both",
    }
    for arguments, message in said.items():
        assert main(list(arguments)) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
