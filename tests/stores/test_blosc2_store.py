# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/stores/blosc2_store.py: what comes back, what is read of it, and that no bit changes unseen."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from bundle.data import Blosc2Store, CropDataset, PlainStore, PreparedVolume, RandForegroundCropd, Store, VolumeSet
from bundle.errors import UserError
from bundle.stores.chunk_file import ChunkFile
from bundle.stores.codings import encode
from bundle.stores.store import DamagedVolumeError
from tests.data.volumes import ct_phantom, mr_phantom, preparation, write_nifti

SIZE, KEYS = (80, 48, 31), ("image", "foreground", "valid")


def content(modality: str = "CT", *, resampled: bool = False, seed: int = 0) -> dict[str, Any]:
    """A prepared volume of more than one chunk, as configs/train.yaml prepares one."""
    generator, limit = torch.Generator().manual_seed(seed), 990 if resampled else 1300  # clipped at 1000
    hounsfield = torch.randint(-limit, limit, (1, *SIZE), generator=generator).float()
    hounsfield[:, 72:] = -1000  # whole chunks of one value
    if resampled:
        hounsfield += torch.rand(hounsfield.shape, generator=generator)
    scaled = (
        (hounsfield.clamp(-1000, 1000) + 1000) * (2 / 2000) - 1 if modality == "CT" else (hounsfield - 12.3) / 456.7
    )
    return {
        "image": scaled,
        "foreground": (hounsfield > -500).to(torch.uint8),
        "valid": torch.ones(1, *SIZE, dtype=torch.uint8),
        "label": torch.randint(0, 9, (1, *SIZE), generator=generator).to(torch.uint8),
        "box": torch.rand(3, 6, generator=generator),
        "empty": torch.zeros(0, 6),
        "count": torch.tensor(3),
        "spacing": torch.tensor([0.7, 0.7, 2.5]),
        "notes": torch.tensor(list(b"a slice is left out"), dtype=torch.uint8),
        "modality": modality,
    }


@pytest.mark.parametrize(
    ("modality", "resampled"), [("CT", False), ("CT", True), ("MR", False)], ids=["CT", "resampled CT", "MR"]
)
def test_the_two_stores_give_the_same_volume(modality: str, resampled: bool, tmp_path: Path) -> None:
    stores, tensors = (PlainStore(tmp_path), Blosc2Store(tmp_path)), content(modality, resampled=resampled)
    for store in stores:
        store.write("a", tensors)
    assert stores[0].describe("a") == stores[1].describe("a") and stores[1].find_error("a") == 0
    for crop in (None, (slice(0, 1), slice(0, 48), slice(30, 31)), (slice(23, 49), slice(24, 25), slice(3, 26))):
        plain, packed = (store.read("a", crop) for store in stores)
        assert plain.keys() == packed.keys() and packed["modality"] == modality
        for name in plain.keys() - {"modality"}:
            assert torch.equal(plain[name], packed[name]) and plain[name].dtype == packed[name].dtype, name
    assert stores[1].file("a").stat().st_size < 0.7 * stores[0].file("a").stat().st_size


def test_probabilities_down_to_the_smallest_number_come_back(tmp_path: Path) -> None:
    """A softmax map as weights: two of its values may differ by less than a step that can be divided by."""
    logits = torch.linspace(0, 100, 31).expand(1, *SIZE) + torch.arange(SIZE[0]).view(1, -1, 1, 1) / 8
    weights = torch.stack([logits, torch.zeros_like(logits)]).softmax(0)[1]
    weights[:, :3, 0, 0] = torch.tensor([1e-45, 3e-45, 1.0])
    assert len(weights[(weights > 0) & (weights < 1e-38)].unique()) > 2
    store = Blosc2Store(tmp_path)
    store.write("a", {**content(), "weight_map": weights})
    assert torch.equal(store.read("a")["weight_map"], weights)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_voxel_that_is_no_number_comes_back_though_the_sample_lacks_it(value: float) -> None:
    voxels = np.tile(np.arange(512, dtype=np.float32), (4, 2048))
    voxels[3, 1] = value  # the sample takes every sixteenth voxel
    coded = encode(voxels, exact=True)
    assert coded.table is None and np.array_equal(coded.numbers, voxels, equal_nan=True)


def test_a_list_of_tensors_comes_back_as_it_was(tmp_path: Path) -> None:
    """Such as the places of each class, which segmentation draws its crops from; a class may have none."""
    places = [torch.arange(5), torch.zeros(0, dtype=torch.int64), torch.tensor([7])]
    store = Blosc2Store(tmp_path)
    store.write("a", {**content(), "label_cls_indices": places})
    for read in (store.read("a"), store.read("a", keys=["label_cls_indices"])):
        found = read["label_cls_indices"]
        assert isinstance(found, list) and len(found) == 3
        assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(found, places))
    assert "label_cls_indices" not in store.read("a", keys=["image"])


def test_a_resampled_mr_is_off_by_no_more_than_the_error_that_is_stated(tmp_path: Path) -> None:
    store, tensors = Blosc2Store(tmp_path), content("MR", resampled=True)
    store.write("a", tensors)
    image, error = tensors["image"], store.find_error("a")
    assert error == pytest.approx(float(image.max() - image.min()) / 65535 / 2)
    off = (store.read("a")["image"] - image).abs().max()
    assert 0.9 * error < off <= error + 1e-6  # float32 rounds values up to 8 to 5e-7


def test_a_resampled_ct_may_be_rounded_where_asked(tmp_path: Path) -> None:
    store, tensors = Blosc2Store(tmp_path, exact=()), content("CT", resampled=True)
    store.write("a", tensors)
    assert 0 < (store.read("a")["image"] - tensors["image"]).abs().max() * 1000 < 0.016  # HU


def test_values_that_no_number_can_stand_for_stay_as_they_are(tmp_path: Path) -> None:
    store, tensors = Blosc2Store(tmp_path), content("MR", resampled=True)
    tensors["image"][0, 3, 3, 3] = float("nan")
    store.write("a", tensors)
    assert torch.equal(store.read("a")["image"].nan_to_num(77), tensors["image"].nan_to_num(77))


def test_of_a_crop_only_its_chunks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Blosc2Store(tmp_path)
    store.write("a", content())
    opened: list[ChunkFile] = []
    close = ChunkFile.close
    monkeypatch.setattr(ChunkFile, "close", lambda file: (opened.append(file), close(file)))
    store.read("a", (slice(0, 20), slice(0, 20), slice(0, 20)), ["image"])
    store.read("a", None, ["image"])
    crop, whole = (file.bytes_read for file in opened)
    chunk = 24**3 * 11 / 8  # bytes: 2000 different values are 11 bits of noise
    assert chunk < crop < 2.2 * chunk + 4096 and whole > 2 * chunk


def flipped(file: Path, place: int, bit: int) -> None:
    """Flips a bit and leaves the time of change, as a failing disk does."""
    state, data = file.stat(), bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_no_flipped_bit_is_read(tmp_path: Path) -> None:
    store = Blosc2Store(tmp_path)
    store.write("a", content())
    file, generator = store.file("a"), np.random.default_rng(0)
    intact = file.read_bytes()
    assert store.verify("a")
    places = [*range(24), *generator.integers(0, len(intact), 80).tolist(), len(intact) - 1]
    for place in places:
        bit = int(generator.integers(8))
        flipped(file, place, bit)
        assert not store.verify("a"), (place, bit)
        with pytest.raises(DamagedVolumeError):
            store.read("a")
        flipped(file, place, bit)
    assert file.read_bytes() == intact and store.verify("a")


@pytest.mark.parametrize("change", ["cut", "longer", "empty"])
def test_a_file_of_another_length_is_no_volume(change: str, tmp_path: Path) -> None:
    store = Blosc2Store(tmp_path)
    store.write("a", content())
    data = store.file("a").read_bytes()
    store.file("a").write_bytes({"cut": data[:-1], "longer": data + b"\0", "empty": b""}[change])
    assert store.describe("a") is None and not store.verify("a")


def test_a_file_that_was_written_to_since_is_verified_whole(tmp_path: Path) -> None:
    store = Blosc2Store(tmp_path)
    store.write("a", content())
    file = store.file("a")
    os.utime(file)
    assert store.describe("a") is not None, "it was only copied"
    flipped(file, file.stat().st_size - 5, 3)
    assert store.describe("a") is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_nifti(tmp_path / "volumes/ct.nii", ct_phantom((40, 30, 30)))
    write_nifti(tmp_path / "volumes/mr.nii", mr_phantom((40, 30, 30)))
    return tmp_path / "volumes"


def volumes(folder: Path, store: str | Store = "blosc2") -> list[PreparedVolume]:
    options = {"cache_dir": folder.parent / "cache", "store": store, "val_fraction": 0}
    return VolumeSet(dataset_dir=folder, transform=preparation((8, 8, 8)), **options).training


def crops(prepared: list[PreparedVolume]) -> list[dict[str, Any]]:
    dataset = CropDataset(data=prepared, transform=Compose([RandForegroundCropd(KEYS, spatial_size=(8, 8, 8))]))
    return [dataset[draw] for draw in range(8)]


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in KEYS)


def test_training_takes_the_same_crops_from_both_stores(folder: Path) -> None:
    assert same(crops(volumes(folder, "plain")), crops(volumes(folder)))


def test_a_bit_that_flips_during_a_training_changes_no_crop(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepared = volumes(folder)
    expected = crops(prepared)
    generator = np.random.default_rng(1)
    for volume in prepared:
        file = Path(folder.parent / "cache" / f"{volume.key}.b2v")
        intact = file.read_bytes()
        for place in generator.integers(0, len(intact), 6).tolist():
            flipped(file, place, 2)
            assert same(crops(prepared), expected)
            file.write_bytes(intact)
            os.utime(file, (0, 0))
        file.unlink()
    assert same(crops(prepared), expected), "gone from the cache"
    assert "preparing it again" in caplog.text and all(volume.store.verify(volume.key) for volume in prepared)


def test_damage_that_cannot_be_repaired_ends_with_one_line(folder: Path) -> None:
    prepared = volumes(folder)
    for file in (*folder.iterdir(), *(folder.parent / "cache").iterdir()):
        file.unlink()
    with pytest.raises(ValueError, match=r"cannot be prepared again \(\w+\): start again") as caught:
        crops(prepared)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changed", [False, True], ids=["touched", "changed"])
def test_damage_is_repaired_only_from_a_file_that_holds_what_it_held(folder: Path, changed: bool) -> None:
    prepared = volumes(folder)
    expected, kept = crops(prepared), {file.name for file in (folder.parent / "cache").iterdir()}
    for file in folder.iterdir():
        os.utime(file)
        if changed:
            file.write_bytes(file.read_bytes()[:-1] + b"\1")
    for file in (folder.parent / "cache").glob("*.b2v"):
        flipped(file, file.stat().st_size // 2, 2)
        flipped(file, 40, 2)
    if changed:
        with pytest.raises(
            UserError, match=r"have changed since the run began: put them back and resume, or start another run"
        ) as caught:
            crops(prepared)
        assert "\n" not in str(caught.value)
    else:
        assert same(crops(prepared), expected)
    assert {file.name for file in (folder.parent / "cache").iterdir()} == kept


def write_for_ever(folder: Path) -> None:
    store, number = Blosc2Store(folder), 0
    while True:
        store.write("a", content(seed=number % 2))
        number += 1


def test_a_writer_that_is_killed_leaves_a_whole_volume(tmp_path: Path) -> None:
    store = Blosc2Store(tmp_path)
    store.write("a", content())
    context = multiprocessing.get_context("fork")
    for number in range(6):
        writer = context.Process(target=write_for_ever, args=(tmp_path,))
        writer.start()
        time.sleep(0.05 + 0.03 * number)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert store.verify("a")
        image = store.read("a")["image"]
        assert any(torch.equal(image, content(seed=seed)["image"]) for seed in range(2))
