# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/stores/plain_store.py: the plain store, and one written outside the package that does the same."""

from __future__ import annotations

import ast
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, RandFlipd

from bundle.data import (
    Blosc2Store,
    CropDataset,
    PlainStore,
    PreparedVolume,
    RandForegroundCropd,
    Store,
    VolumeSet,
    make_loader,
)
from bundle.errors import UserError
from bundle.stores.open_store import open_store
from bundle.stores.store import DamagedVolumeError, Header
from bundle.tasks.detection import RandBoxCropd
from tests.data.npz_store import NpzStore
from tests.data.volumes import ROOT, ct_phantom, mr_phantom, preparation, write_nifti

CROP, KEYS = (8, 8, 8), ("image", "foreground", "valid")


def content(size: tuple[int, ...] = (6, 5, 4), *, padded: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    valid = torch.ones(1, *size, dtype=torch.uint8)
    valid[..., -1] = not padded
    return {
        "image": torch.randn(2, *size, generator=generator),
        "foreground": (torch.rand(1, *size, generator=generator) > 0.5).to(torch.uint8),
        "valid": valid,
        "spacing": torch.tensor([1.0, 2.0, 3.0]),
        "box": torch.tensor([[0.0, 1, 1, 3, 3, 3]]),
        "modality": "MR",
    }


@pytest.mark.parametrize("kind", [PlainStore, Blosc2Store, NpzStore])
def test_what_was_written_is_read_whole_in_part_and_as_a_crop(kind: type[Any], tmp_path: Path) -> None:
    store, tensors = kind(tmp_path), content()
    tensors["modality"] = "CT"  # random numbers: as an MR they would be rounded
    store.write("a", tensors)
    whole = store.read("a")
    assert whole.keys() == tensors.keys() and whole["modality"] == "CT"
    for name in tensors.keys() - {"modality"}:
        assert torch.equal(whole[name], tensors[name]) and whole[name].dtype == tensors[name].dtype
    assert store.read("a", keys=["box", "not there"]).keys() - {"modality"} == {"box"}
    crop = store.read("a", (slice(1, 4), slice(0, 5), slice(2, 3)))
    for name in KEYS:
        assert torch.equal(crop[name], tensors[name][:, 1:4, 0:5, 2:3])
    assert torch.equal(crop["box"], tensors["box"]) and torch.equal(crop["spacing"], tensors["spacing"])


@pytest.mark.parametrize("kind", [PlainStore, Blosc2Store, NpzStore])
def test_a_volume_is_described_without_being_read(kind: type[Any], tmp_path: Path) -> None:
    store = kind(tmp_path)
    assert store.describe("a") is None
    for padded in (False, True):
        store.write("a", content((6, 5, 4), padded=padded))
        assert store.describe("a") == Header("MR", (6, 5, 4), padded)


def test_a_crop_of_the_plain_store_does_not_hold_the_volume_and_may_be_changed(tmp_path: Path) -> None:
    store = PlainStore(tmp_path)
    store.write("a", content())
    crop = store.read("a", (slice(0, 2), slice(0, 2), slice(0, 2)))["image"]
    assert crop.untyped_storage().nbytes() == crop.numel() * 4
    crop.fill_(7)
    assert torch.equal(store.read("a")["image"], content()["image"])


def test_a_damaged_header_is_no_volume(tmp_path: Path) -> None:
    store = PlainStore(tmp_path)
    store.write("a", content())
    intact = store.file("a").read_bytes()
    names = [name.encode() for name in ("image", "valid", "modality", "_rebuild_tensor_v2", "FloatStorage")]
    for name in names:
        place = intact.index(name)
        for bit in (1, 64):
            store.file("a").write_bytes(intact[:place] + bytes([intact[place] ^ bit]) + intact[place + 1 :])
            assert store.describe("a") is None, name
    store.file("a").write_bytes(intact)
    assert store.describe("a") is not None


@pytest.mark.parametrize("kind", [PlainStore, Blosc2Store])
@pytest.mark.parametrize("damage", ["gone", "cut off", "empty", "no such file"])
def test_a_volume_that_is_gone_or_damaged_is_prepared_again(kind: type[Any], damage: str, tmp_path: Path) -> None:
    store, tensors = kind(tmp_path), content()
    tensors["modality"] = "CT"
    store.write("a", tensors)
    file, again = store.file("a"), []
    whole = file.read_bytes()

    def prepare() -> None:
        again.append(1)
        store.write("a", tensors)

    def damaged() -> None:
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes({"cut off": whole[:-200], "empty": b"", "no such file": b"x" * 5000}[damage])

    volume = PreparedVolume("v", store, "a", "CT", (6, 5, 4), again=prepare)
    damaged()
    assert torch.equal(volume.load()["image"], tensors["image"]) and len(again) == 1
    damaged()
    with pytest.raises(DamagedVolumeError):
        store.read("a")
    with pytest.raises(UserError, match="start again, which prepares it") as caught:
        replace(volume, again=None).load()
    assert "\n" not in str(caught.value)


def test_what_the_machine_refuses_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PlainStore(tmp_path)
    store.write("a", content())

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("unable to mmap 2000 bytes from file <a.pt>: Cannot allocate memory (12)")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(RuntimeError, match="unable to mmap"):
        store.read("a")


def test_a_store_is_chosen_by_name_or_given(tmp_path: Path) -> None:
    assert open_store("plain", tmp_path) == PlainStore(tmp_path)
    assert open_store("blosc2", tmp_path) == Blosc2Store(tmp_path)
    npz = NpzStore(tmp_path)
    assert open_store(npz, tmp_path) is npz
    (tmp_path / "file").touch()
    for folder in ("file", "file/cache/of it"):
        with pytest.raises(UserError, match=rf"--cache_dir .*/{folder} is a file or lies below one: give a folder"):
            open_store("plain", tmp_path / folder)
    with pytest.raises(UserError, match="--store 'zarr' is not known: choose one of blosc2, plain"):
        open_store("zarr", tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two CT and two MR volumes."""
    for n in range(2):
        write_nifti(tmp_path / f"volumes/ct_{n}.nii", ct_phantom(seed=n))
        write_nifti(tmp_path / f"volumes/mr_{n}.nii", mr_phantom(seed=n))
    return tmp_path / "volumes"


def volumes(folder: Path, store: str | Store) -> VolumeSet:
    return VolumeSet(dataset_dir=folder, transform=preparation(CROP), cache_dir=folder.parent / "cache", store=store)


def crops(volumes: VolumeSet) -> CropDataset:
    flips = [RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in range(3)]
    transform = Compose([RandForegroundCropd(KEYS, spatial_size=CROP), *flips])
    return CropDataset(data=volumes.training, transform=transform, seed=3)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = {key for key, value in one.items() if isinstance(value, torch.Tensor)}
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) if key in tensors else one[key] == other[key] for key in one
    )


def test_a_store_from_outside_gives_the_crops_of_the_plain_one(folder: Path) -> None:
    npz = NpzStore(folder.parent / "npz")
    plain, outside = volumes(folder, "plain"), volumes(folder, npz)
    assert [v.name for v in outside.training] == [v.name for v in plain.training]
    assert [(v.size, v.modality, v.padded) for v in outside.training] == [
        (v.size, v.modality, v.padded) for v in plain.training
    ]
    assert len(list(npz.folder.iterdir())) == len(list((folder.parent / "cache").iterdir())) == 4
    assert all(same(crops(plain)[draw], crops(outside)[draw]) for draw in range(20))


def test_a_store_from_outside_is_found_again_by_its_keys(folder: Path) -> None:
    first = volumes(folder, NpzStore(folder.parent / "npz"))
    files = {file: file.stat().st_mtime_ns for file in (folder.parent / "npz").iterdir()}
    again = volumes(folder, NpzStore(folder.parent / "npz"))
    assert [v.key for v in again.training] == [v.key for v in first.training]
    assert {file: file.stat().st_mtime_ns for file in (folder.parent / "npz").iterdir()} == files


def test_of_a_drawn_crop_only_the_foreground_is_read_whole(folder: Path) -> None:
    npz = NpzStore(folder.parent / "npz")
    dataset = crops(volumes(folder, npz))
    assert npz.reads == []
    for draw in range(5):
        crop, key = dataset[draw], dataset.data[dataset.find_volume(draw)].key
        assert crop["image"].shape == (1, *CROP)
        assert npz.reads[-2:] == [(key, False, ("foreground",)), (key, True, None)]
    assert len(npz.reads) == 10


def test_workers_read_from_a_store_from_outside(folder: Path) -> None:
    plain, outside = volumes(folder, "plain"), volumes(folder, NpzStore(folder.parent / "npz"))
    alone = make_loader(crops(plain), batch_size=2, steps=3)
    workers = make_loader(crops(outside), batch_size=2, steps=3, num_workers=2)
    assert all(same(one, other) for one, other in zip(alone, workers, strict=True))


def test_a_config_names_a_store_from_outside(folder: Path) -> None:
    config = ConfigParser.load_config_file(str(ROOT / "configs/train.yaml"))["volumes"]
    config["transform"], config["dataset_dir"] = preparation(CROP), str(folder)
    del config["earlier"]  # of a run that is resumed
    config = {key: value for key, value in config.items() if not str(value).startswith(("@", "$"))}
    config["cache_dir"] = str(folder.parent / "cache")
    config["store"] = {"_target_": "tests.data.npz_store.NpzStore", "folder": str(folder.parent / "npz")}
    found = ConfigParser({"volumes": config}).get_parsed_content("volumes")
    assert {type(volume.store) for volume in found.training} == {NpzStore} and not (folder.parent / "cache").exists()


@pytest.mark.parametrize(
    "transform",
    [RandForegroundCropd(KEYS, spatial_size=(3, 3, 3)), RandBoxCropd(KEYS, spatial_size=(3, 3, 3), positive=0.5)],
    ids=["foreground", "box"],
)
def test_a_crop_read_from_the_store_is_the_crop_of_the_whole_volume(transform: Any, tmp_path: Path) -> None:
    store = PlainStore(tmp_path)
    store.write("a", {**content(), "label": torch.zeros(1, dtype=torch.uint8)})
    volume = PreparedVolume("a", store, "a", "MR", (6, 5, 4))
    for seed in range(20):
        whole = transform.set_random_state(seed)(volume.load())
        read = transform.set_random_state(seed).read(volume)
        assert same(whole, read)
        assert read["image"].shape == (2, 3, 3, 3)


def test_a_key_that_the_volume_lacks_is_an_error_also_when_a_crop_is_read(tmp_path: Path) -> None:
    store = PlainStore(tmp_path)
    store.write("a", content())
    crop = RandForegroundCropd(("image", "imgae"), spatial_size=(3, 3, 3))
    with pytest.raises(KeyError, match="imgae"):
        crop.read(PreparedVolume("a", store, "a", "MR", (6, 5, 4)))


#: the files that may open what torch has saved: prepared volumes, weights, checkpoints
_OPENERS = {
    "stores/plain_store.py",
    "weights/read.py",
    "runs/checkpoint.py",
    "runs/recorded_config.py",
    "export/nnunet_trainers/sparse_mim.py",  # runs inside nnU-Net, without this package
}


def test_no_other_file_of_the_package_opens_a_prepared_volume() -> None:
    found = set()
    for file in (ROOT / "bundle").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            by_attribute = (
                isinstance(node, ast.Attribute) and node.attr == "load" and ast.unparse(node.value) == "torch"
            )
            by_import = isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.serialization")
            if by_attribute or (by_import and any(alias.name == "load" for alias in node.names)):
                found.add(file.relative_to(ROOT / "bundle").as_posix())
    assert "stores/plain_store.py" in found and found <= _OPENERS


@pytest.mark.parametrize("kind", [PlainStore, Blosc2Store])
def test_what_a_killed_writer_left_long_ago_goes_with_the_next_volume(kind: type[Any], tmp_path: Path) -> None:
    killed = tmp_path / ".a.pt.1-0000000000000000.tmp.pt"  # of another machine, as bundle/atomic.py names it
    mine = tmp_path / "of_the_user.pt"
    for file in (killed, mine):
        file.touch()
        os.utime(file, (0, 0))
    store = kind(tmp_path)
    store.write("b", content())
    assert sorted(tmp_path.iterdir()) == sorted([store.file("b"), mine])
