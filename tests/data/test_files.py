# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/files.py: which folders and files a walk gives, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bundle.data.files import scan_folders, walk_folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with links, hidden names, a name that is no text, a pipe and a link that leads nowhere."""
    root = tmp_path / "archive"
    for name in ("b/two", "b/one", "b/.hidden", "a ü/three", ".git/config"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    Path(os.fsdecode(os.fsencode(root) + b"/b/\xff")).write_text("four")
    (root / "0link").symlink_to(root / "b")  # before its folder by name, and after it in the walk
    (root / "b/up").symlink_to(root)
    (root / "elsewhere").symlink_to(tmp_path / "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/five").write_text("five")
    (root / "to_five").symlink_to(tmp_path / "other/five")
    (root / "nowhere").symlink_to(tmp_path / "none")
    os.mkfifo(root / "pipe")
    return root


def test_each_folder_comes_once_by_its_real_name_with_its_files_sorted(root: Path) -> None:
    locked: list[Path] = []
    found = [
        (str(folder.relative_to(root)), [file.name for file in files]) for folder, files in walk_folders(root, locked)
    ]
    assert found == [
        (".", ["to_five"]),
        ("a ü", ["three"]),
        ("b", ["one", "two", os.fsdecode(b"\xff")]),
        ("elsewhere", ["five"]),
    ]
    assert locked == [root / "nowhere"]


def test_sizes_and_times_are_those_of_the_files_themselves(root: Path) -> None:
    stamps = {os.path.join(folder, name): stamp for folder, files in scan_folders(root) for name, *stamp in files}  # noqa: PTH118
    assert len(stamps) == 6
    for path, stamp in stamps.items():
        assert stamp == [os.stat(path).st_size, os.stat(path).st_mtime_ns]  # noqa: PTH116


def test_a_file_that_goes_while_it_is_listed_is_not_one_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gone", "stays"):
        (tmp_path / name).write_text(name)
    access = os.access

    def remove_then_access(path: bytes, mode: int) -> bool:
        (tmp_path / "gone").unlink(missing_ok=True)
        return access(path, mode)

    monkeypatch.setattr(os, "access", remove_then_access)
    locked: list[Path] = []
    ((_, files),) = walk_folders(tmp_path, locked)
    assert [file.name for file in files] == ["stays"] and locked == []
