# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The volumes of a page: where they are, what is left of them, and that nothing else comes along."""

from __future__ import annotations

import base64
import gzip
import io
import re
import struct

import nibabel
import numpy as np
import pytest
from PIL import Image

from bundle.reports.viewer import Case, pack_case
from bundle.reports.volumes import Grid, PackedVolume, grey, pack_labels, shrink_to

TILTED = np.array([[0.0, -0.7, 0.1, 12], [0.8, 0.05, 0.3, -40], [0.1, 0.2, -2.5, 7], [0, 0, 0, 1]])


def unpack_text(page, about):
    """A volume out of a page's text, where `about` is what the page's script is given of it."""
    (voxels,) = re.findall(f'id="{about["voxels"]}">([^<]*)<', page)
    return unpack(PackedVolume(about["header"], about["coding"], voxels))


def unpack(packed):
    """As the page's script does it: a header, and voxels as gzip or as pictures of slices."""
    header, content = base64.b64decode(packed.header), base64.b64decode(packed.voxels)
    if packed.coding == "gzip":
        voxels = gzip.decompress(content)
    else:
        voxels = b""
        while content:
            (length,) = struct.unpack("<I", content[:4])
            voxels += np.asarray(Image.open(io.BytesIO(content[4 : 4 + length])))[..., 0].tobytes()
            content = content[4 + length :]
    return nibabel.Nifti1Image.from_bytes(header + voxels)


def blob(shape):
    """A smooth scan: brightest in the middle."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return 1000 * np.exp(-2 * sum(axis**2 for axis in axes)) - 500


def test_a_small_case_keeps_grid_and_values_and_its_header_has_no_words():
    scan = blob((12, 15, 9))
    labels = np.where(scan > 300, 7, np.where(scan > 0, -2, 0))
    packed = pack_case(Case("a", scan, TILTED, {"prediction": labels}, window=(-500, 500)), {"x": -2, "y": 7}, 10**6)
    image, found = unpack(packed.scan), unpack(packed.label_maps["prediction"])
    assert np.abs(image.affine - TILTED).max() < 1e-5 and np.abs(found.affine - TILTED).max() < 1e-5
    assert np.abs(image.get_fdata() - scan).max() < 1000 / 255
    assert (np.asarray(found.dataobj) == np.select([labels == -2, labels == 7], [1, 2])).all()
    for one in (image, found):
        words = [one.header[key].tobytes() for key in ("descrip", "aux_file", "intent_name", "db_name", "data_type")]
        assert not any(word.strip(b"\0") for word in words)
    assert packed.note == ""


def test_the_window_is_what_is_shown_first_and_what_lies_beyond_is_there():
    scan = blob((12, 15, 9)) * 2  # -1000 to 1000
    image = unpack(pack_case(Case("a", scan, np.eye(4), window=(-160, 240)), {}, 10**6).scan)
    assert (image.header["cal_min"], image.header["cal_max"]) == (-160, 240)
    low, high = np.percentile(scan, (0.5, 99.5))
    assert np.abs(image.get_fdata() - scan.clip(low, high)).max() <= (high - low) / 255


def test_a_large_case_is_compressed_with_loss_then_made_coarser_and_says_so():
    scan = blob((64, 80, 40)) + np.random.default_rng(0).normal(0, 20, (64, 80, 40))
    case = Case("a", scan, np.diag([1.0, 1, 2, 1]), {"prediction": (scan > 300).astype(int)}, note="Dice 0.9")
    packed = pack_case(case, {"x": 1}, 120_000)
    assert packed.scan.coding == "webp" and len(packed) <= 120_000
    assert packed.note == "Dice 0.9; grey values are compressed with loss"
    shown = unpack(packed.scan)
    assert shown.shape == scan.shape
    levels, (low, high) = grey(scan)
    assert np.abs(np.asarray(shown.dataobj.get_unscaled()).astype(float) - levels).mean() < 4
    assert low > -600 and high < 600

    packed = pack_case(case, {"x": 1}, 12_000)
    assert len(packed) <= 12_000
    assert "the files have 1 x 1 x 2 mm" in packed.note


def test_a_coarser_scan_lies_where_the_finer_one_does():
    scan = blob((60, 50, 40))
    grid = Grid(scan.shape, (4, 3, 2))
    coarse = grid.blocks(scan).mean(axis=-1)
    brightest = np.array(np.unravel_index(coarse.argmax(), coarse.shape))
    for affine in (TILTED, np.diag([-1.0, -1, 3, 1])):
        middle = affine @ [29.5, 24.5, 19.5, 1]
        assert np.linalg.norm((grid.place(affine) @ [*brightest, 1] - middle)[:3]) < np.linalg.norm(
            affine[:3, :3] @ [2, 1.5, 1]
        )
    first = scan[:4, :3, :2].mean()
    assert coarse[0, 0, 0] == pytest.approx(first)


def test_voxels_become_even_first():
    assert shrink_to((100, 100, 20), (0.5, 0.5, 3), 200_000).factor == (1, 1, 1)
    assert shrink_to((100, 100, 20), (0.5, 0.5, 3), 50_000).factor == (2, 2, 1)
    assert shrink_to((100, 3, 1), (1, 1, 1), 10).shape[2] == 1
    assert shrink_to((5, 5, 5), (1, 1, 1), 1).shape == (1, 1, 1)


def test_a_small_structure_stays_in_sight_and_the_larger_of_two_wins():
    labels = np.zeros((8, 8, 8), dtype=int)
    labels[0, 0, 0] = 5  # one voxel of a block of 64
    labels[4:, 4:, 4:] = 3
    labels[4:6, 4:6, 4:6] = 5
    found = np.asarray(unpack(pack_labels(labels, Grid((8, 8, 8), (4, 4, 4)), np.eye(4), [3, 5])).dataobj)
    assert found[0, 0, 0] == 2 and found[1, 1, 1] == 1
    assert np.count_nonzero(found) == 2
