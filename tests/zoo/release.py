# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A repository with a tiny encoder in place of the published one, and its release, for tests."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import release
import torch
from monai.networks.nets.segresnet_ds import SegResEncoder

ROOT = Path(__file__).parents[2]
NAME = "ct_mr_sparse_mim_pretraining"
ENCODER = {"init_filters": 4, "blocks_down": [1, 1, 1, 1, 1], "norm": ["instance", {"affine": True}]}
SETTINGS = {"encoder": {"name": "SegResEncoder", **ENCODER}, "crop_size": [32, 32, 32], "spacing": [4, 4, 4]}
SETTINGS |= {"ct_window": [-1000, 1000], "mr_percentiles": [0.5, 99.5]}


@dataclass(frozen=True)
class Released:
    """What the command left.

    Args:
        repository: that it was built from.
        folder: dist/<name>.
        zip: the packed folder.
        code: the command's exit code.
        output: what it printed.
    """

    repository: Path
    folder: Path
    zip: Path
    code: int
    output: str

    def installed(self, where: Path) -> Path:
        """The packed folder, unpacked; returns the bundle's root."""
        with zipfile.ZipFile(self.zip) as archive:
            archive.extractall(where)
        return where / NAME


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


def make_repository(root: Path) -> Path:
    """The files under version control, with settings and metadata that fit a tiny encoder, and that encoder."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    for file in filter(None, listed.stdout.split("\0")):
        if (ROOT / file).is_file() and not file.startswith("models/"):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, root / file)
    config = (root / "configs/inference.yaml").read_text()
    for key, value in SETTINGS.items():
        config, found = re.subn(rf"(?m)^    {key}: [{{\[].*$", f"    {key}: {json.dumps(value)}", config)
        assert found == 1, key
    (root / "configs/inference.yaml").write_text(config)
    metadata = json.loads((root / "configs/metadata.json").read_text())
    metadata["network_data_format"]["outputs"]["pred"]["num_channels"] = 64
    (root / "configs/metadata.json").write_text(json.dumps(metadata, indent=4) + "\n")
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "all")
    (root / "models").mkdir()
    torch.manual_seed(0)
    torch.save(SegResEncoder(**ENCODER).state_dict(), root / "models/model.pt")
    digest = hashlib.sha256((root / "models/model.pt").read_bytes()).hexdigest()
    (root / "models/model.json").write_text(json.dumps({**SETTINGS, "sha256": digest}, indent=4) + "\n")
    return root


def run_release(root: Path, *arguments: object) -> tuple[int, str]:
    """Exit code and output of the command."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = release.main([str(argument) for argument in arguments], root)
    return code, output.getvalue()


def make_release(where: Path) -> Released:
    """Builds, checks and packs the bundle from a repository of its own."""
    repository = make_repository(where / "repository")
    code, output = run_release(repository)
    version = json.loads((repository / "configs/metadata.json").read_text())["version"]
    dist = repository / "dist"
    return Released(repository, dist / NAME, dist / f"{NAME}_v{version}.zip", code, output)
