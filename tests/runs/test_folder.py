# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bundle.errors import UserError
from bundle.runs.folder import RunFolder, open_run_folder


def leave_checkpoint(path, age=0):
    folder = RunFolder(path)
    folder.last_checkpoint.parent.mkdir(parents=True)
    folder.last_checkpoint.touch()
    stat = folder.last_checkpoint.stat()
    os.utime(folder.last_checkpoint, (stat.st_atime - age, stat.st_mtime - age))
    folder.config.touch()


def test_a_new_run_gets_a_folder_of_its_own_under_runs(tmp_path):
    folders = [open_run_folder(bundle_root=tmp_path) for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3
    assert all(folder.path.parent == tmp_path / "runs" and folder.path.is_dir() for folder in folders)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folders[0].path.name)
    assert not folders[0].resumed


def test_resume_continues_the_newest_run_that_has_a_checkpoint(tmp_path):
    leave_checkpoint(tmp_path / "runs" / "b", age=100)
    leave_checkpoint(tmp_path / "runs" / "a", age=10)
    (tmp_path / "runs" / "c").mkdir()
    assert open_run_folder(bundle_root=tmp_path, resume=True) == RunFolder(tmp_path / "runs" / "a", resumed=True)


def test_resume_takes_the_named_run(tmp_path):
    leave_checkpoint(tmp_path / "x")
    named = RunFolder(tmp_path / "x", resumed=True)
    assert open_run_folder(bundle_root=tmp_path, resume=str(tmp_path / "x")) == named
    assert open_run_folder(bundle_root=tmp_path, resume=True, output_dir=tmp_path / "x") == named
    with pytest.raises(UserError, match="two folders"):
        open_run_folder(bundle_root=tmp_path, resume=str(tmp_path / "x"), output_dir=tmp_path / "y")


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path):
    leave_checkpoint(tmp_path / "x")
    with pytest.raises(UserError, match=r"already holds a run: add --resume .* another --output_dir"):
        open_run_folder(bundle_root=tmp_path, output_dir=tmp_path / "x")


@pytest.mark.parametrize("name", ["model.pt", "model.json", "model_decoder.pt"])
def test_a_folder_that_holds_a_model_is_not_written_over(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"holds a model, which a run would write over: give another --output_dir"):
        open_run_folder(bundle_root=tmp_path, output_dir=tmp_path)


def test_resuming_an_empty_output_dir_starts_from_the_beginning(tmp_path, caplog):
    assert not open_run_folder(bundle_root=tmp_path, output_dir=tmp_path / "x", resume=True).resumed
    assert "starting from the beginning" in caplog.text


def test_nothing_to_resume_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no run to resume"):
        open_run_folder(bundle_root=tmp_path, resume=True)
    with pytest.raises(UserError, match="nothing to resume"):
        open_run_folder(bundle_root=tmp_path, resume=str(tmp_path / "x"))


def leave(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("epoch,loss\n1,2\n2,1\n" if name == "metrics.csv" else "kept")


@pytest.mark.parametrize("left", [("config.yaml", "model.pt"), ("model.json",), ("config.yaml", "metrics.csv")])
def test_a_run_that_lost_its_checkpoint_is_not_written_over_by_a_resume(tmp_path, left):
    leave(tmp_path / "x", *left)
    with pytest.raises(UserError, match=r"has no checkpoints/last.pt to resume.*another --output_dir"):
        open_run_folder(bundle_root=tmp_path, output_dir=tmp_path / "x", resume=True)
    assert sorted(file.name for file in (tmp_path / "x").iterdir()) == sorted(left)


def test_a_run_killed_in_its_first_epoch_starts_again_with_the_same_command(tmp_path):
    leave(tmp_path / "x", "config.yaml", "tensorboard/events", "checkpoints/best.pt")
    (tmp_path / "x" / "metrics.csv").write_text("epoch,loss\n1,2\n")  # the kill came before last.pt
    assert not open_run_folder(bundle_root=tmp_path, output_dir=tmp_path / "x", resume=True).resumed


def test_a_long_runs_pictures_grow_with_the_logarithm_of_its_length(tmp_path: Path):
    folder = RunFolder(tmp_path)
    (folder.panels).mkdir()
    (folder.panels / "notes.png").touch()
    for epoch in range(1, 401):
        with folder.new_panel(epoch) as temporary:
            temporary.write_text(str(epoch))
    kept = sorted(int(file.stem[-4:]) for file in folder.panels.glob("epoch_*.png"))
    assert kept == [*range(1, 51), *range(52, 101, 2), *range(104, 201, 4), *range(208, 401, 8)]
    assert (folder.panels / "notes.png").exists()


def test_the_newest_picture_is_always_there(tmp_path: Path):
    folder = RunFolder(tmp_path)
    for epoch in (1, 173, 174):
        with folder.new_panel(epoch) as temporary:
            temporary.write_text("")
    assert [file.name for file in sorted(folder.panels.iterdir())] == ["epoch_0001.png", "epoch_0174.png"]


@pytest.mark.parametrize(
    ("page", "ended"),
    [
        (None, False),
        ("# Summary\n\nTraining completed 9 of 9 epochs.\n", True),
        ("# Summary\n\nTraining interrupted in epoch 2 of 9.\n", False),
        ("# Summary\n\nTraining stopped in epoch 2 of 9 by an error: Training completed nothing\n", False),
    ],
)
def test_a_run_has_ended_where_its_page_says_so(tmp_path, page, ended):
    if page is not None:
        (tmp_path / "summary.md").write_text(page)
    assert RunFolder(tmp_path).has_ended() == ended
