# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/fingerprints.py: a scan's file is known again under any name, and no other one is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from bundle.data import FoundVolume
from bundle.data.fingerprints import fingerprint, labelled_fingerprint
from tests.data.volumes import write_nifti, write_pair


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


def test_scans_with_background_in_the_middle_of_their_bytes_differ(tmp_path: Path) -> None:
    """Uncompressed, without skulls, and with an even number of slices: the middle is the end of one slice."""
    found = []
    for seed in range(4):
        voxels = np.zeros((256, 256, 20), np.float32)
        voxels[70:190, 70:190] = np.random.default_rng(seed).normal(500, 50, (120, 120, 20))
        found.append(fingerprint([str(write_nifti(tmp_path / f"{seed}.nii", voxels))]))
    assert len(set(found)) == 4
    shutil.copy(tmp_path / "2.nii", tmp_path / "copy.nii")
    assert fingerprint([str(tmp_path / "copy.nii")]) == found[2]


def test_of_label_maps_every_byte_counts(tmp_path: Path) -> None:
    labels = np.zeros((128, 128, 64), np.uint8)
    labels[20:60, 30:70, 10:40] = 1
    other = labels.copy()
    other[100, 100, 60] = 1
    first, second = (fingerprint([str(write_nifti(tmp_path / f"{n}.nii", a))]) for n, a in enumerate((labels, other)))
    assert first != second


@pytest.mark.parametrize("endings", [(".hdr", ".img"), (".mhd", ".raw"), (".nhdr", ".raw")])
def test_of_an_image_in_two_files_it_is_the_voxels_that_count(endings: tuple[str, str], tmp_path: Path) -> None:
    found = [fingerprint([str(write_pair(tmp_path / str(seed), endings, seed))]) for seed in (0, 1, 0)]
    assert found[0] == found[2] != found[1]
