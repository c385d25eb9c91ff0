# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""configs/prepare.yaml: a training finds what was prepared, in parts, with what is damaged made anew."""

from __future__ import annotations

import json
import logging
import os
import zlib
from pathlib import Path
from typing import Any

import pytest

from bundle.data import VolumeSet, prepare_archive
from bundle.errors import UserError
from tests.commands import run_python
from tests.data.volumes import ROOT, ct_phantom, mr_phantom, preparation, write_nifti


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(3):
        write_nifti(tmp_path / f"volumes/ct_{n}.nii", ct_phantom(seed=n))
        write_nifti(tmp_path / f"volumes/mr {n}.nii", mr_phantom(seed=n))
    (tmp_path / "volumes/ct_broken.nii").write_bytes(b"no volume")
    return tmp_path / "volumes"


def prepare(folder: Path, **options: Any) -> dict[str, Any]:
    options = {"transform": preparation((8, 8, 8)), "cache_dir": folder.parent / "cache", "workers": 1, **options}
    return prepare_archive(dataset_dir=folder, **options)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seconds that a process takes to start: tests/data/test_processes.py has the processes."""

    def run(function: Any, tasks: Any, **_: Any) -> Any:
        yield from ((number, function(task)) for number, task in enumerate(tasks))

    monkeypatch.setattr("bundle.data.preparation.run_in_processes", run)


def test_parts_are_a_partition_and_a_training_finds_them_ready(folder: Path, in_this_process: None) -> None:
    parts = [prepare(folder, part=part, of=3) for part in (1, 2, 3)]
    assert sum(part["found"] for part in parts) == 7 and sum(part["prepared"] for part in parts) == 6
    ((name, problem),) = [(one["name"], one["problem"]) for part in parts for one in part["skipped"]]
    assert name == "ct_broken.nii" and "cannot be read" in problem
    kept = json.loads((folder.parent / "cache/prepared_2_of_3.json").read_text())
    assert kept == parts[1]
    files = {file: file.stat().st_mtime_ns for file in (folder.parent / "cache").glob("*.b2v")}
    VolumeSet(dataset_dir=folder, transform=preparation((8, 8, 8)), cache_dir=folder.parent / "cache")
    assert {file: file.stat().st_mtime_ns for file in (folder.parent / "cache").glob("*.b2v")} == files
    again = prepare(folder)
    assert (again["ready"], again["prepared"], len(again["skipped"])) == (6, 0, 1)


def test_verify_prepares_what_is_damaged(folder: Path, in_this_process: None) -> None:
    prepare(folder)
    file = max((folder.parent / "cache").glob("*.b2v"))
    data, time = bytearray(file.read_bytes()), file.stat().st_mtime_ns
    data[-9] ^= 4
    file.write_bytes(data)
    os.utime(file, ns=(time, time))
    assert prepare(folder)["prepared"] == 0, "the disk did not tell, and the header is intact"
    assert prepare(folder, verify=True)["prepared"] == 1
    assert prepare(folder, verify=True)["prepared"] == 0


def test_names_are_hashed_where_asked(folder: Path, in_this_process: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        summary = prepare(folder, hash_names=True)
    assert "broken" not in f"{summary}{caplog.text}" and len(summary["skipped"]) == 1


@pytest.mark.parametrize(("part", "of"), [(0, 4), (5, 4), (1, 0)])
def test_a_part_that_is_not_there_is_refused(part: int, of: int, folder: Path) -> None:
    with pytest.raises(UserError, match="--part"):
        prepare(folder, part=part, of=of)


def test_a_part_of_nothing_but_broken_volumes_is_an_error(tmp_path: Path, in_this_process: None) -> None:
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes/broken.nii").write_bytes(b"no volume")
    with pytest.raises(UserError, match="none of the 1 volumes can be used"):
        prepare(tmp_path / "volumes")


def test_under_torchrun_each_process_takes_its_share_of_the_part(
    folder: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process of the broken volume, which is all that it has, does not end the others."""
    names = ["ct_broken.nii", *(f"ct_{n}.nii" for n in range(3)), *(f"mr {n}.nii" for n in range(3))]
    world = 31  # so many that one has nothing but the broken volume
    assert [
        name for name in names if zlib.crc32(name.encode()) % world == zlib.crc32(names[0].encode()) % world
    ] == names[:1]
    told: list[tuple[int, Any]] = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: world)

    def gather(values: list[Any], mine: Any) -> None:
        told.append(mine)
        values[:] = [(7, [])] * world  # of the others

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    summaries = []
    for rank in range(world):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        summaries.append(prepare(folder))
    assert [one["part"] for one in summaries[:2]] == ["1 of 31", "2 of 31"]
    assert sum(one["found"] for one in summaries) == 7 and sum(one["prepared"] for one in summaries) == 6
    assert len(told) == world and (1, 1) in [(found, len(skipped)) for found, skipped in told]


def test_the_config_prepares_in_processes(folder: Path) -> None:
    configs = [str(ROOT / f"configs/{name}.yaml") for name in ("train", "preset_dev", "prepare")]
    command = ["-m", "monai.bundle", "run", "--config_file", configs, "--bundle_root", ROOT]
    options = {"dataset_dir": folder, "cache_dir": folder.parent / "cache", "workers": 1, "part": 1, "of": 1}
    given = [text for name, value in options.items() for text in (f"--{name}", value)]
    done = run_python(*command, *given, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert "part 1 of 1: 7 volumes, 0 were ready, 6 are prepared now, 1 skipped" in done.stdout + done.stderr
    assert len(list((folder.parent / "cache").glob("*.b2v"))) == 6
