# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/archive/facts.py: with digests for names, nothing of a path is left in what an index says of a volume."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bundle.archive import look, update_index
from bundle.archive.facts import read_volumes
from bundle.data.names import name_digest
from tests.data.volumes import ct_phantom, write_dicom, write_nifti

NAMES = ("MUELLER_HANS", "MAIER_EVA", "HUBER_ANNA", "BAUER_OTTO", "WOLF_PIA")


def write_broken(root: Path) -> None:
    """Files whose readers name them, or the file of their voxels, in the error; and copies of one another."""
    root.mkdir()
    header = "ObjectType = Image\nNDims = 3\nDimSize = 8 8 8\nElementType = MET_SHORT\nElementSpacing = 1 1 1\n"
    (root / "MUELLER_HANS.mhd").write_text(f"{header}ElementDataFile = MUELLER_HANS.raw\n")
    nrrd = "NRRD0004\ntype: short\ndimension: 3\nsizes: 8 8 8\nspace: left-posterior-superior\nencoding: raw\n"
    space = "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nendian: little\n"
    (root / "MAIER_EVA.nhdr").write_text(f"{nrrd}{space}data file: MAIER_EVA.raw\n")
    (root / "HUBER_ANNA.nii.gz").write_bytes(b"y" * 500)
    write_nifti(root / "WOLF_PIA.nii", ct_phantom((6, 6, 6)))
    shutil.copy(root / "WOLF_PIA.nii", root / "WOLF_PIA_2.nii")
    write_dicom(root / "BAUER_OTTO", ct_phantom((6, 6, 6)))
    shutil.copytree(root / "BAUER_OTTO", root / "BAUER_OTTO_2")


def test_hashed_volumes_keep_no_name_in_any_text(tmp_path: Path) -> None:
    root, file = tmp_path / "LANG_UWE", tmp_path / "i.sqlite"
    write_broken(root)
    update_index(file, root, processes=0)
    told, hashed = read_volumes(file), read_volumes(file, hash_names=True)
    named = [v for v in told[0] if any(name in v["problem"] for name in NAMES)]
    assert len(named) >= 4, "the texts name what is looked for"
    for name in (*NAMES, "LANG_UWE"):
        assert name not in repr(hashed)
    by_digest = {volume["name"]: volume for volume in hashed[0]}
    assert by_digest.keys() == {name_digest(volume["name"]) for volume in told[0]}
    copy = by_digest[name_digest("WOLF_PIA_2.nii")]
    assert copy["problem"] == f"holds the same voxels as {name_digest('WOLF_PIA.nii')}"
    digest = name_digest("HUBER_ANNA.nii.gz")
    assert digest in by_digest[digest]["problem"], "what was wrong stays"


@pytest.mark.parametrize("hash_names", [True, False])
def test_a_file_that_ends_its_process_is_named_as_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hash_names: bool
) -> None:
    root = tmp_path / "archive"
    write_nifti(root / "a/HUBER_ANNA.nii", ct_phantom((6, 6, 6)))
    monkeypatch.setattr(look, "read_chunk", end)
    update_index(tmp_path / "i.sqlite", root, processes=1, hash_names=hash_names)
    called = name_digest("a/HUBER_ANNA.nii") if hash_names else "HUBER_ANNA.nii"
    assert f"{called} ends the process that reads it" in caplog.text
    assert ("HUBER" in caplog.text) != hash_names


def end(*_: object, **__: object) -> None:
    os._exit(1)
