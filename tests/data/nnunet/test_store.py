# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Preprocessed cases are read where they lie, crop by crop; nothing of an image is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from bundle.data import PadToCropd, ToPlainTensorsd, VolumeSet
from bundle.data.nnunet import CaseStore, Plan, ReadCased, find_cases, read_plan
from bundle.errors import VolumeError
from tests.data.nnunet.folders import write_case, write_plan, write_scans

PATCH = (8, 16, 32)


def case(seed: int, size: tuple[int, int, int]) -> np.ndarray:
    image = np.random.default_rng(seed).normal(size=(2, *size)).astype(np.float32)
    image[:, 1:5, 3:12, 4:25] += 6
    return image


CASES = {"large": case(0, (11, 21, 45)), "small": case(1, (6, 13, 32))}


@pytest.fixture
def chosen(tmp_path: Path) -> Plan:
    return read_plan(write_plan(tmp_path / "plan"))


def prepared(folder: Path, cache: Path, chosen: Plan) -> VolumeSet:
    steps = [
        ReadCased(plan=chosen),
        PadToCropd(spatial_size=PATCH, cell=(4, 8, 16), value=0),
        ToPlainTensorsd(["image", "foreground", "valid", "source"], allow_missing_keys=True),
    ]
    return VolumeSet(
        dataset_dir=folder,
        transform=Compose(steps),
        cache_dir=cache,
        val_fraction=0,
        store=CaseStore(folder=cache, dataset_dir=folder, plan=chosen),
        find=lambda where: find_cases(where, plan=chosen),
    )


@pytest.fixture(params=["b2nd", "npz", "npy"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for name, image in CASES.items():
        write_case(tmp_path / "nnUNetPlans_3d_fullres", name, image, request.param)
    return tmp_path / "nnUNetPlans_3d_fullres"


def test_any_crop_is_what_the_padded_case_has_there(folder: Path, chosen: Plan, tmp_path: Path):
    volumes = prepared(folder, tmp_path / "cache", chosen).training
    assert [(v.name.split(".")[0], v.size, v.padded) for v in volumes] == [
        ("large", (11, 21, 45), False),
        ("small", (8, 16, 32), True),
    ]
    draw = np.random.default_rng(0)
    for volume in volumes:
        image = CASES[volume.name.split(".")[0]]
        before = [(size - count) // 2 for size, count in zip(volume.size, image.shape[1:])]
        after = [size - count - b for size, count, b in zip(volume.size, image.shape[1:], before)]
        widths = [(0, 0), *zip(before, after)]
        padded, valid = np.pad(image, widths), np.pad(np.ones_like(image[:1]), widths)
        whole = volume.load()
        assert np.array_equal(whole["image"], padded) and np.array_equal(whole["valid"], valid)
        assert whole["spacing"].tolist() == pytest.approx([3.0, 1.0, 0.8])
        for _ in range(20):
            ends = [sorted(draw.integers(0, size + 1, 2)) for size in volume.size]
            place = tuple(slice(int(low), max(int(high), int(low) + 1)) for low, high in ends)
            place = tuple(slice(min(p.start, size - 1), min(p.stop, size)) for p, size in zip(place, volume.size))
            crop = volume.load(crop=place)
            assert np.array_equal(crop["image"], padded[(slice(None), *place)])
            assert np.array_equal(crop["valid"], valid[(slice(None), *place)])
            assert torch.equal(crop["foreground"], whole["foreground"][(slice(None), *place)])


def test_the_cache_holds_neither_images_nor_names_and_is_used_again(folder: Path, chosen: Plan, tmp_path: Path):
    first = prepared(folder, tmp_path / "cache", chosen)
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 2 and sum(file.stat().st_size for file in files) < 10_000
    assert not any(b"large" in file.read_bytes() or b"small" in file.read_bytes() for file in files)
    written = {file: file.stat().st_mtime_ns for file in files}
    again = prepared(folder, tmp_path / "cache", chosen)
    assert again.training == first.training or [v.key for v in again.training] == [v.key for v in first.training]
    assert {file: file.stat().st_mtime_ns for file in files} == written


def test_the_foreground_is_where_the_bright_part_is(folder: Path, chosen: Plan, tmp_path: Path):
    large, _ = prepared(folder, tmp_path / "cache", chosen).training
    foreground = large.load(keys=("foreground",))["foreground"]
    assert foreground[0, 2, 6, 10] == 1 and not foreground[0, 8:, :, 30:].any()


def test_damage_is_looked_after_again_and_a_lost_file_is_one_line(folder: Path, chosen: Plan, tmp_path: Path):
    volume, _ = prepared(folder, tmp_path / "cache", chosen).training
    record = tmp_path / f"cache/{volume.key}.case.pt"
    record.write_bytes(b"damaged")
    volume, _ = prepared(folder, tmp_path / "cache", chosen).training
    assert volume.load(keys=("modality",)) == {"modality": "MR"}
    for lost in (True, False):
        record.unlink() if lost else record.write_bytes(b"damaged")
        assert volume.load(keys=("modality",)) == {"modality": "MR"} and record.is_file(), "prepared again"
    for file in folder.glob("large.n*"):
        file.unlink()
    for file in folder.glob("large.b2nd"):
        file.unlink()
    with pytest.raises(VolumeError, match=r"^large.*: cannot be read any more"):
        volume.load()
    with pytest.raises(VolumeError, match=r"^0815: cannot be read any more") as caught:
        replace(volume, name="0815").load()
    assert "large" not in str(caught.value), "with hash_names the volume's name is a digest"


def test_one_broken_case_is_skipped_and_listed(folder: Path, chosen: Plan, tmp_path: Path):
    for file in folder.glob("small.*"):
        file.write_bytes(b"broken")
    volumes = prepared(folder, tmp_path / "cache", chosen)
    assert [volume.name.split(".")[0] for volume in volumes.training] == ["large"]
    assert [skipped.name.split(".")[0] for skipped in volumes.skipped] == ["small"]
    assert "nnUNetv2_preprocess" in volumes.skipped[0].remedy


def test_scans_are_prepared_once_and_kept(chosen: Plan, tmp_path: Path):
    for name in ("a", "b"):
        write_scans(tmp_path / "raw", name)
    volumes = prepared(tmp_path / "raw", tmp_path / "cache", chosen)
    assert not volumes.skipped
    assert [volume.size for volume in volumes.training] == [(8, 23, 32)] * 2
    assert volumes.training[0].load()["image"].shape == (2, 8, 23, 32)
