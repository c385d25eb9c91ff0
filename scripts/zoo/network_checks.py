# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The Model Zoo's assertions B: what its GPU stage runs. One process of its own, as the folder's code is to be used."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from checks import NotChecked, Release, check

#: the calls of the zoo's ci/verify_bundle.py; the folder it stands in is on Python's path, as in `python -m`
_PROGRAM = """
import json, pathlib, sys, traceback
from monai.bundle import ckpt_export, verify_net_in_out

ids = {"net_id": "network_def", "meta_file": "configs/metadata.json", "config_file": "configs/inference.yaml"}
results, export = {}, sys.argv[1]


def attempt(name, function, **arguments):
    try:
        function(**ids, **arguments, bundle_root=".")
        results[name] = ""
    except Exception as error:
        results[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"


attempt("verify_net_in_out", verify_net_in_out)
if pathlib.Path("models/model.pt").is_file():
    attempt("ckpt_export", ckpt_export, ckpt_file="models/model.pt", filepath=export)
import bundle
results["code"] = bundle.__file__
pathlib.Path(export + ".json").write_text(json.dumps(results))
"""


@check("B1")
def net_in_out(release: Release) -> Iterator[str]:
    """By verify_net_in_out: image in, pred out, in the shapes of metadata.json."""
    if problem := _verified(release.path)["verify_net_in_out"]:
        yield problem


@check("B2")
def ckpt_export(release: Release) -> Iterator[str]:
    """By ckpt_export: model.pt loads and network_def compiles to TorchScript."""
    if not (release.path / "models/model.pt").is_file():
        raise NotChecked("the weights are not in the folder")
    if problem := _verified(release.path)["ckpt_export"]:
        yield problem


@check("B3")
def unit_test(release: Release) -> Iterator[str]:
    """A unit test in the zoo's form: each config runs on 10 synthetic volumes."""
    file = release.repository / f"tests/zoo/test_{release.name}.py"
    if "unittest.TestCase" not in file.read_text():
        yield f"{file.name} holds no unittest.TestCase"


@functools.lru_cache(maxsize=1)
def _verified(folder: Path) -> dict[str, str]:
    """What is wrong with each command, or "".

    Raises:
        RuntimeError: if the process failed, or ran other code than the folder's.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # no cache in what is published
    with tempfile.TemporaryDirectory() as temporary:
        export = Path(temporary) / "model.ts"
        line = [sys.executable, "-c", _PROGRAM, str(export)]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"MONAI's checks did not run: {done.stderr.strip().splitlines()[-1]}")
        results: dict[str, str] = json.loads(Path(f"{export}.json").read_text())
    if folder not in Path(results["code"]).parents:
        raise RuntimeError(f"MONAI's checks ran the code of {results['code']}, not the folder's")
    return results
