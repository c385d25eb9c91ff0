# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The project's own files: pins, licence, the commands that the README names, log settings."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from bundle.weights import without_reconstruction
from tests.commands import run_python

ROOT = Path(__file__).parents[1]
HEADER = "# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0."
FOLDERS = ("bundle", "scripts", "tests", "configs", "docs", ".ci")
PYTHON_FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py") if file.stat().st_size > 0)
SHELL_FILES = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci/run"]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("line", PINS)
def test_pin_is_exact_and_gives_a_reason(line: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9.]+  # \S.+", line)


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned(file: str) -> None:
    pinned = {Requirement(line.partition("#")[0]).name for line in PINS}
    lines = (ROOT / file).read_text().splitlines()
    names = {Requirement(line).name for line in lines if line and not line.startswith("#")}
    assert names <= pinned


@pytest.mark.parametrize("line", PINS, ids=lambda line: line.partition("==")[0])
def test_tests_run_on_the_pinned_version(line: str) -> None:
    requirement = Requirement(line.partition("#")[0])
    installed = Version(importlib.metadata.version(requirement.name))
    # the public part: a build of torch adds +cpu or +cu130
    assert requirement.specifier.contains(installed.public)


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("file", PYTHON_FILES, ids=relative)
def test_python_file_starts_with_the_licence_line(file: Path) -> None:
    assert file.read_text().startswith(HEADER)


@pytest.mark.parametrize("file", SHELL_FILES, ids=relative)
def test_shell_script_parses_and_stops_at_the_first_error(file: Path) -> None:
    text = file.read_text()
    assert text.startswith(f"#!/usr/bin/env bash\n{HEADER}\n")
    assert "\nset -euo pipefail\n" in text
    subprocess.run(["bash", "-n", str(file)], check=True)


def test_readme_names_the_two_commands_and_ci_runs_the_second() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "\nbash scripts/train.sh\n" in readme
    assert "\nbash scripts/test.sh\n" in readme
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "bash scripts/test.sh"


def test_configs_hold_no_personal_path() -> None:
    for config in (ROOT / "configs").rglob("*.*"):
        text = re.sub(r"bundle_root \+ '/[\w./]+'|/path/to/\w+", "", config.read_text())
        assert not re.search(r"(?<![\w.@/])/(home|root|mnt|tmp|data|Users)/", text), relative(config)


def test_model_card_has_the_sections_of_the_zoos_template() -> None:
    headings = re.findall(r"^#+ \**(.+?)\**$", (ROOT / "docs/README.md").read_text(), flags=re.MULTILINE)
    assert headings[1:3] == ["Authors", "Tags"]
    required = ["Model Description", "Data", "Preprocessing", "Performance", "System Configuration", "Limitations"]
    assert [heading for heading in headings if heading in required] == required
    assert {"Citation Info", "References"} <= set(headings)


def test_monai_applies_the_log_settings(tmp_path: Path) -> None:
    config = tmp_path / "workflow.yaml"
    config.write_text("run: [$print('ran')]\n")
    program = (
        "import logging\n"
        "from monai.bundle import ConfigWorkflow\n"
        f"ConfigWorkflow(config_file={str(config)!r}, meta_file={str(ROOT / 'configs/metadata.json')!r},\n"
        f"               logging_file={str(ROOT / 'configs/logging.conf')!r}, workflow_type='train')\n"
        "logging.getLogger('bundle').info('volumes found')\n"
        "logging.getLogger('ignite.engine.engine.SupervisedTrainer').error('the error, shown where it ends')\n"
        "logging.getLogger('PIL').info('library noise')\n"
        "logging.getLogger('PIL').warning('library warning')\n"
    )
    lines = run_python("-c", program, cwd=ROOT).stdout
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO bundle: volumes found$", lines, flags=re.MULTILINE)
    assert "library warning" in lines
    assert "library noise" not in lines
    assert "the error" not in lines


def test_the_block_that_loads_the_weights_fits_the_shipped_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?load_encoder\(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})
    loaded = re.findall(r"^\| loaded \| (\d+)", capsys.readouterr().out, flags=re.MULTILINE)
    files = (ROOT / "models/model.pt", ROOT / "models/model_decoder.pt")
    encoder, decoder = (torch.load(file, weights_only=True) for file in files)
    assert [int(number) for number in loaded] == [len(encoder), len(without_reconstruction(decoder))]
