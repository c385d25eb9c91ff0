# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/archive/update.py: an index says of an archive what looking at all its files says."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from monai.data import MetaTensor

from bundle.archive import group, look, update, update_index
from bundle.archive.facts import read_volumes
from bundle.archive.look import _Writer
from bundle.data import FoundVolume, find_scans, find_volumes, read_volume
from bundle.errors import UserError, VolumeError
from tests.archive.trees import make_tree
from tests.data.volumes import PATIENT, ct_phantom, write_dicom, write_nifti


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive that no test changes."""
    return make_tree(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="session")
def index(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("index") / "index.sqlite"
    update_index(file, tree, processes=2)
    return file


def rows(file: Path) -> list[dict[str, Any]]:
    connection = sqlite3.connect(file)
    connection.row_factory = sqlite3.Row
    found = [dict(row) for row in connection.execute("SELECT * FROM volumes ORDER BY name")]
    connection.close()
    return [{name: value for name, value in row.items() if name not in ("id", "series", "patient")} for row in found]


def told(found: list[FoundVolume]) -> dict[tuple[str, ...], tuple[Any, ...]]:
    return {
        volume.files: (volume.name, "" if "no scan" in volume.left_out[0] else volume.modality, volume.from_folder)
        for volume in found
        if volume.files
    }


def test_it_lists_the_volumes_that_the_folder_lists(tree: Path, index: Path) -> None:
    by_folder, by_index = find_scans(tree), find_scans(index)
    expected, found = told(by_folder), told(by_index)
    assert found.keys() == expected.keys() and len(found) > 15
    for files, (name, *rest) in expected.items():
        if "once more" not in name:
            assert found[files] == (name, *rest)
    objects = [[v.name for v in found if not v.files] for found in (by_folder, by_index)]
    assert objects[0] == objects[1] == ["c/reports (SR)"]
    left_out = {v.name: v.left_out for v in by_folder if v.left_out[0] and v.files}
    assert {v.name: v.left_out for v in by_index}.items() >= left_out.items() and len(left_out) == 2


def test_series_that_share_a_folder_are_numbered_as_the_folder_numbers_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their UIDs, whatever their files are called; a series that comes later takes its place."""
    root, file = tmp_path / "archive", tmp_path / "i.sqlite"
    for seed, name in enumerate(("d", "c", "a")):  # the names of the files have another order than the UIDs
        write_dicom(root / "shared", ct_phantom((6, 6, 6), seed=seed), name=name, series=f"1.2.{4 + 2 * seed}")
    update_index(file, root, processes=0)
    assert told(find_volumes(file)) == told(find_volumes(root))
    write_dicom(root / "shared", ct_phantom((6, 6, 6), seed=3), name="b", series="1.2.5")
    update_index(file, root, processes=0)
    assert told(find_volumes(file)) == told(find_volumes(root)) and len(find_volumes(file)) == 4
    monkeypatch.setattr("bundle.archive.order.read_slice", lambda _: pytest.fail("the order is known"))
    update_index(file, root, processes=0)


def read(volume: FoundVolume) -> tuple[MetaTensor | None, str, str]:
    """A volume, or what is wrong with it and what to do."""
    if volume.left_out[0]:
        return None, *volume.left_out
    try:
        return read_volume(volume.files, volume.name), "", ""
    except VolumeError as error:
        return None, error.problem, error.remedy


def test_it_knows_of_each_series_what_the_reader_says(tree: Path, index: Path) -> None:
    """The oracle reads every volume, pixels and all."""
    known = {row["name"]: row for row in rows(index)}
    checked = 0
    for volume in find_volumes(tree):
        row, (image, problem, remedy) = known[volume.name], read(volume)
        if "cannot be read" in problem:
            assert row["problem"].startswith("cannot be read"), volume.name
        elif problem:
            assert (row["problem"], row["remedy"]) == (problem, remedy)
        elif not row["duplicate_of"] and "labelsTr" not in volume.name and "(series" not in volume.name:
            assert image is not None and row["usable"], (volume.name, row["problem"])
            assert (row["columns"], row["rows"], row["slices"]) == tuple(image.shape[1:])
            spacing = [row["spacing_x"], row["spacing_y"], row["spacing_z"]]
            assert spacing == pytest.approx(image.pixdim.tolist(), abs=1e-6)
            assert row["notes"] == "; ".join(image.meta.get("notes", ()))
            checked += 1
    assert checked >= 7


def test_volumes_with_equal_voxels_are_left_out_but_the_first(index: Path) -> None:
    (volume,) = (v for v in find_scans(index) if v.name == "files/once more.nii")
    assert volume.left_out == ("holds the same voxels as files/again.nii", "remove one of the two")
    assert next(v for v in find_scans(index) if v.name == "files/again.nii").left_out == ("", "")


def test_series_with_other_uids_and_the_same_pixels_are_duplicates(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        write_dicom(tmp_path / "archive" / name, ct_phantom((6, 6, 6), seed=seed))
    update_index(tmp_path / "i.sqlite", tmp_path / "archive", processes=0)
    found = {row["name"]: row["duplicate_of"] for row in rows(tmp_path / "i.sqlite")}
    assert found == {"one": "", "three": "", "two": "one"}


def test_series_of_equal_stored_values_that_mean_others_are_no_duplicates(tmp_path: Path) -> None:
    scan = ct_phantom((6, 6, 6))
    write_dicom(tmp_path / "archive/a", scan)
    write_dicom(tmp_path / "archive/thick", scan, thickness=3)
    write_dicom(tmp_path / "archive/mr", scan, modality="MR")
    for file in write_dicom(tmp_path / "archive/slope", scan):
        header = pydicom.dcmread(file)
        header.RescaleSlope = "2"
        header.save_as(file)
    update_index(tmp_path / "i.sqlite", tmp_path / "archive", processes=0)
    found = {row["name"]: (row["duplicate_of"], row["usable"]) for row in rows(tmp_path / "i.sqlite")}
    assert found == dict.fromkeys(["a", "mr", "slope", "thick"], ("", 1))


def test_only_what_is_new_or_changed_is_opened_again(tmp_path: Path) -> None:
    root, file = tmp_path / "archive", tmp_path / "i.sqlite"
    write_dicom(root / "s", ct_phantom((6, 6, 6)), leave_out=[2])
    write_dicom(root / "t", ct_phantom((6, 6, 6), seed=1))
    assert update_index(file, root, processes=0).opened == 11
    assert "lacks 1 of its DICOM slices" in rows(file)[0]["problem"]
    again = update_index(file, root, processes=0)
    assert (again.files, again.opened, again.removed, again.changed) == (11, 0, 0, False)

    os.utime(root / "t/slice_1.dcm", ns=(1, 1))
    assert update_index(file, root, processes=0).opened == 1

    shutil.rmtree(root / "s")
    write_nifti(root / "new.nii", ct_phantom((6, 6, 6), seed=2))
    done = update_index(file, root, processes=0)
    assert (done.opened, done.removed) == (1, 5)
    assert [row["name"] for row in rows(file)] == ["new.nii", "t"]

    (root / "t/slice_3.dcm").unlink()
    assert update_index(file, root, processes=0).removed == 1
    assert "lacks 1 of its DICOM slices" in rows(file)[1]["problem"]


def test_slices_that_come_later_join_their_series(tmp_path: Path) -> None:
    root, file = tmp_path / "archive", tmp_path / "i.sqlite"
    files = write_dicom(tmp_path / "all", ct_phantom((6, 6, 6)))
    root.mkdir()
    for part in (files[:3], files[3:]):
        (root / part[0].stem).mkdir()
        for one in part:
            shutil.copy(one, root / part[0].stem)
        update_index(file, root, processes=0)
    (row,) = rows(file)
    assert (row["name"], row["slices"], row["files"], row["usable"]) == ("archive", 6, 6, 1)


def killed_after(batches: int, file: Path, root: Path) -> None:
    """Makes an index in a process that is killed when it has kept so many chunks."""
    kept = iter(range(batches))
    whole = _Writer.keep

    def keep(*arguments: Any) -> None:
        if next(kept, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(*arguments)

    _Writer.keep = keep  # type: ignore[method-assign]
    update_index(file, root, processes=0)


def test_a_kill_at_any_moment_loses_nothing(tree: Path, index: Path, tmp_path: Path) -> None:
    file, opened = tmp_path / "i.sqlite", []
    for batches in (0, 3, 7, 10_000):
        process = multiprocessing.get_context("fork").Process(target=killed_after, args=(batches, file, tree))
        process.start()
        process.join()
        opened.append(process.exitcode)
        if batches < 10_000:
            with pytest.raises(UserError, match="not complete"):
                find_scans(file)
    assert opened == [-signal.SIGKILL] * 3 + [0]
    assert rows(file) == rows(index)


def test_what_was_committed_before_a_kill_is_not_opened_again(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "_BATCH_FILES", 1)
    process = multiprocessing.get_context("fork").Process(target=killed_after, args=(5, tmp_path / "i.sqlite", tree))
    process.start()
    process.join()
    done = update_index(tmp_path / "i.sqlite", tree, processes=0)
    assert 0 < done.opened < done.files


def test_nothing_in_it_identifies_a_patient(tree: Path, index: Path) -> None:
    content = index.read_bytes()
    uids = {part for v in find_volumes(tree) for part in _uids(v.files) if v.files}
    assert len(uids) > 10
    for text in (*PATIENT.values(), "HOSP-4712", *uids):
        assert text.encode() not in content, text
    assert index.stat().st_mode & 0o077 == 0


def _uids(files: tuple[str, ...]) -> Iterator[str]:
    import pydicom  # noqa: PLC0415

    for file in files if len(files) > 1 else ():
        header = pydicom.dcmread(file, stop_before_pixels=True)
        yield from (header.SOPInstanceUID, header.SeriesInstanceUID, header.StudyInstanceUID)


def test_patients_are_grouped_and_two_indexes_cannot_be_joined(tree: Path, index: Path, tmp_path: Path) -> None:
    update_index(tmp_path / "other.sqlite", tree, processes=0)
    groups = [{v.name: v.group for v in find_scans(file) if v.group} for file in (index, tmp_path / "other.sqlite")]
    for found in groups:
        assert len(set(found.values())) == 2, "two patients"
        assert found["a/ct"] == found["c/plain"] != found["b/gap"]
    assert not set(groups[0].values()) & set(groups[1].values())


def test_a_secret_from_a_file_is_not_in_the_index(tmp_path: Path) -> None:
    write_dicom(tmp_path / "archive/s", ct_phantom((6, 6, 6)))
    (tmp_path / "secret").write_text("correct horse battery staple")
    (tmp_path / "wrong").write_text("incorrect horse")
    files = [tmp_path / "one.sqlite", tmp_path / "two.sqlite"]
    for file in files:
        update_index(file, tmp_path / "archive", processes=0, salt_file=tmp_path / "secret")
        assert b"horse" not in file.read_bytes() and b"correct horse".hex().encode() not in file.read_bytes()
    assert find_scans(files[0])[0].group == find_scans(files[1])[0].group
    for given in (tmp_path / "wrong", None):
        with pytest.raises(UserError, match="another secret"):
            update_index(files[0], tmp_path / "archive", processes=0, salt_file=given)


@pytest.mark.parametrize("kind", ["no index", "other folder", "no folder", "short secret"])
def test_mistakes_are_one_line(tmp_path: Path, kind: str) -> None:
    root, file = tmp_path / "archive", tmp_path / "i.sqlite"
    write_nifti(root / "a.nii", ct_phantom((6, 6, 6)))
    (tmp_path / "short").write_text("abc")
    if kind == "no index":
        file.write_text("this is a text" * 100)
        with pytest.raises(UserError, match="cannot be used as an index"):
            find_scans(file)
    if kind == "other folder":
        update_index(file, root, processes=0)
    given = {"no folder": root / "a.nii", "other folder": tmp_path}.get(kind, root)
    with pytest.raises(UserError) as caught:
        update_index(file, given, processes=0, salt_file=tmp_path / "short" if kind == "short secret" else None)
    assert "\n" not in str(caught.value)


def scan_and_copy(root: Path) -> None:
    """New files: a copy of a scan that is there, a series of the same voxels, a 4D file, and a scan that is new."""
    shutil.copy(root / "first/scan.nii", root / "first/copy.nii")
    shutil.copytree(root / "series", root / "series once more")
    write_nifti(root / "second/four.nii", np.stack([ct_phantom((6, 6, 6), seed=3)] * 2, axis=3))
    write_nifti(root / "second/new.nii", ct_phantom((6, 6, 6), seed=4))


def updated_half(file: Path, root: Path, series: int) -> None:
    """Updates an index in a process that is killed when it has grouped so many series or volumes."""
    group._BATCH_SECONDS = -1.0
    left, whole = iter(range(series)), group._replace

    def replace(*arguments: Any) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(*arguments)

    group._replace = replace
    update.give_verdicts = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    update_index(file, root, processes=0)


@pytest.mark.parametrize("grouped", [0, 2, 10])
def test_after_a_kill_readers_see_only_volumes_that_are_judged(
    tmp_path: Path, grouped: int, caplog: pytest.LogCaptureFixture
) -> None:
    root, file = tmp_path / "archive", tmp_path / "i.sqlite"
    write_nifti(root / "first/scan.nii", ct_phantom((6, 6, 6)))
    write_dicom(root / "series", ct_phantom((6, 6, 6), seed=1))
    write_nifti(root / "first/changed.nii", ct_phantom((6, 6, 6), seed=2))
    update_index(file, root, processes=0)
    assert [v.name for v in find_scans(file)] == ["first/changed.nii", "first/scan.nii", "series"]

    scan_and_copy(root)
    write_nifti(root / "first/changed.nii", ct_phantom((8, 6, 6), seed=2))
    process = multiprocessing.get_context("fork").Process(target=updated_half, args=(file, root, grouped))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    # the copies of a series join it, so this series, too, is to be grouped anew
    expected = ["first/scan.nii"]
    caplog.clear()
    assert [v.name for v in find_scans(file)] == expected
    assert "5 series or volume(s) are not judged yet" in caplog.text and "configs/index.yaml" in caplog.text
    assert [v.name for v in find_scans(file, where="slices > 0")] == expected
    assert [row["name"] for row in read_volumes(file)[0]] == expected
    with pytest.raises(UserError, match="fits none of 1 volumes"):
        find_scans(file, where="slices == 8")

    update_index(file, root, processes=0)
    update_index(tmp_path / "anew.sqlite", root, processes=0)
    assert rows(file) == rows(tmp_path / "anew.sqlite")
    caplog.clear()
    left_out = [v.name for v in find_scans(file) if v.left_out[0]]
    assert left_out == ["first/scan.nii", "series once more"] and "judged" not in caplog.text


def test_a_reader_beside_an_update_sees_only_volumes_that_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, file, seen = tmp_path / "archive", tmp_path / "i.sqlite", []
    write_nifti(root / "first/scan.nii", ct_phantom((6, 6, 6)))
    update_index(file, root, processes=0)
    shutil.copy(root / "first/scan.nii", root / "first/copy.nii")
    whole = update.give_verdicts

    def verdicts(*arguments: Any) -> None:
        seen.extend(volume.name for volume in find_scans(file))
        whole(*arguments)

    monkeypatch.setattr(update, "give_verdicts", verdicts)
    update_index(file, root, processes=0)
    assert seen == ["first/scan.nii"]
    assert {v.name: bool(v.left_out[0]) for v in find_scans(file)} == {"first/copy.nii": False, "first/scan.nii": True}


def test_where_no_volume_is_judged_any_more_one_line_says_what_to_do(tmp_path: Path) -> None:
    root, file = tmp_path / "archive", tmp_path / "i.sqlite"
    write_nifti(root / "scan.nii", ct_phantom((6, 6, 6)))
    update_index(file, root, processes=0)
    write_nifti(root / "scan.nii", ct_phantom((8, 6, 6)))
    process = multiprocessing.get_context("fork").Process(target=updated_half, args=(file, root, 1))
    process.start()
    process.join()
    with pytest.raises(UserError, match=r"1 series or volume\(s\) are not judged yet, and there are no others; "):
        find_scans(file)
