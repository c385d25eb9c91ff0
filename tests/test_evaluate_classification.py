# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""configs/evaluate_classification.yaml as a user runs it: tables in, tables and curves out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from bundle.errors import UserError, user_error_in
from bundle.evaluation import as_number, probability_metrics, read_results, read_table

ROOT = Path(__file__).parents[1]
COUNT = 30


def run(predictions: Path, dataset: Path, output: Path, **overrides: Any) -> dict[str, Any]:
    given = {"bundle_root": str(ROOT), "predictions": str(predictions), "dataset_dir": str(dataset)}
    flow = ConfigWorkflow(
        str(ROOT / "configs/evaluate_classification.yaml"),
        workflow_type="infer",
        **{**given, "output_dir": str(output), "resamples": 60, **overrides},
    )
    flow.initialize()
    flow.run()
    return read_results(output / "results.json")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 scans of 15 people, one of them without a prediction; a probability for each of two findings."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    known, said = ["image,edema,=nodule,group,modality"], ["scan,edema,=nodule,edema_decision"]
    for number in range(COUNT):
        edema, nodule = (int(rng.random() < 0.4) for _ in range(2))
        known.append(f"scans/case {number}.nii.gz,{edema},{'' if number % 5 == 0 else nodule},p{number // 2},MR")
        values = (f"{np.clip(0.3 + 0.4 * truth + rng.normal(0, 0.2), 0, 1):.4f}" for truth in (edema, nodule))
        said.append(f"scans/case {number},{','.join(values)},{int(number % 4 > 0)}")
    said[4] = "scans/case 3,,,"  # skipped
    (folder / "labels.csv").write_text("\n".join(known))
    (folder / "predictions.csv").write_text("\n".join([*said, "another,0.5,0.5,0"]))
    return folder


def test_values_are_those_of_the_table_and_unknown_labels_count_in_nothing(tables: Path, tmp_path: Path) -> None:
    found = run(tables, tables, tmp_path / "out")
    rows = read_table(tmp_path / "out/cases.csv", ["case", "finding", "probability", "label", "group"])
    for finding in ("edema", "=nodule"):
        known = [row for row in rows if row["finding"].lstrip("'") == finding and row["label"]]
        expected = probability_metrics(
            np.array([as_number(row["probability"]) for row in known]), np.array([int(row["label"]) for row in known])
        )
        for metric, value in expected.items():
            estimate = found["metrics"][metric][finding]
            assert estimate["mean"] == pytest.approx(value, abs=1e-6) and estimate["n"] == len(known)
            assert estimate["low"] <= estimate["mean"] + 0.1 and estimate["low"] < estimate["high"]
        assert found["metrics"]["auroc"][finding]["mean"] > 0.75
    decided = {row["case"]: int(row["case"].rpartition(" ")[2]) % 4 > 0 for row in rows}
    with_it = [decided[row["case"]] for row in rows if row["finding"] == "edema" and row["label"] == "1"]
    without = [not decided[row["case"]] for row in rows if row["finding"] == "edema" and row["label"] == "0"]
    assert found["metrics"]["sensitivity"]["edema"]["mean"] == pytest.approx(np.mean(with_it))
    assert found["metrics"]["specificity"]["edema"]["mean"] == pytest.approx(np.mean(without))
    assert found["metrics"]["sensitivity"]["=nodule"]["mean"] is None
    auroc = found["metrics"]["auroc"]
    assert auroc["mean"]["mean"] == pytest.approx((auroc["edema"]["mean"] + auroc["=nodule"]["mean"]) / 2)
    assert found["settings"]["cases"] == {"evaluated": COUNT - 1, "without prediction": 1}
    assert found["notes"][0] == "1 of 30 scans have no prediction and count in no mean: scans/case 3"
    assert found["notes"][1] == "1 predictions belong to no labelled scan: another"
    assert "6 not known" in found["notes"][2] or "5 not known" in found["notes"][2]
    wrong = [abs(as_number(row["probability"]) - as_number(row["label"])) for row in rows if row["label"]]
    assert wrong == sorted(wrong, reverse=True)
    assert len({row["group"] for row in rows} - {""}) == COUNT // 2
    assert sorted(file.name for file in (tmp_path / "out/panels").iterdir()) == ["calibration.png", "roc.png"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["case 0,2.5,0"], "gives case 0 the values .*probabilities from 0 to 1"),
        (["case 0,0.5,"], "gives case 0 the values"),
        (["case 0,0.5,0", "case 0,0.5,0"], "two rows of case 0"),
        (["nobody,0.5,0"], "none of the 30 scans has a row"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(tables: Path, tmp_path: Path, rows: list[str], said: str) -> None:
    (tmp_path / "p.csv").write_text("\n".join(["scan,edema,=nodule", *rows]))
    with pytest.raises((RuntimeError, UserError)) as caught:
        run(tmp_path / "p.csv", tables, tmp_path / "out")
    assert re.search(said, str(user_error_in(caught.value)))


def test_columns_beside_those_of_probabilities_are_no_findings(tables: Path, tmp_path: Path) -> None:
    heading, *rows = (tables / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join([f"{heading},notes", *(f"{row},motion" for row in rows)]))
    lines = [f"scans/case {number},0.{number:02d},cropped" for number in range(COUNT)]
    (tmp_path / "predictions.csv").write_text("\n".join(["scan,edema_probability,notes", *lines]))
    found = run(tmp_path / "predictions.csv", tmp_path, tmp_path / "out", findings=[])
    assert list(found["metrics"]["auroc"]) == ["edema", "mean"]


def test_findings_that_the_tables_do_not_share_are_one_line(tables: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("scan,other\ncase 0,0.5\n")
    for findings, said in (([], "share no finding"), (["edema"], "has no column edema: its columns are scan, other")):
        with pytest.raises((RuntimeError, UserError)) as caught:
            run(tmp_path / "p.csv", tables, tmp_path / "out", findings=findings)
        assert said in str(user_error_in(caught.value))
