# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The study's measures, on answers that are known."""

from __future__ import annotations

import json
from pathlib import Path

import method as method_study
import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser

from bundle.networks import Decoder, PretrainingNetwork, build_encoder


def network() -> PretrainingNetwork:
    torch.manual_seed(0)
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1), norm="instance")
    return PretrainingNetwork(encoder=encoder, decoder=Decoder(levels=encoder.levels, width=4, stride=2))


def test_halves_share_out_the_labelled_voxels_with_a_gap():
    labels = torch.zeros(40, 6, 6, dtype=torch.long)
    labels[10:34] = 2
    first, second = method_study.halves(labels, gap=3)
    assert not (first & second).any()
    assert first.any(2).any(1).nonzero().max() + 6 <= second.any(2).any(1).nonzero().min()
    assert first.sum() == second.sum() + 36 or abs(int(first.sum() - second.sum())) <= 2 * 36
    assert not first[:10].any() and not second[34:].any()


def test_dice_is_the_mean_over_classes_that_are_there():
    truth = torch.tensor([1, 1, 1, 3, 3, 3])
    predicted = torch.tensor([1, 1, 3, 3, 3, 2])
    assert method_study.dice(predicted, truth, 3) == pytest.approx((4 / 5 + 4 / 6) / 2)


def test_features_at_voxels_are_the_maps_read_there():
    net, image = network().eval(), torch.randn(1, 10, 9, 8)  # no multiple of the stride of 4
    places = torch.stack([torch.randint(n, (50,)) for n in image.shape[1:]], 1)
    with torch.no_grad():
        features = method_study.features_at(net, image, places)
        padded = F.pad(image[None], [0, 0, 0, 3, 0, 2])
        finest = net.encoder(padded)[0]
    torch.testing.assert_close(features[:, 0], image[0][tuple(places.T)])
    torch.testing.assert_close(features[:, 1:5], finest[0][(slice(None), *places.T)].T, rtol=1e-4, atol=1e-5)


def test_a_probe_reads_labels_that_the_intensity_shows():
    image = torch.randn(1, 32, 16, 16)
    labels = (image[0] > 0).long() + 1
    assert method_study.probe(network(), image, labels, seed=0) > 0.8
    shuffled = labels.flatten()[torch.randperm(labels.numel())].view_as(labels)
    assert method_study.probe(network(), image, shuffled, seed=0) < 0.6


def test_a_fitted_map_reads_features_of_any_scale():
    features = torch.randn(500, 4) * torch.tensor([1.0, 1e3, 1e-3, 0.0]) + torch.tensor([0.0, 5e3, 1.0, 2.0])
    labels = (features[:, 1] > 5e3).long() + 2 * (features[:, 2] > 1).long()
    head = method_study.fit_map(features, labels, 4)
    assert (head(features).argmax(1) == labels).float().mean() > 0.95
    torch.testing.assert_close(head[0](features)[:, :3].mean(0), torch.zeros(3), atol=1e-3, rtol=0)


def test_fine_tuning_changes_the_encoder_and_learns():
    net = network()
    before = {k: v.clone() for k, v in net.encoder.state_dict().items()}
    image = torch.randn(1, 64, 48, 48)
    image[:, :, 24:] += 4
    labels = torch.ones(64, 48, 48, dtype=torch.long)
    labels[:, 24:] = 2
    assert min(method_study.fine_tune(net, image, labels, seed=0, steps=4)) > 0.8
    assert any(not torch.equal(v, before[k]) for k, v in net.encoder.state_dict().items())


def test_every_arms_options_are_ids_of_the_config():
    names = ("train", "objective_reconstruction")
    config = ConfigParser.load_config_files([str(method_study.ROOT / f"configs/{name}.yaml") for name in names])
    for overrides in (method_study.COMMON, method_study.NO_ALIGNMENT, *method_study.ARMS.values()):
        for key in (key for key in overrides if not key.endswith("_disabled_")):
            place = config
            for part in key.split("#"):
                assert isinstance(place, list) or part in place, key
                place = place[int(part)] if isinstance(place, list) else place[part]


def test_the_table_gives_mean_and_deviation_over_seeds():
    results = {"base": {"0": {"probe CT": 0.4}, "1": {"probe CT": 0.6}}, "dense": {"0": {"probe CT": 0.5}}}
    table = method_study.table(results, method_study.LEARNED)
    assert "base (2)" in table and "0.500 ± 0.141" in table and "| dense (1) |" in table


@pytest.mark.parametrize(
    ("arm", "more"),
    [
        ("2 levels", {"probe CT", "probe MR", "fine-tuned MR", "health_top1"}),
        ("SparK-style", set()),
        ("full decoder, histogram", {"probe CT", "probe MR"}),
    ],
)
def test_an_arm_runs_on_the_real_volumes(
    arm: str, more: set[str], data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert all(list((data_dir / "volumes").glob(f"{name}.*")) for name in method_study.HELD_OUT)
    tuned = str(int("fine-tuned MR" in more))
    command = ["method.py", "--arms", arm, "--seeds", "0", "--steps", "2", "--tune-steps", tuned]
    monkeypatch.setattr("sys.argv", [*command, "--output", str(tmp_path / "study")])
    # for the time
    for name, value in {"encoder#init_filters": 4, "encoder#blocks_down": [1] * 5, "spacing": [6, 6, 6]}.items():
        monkeypatch.setitem(method_study.COMMON, name, value)
    method_study.main()
    figures = json.loads((tmp_path / "study.json").read_text())["results"][arm]["0"]
    shown = {"reconstruction CT", "reconstruction MR"} | more
    assert shown <= figures.keys()
    assert all(0 <= figures[name] <= 2 for name in shown)
    assert (tmp_path / "study.png").stat().st_size > 0
