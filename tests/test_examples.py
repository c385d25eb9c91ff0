# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Every example in a docstring of the package gives what it says; what users import has one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
NAMES = [
    "bundle.sparse:SparseVolume",
    "bundle.sparse:CellLayout",
    "bundle.transfer:load_encoder",
    "bundle.transfer:load_decoder",
    "bundle.transfer:fit_heads",
    "bundle.networks.encoders:build_encoder",
    "bundle.masking:AdaptiveBlocks",
    "bundle.masking:UniformCells",
    "bundle.masking:PhysicalBlocks",
    "bundle.networks:PretrainingNetwork",
    "bundle.data:VolumeSet",
    # the transforms of docs/how-to/plain_pytorch.md
    "bundle.data:ReadVolumed",
    "bundle.tasks.segmentation:ReadLabelMapd",
    "bundle.data:OptionalSpacingd",
    "bundle.data:Modalityd",
    "bundle.data:Foregroundd",
    "bundle.data:NormalizeByModalityd",
]


WITH_EXAMPLES = sorted(file for file in (ROOT / "bundle").rglob("*.py") if ">>>" in file.read_text())
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the examples run: the weights and volumes are there, and what they write stays out of the repository."""
    for name in ("models", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda file: str(file.relative_to(ROOT)))
def test_examples_give_what_they_say(file: Path, folder: Path) -> None:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    result = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert result.attempted > 0 and result.failed == 0


def find_example(name: str) -> doctest.DocTest:
    """The example in the docstring of a class or function, which knows the names of its module."""
    thing = pkgutil.resolve_name(name)
    known = dict(vars(sys.modules[thing.__module__]))
    return doctest.DocTestParser().get_doctest(thing.__doc__ or "", known, name, thing.__module__, 0)


@pytest.mark.parametrize("name", NAMES)
def test_what_users_import_has_an_example(name: str) -> None:
    assert find_example(name).examples, f"{name} has no example in its docstring"


def test_an_example_says_something_and_a_wrong_one_fails() -> None:
    """An example that compares nothing would pass whatever the code does."""
    for name in NAMES:
        example = find_example(name)
        assert not example.examples or any(step.want for step in example.examples), f"{name} compares nothing"
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    said: list[str] = []
    assert doctest.DocTestRunner().run(wrong, out=said.append).failed == 1
