# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""configs/evaluate.yaml, as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow, create_workflow

from bundle.errors import user_error_in

from .commands import run_python
from .tiny_run import DEV, ROOT, TRAIN, bundle_root, train

EVALUATE = str(ROOT / "configs/evaluate.yaml")


@pytest.fixture(scope="module")
def root(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_root(tmp_path_factory.mktemp("bundle"), data_dir)


@pytest.fixture(scope="module")
def trained(root: Path) -> Path:
    # a learning rate that rises until the second epoch is worse, so that best.pt is not last.pt
    return train(root, lr=1.0, warmup_epochs=2, **{"lr_scheduler#warmup_multiplier": 1.0e-5})


def evaluate(root: Path, files: tuple[str, ...] = (TRAIN, EVALUATE), **overrides) -> dict:
    """The report."""
    flow = create_workflow(config_file=list(files), workflow_type="train", bundle_root=str(root), **overrides)
    flow.run()
    flow.finalize()
    folder = flow.parser.get_parsed_content("trained").folder.path
    reports = sorted(Path(overrides.get("output_dir") or folder).glob("evaluation*.json"), key=os.path.getmtime)
    return json.loads(reports[-1].read_text())


def validation_metrics(run: Path, epoch: int) -> dict[str, float]:
    with (run / "metrics.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if int(row["epoch"]) == epoch]
    return {name: float(value) for name, value in row.items() if name.startswith("validation/")}


def test_it_gives_exactly_the_figures_of_the_last_validation(root: Path, trained: Path, tmp_path: Path):
    report = evaluate(root, run_folder=str(trained), output_dir=str(tmp_path))
    expected = validation_metrics(trained, epoch=2)
    assert {"validation/reconstruction", "validation/mean_predictor", "validation/health_top1"} <= expected.keys()
    assert report["metrics"] == expected
    assert report["epoch"] == 2 and report["modalities"] == {"CT": 1, "MR": 1}
    with (tmp_path / "evaluation.csv").open() as file:
        assert {row["metric"]: float(row["value"]) for row in csv.DictReader(file)} == expected


def test_the_best_checkpoint_gives_the_figures_of_its_epoch(root: Path, trained: Path, tmp_path: Path):
    epoch = torch.load(trained / "checkpoints/best.pt", weights_only=True)["epoch"]
    assert epoch == 1  # else this test shows nothing
    report = evaluate(root, run_folder=str(trained), checkpoint="best", output_dir=str(tmp_path))
    assert report["metrics"] == validation_metrics(trained, epoch)


def test_presets_of_the_training_named_again_change_nothing(root: Path, trained: Path, tmp_path: Path):
    report = evaluate(root, (TRAIN, DEV, EVALUATE), run_folder=str(trained), output_dir=str(tmp_path))
    assert report["metrics"] == validation_metrics(trained, epoch=2)  # at the run's 4 mm, not the preset's 3 mm


def test_a_workflow_that_does_not_tell_its_files_evaluates_alike(root: Path, trained: Path, tmp_path: Path):
    flow = ConfigWorkflow(
        [TRAIN, EVALUATE], workflow_type="train", bundle_root=str(root), run_folder=str(trained), num_workers=0,
        output_dir=str(tmp_path),
    )  # fmt: skip
    flow.initialize()
    flow.initialize()  # as federated learning does
    flow.run()
    metrics = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]
    assert metrics == validation_metrics(trained, epoch=2)


def test_an_option_given_goes_before_the_runs(root: Path, trained: Path, tmp_path: Path):
    report = evaluate(root, run_folder=str(trained), output_dir=str(tmp_path), mask_ratio=0.9)
    assert report["settings"]["mask_ratio"] == 0.9 and report["settings"]["crop_size"] == [32, 32, 32]
    assert report["metrics"]["validation/mask_ratio"] > validation_metrics(trained, 2)["validation/mask_ratio"]


def test_of_another_dataset_all_volumes_are_evaluated(root: Path, trained: Path, tmp_path: Path, data_dir: Path):
    other = tmp_path / "volumes"
    other.mkdir()
    (other / "unseen.nii.gz").symlink_to(data_dir / "volumes/mr_body_totalseg.nii.gz")
    (other / "broken.nii.gz").write_bytes(b"not an image")
    report = evaluate(root, run_folder=str(trained), output_dir=str(tmp_path), dataset_dir=str(other))
    assert report["volumes"] == ["unseen.nii.gz"]
    assert [skipped["name"] for skipped in report["skipped"]] == ["broken.nii.gz"]


def test_the_runs_own_folder_by_another_path_is_no_other_dataset(root: Path, trained: Path, tmp_path: Path):
    own = root / "data/volumes"  # where the config's expression says that they are
    for number, spelled in enumerate((f"{own}/", f"{own}/../{own.name}")):
        folder = tmp_path / str(number)
        report = evaluate(root, run_folder=str(trained), output_dir=str(folder), dataset_dir=spelled)
        assert report["metrics"] == validation_metrics(trained, epoch=2)
        assert report["trained_on"] == []


def test_volumes_that_were_trained_on_are_named_when_they_come_from_a_copy_of_the_folder(
    root: Path, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    own = root / "data/volumes"  # where the config's expression says that they are
    held_out = evaluate(root, run_folder=str(trained), output_dir=str(tmp_path / "own"))["volumes"]
    shutil.copytree(own, tmp_path / "copy")
    report = evaluate(
        root, run_folder=str(trained), output_dir=str(tmp_path / "moved"), dataset_dir=str(tmp_path / "copy")
    )
    assert set(held_out) < set(report["volumes"])
    assert set(report["trained_on"]) == set(report["volumes"]) - set(held_out)
    assert (
        f"{len(report['trained_on'])} of the {len(report['volumes'])} volumes were trained on" in capfd.readouterr().out
    )


def test_the_command_takes_the_newest_run_and_keeps_earlier_reports(root: Path, trained: Path, tmp_path: Path):
    (trained / "evaluation.json").write_text("earlier")
    line = ["-m", "monai.bundle", "run", "--config_file", f"['{TRAIN}','{EVALUATE}']"]
    line += ["--bundle_root", root, "--batch_size", 1]
    done = run_python(*line, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert (trained / "evaluation.json").read_text() == "earlier"
    report = json.loads((trained / "evaluation_2.json").read_text())
    # whether crops come one by one or in twos makes no difference
    expected = validation_metrics(trained, 2)["validation/reconstruction"]
    assert report["settings"]["batch_size"] == 1
    found = report["metrics"]["validation/reconstruction"]
    assert found == pytest.approx(expected, rel=1e-4)  # float32, and other kernels for another batch
    loss = report["metrics"]["validation/loss"]
    assert loss == pytest.approx(validation_metrics(trained, 2)["validation/loss"], rel=1e-3)
    assert f"validation/reconstruction             {found:.6g}" in done.stdout


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("run_folder", "nowhere", 'run_folder "nowhere" has no checkpoints/last.pt'),
        ("checkpoint", "first", "--checkpoint 'first' is not known: choose last or best"),
        ("checkpoints", "best", "did you mean --checkpoint?"),
        ("encoder#init_filters", 8, "holds another network"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(root: Path, trained: Path, option: str, value, message: str):
    text = _error(root, **{"run_folder": str(trained), option: value})
    assert message in text and "\n" not in text


def test_a_damaged_checkpoint_is_one_line(root: Path, trained: Path, tmp_path: Path):
    shutil.copytree(trained, tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    assert "is truncated or no checkpoint" in _error(root, run_folder=str(tmp_path / "run"))


def test_without_a_run_it_says_so(tmp_path: Path):
    assert "no run with a checkpoint in" in _error(tmp_path)


def test_without_run_federated_learning_gets_an_evaluator_with_the_network_as_it_is(root: Path):
    flow = ConfigWorkflow([TRAIN, DEV, EVALUATE], workflow_type="train", bundle_root=str(root), run_folder=False)
    flow.initialize()
    names = [type(handler).__name__ for handler in flow.parser.get_parsed_content("validate#handlers")]
    assert "ValidationLoss" in names and "RunCheckpointLoader" not in names and "EvaluationReport" not in names
    assert flow.parser.get_parsed_content("validate#evaluator").network is flow.parser.get_parsed_content("network_def")
    state, cache = (flow.parser.get_parsed_content(name) for name in ("run_state", "cache_dir"))
    assert state.path == Path(cache)


def _error(root: Path, **overrides) -> str:
    with pytest.raises((RuntimeError, ValueError)) as error:  # noqa: PT012 - some are found before, some while running
        flow = ConfigWorkflow([TRAIN, EVALUATE], workflow_type="train", bundle_root=str(root), **overrides)
        flow.initialize()
        flow.run()
    found = user_error_in(error.value)
    assert found is not None, repr(error.value)
    return str(found)
