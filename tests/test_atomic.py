# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest

from bundle.atomic import free_path, replace_file


def test_the_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replace_file(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


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
