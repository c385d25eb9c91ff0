# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.cluster.vq import vq
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude

from bundle.data import PlainStore, PreparedVolume, PretextClasses, PretextClassesd, RandForegroundCropd
from bundle.data.pretext_classes import fit_pretext_classes, voxel_features
from bundle.errors import UserError

LEVELS = np.linspace(-2, 2, 64).tolist()
WHOLE = torch.tensor([[0.0, 1.0]] * 3)


@pytest.fixture
def volumes(tmp_path: Path) -> list[PreparedVolume]:
    """Two bodies in air: one half of each is bright, and what is CT in the second has other units."""
    store, found = PlainStore(tmp_path / "store"), []
    for number, modality in enumerate(("MR", "CT")):
        image = torch.full((1, 20, 20, 20), -3.0)
        image[:, 2:18, 2:18, 2:18] = 0.0
        image[:, 2:18, 2:18, 10:18] = 1.0
        image += 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(number))
        body = torch.zeros(1, 20, 20, 20, dtype=torch.uint8)
        body[:, 2:18, 2:18, 2:18] = 1
        tensors = {"image": 0.1 * image if modality == "CT" else image, "foreground": body, "modality": modality}
        store.write(str(number), {**tensors, "valid": torch.ones_like(body), "spacing": torch.ones(3)})
        found.append(PreparedVolume(f"v{number}", store, str(number), modality, (20, 20, 20)))
    return found


def fit(volumes: list[PreparedVolume], folder: Path, **more) -> PretextClasses:
    return fit_pretext_classes(
        volumes, crop_size=(16, 16, 16), file=folder / "pretext_classes.json", **{"classes": 5, **more}
    )


def test_features_are_ranks_smoothed_their_edges_and_the_place():
    image = torch.randn(1, 12, 14, 16, generator=torch.Generator().manual_seed(0))
    place = torch.tensor([[0.0, 0.5], [0.5, 1.0], [0.2, 0.2]])
    found = voxel_features(image, LEVELS, place)
    ranks = (np.array(LEVELS)[:, None, None, None] < image[0].numpy()).sum(0) / 64
    assert found.shape == (9, 12, 14, 16)
    np.testing.assert_allclose(found[0], ranks, atol=1e-6)
    for number, width in ((1, 1), (2, 2), (3, 4)):
        np.testing.assert_allclose(found[number], gaussian_filter(ranks, width, mode="nearest"), atol=1e-5)
    for number, width in ((4, 1), (5, 2)):
        np.testing.assert_allclose(found[number], gaussian_gradient_magnitude(ranks, width, mode="nearest"), atol=1e-5)
    assert (found[6, 0] == 0).all() and (found[6, -1] == 0.5).all()
    assert (found[7, :, 0] == 0.5).all() and (found[7, :, -1] == 1).all()
    assert torch.allclose(found[8], torch.tensor(0.2))


def test_intensities_count_by_rank_so_that_their_units_do_not_matter():
    image = torch.randn(1, 8, 8, 8)
    stretched = [1000 * level + 40 for level in LEVELS]
    other = voxel_features(1000 * image + 40, stretched, WHOLE)
    assert torch.allclose(voxel_features(image, LEVELS, WHOLE), other, atol=0.02)


def test_a_constant_image_has_no_border_of_its_own():
    found = voxel_features(torch.ones(1, 8, 8, 8), LEVELS, WHOLE)
    assert all(torch.allclose(part, part[0, 0, 0], atol=1e-6) for part in found[:6])
    assert found[4:6].abs().max() < 1e-6


def test_a_voxel_has_the_class_of_the_nearest_centre_and_air_has_none():
    generator = np.random.default_rng(0)
    centres, features = generator.normal(size=(6, 9)), generator.normal(2.0, 3.0, size=(40 * 30 * 20, 9))
    classes = PretextClasses(centres.tolist(), [2.0] * 9, [3.0] * 9, {"MR": LEVELS})
    body = torch.ones(1, 40, 30, 20, dtype=torch.uint8)  # more voxels than are classified at once
    body[:, 0] = 0
    grid = torch.from_numpy(features.T.reshape(9, 40, 30, 20)).float()
    found = classes.classify(grid, body)
    nearest, _ = vq((features - 2) / 3, centres)
    assert found.dtype == torch.uint8 and classes.count == 7
    assert (found[:, 1:].flatten().numpy() == nearest[600:] + 1).all()
    assert (found[:, 0] == 0).all()


def test_classes_of_two_modalities_agree_about_what_is_bright_and_where(volumes, tmp_path):
    classes = fit(volumes, tmp_path)
    assert set(classes.levels) == {"MR", "CT"} and classes.count == 5
    crop = RandForegroundCropd(["image", "foreground"], spatial_size=(20, 20, 20), place_key="place")
    mr, ct = (PretextClassesd(classes=classes)(crop.read(volume))["pretext_class"] for volume in volumes)
    body = volumes[0].load()["foreground"] > 0
    assert len(mr[body].unique()) >= 3 and (mr[~body] == 0).all() and (mr[body] > 0).all()
    assert (mr == ct)[body].float().mean() > 0.9
    dark, bright = mr[0, 4:16, 4:16, 4:8], mr[0, 4:16, 4:16, 12:16]
    assert not set(dark.unique().tolist()) & set(bright.unique().tolist())


def test_they_are_fitted_once_per_run_and_are_the_same_for_the_same_seed(volumes, tmp_path):
    first = fit(volumes, tmp_path / "a")
    kept = (tmp_path / "a/pretext_classes.json").read_text()
    assert fit(volumes[:1], tmp_path / "a", keep=True) == first, "a resumed run reads them"
    assert fit(volumes, tmp_path / "b") == first
    assert json.loads(kept) == json.loads((tmp_path / "b/pretext_classes.json").read_text())
    with pytest.raises(UserError, match="has 5 classes and the config asks for 6"):
        fit(volumes, tmp_path / "a", classes=6, keep=True)
    assert fit(volumes[:1], tmp_path / "b") != first, "those of a start that failed are of other volumes"


@pytest.mark.parametrize(("weight", "told_by"), [(0.0, slice(0, 6)), (1000.0, slice(6, 9))])
def test_classes_are_told_by_appearance_or_by_the_place(volumes, tmp_path, weight, told_by):
    """Whatever the other features are, the classes are the same."""
    classes = fit(volumes, tmp_path, place_weight=weight)
    item = volumes[0].load()
    features = voxel_features(item["image"], classes.levels["MR"], WHOLE)
    others = torch.rand(features.shape, generator=torch.Generator().manual_seed(1))
    others[told_by] = features[told_by]
    found, again = (classes.classify(values, item["foreground"]) for values in (features, others))
    assert len(found.unique()) >= 4 and torch.equal(found, again)


def test_of_a_large_archive_some_volumes_of_every_modality_are_read(volumes, tmp_path, monkeypatch):
    read = []
    look = RandForegroundCropd.read
    monkeypatch.setattr(RandForegroundCropd, "read", lambda self, volume: read.append(volume) or look(self, volume))
    mr, ct = volumes
    classes = fit([mr] * 30 + [ct], tmp_path, most_volumes=4, crops_per_volume=1)
    assert [volume.modality for volume in read].count("CT") == 1 and len(read) == 4
    assert set(classes.levels) == {"MR", "CT"}


def test_a_modality_that_was_not_there_is_ranked_by_itself_and_said_once(volumes, tmp_path, caplog):
    mr, ct = volumes
    crop = RandForegroundCropd(["image", "foreground"], spatial_size=(20, 20, 20), place_key="place")
    add = PretextClassesd(classes=fit([mr], tmp_path))
    first, second, third = (add(crop.read(volume))["pretext_class"] for volume in (mr, ct, ct))
    body = mr.load()["foreground"] > 0
    assert (first == second)[body].float().mean() > 0.9 and torch.equal(second, third)
    assert caplog.text.count("from no CT: each crop of it is ranked by itself") == 1


def test_a_negative_weight_of_the_place(volumes, tmp_path):
    with pytest.raises(UserError, match="place_weight -1 cannot be"):
        fit(volumes, tmp_path, place_weight=-1)


def test_a_volume_that_cannot_be_read_is_left_out(volumes, tmp_path, caplog):
    broken = replace(volumes[0], key="lost", name="lost volume")
    assert fit([broken, *volumes], tmp_path).count == 5
    assert "lost volume is left out" in caplog.text


@pytest.mark.parametrize(("classes", "message"), [(2, "2 pretext classes cannot be"), (257, "257 pretext classes")])
def test_a_number_of_classes_that_cannot_be(volumes, tmp_path, classes, message):
    with pytest.raises(UserError, match=message):
        fit(volumes, tmp_path, classes=classes)


def test_too_few_voxels(volumes, tmp_path):
    with pytest.raises(UserError, match="are too few for 200 pretext classes"):
        fit(volumes, tmp_path, classes=200, voxels_per_crop=100)


def test_the_crop_says_where_it_lies(volumes):
    crop = RandForegroundCropd(["image", "foreground"], spatial_size=(16, 16, 16), place_key="place", min_foreground=2)
    crop.set_random_state(seed=3)
    item, whole = crop.read(volumes[0]), volumes[0].load()
    first, last = (item["place"] * 20).round().long().T.tolist()
    where = (slice(None), *(slice(start, end + 1) for start, end in zip(first, last)))
    assert torch.equal(whole["image"][where], item["image"])
    classes = PretextClasses([[0.0] * 9] * 2, [0.0] * 9, [1.0] * 9, {"MR": LEVELS})
    del item["place"]
    with pytest.raises(UserError, match="set place_key: place"):
        PretextClassesd(classes=classes)(item)
