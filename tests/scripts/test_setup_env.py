# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/setup_env.sh, in a copy of the files it reads, with a stand-in for Python that notes what it is asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Answers for itself and for the environment that it "makes". STUB_FAILS: the calls that fail, as a pattern.
STUB = f"""#!/bin/bash
echo "$*" >>"$STUB_LOG"
if [[ -n "${{STUB_FAILS:-}}" && "$*" =~ $STUB_FAILS ]]; then exit 1; fi
case "$*" in
    "-m venv"*) mkdir -p "${{@: -1}}/bin" && cp "$0" "${{@: -1}}/bin/python" ;;
    "-c"* | "--version") exec "{sys.executable}" "$@" ;;
esac
"""


class Project:
    """A copy of the project's set-up, to run it in."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a project"  # a path with a space in it
        (self.root / "scripts").mkdir(parents=True)
        for name in ("scripts/setup_env.sh", "pyproject.toml", "constraints.txt", "requirements.txt"):
            shutil.copy(ROOT / name, self.root / name)
        shutil.copy(ROOT / "requirements-dev.txt", self.root)
        shutil.copytree(ROOT / "scripts/locked", self.root / "scripts/locked")
        self.log = folder / "calls"
        # no other program can be found, so that no real Python is, and nothing real is ever installed
        self.path = folder / "bin"
        self.path.mkdir()
        for tool in ("bash", "cat", "cp", "cut", "dirname", "mkdir", "rm", "sha256sum"):
            (self.path / tool).symlink_to(shutil.which(tool) or tool)
        self.add_program("python3", STUB)

    def add_program(self, name: str, script: str) -> Path:
        file = self.path / name
        file.write_text(script)
        file.chmod(0o755)
        return file

    def set_up(self, *options: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
        """Runs the script; `self.calls` then holds what it asked of Python. An environment variable None is unset."""
        self.log.write_text("")
        defaults = {"PATH": str(self.path), "STUB_LOG": str(self.log), "TORCH_INDEX_URL": ""}
        variables = {name: value for name, value in {**defaults, **environment}.items() if value is not None}
        command = [str(self.path / "bash"), str(self.root / "scripts/setup_env.sh"), *options]
        result = subprocess.run(command, env=variables, cwd="/", capture_output=True, text=True, check=False)
        self.calls = self.log.read_text().splitlines()
        return result

    @property
    def installs(self) -> list[str]:
        return [call for call in self.calls if call.startswith("-m pip install")]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_first_run_makes_the_environment_and_installs_everything_pinned(project: Project) -> None:
    assert project.set_up().returncode == 0
    assert any(call.startswith("-m venv") for call in project.calls)
    assert len(project.installs) == 3
    assert all("--constraint" in call for call in project.installs)
    assert "/scripts/locked/requirements.txt" in project.installs[0]
    assert "requirements-dev.txt" not in project.installs[0]
    assert " torch" in project.installs[1]
    assert "--editable" in project.installs[2]


@pytest.mark.parametrize("options", [(), ("--dev",)])
def test_nothing_from_an_index_runs_before_its_hash_is_compared(project: Project, options: tuple[str, ...]) -> None:
    project.set_up(*options)
    assert all("--only-binary :all:" in call for call in project.installs)
    assert "--no-deps --require-hashes" in project.installs[0]
    # torch has other hashes on each index; the third is the project itself
    assert [call for call in project.installs if "--require-hashes" not in call] == project.installs[1:]
    assert project.installs[1].endswith(" torch") and "--no-deps" in project.installs[2]


def test_second_run_installs_nothing(project: Project) -> None:
    project.set_up()
    assert project.set_up().returncode == 0
    assert project.installs == []


def test_development_packages_come_on_request_and_cover_a_plain_run(project: Project) -> None:
    project.set_up()
    assert project.set_up("--dev").returncode == 0
    assert "/scripts/locked/requirements-dev.txt" in project.installs[0]
    assert "\ndynamic-network-architectures==" in (project.root / "scripts/locked/requirements-dev.txt").read_text()
    assert len(project.installs) == 3
    assert all(" --no-compile " in call for call in project.installs)
    project.set_up()
    assert project.installs == []


@pytest.mark.parametrize(
    "file",
    [
        "pyproject.toml",
        "constraints.txt",
        "requirements.txt",
        "requirements-dev.txt",
        "scripts/locked/requirements.txt",
    ],
)
def test_changed_requirement_file_means_to_install_again(project: Project, file: str) -> None:
    project.set_up()
    with (project.root / file).open("a") as stream:
        stream.write("# changed\n")
    project.set_up()
    assert len(project.installs) == 3


def test_stopped_change_is_not_forgotten_when_it_is_taken_back(project: Project) -> None:
    project.set_up()
    before = (project.root / "constraints.txt").read_text()
    (project.root / "constraints.txt").write_text(f"{before}# changed\n")
    project.set_up(STUB_FAILS="requirements.txt")
    (project.root / "constraints.txt").write_text(before)
    project.set_up()
    assert len(project.installs) == 3


def test_moved_repository_is_installed_again(project: Project) -> None:
    project.set_up()
    project.root = project.root.rename(project.root.with_name("moved"))
    project.set_up()
    assert len(project.installs) == 3


@pytest.mark.parametrize("step", ["install.* torch", "requirements.txt", "--editable"])
def test_failed_install_is_said_in_one_line_and_tried_again(project: Project, step: str) -> None:
    result = project.set_up(STUB_FAILS=step)
    assert result.returncode == 1
    assert "pip could not install" in result.stderr.splitlines()[-1]
    assert project.set_up().returncode == 0
    assert len(project.installs) == 3


def test_environment_without_pip_is_made_anew(project: Project) -> None:
    (project.root / ".venv/bin").mkdir(parents=True)
    leftover = project.root / ".venv/half-written"
    leftover.touch()
    result = project.set_up()
    assert result.returncode == 0
    assert "making it anew" in result.stderr
    assert not leftover.exists()


def test_python_without_ensurepip_gets_pip_from_the_package_index(project: Project) -> None:
    assert project.set_up(STUB_FAILS=r"^-m venv [^-]").returncode == 0
    assert any("venv --without-pip" in call for call in project.calls)
    assert any(call.endswith("scripts/fetch_pip.py") for call in project.calls)


def test_python_that_cannot_get_pip_is_told_which_package_to_install(project: Project) -> None:
    result = project.set_up(STUB_FAILS=r"^-m venv [^-]|fetch_pip")
    assert result.returncode == 1
    assert "apt-get install python3-venv" in result.stderr.splitlines()[-1]
    assert not (project.root / ".venv").exists()


def test_unsupported_python_gives_way_to_a_supported_one(project: Project) -> None:
    project.add_program("python3", "#!/bin/bash\nexit 1\n")
    chosen = project.add_program("python3.10", f"{STUB}# 3.10\n")
    assert project.set_up().returncode == 0
    assert (project.root / ".venv/bin/python").read_text() == chosen.read_text()


def test_no_supported_python_is_said_in_one_line(project: Project) -> None:
    for name in ("python3", "python3.12", "python3.11", "python3.10"):
        project.add_program(name, "#!/bin/bash\nexit 1\n")
    result = project.set_up()
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "no Python 3.10, 3.11 or 3.12" in result.stderr


def test_named_python_that_does_not_serve_is_an_error(project: Project) -> None:
    result = project.set_up(PYTHON="/nowhere/python3")
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "error: PYTHON=/nowhere/python3 is not a Python 3.10, 3.11 or 3.12 that starts"
    ]
    assert not (project.root / ".venv").exists()


def test_named_python_that_differs_from_the_environments_is_an_error(project: Project) -> None:
    project.set_up()
    other = project.add_program("other", '#!/bin/bash\n[[ "$2" != *print* ]] || echo 3.99\n')
    result = project.set_up(PYTHON=str(other))
    assert result.returncode == 1
    assert "remove" in result.stderr
    assert (project.root / ".venv/bin/python").exists()


def test_torch_comes_from_the_index_that_is_named(project: Project) -> None:
    project.set_up(TORCH_INDEX_URL="https://example.org/whl/cu126")
    assert [call for call in project.installs if "https://example.org/whl/cu126" in call] == project.installs[1:2]


def test_unreachable_cpu_index_is_left_out(project: Project) -> None:
    result = project.set_up(TORCH_INDEX_URL=None, STUB_FAILS="urlopen")
    assert result.returncode == 0
    assert "whl/cpu is out of reach" in result.stderr
    assert not any("--extra-index-url" in call for call in project.installs)


def test_machine_with_a_gpu_takes_torch_from_pips_own_indexes(project: Project) -> None:
    project.add_program("nvidia-smi", "#!/bin/bash\n")
    result = project.set_up(TORCH_INDEX_URL=None)
    assert not any("urlopen" in call or "--extra-index-url" in call for call in project.calls)
    assert "out of reach" not in result.stderr


def test_unknown_option_is_an_error(project: Project) -> None:
    result = project.set_up("--test")
    assert result.returncode == 1
    assert result.stderr == "error: unknown option --test: the only one is --dev\n"
