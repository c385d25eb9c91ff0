# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""bundle/data/split.py: the folds of a cross-validation."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.transforms import Compose

from bundle.data import FoundVolume, PlainStore, PreparedVolume
from bundle.data.find import find_volumes
from bundle.data.split import check_fold, deal_folds, join_copies, split_volumes
from bundle.errors import UserError
from tests.data.test_volume_set import Quick, names, volume_set
from tests.data.volumes import PATIENT, ct_phantom, preparation, write_dicom, write_nifti


def prepared(counts: dict[str, Sequence[int]], parts: Sequence[str] = ("",)) -> list[PreparedVolume]:
    """Volumes of patients: so many of each in the order of the list, by modality."""
    store = PlainStore(Path("nowhere"))
    return [
        PreparedVolume(f"{modality}_{patient}_{scan}", store, "", modality, (8, 8, 8), group=f"{modality}_{patient}",
                       part=parts[patient % len(parts)])
        for modality, scans in counts.items()
        for patient, number in enumerate(scans)
        for scan in range(number)
    ]  # fmt: skip


def validated(volumes: list[PreparedVolume], folds: int, seed: int = 0) -> list[list[str]]:
    """The names that each fold validates; those it trains on must be all others."""
    found = []
    for fold in range(folds):
        training, validation = split_volumes(volumes, val_fraction=0.2, seed=seed, folds=folds, fold=fold)
        assert sorted(names(training + validation)) == sorted(names(volumes))
        assert {v.group for v in training}.isdisjoint(v.group for v in validation)
        found.append(names(validation))
    return found


@pytest.mark.parametrize("counts", [
    {"MR": [1] * 23}, {"CT": [1] * 7, "MR": [1] * 13}, {"CT": [5, 1, 1, 2, 1, 1, 4, 1], "MR": [3, 3, 2, 1, 1]}
], ids=str)  # fmt: skip
@pytest.mark.parametrize("folds", [2, 5])
def test_every_volume_is_validated_in_one_fold_with_all_of_its_patient(counts: dict[str, list[int]], folds: int):
    volumes = prepared(counts)
    dealt = [name for fold in validated(volumes, folds) for name in fold]
    assert sorted(dealt) == sorted(names(volumes))


def test_folds_are_of_one_size_in_each_modality():
    folds = validated(prepared({"CT": [1] * 7, "MR": [1] * 13}), 5)
    by_modality = [Counter(name[:2] for name in fold) for fold in folds]
    assert {found["CT"] for found in by_modality} == {1, 2} and {found["MR"] for found in by_modality} == {2, 3}
    assert {found.total() for found in by_modality} == {4}


def test_a_patient_with_many_scans_does_not_make_the_folds_uneven():
    assert sorted(map(len, validated(prepared({"MR": [6, 2, 2, 2, 2, 2, 2]}), 3))) == [6, 6, 6]


def test_folds_depend_neither_on_the_seed_nor_on_the_order_of_the_files():
    volumes = prepared({"CT": [1] * 7, "MR": [1] * 13})
    shuffled = random.Random(0).sample(volumes, len(volumes))
    assert [set(f) for f in validated(volumes, 5)] == [set(f) for f in validated(shuffled, 5, seed=9)]


def test_folds_are_a_draw_and_do_not_follow_the_names():
    (first, *_) = validated(prepared({"MR": [1] * 20}), 4)
    assert first != [f"MR_{n}_0" for n in range(5)] and first != [f"MR_{n}_0" for n in range(0, 20, 4)]


def test_folds_take_the_place_of_a_data_lists_parts():
    volumes = prepared({"MR": [1] * 10}, parts=("training", "validation"))
    assert sorted(name for fold in validated(volumes, 5) for name in fold) == sorted(names(volumes))
    (_, validation) = split_volumes(volumes, val_fraction=0.2, seed=0)
    assert {v.part for v in validation} == {"validation"}


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (
            {"CT": [1, 7], "MR": [2, 2]},
            "the 12 volumes that can be used are of 4: give --folds 4, or add volumes of more",
        ),
        ({"CT": [3]}, "the 3 volumes that can be used are of 1: add volumes of more patients"),
        ({}, "the 0 volumes that can be used are of 0: add volumes of more patients"),
    ],
)
def test_fewer_patients_than_folds_are_one_line(counts: dict[str, list[int]], said: str):
    with pytest.raises(UserError, match=f"^--folds 5 needs 5 patients, and {said}"):
        deal_folds(prepared(counts), 5)


@pytest.mark.parametrize(
    ("folds", "fold", "said"),
    [(None, 1, "--fold 1 means nothing without --folds"), (1, 0, "--folds 1"), (5, 5, "--fold 5 .* give 0 to 4")],
)
def test_a_fold_that_does_not_exist_is_one_line(folds: int | None, fold: int, said: str):
    with pytest.raises(UserError, match=said):
        check_fold(folds, fold)
    check_fold(None, 0)
    check_fold(5, 4)


def test_the_volumes_of_a_lists_test_are_in_no_fold(tmp_path: Path):
    for n in range(5):
        write_nifti(tmp_path / f"volumes/ct_{n}.nii", ct_phantom((8, 8, 8), seed=n))

    def find(folder: Any) -> list[FoundVolume]:
        parts = ("test", "validation", "training", "training", "training")
        return [FoundVolume(v.name, v.files, part=part) for v, part in zip(find_volumes(folder), parts, strict=True)]

    options = {"find": find, "transform": Compose([Quick("image")])}
    folds = [volume_set(tmp_path / "volumes", folds=2, fold=fold, **options) for fold in range(2)]
    assert sorted(name for one in folds for name in names(one.validation)) == [f"ct_{n}.nii" for n in range(1, 5)]
    assert [one.summary["fold"] for one in folds] == [0, 1] and folds[0].summary["folds"] == 2
    with pytest.raises(UserError, match="--folds 5 needs 5 patients"):
        volume_set(tmp_path / "volumes", folds=5, **options)


def test_volumes_that_come_leave_the_others_on_their_sides():
    old = prepared({"CT": [1] * 9 + [3], "MR": [2] * 5})
    training, validation = split_volumes(old, val_fraction=0.3, seed=4)
    sides = {v.name: part for part, held in (("training", training), ("validation", validation)) for v in held}
    new = prepared({"CT": [1] * 19 + [3], "MR": [2] * 12})
    every = [*old, *(v for v in new if v.name not in sides)]
    assert len(every) > len(old)
    redrawn = split_volumes(every, val_fraction=0.3, seed=4)
    assert any(sides.get(v.name) == "training" for v in redrawn[1]), "without the earlier sides some would change"
    after = split_volumes(every, val_fraction=0.3, seed=4, earlier=lambda volume: sides.get(volume.name, ""))
    for part, held in zip(("training", "validation"), after):
        assert all(sides.get(v.name, part) == part for v in held)
        assert any(v.name not in sides for v in held), "of the new ones some are on this side"
    assert not {v.group for v in after[0]} & {v.group for v in after[1]}


def sizes_of(volumes: list[PreparedVolume], val_fraction: float, seed: int) -> tuple[Counter[str], Counter[str]]:
    sides = split_volumes(volumes, val_fraction=val_fraction, seed=seed)
    return tuple(Counter(v.modality for v in side) for side in sides)  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(8))
def test_one_patient_id_of_a_whole_collection_is_not_held_out(seed: int, caplog: pytest.LogCaptureFixture):
    training, validation = sizes_of(prepared({"CT": [100, 1, 1, 1, 1]}), 0.2, seed)
    assert training["CT"] == 100 and validation["CT"] == 4
    training, validation = sizes_of(prepared({"CT": [9, 9]}), 0.2, seed)
    assert training["CT"] == validation["CT"] == 9 and "9 of 18 CT volumes are for validation" in caplog.text
    remedy = "list the volumes in a json, each with its group"
    assert remedy in caplog.text
    for folds in (None, 5):
        with pytest.raises(UserError, match=remedy):
            split_volumes(prepared({"CT": [100]}), val_fraction=0.2, seed=seed, folds=folds)


@pytest.mark.parametrize("seed", range(40))
def test_no_modality_is_left_without_a_volume_to_train_on(seed: int):
    volumes = prepared({"MR": [1] * 10})
    volumes += [replace(v, name=f"{v.name} CT", modality="CT") for v in volumes[:2]]
    training, validation = sizes_of(volumes, 0.2, seed)
    assert training == {"CT": 1, "MR": 8} and validation == {"CT": 1, "MR": 2}


def test_sessions_of_a_subject_are_never_on_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="bundle")
    found = [FoundVolume(f"sub-{n:02}/ses-{session}/T1.nii", ()) for n in range(10) for session in (1, 2)]
    volumes = [replace(v, name=f.name, group=f.group) for v, f in zip(prepared({"MR": [2] * 10}), found)]
    sides = split_volumes(volumes, val_fraction=0.3, seed=1)
    training, validation = ({v.name[:6] for v in side} for side in sides)
    assert not training & validation and len(validation) == 3
    assert "20 volumes are of 10 subjects" in caplog.text


def test_patients_that_a_list_has_on_both_sides_are_said(caplog: pytest.LogCaptureFixture):
    volumes = prepared({"MR": [2, 1, 1]})
    listed = [replace(v, part=part) for v, part in zip(volumes, ["training", "validation", "training", "validation"])]
    assert names(split_volumes(listed, val_fraction=0.2, seed=0)[1]) == ["MR_0_1", "MR_2_0"]
    assert (
        "1 of 2 volumes that are listed for validation are of patients who have others listed for training, such as "
        "MR_0_1 and MR_0_0"
    ) in caplog.text
    caplog.clear()
    split_volumes([v for v in listed if v.name != "MR_0_1"], val_fraction=0.2, seed=0)
    assert not caplog.text


def test_copies_are_on_one_side_and_said(caplog: pytest.LogCaptureFixture):
    volumes = [replace(v, fingerprint=str(n % 10)) for n, v in enumerate(prepared({"MR": [2] * 10}))]
    joined = join_copies(volumes)
    assert [v.name for v in joined] == [v.name for v in volumes]
    group = {v.fingerprint: v.group for v in joined}
    assert all(v.group == group[v.fingerprint] for v in joined), "the copies"
    assert all(a.group == b.group for a, b in zip(joined[::2], joined[1::2])), "and the scans of a patient, as before"
    assert "10 volumes have the same bytes as another, such as MR_0_0 and MR_5_0" in caplog.text
    assert "different labels" not in caplog.text
    sides = ("training", "validation")
    listed = [replace(v, fingerprint="1", content=part, part=part) for v, part in zip(volumes, sides)]
    assert [v.part for v in join_copies(listed)] == ["training", "validation"]
    assert "MR_0_0 is listed for training and for validation" in caplog.text
    assert "the copies of MR_0_0 have different labels" in caplog.text
    caplog.clear()
    assert join_copies(prepared({"CT": [1] * 3})) == prepared({"CT": [1] * 3}) and not caplog.text
    same = [replace(v, fingerprint="1") for v in prepared({"CT": [1] * 3})]
    assert join_copies(same) == same and "2 volumes have the same bytes" in caplog.text, "nothing else to split"


def test_a_series_and_the_file_that_was_made_of_it_are_on_one_side_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The NIfTI file has its second axis the other way round, as dcm2niix writes it beside the series."""
    for number in range(3):
        folder, hu = tmp_path / "scans" / f"p{number}", ct_phantom((12, 16, 14), seed=number)
        write_dicom(folder, hu, tags={**PATIENT, "PatientID": f"{number}", "StudyInstanceUID": f"1.2.{number}"})
        affine = np.diag([-1.0, 1.0, 2.0, 1.0])
        affine[1, 3] = 1 - hu.shape[1]
        write_nifti(folder / "scan.nii.gz", hu[:, ::-1].transpose(2, 1, 0).astype(np.int16), affine)
    sets = volume_set(tmp_path / "scans", transform=preparation(), seed=1)
    assert "3 volumes have the voxels of another file, such as p0 and p0/scan.nii.gz" in caplog.text
    sides = [{volume.name.split("/")[0] for volume in side} for side in (sets.training, sets.validation)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(sets.training) + len(sets.validation) == 6
