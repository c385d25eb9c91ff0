# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A user's map goes with its volume through preparation and cropping."""

from __future__ import annotations

import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from bundle.data import CropDataset, PlainStore, RandForegroundCropd, VolumeSet, WeightMapd
from bundle.data.find import find_volumes
from bundle.data.preparation import Preparation
from bundle.errors import UserError
from tests.data.volumes import ct_phantom, preparation, write_nifti


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    volumes, maps = tmp_path / "volumes", tmp_path / "maps"
    for folder in (volumes / "sub", maps / "sub"):
        folder.mkdir(parents=True)
    for seed, name in enumerate(("a", "sub/b")):
        image = ct_phantom((24, 20, 16), seed)
        write_nifti(volumes / f"{name}.nii.gz", image)
        write_nifti(maps / f"{name}.nii.gz", np.where(image > 0, 5.0, 0.0).astype(np.float32))
    return volumes, maps


def prepared(volumes: Path, maps: Path, cache: Path) -> VolumeSet:
    transform = preparation((16, 16, 16), weight_maps=str(maps))
    return VolumeSet(dataset_dir=volumes, transform=transform, cache_dir=cache, val_fraction=0)


def test_the_map_stays_on_its_voxels(folders, tmp_path: Path):
    found = prepared(*folders, tmp_path / "cache")
    assert not found.skipped
    keys = ["image", "foreground", "valid", "weight_map"]
    crop = CropDataset(data=found.training, transform=Compose([RandForegroundCropd(keys, spatial_size=(16, 16, 16))]))[
        0
    ]
    weighted = crop["weight_map"] > 0
    assert crop["weight_map"].dtype == torch.float32 and crop["weight_map"].max() == 5
    assert torch.equal(weighted, crop["image"] > 0), "0 HU is 0 in the prepared image"


def test_a_map_of_another_voxel_size_is_brought_to_the_image(folders, tmp_path: Path):
    volumes, maps = folders
    whole = np.zeros((12, 10, 8), np.float32)
    whole[6:] = 1.0
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 0.5
    write_nifti(maps / "a.nii.gz", whole, affine)
    found = prepared(volumes, maps, tmp_path / "cache")
    kept = found.training[0].load()
    assert kept["weight_map"].shape == kept["image"].shape
    assert kept["weight_map"][0, -6:-2].mean() > 0.9
    assert kept["weight_map"][0, :6].mean() < 0.1


def test_a_volume_without_a_map_is_left_out_and_named(folders, tmp_path: Path):
    volumes, maps = folders
    (maps / "sub/b.nii.gz").unlink()
    found = prepared(volumes, maps, tmp_path / "cache")
    assert [v.name for v in found.training] == ["a.nii.gz"]
    assert "has no map below --weight_maps" in found.skipped[0].problem


def test_a_negative_weight_is_refused(folders, tmp_path: Path):
    volumes, maps = folders
    values = np.zeros((24, 20, 16), np.float32)
    values[3, 3, 3] = -1
    write_nifti(maps / "a.nii.gz", values)
    assert "below 0" in prepared(volumes, maps, tmp_path / "cache").skipped[0].problem


def test_a_changed_map_is_prepared_anew(folders, tmp_path: Path):
    volumes, maps = folders
    first = prepared(volumes, maps, tmp_path / "cache").training[0].key
    write_nifti(maps / "a.nii.gz", np.ones((24, 20, 16), np.float32) + np.eye(24, 20, dtype=np.float32)[..., None])
    assert prepared(volumes, maps, tmp_path / "cache").training[0].key != first


def test_another_volumes_map_leaves_the_key_as_it_was(folders, tmp_path: Path):
    """Else one more map in the folder would have the whole archive prepared again."""
    volumes, maps = folders
    first = prepared(volumes, maps, tmp_path / "cache").training
    write_nifti(maps / "sub/b.nii.gz", np.ones((24, 20, 16), np.float32) + np.eye(24, 20, dtype=np.float32)[..., None])
    write_nifti(maps / "c.nii.gz", np.ones((24, 20, 16), np.float32))
    again = prepared(volumes, maps, tmp_path / "cache").training
    assert [v.name for v in first] == ["a.nii.gz", "sub/b.nii.gz"]
    assert [one.key == other.key for one, other in zip(first, again, strict=True)] == [True, False]


def test_a_map_that_comes_later_lets_the_volume_in(folders, tmp_path: Path):
    volumes, maps = folders
    (maps / "a.nii.gz").rename(tmp_path / "a.nii.gz")
    assert [v.name for v in prepared(volumes, maps, tmp_path / "cache").training] == ["sub/b.nii.gz"]
    (tmp_path / "a.nii.gz").rename(maps / "a.nii.gz")
    assert len(prepared(volumes, maps, tmp_path / "cache").training) == 2


def test_processes_that_prepare_find_the_same_key(folders, tmp_path: Path):
    volumes, maps = folders
    steps = preparation((16, 16, 16), weight_maps=str(maps))
    found = find_volumes(volumes)
    prepare = Preparation(steps, PlainStore(tmp_path / "cache"))
    prepare.find(found[0])  # the lookup is made
    other = pickle.loads(pickle.dumps(prepare))
    keys = [[one._key(volume.to_item()) for volume in found] for one in (prepare, other)]
    assert keys[0] == keys[1] and len(set(keys[0])) == 2


def test_without_a_folder_nothing_happens_and_a_wrong_one_is_named(tmp_path: Path):
    assert WeightMapd(None)({"image": 1}) == {"image": 1}
    with pytest.raises(UserError, match="--weight_maps"):
        WeightMapd(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a\nb.nii.gz", "\x1b[31m.nii.gz", "schön 1.nii.gz"])
def test_a_name_that_cannot_be_shown_finds_its_map(tmp_path: Path, name: str):
    image = ct_phantom((24, 20, 16))
    for folder in ("volumes", "maps"):
        write_nifti(tmp_path / folder / name, (image > 0).astype(np.float32) if folder == "maps" else image)
    found = prepared(tmp_path / "volumes", tmp_path / "maps", tmp_path / "cache")
    assert not found.skipped and "weight_map" in found.training[0].load()


def test_a_constant_map_is_a_map_and_one_that_lies_elsewhere_is_none(folders, tmp_path: Path):
    volumes, maps = folders
    write_nifti(maps / "a.nii.gz", np.ones((24, 20, 16), np.float32))
    elsewhere = np.eye(4)
    elsewhere[:3, 3] = 5000
    nibabel.save(nibabel.Nifti1Image(np.ones((24, 20, 16), np.float32), elsewhere), maps / "sub/b.nii.gz")
    found = prepared(volumes, maps, tmp_path / "cache")
    assert [volume.name for volume in found.training] == ["a.nii.gz"]
    assert found.skipped[0].problem == "has a map without a weight where the volume is"
    (maps / "a.nii.gz").write_bytes(b"no map")
    with pytest.raises(UserError, match=r"a\.nii\.gz has a map that cannot be read"):
        prepared(volumes, maps, tmp_path / "cache")
