# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""docs/tutorials/tutorial.ipynb: its code cells run in order, on real volumes, with settings that take seconds."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.commands import run_python

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/tutorials/tutorial.ipynb"
TINY = {
    "repository": str(ROOT),
    "device": "cpu",
    "crop_size": [32, 32, 32],
    "spacing": [6.0, 6.0, 6.0],
    "filters": 4,
    "epochs": 1,
    "steps": 2,
    "finetune_epochs": 1,
    "finetune_steps": 2,
    "volumes": [
        "ct_spine_tptbox.nii.gz",
        "ct_body_totalseg.nii.gz",
        "mr_body_totalseg.nii.gz",
        "mr_spine_tptbox.nii.gz",
    ],
}


def cells(kind: str) -> list[tuple[str, list[str]]]:
    """Text and tags of the notebook's cells of one kind."""
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text())
    return [
        ("".join(cell["source"]), cell["metadata"].get("tags", []))
        for cell in notebook["cells"]
        if cell["cell_type"] == kind
    ]


def names_set_by(code: str) -> set[str]:
    targets = [target for node in ast.parse(code).body if isinstance(node, ast.Assign) for target in node.targets]
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


@pytest.fixture(scope="module")
def program(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The code cells as one program, but for the shell lines, with the settings of this test."""
    given = {**TINY, "work": str(tmp_path_factory.mktemp("work")), "data": str(data_dir)}
    parts = []
    for code, tags in cells("code"):
        if "install" not in tags:
            parts.append(code)
        if "parameters" in tags:
            assert names_set_by(code) == given.keys()
            parts += [f"{name} = {value!r}" for name, value in given.items()]
    return "\n\n".join(parts)


@pytest.fixture(scope="module")
def work(program: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of results, after the notebook has run."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = run_python("-c", program, cwd=elsewhere, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(elsewhere.iterdir()), "results belong below `work`"
    found = re.search(r"^work = '(.+)'$", program, re.MULTILINE)
    assert found
    return Path(found[1])


def test_the_cells_leave_what_they_speak_of(work: Path):
    (pretraining,) = (run for run in (work / "runs").iterdir() if (run / "model.pt").exists())
    (finetuning,) = (work / "runs/segmentation").iterdir()
    for run in (pretraining, finetuning):
        for name in ("curves.png", "summary.md", "model.pt", "panels/epoch_0001.png"):
            assert (run / name).stat().st_size > 0, name
    with (work / "reconstruction/errors.csv").open(newline="") as file:
        assert [row["volume"] for row in csv.DictReader(file)] == [TINY["volumes"][-1]]
    assert all((work / "labelled" / f"mr_{half}_tissue.nii.gz").exists() for half in ("front", "back"))


def test_shell_lines_name_files_that_exist_and_only_install():
    shell = [line for code, tags in cells("code") if "install" in tags for line in code.splitlines()]
    assert {line for line in shell if line.startswith("!")} == {
        "!pip install --quiet --constraint constraints.txt --requirement requirements.txt",
        "!pip install --quiet --no-deps --editable .",
        "!python scripts/fetch_data.py --all",
    }
    for name in ("constraints.txt", "requirements.txt", "scripts/fetch_data.py", "pyproject.toml"):
        assert (ROOT / name).is_file()
    rest = "\n".join(code for code, tags in cells("code") if "install" not in tags)
    assert not re.search(r"^\s*[!%]", rest, re.MULTILINE)


def test_the_notebook_holds_no_outputs_and_names_files_that_exist():
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell["id"]
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    text = "\n".join(text for kind in ("markdown", "code") for text, _ in cells(kind))
    names = {*re.findall(r"(?:docs|configs)/[a-z_/-]+\.(?:md|yaml|txt)", text)}
    assert len(names) > 5
    for name in names:
        assert (ROOT / name).is_file(), name
