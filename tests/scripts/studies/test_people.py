# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import people
import pytest
from people import Case, Results, draw_people, list_cases, main, parse, steps_to_reach, table
from scipy.stats import ttest_rel

from bundle.training.trial import Trial

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight volumes of two bright blocks."""
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / "blocks" / part).mkdir(parents=True)
    label = np.zeros((34, 36, 30), dtype=np.uint8)
    label[8:16, 8:28, 6:24], label[16:26, 8:28, 6:24] = 1, 2
    for number in range(8):
        noise = np.random.default_rng(number).normal(0, 5, label.shape)
        image = (100 + 60 * (label == 1) + 120 * (label == 2) + noise).astype(np.float32)
        for part, voxels in (("images", image), ("labels", label)):
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / f"blocks/{part}Tr/p{number}.nii.gz")
    names = [f"p{number}.nii.gz" for number in range(8)]
    (tmp_path / "split.json").write_text(json.dumps({"dev": names[:6], "test": names[6:]}))
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    words = ["--dataset_dir", folder / "blocks", "--split", folder / "split.json", "--steps_per_epoch", "1"]
    words += ["--classes", "{left: 1, right: 2}", "--crop", "32", "32", "32", "--tuning_people", "2"]
    words += ["--cache_dir", folder / "cache", "--output", folder / "runs.jsonl", *more]
    return [str(word) for word in words]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """No training: the result follows from the case, and the cases are kept."""
    seen: list[Case] = []

    def train(case: Case, options) -> Trial:
        seen.append(case)
        value = 0.9 if case.labelled == "all" else 0.5 + 0.1 * (case.arm != "scratch") + 0.01 * case.draw
        value -= 0.2 * (case.rate != 3e-4) if case.tuning and case.arm != "scratch" else 0
        distances = None if case.tuning else [[2.0], [4.0]]
        return Trial(["a", "b"], [[value - 0.1], [value + 0.1]], [], [], case.rate or 0.0, 7.0, distances)

    monkeypatch.setattr(people, "train", train)
    return seen


def test_two_real_runs_measure_dice_and_millimetres_and_start_from_the_weights(folder: Path, capsys):
    more = ["--labelled", "2", "--steps", "1", "--draws", "0", "--weights", f"ours={ROOT / 'models'}"]
    assert main(command(folder, *more, "--arms", "scratch", "ours", "ours, self-trained")) == 0
    rows = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert [(row["arm"], row["pretraining"]) for row in rows] == [
        ("scratch", ""), ("ours", "models"), ("ours, self-trained", "models"),
    ]  # fmt: skip
    for row in rows:
        assert len(row["dice"]) == len(row["hausdorff95"]) == 2 and min(row["hausdorff95"]) >= 0
    assert len({str(row["dice"]) for row in rows}) == 3
    assert str(folder) not in (folder / "runs.jsonl").read_text()
    assert "| 2 | 1 | ours | 1 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arm", "starts"),
    [
        ("self-trained", ["scratch", "scratch"]),
        ("ours, self-trained", ["ours", "ours"]),
        ("ours first, self-trained", ["ours", "scratch"]),
    ],
)
def test_the_second_network_starts_where_its_arm_says(folder: Path, monkeypatch, arm: str, starts: list[str]):
    seen: list[str] = []

    def fine_tune(case: Case, *_: object) -> Trial:
        seen.append(people.start_of(case.arm))
        return Trial(["a"], [[0.5]], [], [], 1e-3, 7.0, None)

    monkeypatch.setattr(people, "fine_tune", fine_tune)
    monkeypatch.setattr(people, "predict", lambda *_: [])
    options = parse(command(folder, "--weights", f"ours={ROOT / 'models'}", "--arms", arm))
    done = people.train(Case(arm, 2, 1, 0, 1e-3), options)
    assert seen == starts and done.cpu_seconds == 14.0


def test_runs_are_not_repeated_rates_are_chosen_and_the_gap_is_said(folder: Path, fake: list[Case], capsys):
    more = ["--labelled", "2", "all", "--steps", "2", "--draws", "0", "1", "--weights", f"ours={ROOT / 'models'}"]
    words = command(folder, *more, "--arms", "scratch", "ours", "--rates", "1e-3", "3e-4")
    assert main(words) == 0
    tuned = [case for case in fake if case.tuning]
    assert {(case.arm, case.labelled, case.rate) for case in tuned} == {
        (arm, labelled, rate)
        for arm, labelled in (("scratch", 2), ("ours", 2), ("scratch", "all"))
        for rate in (1e-3, 3e-4)
    }
    final = [case for case in fake if not case.tuning]
    assert len(final) == 5 and {case.rate for case in final if case.arm == "ours"} == {3e-4}
    before = len(fake)
    out = capsys.readouterr().out
    assert "| 2 | 2 | ours | 2 | 60.5 | 3.0 | +10.0 (+10.0, +10.0) |" in out
    assert f"| {0.1 / (0.9 - 0.505):.0%} |" in out
    assert main(words) == 0
    assert len(fake) == before, "all were in --output"


def test_shares_are_disjoint_and_together_all(folder: Path, fake: list[Case]):
    words = command(folder, "--labelled", "1", "2", "--steps", "1", "2", "--draws", "0", "1", "2")
    for share in (["0", "2"], ["1", "2"]):
        assert main([*words, "--share", *share]) == 0
    assert len(fake) == len(set(fake)) == 12
    assert {case._replace(rate=None) for case in fake} == set(list_cases(parse(words)))


def test_people_to_choose_a_rate_on_are_neither_labelled_nor_tested(folder: Path):
    options = parse(command(folder, "--labelled", "3", "all"))
    for labelled in (3, "all"):
        for draw in range(5):
            case = Case("scratch", labelled, 1, draw)
            trained, tested = draw_people(options, case)
            assert tested == ["p6.nii.gz", "p7.nii.gz"] and len(trained) == (6 if labelled == "all" else 3)
            again, tuning = draw_people(options, case._replace(tuning=True))
            assert len(tuning) == 2 and not {*tuning} & {*again, *tested}
            assert {*again} <= {*trained}
    assert draw_people(options, Case("scratch", 3, 1, 0)) == draw_people(options, Case("ours", 3, 9, 0))


def test_pretrainings_of_one_name_take_turns(folder: Path):
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "model.pt").touch()
    options = parse(command(folder, "--weights", f"own={folder / 'one'}", f"own={folder / 'two'}"))
    found = [people.pick_weights("own", draw, options).parent.name for draw in range(4)]
    assert found == ["one", "two", "one", "two"]


def test_the_table_pairs_draws_and_says_in_how_many_steps_scratch_is_reached(folder: Path):
    def rows(arm, steps, values):
        base = {"labelled": 5, "tuning": False, "hausdorff95": [1.0]}
        return [{**base, "arm": arm, "steps": steps, "draw": d, "dice": [v]} for d, v in values.items()]

    found = rows("scratch", 300, {0: 0.5, 1: 0.6, 2: 0.4}) + rows("ours", 100, {0: 0.55, 1: 0.56})
    found += rows("ours", 300, {2: 0.5, 0: 0.55, 1: 0.62})
    p = ttest_rel([0.55, 0.62, 0.5], [0.5, 0.6, 0.4]).pvalue
    assert f"| 5 | 300 | ours | 3 | 55.7 | 1.0 | +5.7 (+5.0, +2.0, +10.0) | {p:.2g} |  |" in table(found)
    assert "5 labelled, ours: scratch's figure of 300 steps is reached in 100 steps" in steps_to_reach(found, 300)
    assert Results(parse(command(folder))).rows == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--arms", "wings"], "--arms 'wings' is not known"),
        (["--weights", "ours=nowhere"], "--weights ours=nowhere names no pre-training"),
        (["--steps", "5", "--steps_per_epoch", "2"], "--steps 5 is no multiple"),
        (["--labelled", "0"], "--labelled 0 is no number of people"),
        (["--labelled", "5", "--rates", "1e-3", "3e-4"], "--labelled 5 leaves too few people"),
    ],
)
def test_what_cannot_be_run_is_refused(folder: Path, capsys, more, message):
    assert main(command(folder, *more)) == 1
    assert message in capsys.readouterr().err


def test_the_unlabelled_are_the_people_of_dev_that_are_neither_labelled_nor_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = {}

    def run_trial(configs, overrides, **_):
        listed = json.loads(Path(overrides["unlabelled_dir"]).read_text())["training"]
        seen.update(overrides, files=[Path(file).name for file in configs], listed={Path(name).name for name in listed})

    monkeypatch.setattr(people, "run_trial", run_trial)
    words = ["--labelled", "2", "--weights", f"ours={ROOT / 'models'}", "--arms", "unlabelled", "ours, unlabelled"]
    options = parse(command(folder, *words))
    for arm, weights in (("unlabelled", None), ("ours, unlabelled", str(ROOT / "models/model.pt"))):
        for tuning in (False, True):
            case = Case(arm, 2, 1, 0, 1e-3, tuning)
            people.train(case, options)
            labelled, measured = draw_people(options, case)
            assert seen["listed"] == {*options.lists["dev"]} - {*labelled} - {*measured}
            assert len(seen["listed"]) == (2 if tuning else 4) and seen["pretrained"] == weights
            assert seen["files"] == ["finetune_segmentation.yaml", "finetune_unlabelled.yaml"]
