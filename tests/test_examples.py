# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""What users import has an example in its docstring, and the example gives what it says."""

from __future__ import annotations

import doctest
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


def example_of(name: str) -> doctest.DocTest:
    """The example in the docstring of a class or function, which knows the names of its module."""
    thing = pkgutil.resolve_name(name)
    known = dict(vars(sys.modules[thing.__module__]))
    return doctest.DocTestParser().get_doctest(thing.__doc__ or "", known, name, thing.__module__, 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_example_in_the_docstring_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)  # what an example writes stays out of the repository
    example = example_of(name)
    assert example.examples, f"{name} has no example in its docstring"
    torch.manual_seed(0)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(example, out=said.append).failed == 0, "".join(said)


def test_an_example_says_something_and_a_wrong_one_fails() -> None:
    """An example that compares nothing would pass whatever the code does."""
    for name in NAMES:
        example = example_of(name)
        assert not example.examples or any(step.want for step in example.examples), f"{name} compares nothing"
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    said: list[str] = []
    assert doctest.DocTestRunner().run(wrong, out=said.append).failed == 1
