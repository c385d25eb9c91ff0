# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/index: what a run takes of an index, and which of it by a condition."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from bundle.archive import update_index
from bundle.data import find_scans, find_volumes
from bundle.data.index.database import COLUMNS
from bundle.errors import UserError
from tests.data.volumes import ct_phantom, mr_phantom, write_dicom, write_nifti


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archive")
    for number, slices in enumerate((6, 8, 10)):
        write_dicom(
            root / f"north/{number}", ct_phantom((slices, 12, 12), seed=number), tags={"PatientID": f"P{number}"}
        )
    write_dicom(root / "south/mr", mr_phantom((8, 12, 12)) - 1024, modality="MR")
    write_nifti(root / "south/o'neill.nii", mr_phantom((12, 12, 12), seed=3))
    return root


@pytest.fixture(scope="module")
def index(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("index") / "index.sqlite"
    update_index(file, archive, processes=0)
    return file


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("modality == 'CT' and slices > 7", ["north/1", "north/2"]),
        ("modality = 'MR'", ["south/mr"]),
        ("site in ('north') and not slices between 7 and 9", ["north/0", "north/2"]),
        ("format LIKE 'nif%'", ["south/o'neill.nii"]),
        ("name == 'south/o''neill.nii'", ["south/o'neill.nii"]),
        ("abs(spacing_z - 2) < 1e-6 or lower(site) == 'nowhere'", ["north/0", "north/1", "north/2", "south/mr"]),
        ("usable -- all of them", ["north/0", "north/1", "north/2", "south/mr", "south/o'neill.nii"]),
    ],
)
def test_a_condition_chooses_volumes(index: Path, where: str, names: list[str]) -> None:
    assert [volume.name for volume in find_scans(index, where=where)] == names


@pytest.mark.parametrize("where", ["modalty == 'CT'", "size > 3", "content != ''", "whole"])
def test_a_wrong_column_gives_one_line_that_names_the_columns(index: Path, where: str) -> None:
    with pytest.raises(UserError) as caught:
        find_scans(index, where=where)
    assert "there is no column" in str(caught.value) and ", ".join(COLUMNS) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "where",
    [
        "1) UNION SELECT value FROM meta WHERE (1",
        "(SELECT value FROM meta WHERE key = 'salt') > ''",
        "exists (SELECT 1 FROM files)",
        "load_extension('evil')",
        "readfile('/etc/passwd') != ''",
        "1; DROP TABLE volumes",
        'modality == "CT"',
        "modality ==",
        "slices > 7)",
        "randomblob(1000000000) != ''",
        "id IN (WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c)",
        "modality == 'CT'\x00",
    ],
)
def test_anything_but_a_condition_on_columns_is_refused_in_one_line(index: Path, where: str) -> None:
    before = index.read_bytes()
    with pytest.raises(UserError) as caught:
        find_scans(index, where=where)
    assert str(caught.value).startswith("--where") and "\n" not in str(caught.value)
    assert index.read_bytes() == before


def test_a_condition_that_fits_nothing_says_what_there_is(index: Path) -> None:
    with pytest.raises(UserError, match="fits none of 5 volumes: modality is one of '") as caught:
        find_scans(index, where="modality == 'ct'")
    assert "'CT'" in str(caught.value) and "'MR'" in str(caught.value)


def test_a_condition_needs_an_index(archive: Path, index: Path) -> None:
    with pytest.raises(UserError, match="needs an index"):
        find_scans(archive, where="slices > 7")
    with pytest.raises(UserError, match="does not exist"):
        find_scans(archive / "no.sqlite", where="slices > 7")
    with pytest.raises(UserError, match="is an index: give the json"):
        find_volumes(index, part="test")


def test_volumes_know_the_columns_of_the_index(index: Path) -> None:
    volume = find_scans(index)[1]
    assert set(volume.columns) == set(COLUMNS)
    assert (volume.columns["slices"], volume.columns["site"], volume.columns["files"]) == (8, "north", 8)
    assert "columns" not in volume.to_item()


def test_a_training_is_given_what_the_folder_gives_it(archive: Path, index: Path) -> None:
    items = [[volume.to_item() for volume in find_scans(source)] for source in (archive, index)]
    assert items[0] == items[1] and len(items[0]) == 5


def test_a_start_from_the_index_opens_no_file(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file of the archive was opened")

    monkeypatch.setattr("bundle.data.dicom.headers.Path.open", refuse)
    assert len(find_scans(index)) == 5


def test_a_reader_sees_one_moment_while_the_index_is_written(index: Path) -> None:
    writer = sqlite3.connect(index, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE volumes SET modality = 'PT'")
    assert len(find_scans(index, where="modality == 'CT'")) == 3
    writer.execute("ROLLBACK")
    writer.close()


@pytest.mark.parametrize("damage", ["cut off", "overwritten", "another database"])
def test_a_damaged_index_is_one_line(index: Path, tmp_path: Path, damage: str) -> None:
    file, content = tmp_path / "i.sqlite", index.read_bytes()
    file.write_bytes({"cut off": content[: len(content) // 2], "overwritten": b"x" * 5000}.get(damage, b""))
    if damage == "another database":
        connection = sqlite3.connect(file)
        connection.execute("CREATE TABLE other (id INTEGER)")
        connection.commit()
        connection.close()
    with pytest.raises(UserError) as caught:
        find_scans(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
