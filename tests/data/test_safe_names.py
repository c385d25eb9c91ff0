# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/safe_names.py and printable.py: names of users' files in logs, tables and folders of results."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.data import FoundVolume, result_names, skipped_because, table_row
from bundle.data.printable import printable
from bundle.data.safe_names import inside

ODD = "\x1b[31mred\nerror: forged\t\u202ebidi\udcff\x00"


def shown(text: str) -> bool:
    return text.isprintable() and text.encode().decode() == text


def test_what_cannot_be_shown_becomes_an_escape() -> None:
    assert printable("a\nb\x1bc\udcffd\u2028e") == "a\\x0ab\\x1bc\\udcffd\\u2028e"
    assert printable("Müller 東京 é.nii") == "Müller 東京 é.nii"


@given(st.text(st.characters(), max_size=40))
def test_any_name_of_a_volume_can_be_printed_and_encoded(name: str) -> None:
    found = FoundVolume(name, ()).name
    assert "\n" not in found and "\r" not in found and printable(found) == found
    assert found.encode("utf-8").decode() == found


def test_a_file_name_of_another_encoding_is_a_name_that_can_be_written() -> None:
    name = os.fsdecode(b"J\xe9r\xf4me.nii.gz")  # Latin-1 on a system of UTF-8
    assert FoundVolume(name, ()).name == "J\\udce9r\\udcf4me.nii.gz"


def test_reasons_of_a_skipped_volume_are_one_printable_line() -> None:
    skipped = skipped_because(FoundVolume(ODD, ()).name, OSError(f"cannot open {ODD}"))
    assert all(shown(text) for text in skipped)


@given(st.lists(st.sampled_from(["..", ".", "/", "a", "b\\..\\c", "x.png", "", "\n", "~", "é" * 150, " "]), max_size=6))
def test_a_name_leads_out_of_no_folder(parts: list[str]) -> None:
    path = inside("/".join(parts))
    assert path and not Path(path).is_absolute() and ".." not in Path(path).parts
    resolved = Path(os.path.normpath(Path("/results") / path))
    assert resolved != Path("/results") and resolved.is_relative_to("/results")
    assert all(len(f"._{part}_reconstruction.nii.gz12345678.gz".encode()) <= 255 for part in Path(path).parts)


def files(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}{ending}" for ending in ("_masked.nii.gz", ".png")]


NAMES = [
    "a.nii", "a.nrrd", "A.nii.gz", "../a.nii", "/a.nii", "x/../a.nii", "..", ".", "", "a\nb.nii", "a\\x0ab.nii",
    "same.nii", "same.nii", "a.png/b.nii", "same", "SAME 2",
]  # fmt: skip


def test_no_two_volumes_share_a_file_or_need_a_file_and_a_folder_of_one_name(tmp_path: Path) -> None:
    volumes = [FoundVolume(name, (f"/data/{number}.nii",)) for number, name in enumerate(NAMES)]
    written = [
        file for name in result_names(volumes, files=lambda n: files(tmp_path, n)) for file in files(tmp_path, name)
    ]
    assert len({str(file).lower() for file in written}) == len(written) == 2 * len(NAMES)
    for file in written:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        assert file.resolve().is_relative_to(tmp_path.resolve())


def test_no_result_has_the_path_of_an_input(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    inputs = ["scan.nii.gz", "scan_masked.nii.gz", "scan 2_masked.nii.gz"]
    volumes = [FoundVolume(name, (str(tmp_path / "link" / name),)) for name in inputs]
    for name in result_names(volumes, files=lambda n: files(tmp_path, n)):
        assert not {file.name for file in files(tmp_path, name)} & set(inputs)


def test_names_are_the_paths_without_endings_where_nothing_is_odd() -> None:
    volumes = [FoundVolume(name, ()) for name in ("p1/scan.nii.gz", "p2/scan.nii.gz", "b.nii", "b.nrrd", "=1.nii")]
    assert result_names(volumes, files=lambda _: []) == ["p1/scan", "p2/scan", "b.nii", "b.nrrd", "=1"]


@pytest.mark.parametrize(
    "text", ["=cmd|'/c calc'!A1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", '=HYPERLINK("http://x")']
)
def test_no_cell_begins_a_formula(text: str) -> None:
    table = io.StringIO(newline="")
    csv.writer(table).writerow(table_row([text, f"dir/{text}"]))
    table.seek(0)
    ((cell, path),) = csv.reader(table)
    assert cell == f"'{text}" and path == f"dir/{text}"


@pytest.mark.parametrize("value", [-1.5, "-1.5", "+2e-3", -3, None, "", "nan", "-inf", "a=b", "scan-1"])
def test_numbers_and_harmless_texts_stay(value: object) -> None:
    assert table_row([value]) == [value]
