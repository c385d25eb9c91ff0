# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from bundle.errors import UserError
from bundle.runs.folder import RunFolder, open_run_folder
from bundle.runs.lock import lock_folder, release_folders
from tests.commands import SERVER


@pytest.fixture(autouse=True)
def free() -> Iterator[None]:
    yield
    release_folders()


def hold(folder: Path, held: Event) -> None:
    lock_folder(folder)
    held.set()
    time.sleep(600)


@contextmanager
def other_process(folder: Path) -> Iterator[BaseProcess]:
    """A process that holds the folder until it is killed."""
    held = SERVER.Event()
    process = SERVER.Process(target=hold, args=(folder, held))
    process.start()
    assert held.wait(300)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path: Path):
    with other_process(tmp_path / "run") as first, pytest.raises(UserError) as caught:
        lock_folder(tmp_path / "run")
    said = str(caught.value)
    assert f"process {first.pid} on " in said and "another --output_dir" in said and "\n" not in said


def test_what_a_killed_process_leaves_is_no_lock(tmp_path: Path):
    with other_process(tmp_path) as first:
        first.kill()
        first.join()
        assert (tmp_path / ".lock").exists()
        lock_folder(tmp_path)
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_a_released_folder_is_free_and_shows_no_trace(tmp_path: Path):
    (tmp_path / "config.yaml").touch()
    lock_folder(tmp_path)
    lock_folder(tmp_path)  # its own process may
    release_folders()
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    with other_process(tmp_path):
        pass


def test_a_folder_in_which_nothing_was_written_does_not_stay(tmp_path: Path):
    new = open_run_folder(bundle_root=tmp_path).path
    lock_folder(tmp_path / "given")
    assert new.is_dir() and (tmp_path / "given").is_dir()
    release_folders()
    assert not new.exists() and not (tmp_path / "given").exists()


def test_an_empty_folder_of_the_user_stays(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    open_run_folder(bundle_root=tmp_path, output_dir=tmp_path / "mine")
    release_folders()
    assert not any((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_cannot_start_or_resume_where_another_process_writes(tmp_path: Path, resume: bool):
    folder = RunFolder(tmp_path / "run")
    if resume:
        folder.last_checkpoint.parent.mkdir(parents=True)
        folder.last_checkpoint.touch()
    with other_process(folder.path), pytest.raises(UserError, match="is being written by another process"):
        open_run_folder(bundle_root=tmp_path, output_dir=folder.path, resume=resume)


@pytest.mark.parametrize("below", ["", "run"])
def test_a_folder_that_cannot_be_one_is_refused_in_one_line(tmp_path: Path, below: str):
    (tmp_path / "list").write_text("")
    with pytest.raises(UserError, match=r"--output_dir .*list.* is a file, lies below one, or cannot be made there"):
        lock_folder(tmp_path / "list" / below)
