# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""scripts/does_pretraining_help.py: real trainings of two steps, and who is held out."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from does_pretraining_help import main, parse
from does_pretraining_help_parts.experiment import Experiment, key
from does_pretraining_help_parts.page import table, write
from does_pretraining_help_parts.people import part_people

from bundle.data import FoundVolume
from bundle.data.names import name_digest
from bundle.errors import UserError
from bundle.training.trial import Trial
from bundle.weights import checksum
from tests.export.models import write_model, write_nnunet_checkpoint
from tests.networks.encoder_cases import Case

ENCODER = {"init_filters": 4, "blocks_down": [1, 1, 1], "norm": ["instance", {"affine": True}]}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six people: two bright blocks in noise."""
    label = np.zeros((30, 30, 28), dtype=np.uint8)
    label[6:14, 8:24, 6:22], label[14:22, 8:24, 6:22] = 1, 2
    for number in range(6):
        noise = np.random.default_rng(number).normal(0, 5, label.shape)
        image = (100 + 60 * (label == 1) + 120 * (label == 2) + noise).astype(np.float32)
        for part, voxels in (("images", image), ("labels", label)):
            path = tmp_path / f"my scans/{part}Tr/p {number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    return tmp_path / "my scans"


def command(dataset: Path, *more: str) -> list[str]:
    folder = dataset.parent
    words = ["--dataset_dir", dataset, "--classes", "{left: 1, right: 2}", "--weights", folder / "models/model.pt"]
    words += ["--labels", "2", "--steps", "2", "--crop_size", "32", "32", "32", "--batch_size", "1", "--device", "cpu"]
    words += ["--cache_dir", folder / "cache", "--output_dir", folder / "out", "--fit_heads", "1", *more]
    return [str(word) for word in words]


def test_arms_have_the_same_people_and_a_second_command_adds_what_is_missing(dataset: Path, capsys):
    folder = dataset.parent
    (folder / "models").mkdir()
    write_model(folder / "models", Case("SegResEncoder", ENCODER, ()), spacing=None, mr_percentiles=[1, 99])
    assert main(command(dataset, "--seeds", "1")) == 0
    lines = (folder / "out/runs.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["arm"] for row in rows] == ["scratch", "models/model.pt"] and len(rows[0]["curve"]) == 2
    assert rows[0]["dice"].keys() == rows[1]["dice"].keys() and len(rows[0]["dice"]) == 2
    assert all(row["lr"] == 1e-3 for row in rows), "no decoder was pre-trained"
    assert main(command(dataset, "--seeds", "2")) == 0
    after = (folder / "out/runs.jsonl").read_text().splitlines()
    assert after[:2] == lines and len(after) == 4
    text = (folder / "out/report.md").read_text()
    assert "too few people or seeds for a verdict on models/model.pt" in text and "Warning: with 2 labelled" in text
    assert "2 people were held out first and never trained on" in text
    assert "too few people or seeds" in (folder / "out/report.html").read_text()
    assert (folder / "out/report.png").stat().st_size > 5000
    capsys.readouterr()
    assert main(command(dataset, "--steps", "4")) == 1
    assert "was begun with steps 2, and now it is 4: give the same" in capsys.readouterr().err


def test_weights_of_two_networks_are_compared_each_with_its_own_scratch(dataset: Path, capsys):
    folder = dataset.parent
    (folder / "models").mkdir()
    write_model(folder / "models", Case("SegResEncoder", ENCODER, ()), spacing=None, licence="Apache-2.0")
    theirs = str(write_nnunet_checkpoint(folder / "theirs"))
    words = command(dataset, "--seeds", "1", "--spacing", "own")
    words.insert(words.index("--labels"), theirs)
    assert main(words) == 0
    rows = [json.loads(line) for line in (folder / "out/runs.jsonl").read_text().splitlines()]
    second = "theirs/checkpoint_final.pth"
    names = ["scratch, network of models/model.pt", "models/model.pt", f"scratch, network of {second}", second]
    assert [row["arm"] for row in rows] == names
    text = (folder / "out/report.md").read_text()
    assert f"a verdict on {second}" in text and f"compared with {names[2]}" in text
    assert "| nnunet; licence: not known, see where the file comes from |" in text and "| from scratch |" in text
    assert "networks compare with each other only roughly" not in text, "they have one grid"
    made = json.loads((folder / "out/settings.json").read_text())["networks"]
    assert made[names[2]]["settings#intensity_scheme"] == {"kind": "z_score", "over": "nonzero_box"}
    capsys.readouterr()


def volumes(people: int, parts: tuple[str, ...] = ("",)) -> list[FoundVolume]:
    return [
        FoundVolume(f"p{n} {scan}", ("f",), group=f"p{n}", part=parts[n % len(parts)])
        for n in range(people)
        for scan in range(2)
    ]


@pytest.mark.parametrize("choosing", [False, True])
def test_held_out_people_are_never_drawn_and_draws_are_nested(choosing: bool):
    people = part_people(volumes(30), None, choosing)
    held_out, pool, chosen = ({*part} for part in (people.held_out, people.pool, people.choosing))
    assert len(held_out) == 10 and held_out.isdisjoint(pool | chosen) and pool.isdisjoint(chosen)
    assert len(held_out | pool | chosen) == 30 and bool(chosen) == choosing
    assert people.held_out == part_people(volumes(30)[::-1], None, not choosing).held_out
    few, many = ({*people.draw(count, 1)} for count in (3, 6))
    assert few < many and len(few) == 6 and {*people.draw(3, 2)} != few


def test_the_lists_own_test_is_held_out():
    people = part_people(volumes(12, ("test", "training", "training")), None, False)
    assert sorted(people.held_out) == ["p0", "p3", "p6", "p9"] and len(people.pool) == 8
    with pytest.raises(UserError, match="--test_people 12 cannot work with 12 people"):
        part_people(volumes(12), 12, False)


@pytest.fixture
def listed(dataset: Path) -> Path:
    """The six people as a data list, of which the last two are for the test: one with a second scan."""
    (dataset.parent / "models").mkdir()
    write_model(dataset.parent / "models", Case("SegResEncoder", ENCODER, ()), spacing=None, mr_percentiles=[1, 99])
    for part in ("images", "labels"):
        file = dataset / f"{part}Tr/p 5 again.nii.gz"
        nibabel.save(nibabel.load(dataset / f"{part}Tr/p 5.nii.gz"), file)
    write_list(dataset, range(4))
    return dataset


def write_list(dataset: Path, people: range, **more: str) -> None:
    def entry(name: str, group: str) -> dict[str, str]:
        return {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz", "group": group}

    training = [entry(f"p {number}", more.get(f"p{number}", f"p {number}")) for number in people]
    tested = [entry("p 4", "p 4"), entry("p 5", "p 5"), entry("p 5 again", "p 5")]
    (dataset / "dataset.json").write_text(json.dumps({"training": training, "test": tested}))


def train_on(model: Path) -> None:
    """Changes the weights as a training does."""
    torch.save({name: weight * 1.5 for name, weight in torch.load(model).items()}, model)
    about = json.loads(model.with_suffix(".json").read_text())
    model.with_suffix(".json").write_text(json.dumps({**about, "sha256": checksum(model)}))


def begin(dataset: Path, *more: str) -> Experiment:
    return Experiment(parse(command(dataset, "--seeds", "1", *more)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("fewer", r"other scans to draw from \(0 are new or changed, 1 gone or changed, such as imagesTr/p 3.nii.gz\)"),
        ("person", "other scans to draw from .0 are new or changed, 0 gone or changed, in another order"),
        ("label", r"other scans or labels \(1 are new or changed, 1 gone or changed, such as imagesTr/p 0.nii.gz\)"),
        ("lrs", "other scans to choose learning rates on"),
        ("held out", "other scans to measure .0 are new or changed, 2 gone or changed"),
        ("weights", "the weights models/model.pt have changed since .* was begun: give those"),
    ],
)
def test_what_would_make_the_arms_differ_by_more_than_weights_is_refused(listed: Path, change: str, message: str):
    more: list[str] = []
    assert begin(listed).notes == begin(listed).notes == []
    if change == "fewer":
        write_list(listed, range(3))
    elif change == "person":
        write_list(listed, range(4), p0="p 9")  # the draws depend on the order of the people
    elif change == "label":
        voxels = np.ones((30, 30, 28), np.uint8)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), listed / "labelsTr/p 0.nii.gz")
    elif change == "weights":
        train_on(listed.parent / "models/model.pt")
    else:
        more = ["--lrs", "1e-3"] if change == "lrs" else ["--test_people", "1"]
    with pytest.raises(UserError, match=message):
        begin(listed, *more)


def test_weights_that_are_trained_on_meanwhile_stop_the_next_run(listed: Path, monkeypatch: pytest.MonkeyPatch):
    experiment = begin(listed, "--seeds", "2")
    done: list[str] = []

    def run(arm: str, *_: object) -> dict[str, object]:
        done.append(arm)
        train_on(listed.parent / "models/model.pt")
        return {"dice": {}}

    monkeypatch.setattr(experiment, "_run", run)
    with pytest.raises(UserError, match=r"the weights models/model\.pt have changed"):
        experiment.run()
    assert done == ["scratch"]


def test_weights_may_be_added_and_are_then_recorded(listed: Path):
    begin(listed)
    other = listed.parent / "other"
    other.mkdir()
    for name in ("model.pt", "model.json"):
        (other / name).write_bytes((listed.parent / "models" / name).read_bytes())
    words = command(listed, "--seeds", "1")
    words.insert(words.index("--labels"), str(other / "model.pt"))
    Experiment(parse(words))
    begin(listed)
    recorded = json.loads((listed.parent / "out/settings.json").read_text())["weights"]
    assert sorted(recorded) == ["models/model.pt", "other/model.pt"]


def test_a_folder_of_an_earlier_version_goes_on_and_the_page_warns(listed: Path):
    experiment = begin(listed)
    file = listed.parent / "out/settings.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({name: content[name] for name in content if name not in ("pool", "scans", "weights")}))
    for _ in range(2):
        (note,) = begin(listed).notes
        assert note.startswith("the folder was begun with an earlier version")
    assert experiment.notes == []
    with pytest.raises(UserError, match="other scans to measure"):
        begin(listed, "--test_people", "1")


def test_every_dice_is_a_mean_over_people_and_no_row_holds_a_nan(listed: Path):
    experiment = begin(listed)
    names = ["imagesTr/p 4.nii.gz", "imagesTr/p 5.nii.gz", "imagesTr/p 5 again.nii.gz"]
    history = [{"epoch": 1, "validation/dice": float("nan")}, {"epoch": 2, "validation/dice": 0.5}]
    nan = float("nan")
    for arm, gain in (("scratch", 0.0), ("models/model.pt", 0.2)):
        done = Trial(names, [[0.2 + gain, nan], [0.5, 0.7], [nan, nan]], history, [], 1e-3, 0.0)
        figures = experiment._figures(done, 1)
        assert figures["dice"] == {names[0]: 0.2 + gain, names[1]: 0.6, names[2]: None}
        assert figures["classes"] == [pytest.approx((0.2 + gain + 0.5) / 2), 0.7] and figures["curve"] == [[2, 0.5]]
        json.dumps(figures, allow_nan=False)
        figures["dice"][names[2]] = 0.2  # the second person's mean is 0.4
        row = {"purpose": "measure", "arm": arm, "labels": 2, "seed": 0, "lr": 1e-3, "skipped": [], **figures}
        experiment.rows[key(arm, 2, 0, None, "measure")] = row
    means = [row[3] for row in table(experiment)[1:]]
    assert means == ["0.300", "0.400"] and experiment.comparisons()[0].means == pytest.approx((0.3, 0.4))
    assert "Dice 0.400 against 0.300" in write(experiment).with_suffix(".md").read_text()


def test_with_hash_names_no_scan_is_named(listed: Path):
    experiment = begin(listed, "--hash_names", "True")
    assert ".nii" not in (listed.parent / "out/settings.json").read_text()
    scans = ["imagesTr/p 4.nii.gz", "imagesTr/p 5.nii.gz", "imagesTr/p 5 again.nii.gz"]
    assert experiment.person.keys() == {name_digest(scan) for scan in scans} and len({*experiment.person.values()}) == 2


def test_a_rate_is_chosen_by_people(listed: Path):
    write_list(listed, range(4), p1="p 0")  # p 0 has two scans
    experiment = begin(listed, "--lrs", "1e-3", "1e-2", "--labels", "1")
    experiment.person = {"a": "one", "b": "one", "c": "two"}
    for lr, values in ((1e-3, (0.6, 0.6, 0.2)), (1e-2, (0.2, 0.2, 0.8))):
        experiment.rows[key("scratch", 1, 0, lr, "choose")] = {"dice": dict(zip("abc", values))}
    assert experiment.lr("scratch", 1) == 1e-2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labels", "5"], "--labels 5 needs as many people, and 4 are left beside the 2 held out"),
        (["--steps", "7"], "--steps 7 cannot be measured five times"),
        (["--epochs", "7"], "--epochs is set by this command"),
        (["--weights", "nowhere/model.pt"], "nowhere/model.json is missing"),
    ],
)
def test_what_cannot_be_run_is_one_line(dataset: Path, capsys, more: list[str], message: str):
    assert main(command(dataset, *more)) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
