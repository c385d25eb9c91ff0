# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bundle.runs.memory import keep_freed_memory
from tests.commands import run_python

ROOT = Path(__file__).parents[2]


def test_a_large_block_is_reused_without_new_pages():
    code = """
import resource, sys, torch
from bundle.runs.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for turn in range(20):  # the first ones leave small blocks among the large
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(40 * 2**20)  # 160 MiB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {how: int(run_python("-c", code, how, cwd=ROOT).stdout) for how in ("keep", "give back")}
    assert faults["keep"] < 0.1 * faults["give back"]


def test_where_there_is_no_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
