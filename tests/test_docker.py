# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The Dockerfile and .dockerignore, as far as they can be checked without a Docker engine."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of each instruction, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def arguments(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def is_ignored(path: str) -> bool:
    """Whether a path, or a folder it is in, matches a pattern; the file has no exceptions (`!`)."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert not any(pattern.startswith("!") for pattern in patterns)
    parts = Path(path).parts
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    names = [(p, p.removeprefix("**/")) for p in patterns]
    return any(
        fnmatch.fnmatch(folder, pattern) or (pattern != name and fnmatch.fnmatch(Path(folder).name, name))
        for folder in above
        for pattern, name in names
    )


def test_what_is_copied_exists_and_is_not_kept_out():
    sources = [source for rest in arguments("COPY") for source in rest.split()[:-1]]
    assert {"bundle", "configs", "requirements.txt", "constraints.txt", "scripts/locked"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not is_ignored(source), source


@pytest.mark.parametrize(
    "path",
    ["data/volumes/a.nii.gz", "runs/x/model.pt", "models/model.pt", ".cache/volumes/a.pt", ".git/config", "tests/a.py",
     ".venv/bin/python", "bundle/data/__pycache__/find.pyc", ".mypy_cache/x"],
)  # fmt: skip
def test_volumes_results_and_development_stay_out(path: str):
    assert is_ignored(path)
    assert not is_ignored("bundle/data/find.py")  # the package of that name is no volume


def test_packages_are_the_pinned_ones_on_a_pinned_base():
    assert [rest for rest in arguments("RUN") if "pip install" in rest] == [
        (
            "python -m pip install --only-binary :all: --no-deps --require-hashes "
            "--requirement scripts/locked/requirements.txt"
        ),
        "python -m pip install --only-binary :all: --constraint constraints.txt --requirement requirements.txt",
    ]
    (base,) = arguments("FROM")
    minor = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", base)
    assert minor and minor[1] in {"3.10", "3.11", "3.12"}


def test_it_runs_the_bundle_and_not_as_root():
    (entry,), (command,), (user,) = arguments("ENTRYPOINT"), arguments("CMD"), arguments("USER")
    assert json.loads(entry) == ["python", "-m", "monai.bundle", "run"]
    assert json.loads(command)[0] == "training" and (ROOT / json.loads(command)[-1]).is_file()
    assert user == "trainer" and any(f"useradd --uid 1000 --create-home {user}" in rest for rest in arguments("RUN"))
    (volumes,), (root,) = arguments("VOLUME"), arguments("WORKDIR")
    assert set(json.loads(volumes)) == {f"{root}/{name}" for name in ("data", "runs", ".cache", "models")}


def test_the_launch_lines_name_configs_that_exist():
    named = re.findall(r"configs/\w+\.yaml", (ROOT / "Dockerfile").read_text())
    assert len(named) >= 4 and all((ROOT / name).is_file() for name in named)
