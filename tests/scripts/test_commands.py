# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/train.sh and scripts/test.sh: what they start, with a stand-in for Python and for the set-up."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the two commands in a path with a space; its Python writes each call's arguments, one a line."""
    root = tmp_path / "a project"
    (root / "scripts").mkdir(parents=True)
    (root / ".venv/bin").mkdir(parents=True)
    for name in ("train.sh", "test.sh"):
        shutil.copy(ROOT / "scripts" / name, root / "scripts")
    (root / "scripts/setup_env.sh").write_text('printf "%s\\n" "set up $*"\n')
    python = root / ".venv/bin/python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "python" "$@"\n[[ "$1" != *"${FAILS:-nothing}"* ]]\n')
    python.chmod(0o755)
    return root


def run(script: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/bash", str(script), *options]
    environment = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)


def test_training_sets_up_fetches_and_runs_the_bundle(project: Path) -> None:
    lines = run(project / "scripts/train.sh").stdout.splitlines()
    fetch = ["python", f"{project}/scripts/fetch_data.py", "--data_dir", f"{project}/data"]
    names = ("train", "preset_small", "objective_reconstruction")
    files = str([f"{project}/configs/{name}.yaml" for name in names]).replace(", ", ",")
    bundle = ["python", "-m", "monai.bundle", "run", "training", "--workflow_name", "bundle.runs.CheckedWorkflow"]
    assert lines == ["set up ", *fetch, *bundle, "--config_file", files, "--bundle_root", str(project)]


def test_options_reach_the_bundle_unchanged_and_last(project: Path) -> None:
    options = ["--epochs", "3", "--name", "two words", "--lr=[1, 2]"]
    assert run(project / "scripts/train.sh", *options).stdout.splitlines()[-5:] == options


@pytest.mark.parametrize("options", [["--preset", "few_labels", "--lr", "1"], ["--lr", "1", "--preset=few_labels"]])
def test_a_preset_is_chosen_by_name(project: Path, options: list[str]) -> None:
    lines = run(project / "scripts/train.sh", *options).stdout.splitlines()
    files = [f"{project}/configs/{name}.yaml" for name in ("train", "preset_few_labels")]
    given = lines[lines.index("--config_file") + 1]
    assert yaml.safe_load(given) == files
    assert lines[-2:] == ["--lr", "1"]
    assert all((ROOT / "configs" / Path(file).name).is_file() for file in files)


@pytest.mark.parametrize("options", [["--preset", "large"], ["--preset"], ["--epochs", "3", "--preset="]])
def test_an_unknown_preset_is_refused_before_anything_starts(project: Path, options: list[str]) -> None:
    result = run(project / "scripts/train.sh", *options)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.endswith("is not known: give small, dev, prod or few_labels\n")


@pytest.mark.parametrize("count", ["", "1000"])
def test_how_threads_wait_is_left_to_the_user(project: Path, count: str) -> None:
    """Each way to wait that is better beside other work costs time on an idle machine: scripts/benchmarks/speed.md."""
    (project / ".venv/bin/python").write_text('#!/bin/bash\necho "spin $GOMP_SPINCOUNT$OMP_WAIT_POLICY"\n')
    environment = {"GOMP_SPINCOUNT": count} if count else {}
    assert run(project / "scripts/train.sh", **environment).stdout.splitlines()[-1] == f"spin {count}"


@pytest.mark.parametrize("options", [["--dataset_dir", "/volumes"], ["--epochs", "3", "--dataset_dir=/volumes"]])
def test_own_data_needs_no_fetching(project: Path, options: list[str]) -> None:
    result = run(project / "scripts/train.sh", *options)
    assert "fetch_data.py" not in result.stdout
    assert "monai.bundle" in result.stdout


def test_testing_sets_up_fetches_all_and_passes_options_to_pytest(project: Path) -> None:
    lines = run(project / "scripts/test.sh", "tests/sparse", "-k", "two words").stdout.splitlines()
    assert lines[0] == "set up --dev"
    assert "--all" in lines
    assert lines[lines.index("-m") - 1 :][:3] == ["python", "-m", "pytest"]
    assert lines[-3:] == ["tests/sparse", "-k", "two words"]


@pytest.mark.parametrize("script", ["train.sh", "test.sh"])
def test_nothing_is_started_when_fetching_fails(project: Path, script: str) -> None:
    result = run(project / "scripts" / script, FAILS="fetch_data.py")
    assert result.returncode != 0
    assert "-m" not in result.stdout.splitlines()  # neither MONAI's nor pytest's command line


def test_no_test_is_started_when_minkowski_engine_does_not_compile(project: Path) -> None:
    result = run(project / "scripts/test.sh", FAILS="build.py")
    assert result.returncode != 0
    assert "pytest" not in result.stdout.splitlines()


def test_the_compilers_end_when_fetching_fails(project: Path, tmp_path: Path) -> None:
    """They are children of the build's, as here the sleep is, and hold the output's pipe open while they live."""
    python = project / ".venv/bin/python"
    building = f'[[ "$1" == *build.py ]] && touch {tmp_path}/began && (sleep 60; touch {tmp_path}/ended)'
    fetching = f"until [[ -e {tmp_path}/began ]]; do sleep 0.01; done; exit 1"
    python.write_text(f"#!/bin/bash\n{building} && exit\n{fetching}\n")
    assert run(project / "scripts/test.sh").returncode == 1
    assert not (tmp_path / "ended").exists()


@pytest.mark.parametrize("script", ["train.sh", "test.sh"])
def test_nothing_is_started_when_the_set_up_fails(project: Path, script: str) -> None:
    (project / "scripts/setup_env.sh").write_text("exit 3\n")
    result = run(project / "scripts" / script)
    assert result.returncode == 3
    assert "python" not in result.stdout
