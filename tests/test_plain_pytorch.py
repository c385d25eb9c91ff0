# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""docs/how-to/plain_pytorch.md: its code runs."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.processing import resample_to_output

from tests.export.models import write_model
from tests.networks.encoder_cases import Case

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/how-to/plain_pytorch.md").read_text()


def test_the_block_of_plain_pytorch_trains_from_a_scan_and_its_label_map(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (code,) = re.findall(r"<!-- a test runs this block -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 26
    (tmp_path / "models").mkdir()
    arguments = {"init_filters": 4, "blocks_down": [1, 1, 1], "norm": ["instance", {"affine": True}]}
    recorded = {"spacing": [5, 5, 5], "ct_window": [-1000, 1000], "mr_percentiles": [0.5, 99.5]}
    write_model(tmp_path / "models", Case("SegResEncoder", arguments, ()), crop_size=[32, 32, 32], **recorded)
    files = ("volumes/mr_brain_mni152", "labels/mr_brain_mni152_grey", "labels/mr_brain_mni152_white")
    scan, *maps = (resample_to_output(nibabel.load(data_dir / f"{file}.nii.gz"), 5.0, order=1) for file in files)
    grey, white = (np.asarray(one.dataobj) > 127 for one in maps)
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    nibabel.save(nibabel.Nifti1Image((grey + 2 * white).astype(np.uint8), scan.affine), tmp_path / "scan_labels.nii.gz")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/how-to/plain_pytorch.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert any("loaded" in line for line in lines)
    losses = [float(line.split()[1]) for line in lines if re.fullmatch(r"\d+ [\d.]+", line)]
    assert len(losses) == 10 and min(losses[-3:]) < losses[0]
