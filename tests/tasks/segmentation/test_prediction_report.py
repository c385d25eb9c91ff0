# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The page of predicted label maps: which scans it shows, where they lie, and what was skipped."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from bundle.data import FoundVolume
from bundle.prediction import PredictionFolder
from bundle.runs import release_folders
from bundle.tasks.segmentation import SegmentationReport, measure_classes
from tests.reports.test_volumes import unpack_text

CLASSES = {"spleen": 300, "<b>liver</b>": 7}
SHEARED = np.array([[-1.0, 0.2, 0, 5], [0, 1, 0.4, 0], [0, 0, 2, -9], [0, 0, 0, 1]])  # voxels of 2 mm³, as the others


@pytest.fixture
def folder(tmp_path):
    """Five scans whose labelled volume falls with the number, one of them on a sheared grid; and a skipped one."""
    output = PredictionFolder(tmp_path / "out", settings={"models": ["abc"], "classes": CLASSES})
    scans = []
    for number in range(5):
        scan = np.random.default_rng(number).normal(0, 100, (12, 14, 10)).astype(np.float32)
        labels = np.zeros(scan.shape, dtype=np.uint16)
        labels[2 : 10 - number, 3:9, 2:6] = 300
        labels[0, 0, 0] = 7 if number == 0 else 0
        affine = SHEARED if number == 3 else np.diag([1.0, 1, 2, 1])
        for path, voxels in ((tmp_path / f"scan {number}.nii.gz", scan), (output.label_map(f"scan {number}"), labels)):
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
        scans.append(FoundVolume(name=f"scan {number}", files=(str(tmp_path / f"scan {number}.nii.gz"),)))
        rows = measure_classes(labels, affine, classes=CLASSES)
        output.done(scans[-1], {"files": [], "row": {"modality": "MR"}, "tables": {"measurements": rows}})
    yield output, scans
    release_folders()


def write(output, scans, shown=6):
    fine_tuned = SimpleNamespace(classes=CLASSES, sha256=["abc"])
    report = SegmentationReport(output, scans=scans, fine_tuned=fine_tuned, shown=shown)
    return report(output.records(), {"<i>x</i>": ("cannot be read", "copy it again")})


def shown(page):
    """The viewer's cases by their names, with what is under each id."""
    (about,) = re.findall(r'data-about="([^"]*)"', page)
    return {case["name"]: case for case in json.loads(html.unescape(about))["cases"]}


def test_the_scans_shown_go_from_the_smallest_to_the_largest_and_lie_where_the_files_do(folder):
    output, scans = folder
    write(output, scans, shown=3)
    page = (output.path / "report.html").read_text()
    cases = shown(page)
    assert list(cases) == ["scan 4", "scan 2", "scan 0"]
    image = unpack_text(page, cases["scan 0"]["labels"][0])
    labels = np.asarray(nibabel.load(output.label_map("scan 0")).dataobj)
    assert (np.asarray(image.dataobj) == np.select([labels == 300, labels == 7], [1, 2])).all()
    assert page.count("<figure>") == 3
    assert "5 scans segmented, 1 skipped." in page
    assert "&lt;i&gt;x&lt;/i&gt;" in page and "cannot be read" in page
    row = re.search(r"&lt;b&gt;liver&lt;/b&gt;</td>(.*?)</tr>", page)[1]
    assert re.findall(r">([^<]+)</td>", row) == ["1", "4", "0.002", "0.002", "0.002", "1"]


@pytest.mark.parametrize(("count", "named"), [(19, []), (20, ["s3", "s6", "s9", "s0", "s5"])])
def test_the_scans_of_which_the_network_is_least_sure_are_named(folder, count, named):
    output, _ = folder
    low = {"s3": 0.1, "s6": 0.15, "s9": 0.2, "s0": 0.3, "s5": 0.4}
    empty = {"value": 1, "ml": 0, "components": 0, "touches_border": False}
    rows = {f"s{n}": [low.get(f"s{n}", 0.9), 0.5 if n != 6 else None] for n in range(count)}
    rows["s6"][0] = 0.31  # 0.31 alone, where the other class was not found; s9 has 0.35
    records = {
        name: {"tables": {"measurements": [
            {**empty, "class": of, "certainty": one} for of, one in zip(CLASSES, values)]}}
        for name, values in rows.items()
    }  # fmt: skip
    report = SegmentationReport(output, scans=[], fine_tuned=SimpleNamespace(classes=CLASSES, sha256=["abc"]))
    page = report(records, {}).read_text()
    part = page.partition("To look at first</h2>")[2].partition("</table>")[0]
    assert re.findall(r">(s\d+)<", part) == named


def test_a_sheared_scan_keeps_its_place(folder):
    output, scans = folder
    write(output, scans[3:4])
    page = (output.path / "report.html").read_text()
    (case,) = shown(page).values()
    for one in (case["scan"], case["labels"][0]):
        assert np.abs(unpack_text(page, one).affine - SHEARED).max() < 1e-5


def test_a_scan_whose_file_has_changed_or_gone_is_left_out_and_the_rest_is_shown(folder, caplog):
    output, scans = folder
    other = np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(other, np.eye(4)), Path(scans[2].files[0]))
    Path(scans[3].files[0]).unlink()
    output.label_map("scan 1").write_bytes(b"no image")
    write(output, scans, shown=5)
    assert list(shown((output.path / "report.html").read_text())) == ["scan 4", "scan 0"]
    assert "scan 2 is not shown in the report: scan 2: is not on the grid of its label map" in caplog.text
    assert "scan 3 is not shown in the report" in caplog.text and "scan 1 is not shown" in caplog.text


def test_with_hashed_names_the_log_names_no_scan_that_has_gone(folder, tmp_path, caplog, monkeypatch):
    output, scans = folder
    monkeypatch.setitem(output.settings, "hash_names", True)
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "monai.bundle", "run", "--dataset_dir", str(tmp_path)])
    hidden = [replace(scan, files=(str(tmp_path / f"HANS_{n}.nii.gz"),)) for n, scan in enumerate(scans)]
    (tmp_path / "HANS_1.nii.gz").write_bytes(b"no image")
    write(output, hidden)
    page = (output.path / "report.html").read_text()
    assert caplog.text.count("is not shown in the report") == 5
    assert "HANS" not in caplog.text + page and str(tmp_path) not in page
    write(output, [replace(scan, files=(str(tmp_path / "HANS_9.nii.gz"),)) for scan in scans])
    assert "HANS" not in caplog.text
