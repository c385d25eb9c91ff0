# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/locked/*.txt holds every package of the requirements at the version of constraints.txt, with hashes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lock_packages import without_torch
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
FILES = {
    "requirements.txt": ("requirements.txt",),
    "requirements-dev.txt": ("requirements.txt", "requirements-dev.txt"),
}


def lines(file: str) -> list[str]:
    found = (line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return [line for line in found if line]


def packages(file: str) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Name, and for each version of it the requirement and its hashes."""
    text = (ROOT / "scripts/locked" / file).read_text()
    found: dict[str, list[tuple[Requirement, list[str]]]] = {}
    for block in re.findall(r"^[^\s#].*\n(?:[ \t].*\n)*", text, flags=re.MULTILINE):
        requirement = Requirement(block.splitlines()[0].rstrip(" \\"))
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block)
        found.setdefault(_plain(requirement.name), []).append((requirement, hashes))
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("file", FILES)
def test_every_requirement_is_locked_at_the_version_of_the_constraints(file: str) -> None:
    locked = packages(file)
    pins = {_plain(Requirement(line).name): Requirement(line).specifier for line in lines("constraints.txt")}
    for name in {_plain(Requirement(line).name) for part in FILES[file] for line in lines(part)} - {"torch"}:
        assert [one.specifier for one, _ in locked[name]] == [pins[name]], name


@pytest.mark.parametrize("file", [*FILES, "minkowski.txt"])
def test_every_locked_package_has_one_version_and_hashes(file: str) -> None:
    for name, versions in packages(file).items():
        for requirement, hashes in versions:
            assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)) and hashes, name
        assert len(versions) == 1 or all(one.marker is not None for one, _ in versions), name
    assert "torch" not in packages(file)


def test_what_comes_from_torchs_indexes_is_left_out() -> None:
    blocks = [
        f"{name}==1.0 \\\n    --hash=sha256:0\n" for name in ("numpy", "nvidia-cublas", "torch", "torchio", "triton")
    ]
    assert without_torch("# a comment\n" + "".join(blocks)) == blocks[0] + blocks[3]
    assert without_torch("".join(blocks), kept="triton") == blocks[0] + blocks[3] + blocks[4]
