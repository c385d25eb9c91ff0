# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/fingerprints.py: a scan's file is known again under any name, and no other one is."""

from __future__ import annotations

import shutil
from pathlib import Path

from bundle.data import FoundVolume
from bundle.data.fingerprints import fingerprint, labelled_fingerprint


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


def test_images_and_labels_count_and_where_they_lie_does_not(tmp_path: Path) -> None:
    def digest(folder: str = "a", label: str = "l", channel: str = "c", **more: object) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        files = {name: tmp_path / folder / name for name in ("i", "c", "l")}
        for name, text in (("i", "image"), ("c", channel), ("l", label)):
            files[name].write_text(text)
        annotations = {"label": {"liver": str(files["l"])}, **more}
        channels = ((str(files["c"]),),)
        return labelled_fingerprint(FoundVolume(folder, (str(files["i"]),), annotations=annotations, channels=channels))

    assert digest() == digest("b")
    assert len({digest(), digest(label="m"), digest(channel="d"), digest(box=[1.0, float("nan")])}) == 4
