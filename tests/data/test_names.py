# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/names.py: names without endings, and messages without paths."""

from __future__ import annotations

from hashlib import sha256

import pytest

from bundle.data import FoundVolume
from bundle.data.names import name_digest, without_ending, without_paths


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b.nii.gz", "a/b"), ("B.NRRD", "B"), ("scan.v2.mha", "scan.v2"), ("series", "series"), ("a.gz", "a.gz")],
)
def test_an_ending_of_a_volume_is_cut_off_and_nothing_else(name: str, expected: str) -> None:
    assert without_ending(name) == expected


def test_a_digest_is_the_first_16_digits_of_sha256() -> None:
    assert name_digest("jane_doe.nii") == sha256(b"jane_doe.nii").hexdigest()[:16]
    assert name_digest("jane_doe.nii") != name_digest("jane_doe.nii.gz")


def test_a_message_keeps_nothing_of_the_names_of_a_volumes_files() -> None:
    volume = FoundVolume(
        "jane/scan.nii",
        ("/data/jane/scan.nii",),
        annotations={"label": "/data/jane/scan_label.nii", "box": [[1]], "masks": {"liver": "/data/jane/liver.nii"}},
        channels=(("/data/jane/scan_t2.nii",),),
    )
    text = "/data/jane/scan.nii, liver.nii, scan_label.nii and /data/jane/scan_t2.nii of jane/scan.nii cannot be read"
    found = without_paths(text, volume, "0815")
    assert found == "0815, 0815, 0815 and 0815 of 0815 cannot be read"
