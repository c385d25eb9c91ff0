# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/fingerprints.py: a scan's file is known again under any name, and no other one is."""

from __future__ import annotations

import shutil
from pathlib import Path

from bundle.data.fingerprints import fingerprint


def test_real_scans_have_different_fingerprints_and_a_copy_the_same(data_dir: Path, tmp_path: Path) -> None:
    files = sorted((data_dir / "volumes").iterdir())
    found = [fingerprint([str(file)]) for file in files]
    assert len(set(found)) == len(files) and all(len(digest) == 16 for digest in found)
    copy = shutil.copyfile(files[0], tmp_path / "another name.nii.gz")
    assert fingerprint([str(copy)]) == found[0]


def test_a_series_is_known_by_its_middle_file_and_what_is_not_there_by_nothing(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode() * 100_000)
    files = [str(tmp_path / name) for name in ("a", "b", "c")]
    assert fingerprint(files) == fingerprint(files[1:2]) != fingerprint(files[:1])
    assert fingerprint([]) == fingerprint([str(tmp_path / "no")]) == ""
