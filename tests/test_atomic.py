# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.atomic import free_path, remove_leftovers, replace_file

ROOT = Path(__file__).parents[1]


def test_the_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replace_file(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_the_data_is_on_the_disk_before_the_name_points_at_it(tmp_path, monkeypatch):
    """After a power cut a name without its data would be an empty file in place of the old one."""
    done, fsync, replace = [], os.fsync, Path.replace

    def sync(descriptor):
        done.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))  # noqa: PTH115 - of a descriptor
        fsync(descriptor)

    def rename(source, target):
        done.append(("replace", str(source)))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    with replace_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert done == [("fsync", str(temporary)), ("replace", str(temporary))]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write():
        with replace_file(path) as temporary:
            temporary.write_text("new")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_free_path_is_numbered_from_2(tmp_path):
    path = tmp_path / "model.pt"
    assert free_path(path) == path
    path.touch()
    (tmp_path / "model_2.pt").touch()
    assert free_path(path) == tmp_path / "model_3.pt"


def test_who_reads_the_old_file_meanwhile_reads_it_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with path.open() as reader:
        with replace_file(path) as temporary:
            temporary.write_text("new")
        assert reader.read() == "old"


@pytest.fixture(params=[0o077, 0o027, 0o022])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_file_has_the_permissions_that_the_users_umask_leaves(tmp_path, umask):
    with replace_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("patient")
        assert temporary.stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask


def killed_writer(folder: Path) -> None:
    """Leaves what a process leaves that is killed in the middle of a write."""
    code = (
        f"import os; from bundle.atomic import replace_file\nwith replace_file({str(folder / 'a.pt')!r}): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 9


def test_what_a_killed_process_left_goes_with_the_next_file_in_the_folder(tmp_path):
    killed_writer(tmp_path)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.pt.")
    (tmp_path / ".hidden.of.the.user").touch()
    with replace_file(tmp_path / "b.txt") as temporary:
        temporary.write_text("whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".hidden.of.the.user", "b.txt"]


def test_a_write_that_goes_on_is_not_cleaned_away(tmp_path):
    with replace_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
        assert remove_leftovers(tmp_path) == []
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_another_machines_temporary_file_goes_when_it_is_old(tmp_path):
    file = tmp_path / ".a.pt.1-0123456789abcdef.tmp.pt"
    file.touch()
    assert remove_leftovers(tmp_path) == []
    os.utime(file, (0, 0))
    assert remove_leftovers(tmp_path) == [file]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), replace_file(tmp_path / "file" / "a.txt"):
        pass
