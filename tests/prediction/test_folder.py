# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundle.data import FoundVolume
from bundle.errors import UserError
from bundle.prediction import PredictionFolder
from bundle.runs import release_folders

SETTINGS: dict[str, Any] = {"models": ["ab", "cd"], "classes": {"a": 1}, "overlap": 0.5}


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    yield
    release_folders()


def scan(folder: Path, name: str) -> FoundVolume:
    file = folder / f"{name}.nii"
    if not file.exists():
        file.write_bytes(name.encode())
    return FoundVolume(name, (str(file),))


def finish(output: PredictionFolder, volume: FoundVolume) -> None:
    path = output.label_map(volume.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"labels")
    output.done(volume, {"files": [str(path.relative_to(output.path))], "row": {"shape": "1 2 3"}})


def test_what_is_done_is_not_pending_as_long_as_its_files_are_there(tmp_path: Path):
    scans = [scan(tmp_path, name) for name in ("a", "b é", "c")]
    output = PredictionFolder(tmp_path / "out", settings=SETTINGS)
    output.begin()
    assert output.pending(scans) == scans
    for one in scans[:2]:
        finish(output, one)
    again = PredictionFolder(tmp_path / "out", settings=dict(SETTINGS))
    assert again.pending(scans) == scans[2:] and again.records().keys() == {"a", "b é"}
    output.label_map("a").unlink()
    (output.path / ".done/b é.json").write_text('{"files"')
    assert again.pending(scans) == scans


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"models": ["ab"]}, "predictions with models"),
        ({"classes": {"a": 2}}, "predictions with classes"),
        ({"overlap": 0.25}, r"predictions with overlap 0\.5, not 0\.25"),
        ({"mirror_axes": [0]}, "predictions with mirror_axes None, not"),
    ],
)
def test_other_models_or_settings_are_refused_unless_overwritten(tmp_path: Path, changed: dict[str, Any], said: str):
    volume = scan(tmp_path, "a")
    output = PredictionFolder(tmp_path / "out", settings=SETTINGS)
    output.begin()
    finish(output, volume)
    with pytest.raises(UserError, match=said):
        PredictionFolder(tmp_path / "out", settings=SETTINGS | changed)
    new = PredictionFolder(tmp_path / "out", settings=SETTINGS | changed, overwrite=True)
    assert new.pending([volume]) == [volume]
    new.begin()
    assert not new.records() and new.pending([volume]) == [volume]
    finish(new, volume)
    assert PredictionFolder(tmp_path / "out", settings=SETTINGS | changed).pending([volume]) == []


def test_what_is_overwritten_leaves_no_old_file(tmp_path: Path):
    first, second = (scan(tmp_path, name) for name in ("a", "b"))
    output = PredictionFolder(tmp_path / "out", settings=SETTINGS)
    output.begin()
    for one in (first, second):
        finish(output, one)
    output.done(second, {"files": ["label_maps/b.nii.gz", "../a.nii"]})  # somebody's folder: nothing outside it goes
    (output.path / "label_maps/mine.nii.gz").touch()
    new = PredictionFolder(tmp_path / "out", settings=SETTINGS | {"overlap": 0.25}, overwrite=True)
    assert output.label_map("a").exists(), "until it begins"
    new.begin()
    assert [file.name for file in (output.path / "label_maps").iterdir()] == ["mine.nii.gz"]
    assert (tmp_path / "a.nii").exists()


def test_only_what_others_made_may_be_replaced(tmp_path: Path):
    volume = scan(tmp_path, "a")
    for settings, pending in ((SETTINGS, [volume]), (SETTINGS, []), (SETTINGS | {"overlap": 0.25}, [volume])):
        output = PredictionFolder(tmp_path / "out", settings=settings, overwrite="others")
        assert output.pending([volume]) == pending
        output.begin()
        if pending:
            finish(output, volume)
    Path(volume.files[0]).write_bytes(b"another one")
    output = PredictionFolder(tmp_path / "out", settings=SETTINGS | {"overlap": 0.25}, overwrite="others")
    assert output.pending([volume]) == [volume]


def test_a_scan_that_has_changed_is_refused_by_its_name(tmp_path: Path):
    volume = scan(tmp_path, "a")
    output = PredictionFolder(tmp_path / "out", settings=SETTINGS)
    output.begin()
    finish(output, volume)
    Path(volume.files[0]).write_bytes(b"another one")
    with pytest.raises(UserError, match=r'a prediction of "a" from files that were others or have changed'):
        output.pending([volume])


def test_folders_of_something_else_are_refused(tmp_path: Path):
    (tmp_path / "label_maps").mkdir()
    with pytest.raises(UserError, match="already holds label_maps, of another program"):
        PredictionFolder(tmp_path, settings=SETTINGS)
    for text in ("{}", "no json"):
        (tmp_path / "about.json").write_text(text)
        with pytest.raises(UserError, match="tells nothing of predictions"):
            PredictionFolder(tmp_path, settings=SETTINGS)
    with pytest.raises(UserError, match="is a file"):
        PredictionFolder(tmp_path / "about.json", settings=SETTINGS)
