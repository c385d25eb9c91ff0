# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""configs/evaluate_detection.yaml as a user runs it: boxes around real organs in, tables and pictures out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow

from bundle.errors import UserError, user_error_in
from bundle.evaluation import read_results, read_table

ROOT = Path(__file__).parents[1]
NAMES = ("ct_body_totalseg", "mr_body_totalseg", "ct_spine_tptbox")
HEADING = "scan,class,score,x,y,z,width,height,depth"
BOX = [10.0, -20.0, 30.0, 40.0, 30.0, 20.0]


def run(predictions: Path, dataset: Path, output: Path, **overrides: Any) -> dict[str, Any]:
    given = {"bundle_root": str(ROOT), "predictions": str(predictions), "dataset_dir": str(dataset)}
    given |= {"classes": {"organ": 3, "lesion": 7}, "output_dir": str(output), "resamples": 20, "worst": 2}
    flow = ConfigWorkflow(
        str(ROOT / "configs/evaluate_detection.yaml"), workflow_type="infer", **{**given, **overrides}
    )
    flow.initialize()
    flow.run()
    return read_results(output / "results.json")


def moved(by: float) -> list[float]:
    return [BOX[0] + by, *BOX[1:]]


@pytest.fixture(scope="module")
def dataset(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boxes")
    entries = [
        {"image": str(data_dir / f"volumes/{NAMES[0]}.nii.gz"), "box": [BOX, moved(90)], "label": [3, 7]},
        {"image": str(data_dir / f"volumes/{NAMES[1]}.nii.gz"), "box": [BOX], "label": [3]},
        {"image": str(data_dir / f"volumes/{NAMES[2]}.nii.gz"), "box": [], "label": []},
    ]
    (folder / "dataset.json").write_text(json.dumps({"training": [], "test": entries}))
    return folder


@pytest.fixture(scope="module")
def as_json(dataset: Path) -> Path:
    found = [
        {"image": f"x/{NAMES[0]}.nii.gz", "box": [BOX, moved(200)], "label": [3, 3], "score": [0.9, 0.7]},
        {"image": f"x/{NAMES[1]}.nii.gz", "box": [moved(20)], "label": [3], "score": [0.6]},
        {"image": f"x/{NAMES[2]}.nii.gz", "box": [BOX], "label": [99], "score": [0.6]},
    ]
    (dataset / "boxes.json").write_text(json.dumps({"epoch": 3, "classes": {"organ": 3}, "validation": found}))
    return dataset / "boxes.json"


def test_boxes_are_counted_by_scan_and_listed(as_json: Path, dataset: Path, tmp_path: Path) -> None:
    found = run(as_json, dataset, tmp_path / "out")
    rows = {(Path(row["case"]).name, row["class"]): row for row in read_table(tmp_path / "out/cases.csv")}
    counts = {key: [int(row[n]) for n in ("boxes", "hits", "missed", "false_positives")] for key, row in rows.items()}
    assert counts == {
        (NAMES[0], "organ"): [1, 1, 0, 1], (NAMES[0], "lesion"): [1, 0, 1, 0], (NAMES[1], "organ"): [1, 1, 0, 0],
        (NAMES[1], "lesion"): [0, 0, 0, 0], (NAMES[2], "organ"): [0, 0, 0, 0], (NAMES[2], "lesion"): [0, 0, 0, 0],
    }  # fmt: skip
    assert next(iter(counts)) == (NAMES[0], "organ")  # the worst first
    boxes = [(row["what"], row["class"], row["score"]) for row in read_table(tmp_path / "out/boxes.csv")]
    assert boxes == [
        ("hit", "organ", "0.9"), ("false positive", "organ", "0.7"), ("missed", "lesion", ""), ("hit", "organ", "0.6"),
    ]  # fmt: skip
    assert found["metrics"]["ap_iou_0.10"]["organ"]["mean"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert found["metrics"]["map"]["lesion"]["mean"] == 0 and found["settings"]["cases"]["evaluated"] == 3
    first, *others = found["notes"]
    assert first == "boxes of other classes are left out: 99"
    assert all("have their centre outside the image" in note for note in others)  # as the boxes of this test do
    pictures = sorted(file.name for file in (tmp_path / "out/panels").iterdir())
    assert pictures == ["froc.png", "worst_01.png", "worst_02.png"]


def test_the_numbers_of_a_file_mean_what_it_says(as_json: Path, dataset: Path, tmp_path: Path) -> None:
    content = json.loads(as_json.read_text())
    for entry in content["validation"]:
        entry["label"] = [{3: 7, 99: 99}[label] for label in entry["label"]]
    (tmp_path / "boxes.json").write_text(json.dumps({**content, "classes": {"lesion": 3, "organ": 7}}))
    found, expected = run(tmp_path, dataset, tmp_path / "out"), run(as_json, dataset, tmp_path / "same")
    assert found["metrics"] == expected["metrics"]


def test_a_table_says_the_same_and_names_the_scans_without_boxes(as_json: Path, dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "predicted"
    folder.mkdir()
    lines = [HEADING]
    for name, score, box in ((NAMES[0], 0.7, moved(200)), (NAMES[0], 0.9, BOX), (NAMES[1], 0.6, moved(20))):
        lines.append(",".join(map(str, [name, "organ", score, *box])))
    (folder / "boxes.csv").write_text("\n".join(lines))
    alone = run(folder, dataset, tmp_path / "alone")
    assert alone["settings"]["cases"] == {"evaluated": 2, "without prediction": 1}
    assert "1 of 3 scans have no prediction" in alone["notes"][0] and "needs an entry" in alone["notes"][1]
    (folder / "predictions.csv").write_text("\n".join(["scan,skipped", *(f"{name}," for name in NAMES)]))
    found, expected = run(folder, dataset, tmp_path / "out"), run(as_json, dataset, tmp_path / "json")
    assert found["metrics"] == expected["metrics"] and found["settings"]["cases"]["evaluated"] == 3


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("boxes.csv", "scan,class,score\n", "no column x, y, z"),
        ("boxes.csv", f"{HEADING}\na,organ,0.5,1,2,3,4,5,0\n", "line 2: no score and box"),
        ("boxes.csv", f"{HEADING}\na,,0.5,1,2,3,4,5,6\n", "line 2: a box has no class"),
        ("boxes.json", "{", "no readable json"),
        (
            "boxes.json",
            '[{"image": "a", "box": [[1, 2, 3, 4, 5, 6]], "label": [""], "score": [0.5]}]',
            "a: a box has no class",
        ),
        ("boxes.json", '[{"image": "a", "box": [[1]], "label": [3], "score": [0.5]}]', "a: no score and box"),
        ("boxes.json", '[{"image": "a", "box": [[1]], "label": [], "score": []}]', "as many box, label and score"),
        ("other.txt", "", r"has no boxes\.json or boxes\.csv"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(dataset: Path, tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((RuntimeError, UserError)) as caught:
        run(tmp_path, dataset, tmp_path / "out")
    assert re.search(said, str(user_error_in(caught.value)))


def test_true_boxes_that_cannot_count_are_said_and_end_nothing(as_json: Path, dataset: Path, tmp_path: Path) -> None:
    listed = json.loads((dataset / "dataset.json").read_text())
    listed["test"][0]["box"] = [[-BOX[0] - 900, *BOX[1:]], BOX]
    (tmp_path / "lps.json").write_text(json.dumps(listed))
    notes = run(as_json, tmp_path / "lps.json", tmp_path / "out", classes={"organ": 3}, worst=3)["notes"]
    assert "1 true boxes are left out, of labels that --classes does not name: 7" in notes
    (outside,) = [note for note in notes if "1 of 1 true boxes have their centre outside the image" in note]
    assert outside.endswith("LPS: turn the signs of x and y")
