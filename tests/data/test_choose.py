# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import pytest

from bundle.data import FoundVolume
from bundle.data.choose import choose_volumes
from bundle.errors import UserError


def find(folder: object) -> list[FoundVolume]:
    return [FoundVolume(name, (name,), part="test") for name in "abcd"]


def test_the_named_scans_have_the_named_parts_whatever_the_list_says():
    found = choose_volumes("folder", find=find, training=["c"], validation=["a", "d"])
    assert [(volume.name, volume.part) for volume in found] == [
        ("c", "training"),
        ("a", "validation"),
        ("d", "validation"),
    ]


def test_a_name_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match="folder has no scan e: name scans that are there"):
        choose_volumes("folder", find=find, training=["e"], validation=["a"])
