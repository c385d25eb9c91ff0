# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/cut_off.py and `FileHeader.check_end`: a file that was cut off is found without reading its voxels."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import itk
import nibabel
import numpy as np
import pytest

from bundle.archive.records import Salt
from bundle.archive.volume_files import volume_record
from bundle.data import read_volume
from bundle.data.formats import read_file_header
from bundle.errors import VolumeError

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (20, 30, 40)).astype(np.int16)


def by_nibabel(file: Path) -> None:
    kind = nibabel.MGHImage if file.suffix == ".mgz" else nibabel.Nifti1Image
    image = kind(VOXELS, np.diag([1, 2, 3, 1]))
    nibabel.save(nibabel.Nifti1Pair(image.dataobj, image.affine) if file.suffix == ".hdr" else image, file)


def by_itk(file: Path, *, compressed: bool = False) -> None:
    itk.imwrite(itk.image_from_array(VOXELS), str(file), compression=compressed)


def packed_by_itk(file: Path) -> None:
    by_itk(file, compressed=True)


#: the file of the header, that of the voxels, and what writes them
KINDS = [
    ("a.nii", "a.nii", by_nibabel),
    ("a.nii.gz", "a.nii.gz", by_nibabel),
    ("a.hdr", "a.img", by_nibabel),
    ("a.mgz", "a.mgz", by_nibabel),
    ("a.nrrd", "a.nrrd", by_itk),
    ("a.nrrd", "a.nrrd", packed_by_itk),
    ("a.nhdr", "a.raw", by_itk),
    ("a.nhdr", "a.raw.gz", packed_by_itk),
    ("a.mha", "a.mha", by_itk),
    ("a.mha", "a.mha", packed_by_itk),
    ("a.mhd", "a.raw", by_itk),
    ("a.mhd", "a.zraw", packed_by_itk),
]


@pytest.mark.parametrize(("header", "voxels", "write"), KINDS)
def test_whole_files_pass_and_cut_ones_are_refused_by_the_index_and_by_the_reader(
    tmp_path: Path, header: str, voxels: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / header)
    read_file_header(str(tmp_path / header), "a").check_end()
    assert fault(tmp_path / header) == ""
    whole = (tmp_path / voxels).read_bytes()
    for share in (1 / len(whole), 9 / len(whole), 0.3):
        (tmp_path / voxels).write_bytes(whole[: -max(1, round(share * len(whole)))])
        assert "end" in fault(tmp_path / header)
        with pytest.raises(VolumeError, match="cannot be read"):
            read_volume([str(tmp_path / header)], "a")


def fault(file: Path) -> str:
    """What the index says of a file."""
    stat = file.stat()
    header = volume_record(file, (stat.st_size, stat.st_mtime_ns), Salt(b"salt")).header
    return str(json.loads(header or "{}")["fault"])


def test_voxels_of_a_whole_gzip_file_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_nibabel(tmp_path / "a.nii.gz")
    by_nibabel(tmp_path / "a.mgz")  # its tags follow the voxels
    for name in ("a.nii.gz", "a.mgz"):
        header = read_file_header(str(tmp_path / name), "a")
        with monkeypatch.context() as patched:
            patched.delattr("gzip.open")
            header.check_end()


@pytest.mark.parametrize("kind", ["several streams", "an empty stream at the end", "zeros at the end"])
def test_a_gzip_file_whose_end_says_nothing_is_read_as_a_whole(tmp_path: Path, kind: str) -> None:
    by_nibabel(tmp_path / "a.nii")
    content, file = (tmp_path / "a.nii").read_bytes(), tmp_path / "b.nii.gz"
    streams = [content] if "zeros" in kind else [content[:1000], content[1000:30_000], content[30_000:]]
    streams += [b""] if "empty" in kind else []
    packed = [gzip.compress(stream) for stream in streams] + [bytes(512)] * ("zeros" in kind)
    file.write_bytes(b"".join(packed))
    assert fault(file) == ""
    assert read_volume([str(file)], "a").shape == (1, *VOXELS.shape)
    file.write_bytes(b"".join(packed[: len(streams) - 1]) if len(streams) > 1 else packed[0][:-20])
    assert ("end" in fault(file)) == (kind != "an empty stream at the end")
    file.write_bytes(b"".join(packed)[: len(packed[0]) // 2])
    assert fault(file) != ""


def test_voxels_in_digits_are_not_measured(tmp_path: Path) -> None:
    lines = ["NRRD0004", "type: short", "dimension: 3", "sizes: 2 2 2", "encoding: ascii", "", "1 2 3 4 5 6 7 8"]
    (tmp_path / "a.nrrd").write_text("\n".join(lines))
    read_file_header(str(tmp_path / "a.nrrd"), "a").check_end()
