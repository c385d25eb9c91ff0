# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/volume_set.py: preparing once, never reusing what is stale, skipping, splitting, and no patient kept."""

from __future__ import annotations

import json
import logging
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from monai.transforms import Compose, MapTransform

from bundle.data import FoundVolume, VolumeSet
from bundle.data.scans import find_scans
from bundle.errors import UserError
from bundle.runs import stop_distributed
from tests.commands import run_processes
from tests.data.volumes import PATIENT, ct_phantom, mr_phantom, preparation, write_dicom, write_nifti


class Counted(MapTransform):
    """Stands in for the first step and counts the volumes that pass."""

    passed: list[str] = []  # noqa: RUF012  on the class, so that it is no setting of the transform

    def __call__(self, data: Any) -> Any:
        self.passed.append(data["name"])
        return data


class Quick(MapTransform):
    """Prepares without ITK's filters, which take each process seconds to load."""

    def __call__(self, data: Any) -> Any:
        (file,) = data["image"]
        image = torch.from_numpy(nibabel.load(file).get_fdata(dtype=np.float32))[None]
        modality = data["name"][:2].upper()
        return {"image": image, "valid": torch.ones_like(image), "modality": modality}


@pytest.fixture(autouse=True)
def _none_passed() -> None:
    Counted.passed.clear()


def counted(**values: Any) -> Compose:
    return Compose([Counted("image"), *preparation(**values).transforms])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three CT and two MR volumes."""
    for n in range(3):
        write_nifti(tmp_path / f"volumes/ct_{n}.nii", ct_phantom(seed=n))
    for n in range(2):
        write_nifti(tmp_path / f"volumes/mr_{n}.nii", mr_phantom(seed=n))
    return tmp_path / "volumes"


def volume_set(folder: Path, **options: Any) -> VolumeSet:
    options = {"transform": counted(), "cache_dir": folder.parent / "cache", "val_fraction": 0.4, **options}
    return VolumeSet(dataset_dir=folder, **options)


def names(volumes: list[Any]) -> list[str]:
    return [volume.name for volume in volumes]


def test_each_volume_is_prepared_once(folder: Path) -> None:
    first, second = volume_set(folder), volume_set(folder)
    assert Counted.passed == ["ct_0.nii", "ct_1.nii", "ct_2.nii", "mr_0.nii", "mr_1.nii"]
    assert first.training == second.training and first.validation == second.validation


def test_hashed_names_hide_the_names_and_change_nothing_else(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "mr_jane_doe.nii").write_bytes(b"no volume")
    plain = volume_set(folder)
    caplog.clear()
    hashed = volume_set(folder, hash_names=True)
    for part in ("training", "validation"):
        one, other = getattr(plain, part), getattr(hashed, part)
        assert names(other) == [sha256(name.encode()).hexdigest()[:16] for name in names(one)]
        assert [volume.key for volume in other] == [volume.key for volume in one]
    (skipped,) = hashed.skipped
    assert skipped.name == sha256(b"mr_jane_doe.nii").hexdigest()[:16] and "cannot be read" in skipped.problem
    assert "jane" in str(plain.skipped) and "jane" not in str(hashed.skipped) + caplog.text


def test_prepared_volume_is_normalised_padded_and_described(folder: Path) -> None:
    volumes = volume_set(folder, transform=preparation((16, 16, 32), mr_floor=3.0))
    for volume in volumes.training + volumes.validation:
        kept = volume.load()
        assert volume.modality == volume.name[:2].upper() and volume.padded
        assert tuple(kept["image"].shape[1:]) == volume.size and volume.size[2] == 32
        assert int(kept["valid"].sum()) < kept["valid"].numel()
        assert -4 < float(kept["image"].min()) < float(kept["image"].max()) < 4


def test_volume_as_large_as_the_crop_is_not_padded(folder: Path) -> None:
    assert not any(volume.padded for volume in volume_set(folder).training)


def test_changed_transform_prepares_anew(folder: Path) -> None:
    before = volume_set(folder).training[0]
    after = volume_set(folder, transform=counted(ct_window=[-500, 500])).training[0]
    assert len(Counted.passed) == 10
    assert before.load()["image"].mean() != after.load()["image"].mean()


def test_changed_file_is_prepared_anew_even_with_size_and_name_unchanged(folder: Path) -> None:
    volume_set(folder)
    write_nifti(folder / "ct_1.nii", ct_phantom(seed=9))
    os.utime(folder / "ct_1.nii", ns=(0, 10**18))
    volume_set(folder)
    assert Counted.passed[5:] == ["ct_1.nii"]


def test_modality_told_by_the_list_is_part_of_the_key(folder: Path) -> None:
    for modality in ("CT", "MR"):
        entry = {"image": "volumes/mr_0.nii", "modality": modality}
        (folder.parent / "dataset.json").write_text(json.dumps({"training": [entry]}))
        volumes = volume_set(folder.parent / "dataset.json", cache_dir=folder.parent / "cache", val_fraction=0)
        assert [volume.modality for volume in volumes.training] == [modality]


@pytest.mark.parametrize(("store", "ending"), [("plain", "pt"), ("blosc2", "b2v")])
def test_damaged_cache_is_prepared_again(store: str, ending: str, folder: Path) -> None:
    volume = volume_set(folder, store=store).training[0]
    file = folder.parent / f"cache/{volume.key}.{ending}"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert volume in volume_set(folder, store=store).training
    assert len(Counted.passed) == 6
    assert volume.load()["image"].shape[1:] == volume.size


def test_nothing_half_written_stays_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(content: Any, file: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(UserError, match="No space left on device"):
        volume_set(folder, store="plain")
    assert list((folder.parent / "cache").iterdir()) == []


def test_a_damaged_header_in_the_cache_is_prepared_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    volume = volume_set(folder, store="plain").training[0]
    file = folder.parent / f"cache/{volume.key}.pt"
    file.write_bytes(file.read_bytes().replace(b"modality", b"modalitz"))
    again = volume_set(folder, store="plain")
    assert volume in again.training and again.skipped == [] and len(Counted.passed) == 6
    assert "is damaged" in caplog.text and volume.load()["modality"] == volume.modality


def test_a_store_that_takes_no_more_ends_the_preparation_and_keeps_what_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def fails_once(content: Any, file: Any) -> None:
        if Counted.passed[-1] == "ct_1.nii":
            raise RuntimeError("[enforce fail at inline_container.cc] . unexpected pos 64 vs 0\nmore")
        save(content, file)

    monkeypatch.setattr(torch, "save", fails_once)
    with pytest.raises(
        UserError, match=r"^--cache_dir takes no more prepared volumes \(\[enforce fail .* 0\): make room"
    ):
        volume_set(folder, store="plain")
    assert len(list((folder.parent / "cache").iterdir())) == 1, "a training on the others would be another one"
    monkeypatch.undo()
    assert volume_set(folder, store="plain").skipped == []
    assert Counted.passed == ["ct_0.nii", "ct_1.nii", "ct_1.nii", "ct_2.nii", "mr_0.nii", "mr_1.nii"]


def test_unusable_volumes_are_skipped_and_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_nifti(folder / "constant.nii", np.zeros((16, 16, 16), np.int16))
    (folder / "truncated.nii.gz").write_bytes(b"\x1f\x8b")
    write_dicom(folder / "gap", ct_phantom(), leave_out=(5,))
    with caplog.at_level(logging.WARNING):
        volumes = volume_set(folder)
    problems = {skipped.name: skipped.problem for skipped in volumes.skipped}
    assert sorted(problems) == ["constant.nii", "gap", "truncated.nii.gz"]
    assert "constant" in problems["constant.nii"] and "lacks 1 of its DICOM slices" in problems["gap"]
    assert len(volumes.training + volumes.validation) == 5
    warnings = [record.getMessage() for record in caplog.records if record.getMessage().startswith("skipped")]
    assert len(warnings) == 3 and not any("\n" in warning for warning in warnings)


def test_file_that_the_list_names_but_is_absent_is_skipped(folder: Path) -> None:
    path = folder.parent / "dataset.json"
    path.write_text(json.dumps({"training": ["volumes/ct_0.nii", "volumes/ct_1.nii", "volumes/gone.nii"]}))
    (skipped,) = volume_set(path).skipped
    assert (skipped.name, skipped.problem) == ("volumes/gone.nii", "does not exist")


@pytest.mark.parametrize("label", ["labels/ct_0.nii", {"liver": "masks/liver.nii"}])
def test_a_label_map_that_is_not_there_is_not_reported_as_a_missing_volume(folder: Path, label: Any) -> None:
    files = label if isinstance(label, dict) else {"": label}
    gone = {name: str(folder.parent / file) for name, file in files.items()}
    found = [
        FoundVolume("ct_0.nii", (str(folder / "ct_0.nii"),), annotations={"label": gone.get("", gone)}),
        *(FoundVolume(f"ct_{n}.nii", (str(folder / f"ct_{n}.nii"),)) for n in (1, 2)),
    ]
    (skipped,) = volume_set(folder, find=lambda _: found).skipped
    missing = next(iter(gone.values()))
    assert (skipped.name, skipped.problem) == ("ct_0.nii", f"lacks its label: {missing} does not exist")


def test_no_usable_volume_is_one_line_that_names_the_first_problem(tmp_path: Path) -> None:
    write_nifti(tmp_path / "volumes/plane.nii", ct_phantom()[:, :, 0])
    with pytest.raises(UserError, match=r"none of the 1 volumes .* plane\.nii is a 2D image"):
        volume_set(tmp_path / "volumes")


def test_a_list_of_nothing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lists no volume to train or validate on: name some under training"):
        volume_set(tmp_path, find=lambda _: [])


def test_split_is_by_modality_seeded_and_complete(folder: Path) -> None:
    splits = [volume_set(folder, seed=seed) for seed in (0, 0, *range(1, 8))]
    for volumes in splits:
        assert volumes.summary == {"training": {"CT": 2, "MR": 1}, "validation": {"CT": 1, "MR": 1}}
        assert sorted(names(volumes.training + volumes.validation)) == sorted({*Counted.passed})
    assert splits[0].validation == splits[1].validation
    assert len({tuple(names(volumes.validation)) for volumes in splits}) > 1


def test_the_voxels_that_are_trained_on_are_known_by_axis(tmp_path: Path) -> None:
    for number, spacing in enumerate([(1.0, 0.5, 3.0), (0.8, 0.9, 2.0), (5.0, 5.0, 5.0)]):
        write_nifti(tmp_path / f"{number}.nii.gz", ct_phantom((24, 20, 16)), np.diag([*spacing, 1.0]))
    lists = {"training": [{"image": "0.nii.gz"}, {"image": "1.nii.gz"}], "validation": [{"image": "2.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    found = volume_set(tmp_path / "dataset.json").voxel_mm
    assert found == {"lowest": pytest.approx([0.8, 0.5, 2.0]), "highest": pytest.approx([1.0, 0.9, 3.0])}


def test_split_does_not_depend_on_other_files_properties(folder: Path) -> None:
    before = names(volume_set(folder).validation)
    assert names(volume_set(folder, transform=counted(ct_window=[-500, 500])).validation) == before


def test_series_of_one_patient_are_never_on_both_sides(tmp_path: Path) -> None:
    for patient in range(3):
        for series in range(2):
            tags = {**PATIENT, "PatientID": f"P{patient}"}
            array = ct_phantom((16, 20, 24), seed=10 * patient + series)
            write_dicom(tmp_path / f"volumes/patient{patient}", array, name=f"s{series}", tags=tags)
    for seed in range(5):
        volumes = volume_set(tmp_path / "volumes", seed=seed)
        patients = [{name.split()[0] for name in names(v)} for v in (volumes.training, volumes.validation)]
        assert patients[0].isdisjoint(patients[1]) and len(patients[0]) == 2 and len(patients[1]) == 1


def test_validation_list_of_a_json_is_the_split(folder: Path) -> None:
    path = folder.parent / "dataset.json"
    content = {"training": ["volumes/ct_0.nii", "volumes/mr_0.nii"], "validation": ["volumes/mr_1.nii"]}
    path.write_text(json.dumps(content))
    volumes = volume_set(path)
    assert names(volumes.training) == content["training"] and names(volumes.validation) == content["validation"]


def test_single_volume_needs_the_option_that_the_error_names(tmp_path: Path) -> None:
    write_nifti(tmp_path / "volumes/ct.nii", ct_phantom())
    with pytest.raises(UserError, match="--val_fraction 0"):
        volume_set(tmp_path / "volumes")
    volumes = volume_set(tmp_path / "volumes", val_fraction=0)
    assert names(volumes.training) == names(volumes.validation) == ["ct.nii"]


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_impossible_fraction_names_the_option(folder: Path, fraction: float) -> None:
    with pytest.raises(UserError, match="--val_fraction"):
        volume_set(folder, val_fraction=fraction)


def test_nothing_of_the_patient_is_cached_named_or_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [write_dicom(tmp_path / f"volumes/{n}", ct_phantom((16, 20, 24), seed=n))[0] for n in range(2)]
    write_dicom(tmp_path / "volumes/gap", ct_phantom((16, 20, 24)), leave_out=(5,))
    with caplog.at_level(logging.DEBUG):
        volumes = volume_set(tmp_path / "volumes", val_fraction=0)
    uids = [pydicom.dcmread(path)[tag].value for path in paths for tag in ("SeriesInstanceUID", "StudyInstanceUID")]
    files = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert len(files) == 2
    told = f"{caplog.text}{volumes.skipped}{volumes.training}{files}"
    for secret in (*PATIENT.values(), *uids):
        assert secret not in told
        assert not any(secret.encode() in file.read_bytes() for file in files)


def prepare_as_rank(rank: int, folder: Path, results: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{results}/store", rank=rank, world_size=2)
    # another process sees other files, as where one is being copied
    find = find_scans if rank == 0 else lambda _: [FoundVolume("ct_9.nii", ("ct_9.nii",)), *find_scans(folder)[:3]]
    volumes = volume_set(folder, transform=Compose([Counted("image"), Quick("image")]), find=find)
    content = {"passed": Counted.passed, "training": names(volumes.training), "validation": names(volumes.validation)}
    (results / f"{rank}.json").write_text(json.dumps(content))
    stop_distributed()


def test_two_processes_share_the_work_and_agree_on_the_split(folder: Path) -> None:
    run_processes(prepare_as_rank, folder, folder.parent)
    one, other = (json.loads((folder.parent / f"{rank}.json").read_text()) for rank in range(2))
    assert sorted(one["passed"] + other["passed"]) == ["ct_0.nii", "ct_1.nii", "ct_2.nii", "mr_0.nii", "mr_1.nii"]
    assert one["passed"] and other["passed"]
    alone = volume_set(folder, transform=Compose([Counted("image"), Quick("image")]))
    for part in ("training", "validation"):
        assert one[part] == other[part] == names(getattr(alone, part))
    assert Counted.passed == []  # their caches serve a single process as well


def contents(folder: Path, **options: Any) -> dict[str, str]:
    volumes = volume_set(folder, **options)
    return {volume.name: volume.content for volume in (*volumes.training, *volumes.validation)}


def test_the_digest_of_a_volume_is_that_of_its_bytes_wherever_they_lie(folder: Path) -> None:
    before = contents(folder)
    assert len(set(before.values())) == 5 and contents(folder) == before  # the second time from the cache
    moved = folder.rename(folder.parent / "moved to")
    assert contents(moved, cache_dir=folder.parent / "other") == before
    write_nifti(moved / "ct_1.nii", ct_phantom(seed=9))
    changed = contents(moved)
    assert {name for name in before if before[name] != changed[name]} == {"ct_1.nii"}


def test_labels_are_part_of_the_digest_and_their_folder_is_not(folder: Path) -> None:
    def find(labels: Path, finding: float) -> Any:
        return lambda _: [
            FoundVolume(f.name, (str(f),), annotations={"organs": str(labels / f.name), "findings": [finding]})
            for f in sorted(folder.iterdir())
        ]

    def write(labels: Path, value: int) -> Path:
        for file in folder.iterdir():
            write_nifti(labels / file.name, np.full((24, 20, 16), value, np.uint8))
        return labels

    one, same, other = (write(folder.parent / name, value) for name, value in (("a", 1), ("b", 1), ("c", 2)))
    before = contents(folder, find=find(one, 0.0))
    assert contents(folder, find=find(same, 0.0)) == before
    for found in (find(other, 0.0), find(one, 1.0)):
        assert not set(contents(folder, find=found).values()) & set(before.values())
