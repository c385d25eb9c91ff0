# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/names.py: names without endings, and messages without paths."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from bundle.data import FoundVolume, read_volume, skipped_because
from bundle.data.names import name_digest, pseudonymous_text, without_ending, without_paths


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[Errno 2] No such file or directory: '/data/jane/MUELLER_HANS.raw'", "'0815.raw'"),
        ("File MUELLER_HANS.raw is too short", "File 0815.raw is"),
        ('could not open "/data/jane/MAIER EVA.zraw" for reading', '"0815.zraw" for'),
        ("could not open /data/jane/images/EVA.img: no", "open 0815.img: no"),
        ("/data/jane/MUELLER_HANS.raw.gz, and /data/jane/x.", "0815"),
        ("spacing 1.5 mm of /data/janet/other.raw", "spacing 1.5 mm of /data/janet/other.raw"),
        ("could not open 'jane/HANS.raw'", "'0815.raw'"),
    ],
)
def test_a_message_keeps_no_name_of_a_file_beside_those_of_the_volume(text: str, expected: str) -> None:
    """A header names its file of voxels; stems that are numbers, as of slices, do not touch the numbers of a text."""
    files = ("/data/jane/MUELLER_HANS.mhd", "/data/jane/MUELLER_HANS.1.mhd", "/data/jane/1.dcm", "jane/scan.hdr")
    found = without_paths(text, FoundVolume("x.mhd", files), "0815")
    assert expected in found
    assert not [word for word in ("HANS", "EVA", "jane/") if word in found]


def test_a_message_on_a_hashed_volume_keeps_no_path_of_another_machine() -> None:
    text = "cannot be read (File '/mnt/JANE DOE/ct.raw' is short, see /mnt/JANE_DOE/x), 1/2 of it and / or 5 mm/s"
    found = pseudonymous_text(text, FoundVolume("ct.nii", ("/data/ct.nii",)))
    assert found == "cannot be read (File '...' is short, see ...), 1/2 of it and / or 5 mm/s"


def test_a_hashed_volume_leaves_out_the_name_of_its_detached_voxels(tmp_path: Path) -> None:
    """What the readers really say of voxels that are missing, hidden in each case."""
    header = "ObjectType = Image\nNDims = 3\nDimSize = 8 8 8\nElementType = MET_SHORT\nElementSpacing = 1 1 1\n"
    (tmp_path / "MUELLER_HANS.mhd").write_text(f"{header}ElementDataFile = MUELLER_HANS.raw\n")
    (tmp_path / "MAIER_EVA.mhd").write_text(f"{header}ElementDataFile = HUBER_ANNA.raw\n")
    nrrd = "NRRD0004\ntype: short\ndimension: 3\nsizes: 8 8 8\nspace: left-posterior-superior\nencoding: raw\n"
    space = "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nendian: little\n"
    (tmp_path / "WOLF_PIA.nhdr").write_text(f"{nrrd}{space}data file: WOLF_PIA.raw\n")
    for file in sorted(tmp_path.iterdir()):
        volume = FoundVolume(file.name, (str(file),))
        with pytest.raises(Exception) as caught:  # noqa: PT011 - readers raise anything
            read_volume([str(file)], file.name)
        skipped = skipped_because(file.name, caught.value)
        assert ".raw" in skipped.problem
        for text in (skipped.problem, skipped.remedy):
            found = pseudonymous_text(text, volume)
            assert not [w for w in ("MUELLER", "MAIER", "HUBER", "WOLF", str(tmp_path)) if w in found], found
