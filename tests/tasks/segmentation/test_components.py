# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Components of label maps: which stay, and what is measured of them."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.data import table_row
from bundle.errors import UserError
from bundle.tasks.segmentation import (
    MEASUREMENT_COLUMNS,
    CleanComponentsd,
    MeasureClassesd,
    clean_components,
    measure_classes,
)

CLASSES = {"liver": 6, "tumour": 900, "=vein": 3}
#: 0.006 mL per voxel, tilted: the product of the spacings would say 0.00608
AFFINE = np.array([[1.0, 0, 0.5, -7], [0, 2, 0, 3], [0, 0, 3, 11], [0, 0, 0, 1]])


def flood(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Components by breadth-first search over all 26 neighbours, the largest first."""
    left, found = {tuple(map(int, index)) for index in np.argwhere(mask)}, []
    while left:
        waiting = deque([left.pop()])
        piece = set(waiting)
        while waiting:
            index = waiting.popleft()
            for step in product((-1, 0, 1), repeat=3):
                neighbour = tuple(a + b for a, b in zip(index, step))
                if neighbour in left:
                    left.remove(neighbour)
                    piece.add(neighbour)
                    waiting.append(neighbour)
        found.append(piece)
    return sorted(found, key=len, reverse=True)


@pytest.fixture(scope="module")
def label_map() -> np.ndarray:
    """Crumbs of three classes."""
    values = [0, *CLASSES.values()]
    return np.random.default_rng(3).choice(values, (9, 10, 11), p=[0.85, 0.06, 0.05, 0.04]).astype(np.uint16)


def as_array(pieces: Sequence[set[tuple[int, ...]]], shape: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(shape, dtype=bool)
    for piece in pieces:
        array[tuple(np.array(sorted(piece)).T)] = True
    return array


def test_only_the_largest_component_of_the_named_classes_stays(label_map: np.ndarray) -> None:
    before = label_map.copy()
    cleaned = clean_components(label_map, AFFINE, classes=CLASSES, largest_component=["liver"])
    pieces = flood(label_map == 6)
    assert len(pieces) > 3 and len(pieces[0]) > len(pieces[1])
    np.testing.assert_array_equal(cleaned == 6, as_array(pieces[:1], label_map.shape))
    np.testing.assert_array_equal(cleaned[label_map != 6], label_map[label_map != 6])
    assert cleaned.dtype == np.uint16
    np.testing.assert_array_equal(label_map, before)


def test_true_means_every_class(label_map: np.ndarray) -> None:
    cleaned = clean_components(label_map, AFFINE, classes=CLASSES, largest_component=True)
    for value in CLASSES.values():
        assert [len(piece) for piece in flood(cleaned == value)] == [len(flood(label_map == value)[0])]


def test_components_below_a_volume_are_removed_by_class(label_map: np.ndarray) -> None:
    cleaned = clean_components(label_map, AFFINE, classes=CLASSES, remove_below_ml={"tumour": 0.018})
    expected = as_array([piece for piece in flood(label_map == 900) if len(piece) >= 3], label_map.shape)
    assert 0 < expected.sum() < (label_map == 900).sum()
    np.testing.assert_array_equal(cleaned == 900, expected)
    np.testing.assert_array_equal(cleaned[label_map != 900], label_map[label_map != 900])


def test_a_class_whose_largest_component_is_too_small_is_removed_whole(label_map: np.ndarray) -> None:
    cleaned = clean_components(label_map, AFFINE, classes=CLASSES, largest_component=True, remove_below_ml=1.0)
    assert not cleaned.any()


@pytest.mark.parametrize("nothing", [{}, {"largest_component": False}, {"largest_component": [], "remove_below_ml": 0}])
def test_without_a_wish_the_label_map_is_as_it_was(label_map: np.ndarray, nothing: dict[str, Any]) -> None:
    assert clean_components(label_map, AFFINE, classes=CLASSES, **nothing) is label_map


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"largest_component": ["lung"]}, "--largest_component names lung, .*: choose of liver, tumour"),
        ({"largest_component": "lung"}, "names lung, which"),
        ({"remove_below_ml": {"lung": 1}}, "--remove_below_ml names lung"),
        ({"remove_below_ml": -1}, "--remove_below_ml -1 does not fit: give mL from 0 up"),
        ({"remove_below_ml": {"liver": "much"}}, "does not fit"),
        ({"remove_below_ml": True}, "does not fit"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_read(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        CleanComponentsd(classes=CLASSES, **options)


def test_transform_keeps_the_grid(label_map: np.ndarray) -> None:
    image = MetaTensor(torch.from_numpy(label_map[None]), affine=torch.from_numpy(AFFINE))
    cleaned = CleanComponentsd(classes=CLASSES, largest_component="liver")({"pred": image})["pred"]
    expected = clean_components(label_map, AFFINE, classes=CLASSES, largest_component=["liver"])
    assert isinstance(cleaned, MetaTensor) and cleaned.dtype == image.dtype
    np.testing.assert_array_equal(cleaned[0].numpy(), expected)
    np.testing.assert_array_equal(np.asarray(cleaned.affine), AFFINE)


def test_measurements_count_volume_components_and_border(label_map: np.ndarray) -> None:
    inner = np.zeros((11, 12, 13), dtype=np.uint16)
    inner[1:-1, 1:-1, 1:-1] = label_map
    inner[inner == 3] = 0
    inner[5, 0, 5] = 900
    rows = {row["class"]: row for row in measure_classes(inner, AFFINE, classes=CLASSES)}
    for name in ("liver", "tumour"):
        mask = inner == CLASSES[name]
        assert rows[name]["ml"] == pytest.approx(mask.sum() * 0.006, abs=1e-6)
        assert rows[name]["components"] == len(flood(mask))
    assert [rows[name]["touches_border"] for name in CLASSES] == [False, True, False]
    absent = {"class": "=vein", "value": 3, "ml": 0.0, "components": 0, "touches_border": False}
    assert rows["=vein"] == absent
    assert (*absent, "certainty") == MEASUREMENT_COLUMNS
    assert next(csv.reader(io.StringIO(",".join(map(str, table_row(absent.values())))))) == [
        "'=vein", "3", "0.0", "0", "False",
    ]  # fmt: skip


def test_transform_puts_the_rows_where_the_tables_are_written(label_map: np.ndarray) -> None:
    image = MetaTensor(torch.from_numpy(label_map[None]), affine=torch.from_numpy(AFFINE))
    sure = {"liver": 0.75, "tumour": None}
    item = MeasureClassesd(classes=CLASSES)({"pred": image, "tables": {"other": []}, "certainty": sure})
    rows = measure_classes(label_map, AFFINE, classes=CLASSES)
    rows = [{**row, "certainty": {"liver": 0.75}.get(row["class"])} for row in rows]
    assert item["tables"] == {"other": [], "measurements": rows}


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("end", [0, -1])
def test_each_face_of_the_grid_is_a_border(axis: int, end: int) -> None:
    label_map = np.zeros((4, 5, 6), dtype=np.uint8)
    np.moveaxis(label_map, axis, 0)[end, 2, 2] = 1
    (row,) = measure_classes(label_map, np.eye(4), classes={"a": 1})
    assert row["touches_border"] is True


def test_real_label_map_is_measured_as_its_voxels_say(data_dir: Path) -> None:
    image = nibabel.load(data_dir / "labels/ct_body_totalseg.nii.gz")
    label_map = np.asarray(image.dataobj).astype(np.int16)
    classes = {f"structure {value}": int(value) for value in np.unique(label_map) if value}
    cleaned = clean_components(label_map, image.affine, classes=classes, largest_component=True)
    before = measure_classes(label_map, image.affine, classes=classes)
    after = measure_classes(cleaned, image.affine, classes=classes)
    voxel = np.prod(image.header.get_zooms()) / 1000
    for old, new in zip(before, after, strict=True):
        assert old["ml"] == pytest.approx((label_map == old["value"]).sum() * voxel, rel=1e-5)
        assert new["components"] == 1 and new["ml"] <= old["ml"]
    assert any(row["components"] > 1 for row in before)
