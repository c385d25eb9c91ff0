# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The proof for GPUs does all of its work in a dry run, without the packages that a machine with a GPU may lack."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import gpu
import nibabel
import numpy as np
import pytest
import torch
import yaml
from gpu_parts import decoder, pretraining, timing
from gpu_parts.context import Context
from gpu_parts.encoders import SMALL
from gpu_parts.settings import DRY, FULL

from bundle.networks.encoders.build import ENCODERS

ROOT = Path(__file__).parents[3]
SCRIPTS = ROOT / "scripts/benchmarks"
LACKING = ("itk", "pydicom", "MinkowskiEngine", "fire", "onnx", "triton")
ROOMS = ("data", "training", "networks", "losses", "masking", "sparse", "transfer", "inference", "export")
VOLUMES = ("ct_spine_tptbox", "ct_body_totalseg", "mr_body_totalseg", "mr_spine_tptbox")


def dry_run(*options: str) -> subprocess.CompletedProcess[str]:
    """Runs the script in a process in which some packages cannot be imported, and every room of the bundle can."""
    program = (
        f"import runpy, sys\nimport tests.libyaml\nsys.modules.update(dict.fromkeys({LACKING!r}))\n"
        f"import {', '.join(f'bundle.{room}' for room in ROOMS)}\n"
        f"sys.path.insert(0, {str(SCRIPTS)!r})\nsys.argv = ['gpu.py', '--dry_run', *{list(options)!r}]\n"
        f"runpy.run_path({str(SCRIPTS / 'gpu.py')!r}, run_name='__main__')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3600,  # beside other work it takes ten times as long
        check=False,
    )


@pytest.fixture(scope="module")
def crops(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of 64^3 voxels of two CT and two MR volumes."""
    folder = tmp_path_factory.mktemp("crops")
    (folder / "volumes").mkdir()
    for name in VOLUMES:
        (folder / "volumes" / f"{name}.nii.gz").symlink_to(data_dir / f"volumes/{name}.nii.gz")
    options = ("--make_data", str(folder / "made"), "--volumes", str(folder / "volumes"), "--edge", "64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gpu.py", *options])
        patch.setattr(gpu, "install_excepthook", lambda: None)
        gpu.main()
    return folder / "made"


@pytest.fixture(scope="module")
def results(crops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dry run's results."""
    output = tmp_path_factory.mktemp("results")
    done = dry_run("--minutes", "60", "--data", str(crops), "--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr + (output / "results.md").read_text()
    return output


@pytest.fixture(scope="module")
def parts(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((results / "results.json").read_text())["parts"]
    return found


def test_crops_are_small_files_in_hounsfield_units_with_their_bodies(crops: Path, data_dir: Path):
    images = sorted((crops / "imagesTr").iterdir())
    assert len(images) == len(VOLUMES)
    for file in images:
        image, body = nibabel.load(file), nibabel.load(crops / "labelsTr" / file.name)
        assert image.get_data_dtype() == np.int16 and max(image.shape) <= 64
        assert image.shape == body.shape and set(np.unique(body.dataobj)) <= {0, 1}
    crop, whole = (
        nibabel.load(f)
        for f in (crops / "imagesTr/ct_spine_tptbox.nii.gz", data_dir / "volumes/ct_spine_tptbox.nii.gz")
    )
    values, place = np.asarray(crop.dataobj), np.array([s // 2 for s in crop.shape])
    there = np.linalg.inv(whole.affine) @ crop.affine @ [*place, 1]
    assert (
        values[tuple(place)] == np.clip(whole.get_fdata()[tuple(np.round(there[:3]).astype(int))], -1024, 3071).round()
    )


def test_every_part_is_done(parts: dict[str, Any]):
    assert {letter: part["status"] for letter, part in parts.items()} == dict.fromkeys("abchdgeif", "done")


def test_the_executors_agree_and_nothing_leaks(parts: dict[str, Any]):
    tables = parts["a"]["tables"]
    rows = tables["agreement with the masked executor"] + tables["leaks"]
    assert {row["executor"] for row in rows} == {"cells", "auto"}  # MinkowskiEngine cannot be imported there
    assert all(row["ok"] for row in rows), rows


def test_every_candidate_is_timed_or_says_why_not(parts: dict[str, Any]):
    rows = parts["b"]["tables"]["times"]
    errors = {row["candidate"]: row["error"] for row in rows if "error" in row}
    assert errors.keys() == {"minkowski"} and "UserError" in errors["minkowski"]
    assert all(row["fastest"] <= row["ms"] <= row["slowest"] for row in rows if "error" not in row)
    (encoder, step) = parts["b"]["tables"]["dense ÷ cells"]
    ms = {row["candidate"]: row["ms"] for row in rows if row["turns"] == 0}  # the encoder beside dense
    assert encoder["dense ÷ cells"] == min(ms["dense"], ms["dense channels-last"]) / ms["cells"]
    assert step["spark ÷ cells"] > 0 and step["cells recomputing ÷ cells"] > 0
    assert encoder["masked ÷ cells"] > 0  # of the turns in which both were timed
    (name,) = [name for name in parts["b"]["tables"] if name.startswith("distance to the limits")]
    far = parts["b"]["tables"][name]
    assert [row["candidate"] for row in far] == ["cells", "dense", "dense channels-last", "masked"]
    assert all(row["ms ÷ least"] == row["ms"] / row["least ms"] for row in far)


def test_resenc_l_is_timed_and_profiled(parts: dict[str, Any]):
    tables = parts["g"]["tables"]
    assert {row["what"] for row in tables["dense ÷ cells"]} == {"encoder", "step"}
    assert all(row["masked ÷ cells"] > 0 for row in tables["dense ÷ cells"])
    assert any(name.startswith("encoder: kinds") for name in tables)


def test_the_decoder_is_timed_as_it_is_and_what_a_cpu_cannot_do_says_so(parts: dict[str, Any]):
    (rows,) = parts["i"]["tables"].values()
    assert [row["candidate"] for row in rows if "ms" in row] == ["cells", "cells segres"]
    assert [row["candidate"] for row in rows if "error" in row] == ["cells graphed", "cells segres graphed"]
    assert all("compiled" in note for note in parts["i"]["notes"])


def test_a_note_says_which_executor_to_set(parts: dict[str, Any]):
    (note,) = [note for note in parts["h"]["notes"] if note.startswith("a step takes")]
    ms = {row["candidate"]: row["ms"] for row in parts["h"]["tables"]["times"] if row["what"] == "step"}
    assert ("--network_def#executor auto" in note) == (ms["auto"] < 0.97 * ms["cells"])


@pytest.mark.parametrize(("ms", "value"), [(96.0, "true"), (98.0, "false"), (110.0, "false")])
def test_a_note_says_whether_to_compile_the_decoder(ms: float, value: str):
    note = decoder._advice("compiled", 100.0, ms, "SegResDecoder")
    assert f"set network_def#compile_decoder to {value} with this decoder" in note


def test_the_weights_of_the_day_keep_features_apart():
    config = yaml.safe_load((ROOT / "configs" / pretraining.FILES[0]).read_text())
    assert config["objectives"].keys() == {"pretext", "decorrelation"}


def test_without_shared_memory_nothing_loads_beside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    context = Context(
        part="d", settings=FULL, dry=True, data=None, work=tmp_path, output=tmp_path, ends=time.monotonic()
    )
    monkeypatch.setattr("gpu_parts.context.LEAST_SHARED", 0)
    assert context.workers > 0
    monkeypatch.setattr("gpu_parts.context.LEAST_SHARED", 2**62)
    assert [context.workers, context.workers] == [0, 0] and len(context.found["notes"]) == 1


def test_cases_go_on_after_a_slow_first_one_and_stop_when_time_is_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    context = Context(part="b", settings=DRY, dry=True, data=None, work=tmp_path, output=tmp_path, ends=94.0)
    now, took = [0.0], iter([60.0, 10.0, 10.0, 10.0])
    monkeypatch.setattr(Context, "remaining", lambda self: self.ends - now[0])
    monkeypatch.setattr(timing, "_ceilings", lambda _: {"TB/s": 1.0, "TFLOP/s in bfloat16": 1.0})

    def measure(_: Context, case: timing.Turns) -> list[dict[str, Any]]:
        now[0] += next(took)  # cuDNN tries its kernels in the first one
        return [{"what": "step", "size": 32, "masked": case.ratio, "candidate": "cells", "ms": 1.0}]

    monkeypatch.setattr(timing, "_measure", measure)
    cases = [timing.Turns("step", 32, ratio, ["cells"]) for ratio in (0.1, 0.2, 0.3, 0.4, 0.5)]
    rows, seconds = timing.time_cases(context, cases)
    assert [row["masked"] for row in rows] == [0.1, 0.2, 0.3] and seconds == 10.0
    assert "no time for step, 32^3, 40% masked" in context.found["notes"][0]


def test_the_profile_says_where_the_time_goes(parts: dict[str, Any]):
    tables = parts["c"]["tables"]
    (kinds,) = [rows for name, rows in tables.items() if name.startswith("step: kinds")]
    assert {"gathers", "convolutions", "norms", "optimizer"} <= {row["kind"] for row in kinds}
    methods = tables["ms of each way to convolve, forward and backward"]
    assert len(methods) == 9 and all(row["best"] in row for row in methods)


def test_training_falls_waits_and_resumes(parts: dict[str, Any]):
    (row,) = parts["d"]["tables"]["training"]
    assert row["steps"] == len(parts["d"]["losses"]) == 8 and row["ms a step"] > 0
    assert 0 <= row["share of waiting for data"] < 1
    assert all(row["bit for bit"] for row in parts["d"]["tables"]["resume"]), "on a CPU"


def test_it_fine_tunes_predicts_and_leaves_weights(parts: dict[str, Any], results: Path):
    assert parts["e"]["tables"]["fine-tuning"][0]["steps a second"] > 0
    assert parts["e"]["tables"]["sliding-window prediction"][0]["volumes a minute"] > 0
    weights = torch.load(results / "model.pt", weights_only=True)
    assert weights and (results / "model.json").exists()
    assert parts["f"]["tables"]["weights"][0]["steps"] == 6


def test_the_page_holds_every_part_and_no_path_of_the_machine(results: Path):
    page = (results / "results.md").read_text()
    assert re.findall(r"^## (\w):", page, flags=re.MULTILINE) == list("abchdgeif")
    assert str(ROOT) not in page


def test_every_kind_of_stages_is_compared_on_the_device():
    assert {ENCODERS[name].stages for name, _ in SMALL.values()} == {family.stages for family in ENCODERS.values()}


def part_result(monkeypatch: pytest.MonkeyPatch, folder: Path, run: Any, seconds: float) -> dict[str, Any]:
    module = types.ModuleType("gpu_parts.planted")
    module.run = run
    monkeypatch.setitem(sys.modules, "gpu_parts.planted", module)
    monkeypatch.setitem(gpu.PARTS, "a", gpu.Part("planted", "planted", 1.0))
    monkeypatch.setattr(gpu, "GRACE", 0.2)
    options = argparse.Namespace(dry_run=True, data=None, output=folder)
    return gpu._run("a", options, folder, seconds, "fork")


def test_a_part_that_fails_is_reported_with_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def run(context: Any) -> None:
        context.table("before", [{"x": 1}])
        raise ValueError("planted error")

    result = part_result(monkeypatch, tmp_path, run, seconds=60)
    assert result["status"] == "failed" and "ValueError: planted error" in result["traceback"]
    assert result["tables"] == {"before": [{"x": 1}]}


def test_a_part_that_dies_is_reported_with_what_it_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def run(context: Any) -> None:
        os.write(2, b"CUDA error: planted")
        os._exit(139)

    result = part_result(monkeypatch, tmp_path, run, seconds=60)
    assert result["status"] == "failed" and "CUDA error: planted" in result["log"]


def test_a_part_that_outlasts_its_time_keeps_what_it_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def run(context: Any) -> None:
        context.table("before", [{"x": 1}])
        time.sleep(600)

    result = part_result(monkeypatch, tmp_path, run, seconds=2)
    assert result["status"] == "stopped at its time" and result["tables"] == {"before": [{"x": 1}]}
    assert result["seconds"] < 60


def test_parts_that_need_data_are_left_out_without():
    options = argparse.Namespace(dry_run=True, data=None, output=Path())
    assert gpu._run("d", options, Path(), 1.0, "fork")["status"] == "left out: it needs --data"
