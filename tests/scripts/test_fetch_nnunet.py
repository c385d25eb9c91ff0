# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""nnU-Net for the tests: which one is found, and what a machine that cannot have one is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fetch_nnunet
from fetch_nnunet import fetch, find_nnunet, main


def test_it_is_installed_into_its_own_folder_without_what_is_there_and_without_primus(tmp_path: Path, monkeypatch):
    seen: list[list[str]] = []

    def install(command: list[str], *, check: bool) -> None:
        assert check
        seen.append(command)
        made = Path(command[command.index("--target") + 1])
        for name in ("bin/nnUNetv2_train", "nnunetv2/training/nnUNetTrainer/primus/primus.py"):
            (made / name).parent.mkdir(parents=True)
            (made / name).touch()

    monkeypatch.setattr(fetch_nnunet.subprocess, "run", install)
    folder = tmp_path / "my nnunet"
    assert find_nnunet(folder) is None
    fetch(folder)
    assert find_nnunet(folder) == folder / "bin"
    assert not (folder / "nnunetv2/training/nnUNetTrainer/primus").exists()
    assert seen[0][0] == sys.executable and "--no-deps" in seen[0] and "nnunetv2==2.8.1" in seen[0]
    assert not [name for name in seen[0] if name.partition("==")[0] in ("torch", "torchvision", "numpy")]


def test_what_pip_cannot_fetch_is_one_line(monkeypatch, capsys):
    def fails(*_, **__) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(fetch_nnunet, "find_nnunet", lambda: None)
    monkeypatch.setattr(fetch_nnunet, "fetch", fails)
    assert main() == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: nnU-Net could not be fetched") and "see what pip says above" in line
