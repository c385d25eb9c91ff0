# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import html
import logging
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ignite.engine import Events
from matplotlib.image import imsave
from monai.handlers import ValidationHandler
from torch.optim import SGD

from bundle.data import PlainStore, PreparedVolume, SkippedVolume
from bundle.errors import UserError
from bundle.runs.folder import RunFolder
from bundle.training.history import History, on_training
from bundle.training.scalars import Scalars
from bundle.training.summary import _METRICS, Summary

from .toy import ToyNetwork, toy_evaluator, toy_loader, toy_trainer

ROOT = Path(__file__).parents[2]


def volume(modality: str, *, padded: bool = False, notes: str = "") -> PreparedVolume:
    return PreparedVolume(
        name="a", store=PlainStore(Path()), key="a", modality=modality, size=(1, 1, 1), padded=padded, notes=notes
    )


def train(path, error=None, at_epoch=2, objectives=None, *, hash_names=False):
    network, folder = ToyNetwork(), RunFolder(path)
    optimizer = SGD(network.parameters(), lr=0.1)
    evaluator = toy_evaluator(network, [Scalars(name="validation")])
    history = History(run_folder=folder, validator=evaluator)
    summary = Summary(
        run_folder=folder, network=network,
        training=[volume("CT"), volume("MR", padded=True), volume("CT", notes="2 image(s) left out: a localizer")],
        validation=[volume("MR", padded=True)],  # the same volume
        skipped=[SkippedVolume("b.nii.gz", "cannot be read", "fetch it again")], hash_names=hash_names,
    )  # fmt: skip
    handlers = [Scalars(name="train", optimizer=optimizer), ValidationHandler(1, evaluator), history, summary]
    trainer = toy_trainer(network, optimizer, toy_loader(), 3, handlers)
    if objectives is not None:
        trainer.loss_function.objectives = objectives

    @trainer.on(Events.ITERATION_COMPLETED)
    def fail(engine):
        if error is not None and engine.state.epoch == at_epoch:
            raise error

    if error is None:
        trainer.run()
    else:
        with pytest.raises(type(error)) as caught:
            trainer.run()
        assert caught.value is error
    return folder.summary.read_text(), history


def test_the_page_says_what_on_what_how_well_and_where(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="bundle")
    text, history = train(tmp_path)
    assert "Training completed 3 of 3 epochs." in text
    assert f"trainable parameters: {84 + 6 + 3 + 4:,}" in text
    assert "training: 3 volumes (2 CT, 1 MR)" in text
    assert "validation: 1 volume (1 MR)" in text
    assert "- smaller than the crop, so padded: a\n" in text, "once, even if it is in both parts"
    assert "- used in part or resampled: 1\n  - a: 2 image(s) left out: a localizer\n" in text
    assert "  - b.nii.gz: cannot be read; fetch it again" in text
    assert "## Metrics of epoch 3" in text
    assert f"| validation reconstruction loss | {history.rows[-1]['validation/reconstruction']:.4f} |" in text
    assert f"`{tmp_path / 'metrics.csv'}`" in text
    assert "model.pt" not in text, "only what is there is listed"
    assert text in caplog.text


def test_no_metric_hides_another():
    """They are rows of one table by their labels: two of one label would be one row, with the last one's value."""
    for metrics in (_METRICS, {name: (on_training(label), form) for name, (label, form) in _METRICS.items()}):
        labels = [label for label, _ in metrics.values()]
        assert len(set(labels)) == len(labels)
    assert not any("validation" in on_training(label) for label in labels)


def test_the_training_loss_says_what_it_is_the_sum_of(tmp_path):
    def weight(value):
        return SimpleNamespace(weight=value)

    objectives = {"reconstruction": weight(1.0), "alignment": weight(0.05), "mean_predictor": weight(0.3)}
    text, _ = train(tmp_path / "a", objectives=objectives)
    assert "| training loss: reconstruction + 0.3 x mean_predictor |" in text, "the alignment did not run"
    text, _ = train(tmp_path / "b", objectives={**objectives, "mean_predictor": weight(0.0)})
    assert "| training loss: reconstruction |" in text
    text, _ = train(tmp_path / "c")
    assert "| training loss |" in text and "alignment" not in text


def test_an_interrupted_run_has_its_page_too(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="bundle")
    text, _ = train(tmp_path, KeyboardInterrupt())
    assert "Training interrupted in epoch 2 of 3." in text
    assert "## Metrics of epoch 1" in text
    assert caplog.text.count("# Pre-training summary") == 1


def test_a_run_that_fails_in_its_first_epoch_has_no_metrics(tmp_path):
    text, _ = train(tmp_path, UserError("the gradient is not finite: lower --lr"), at_epoch=1)
    assert "Training stopped in epoch 1 of 3 by an error: the gradient is not finite: lower --lr." in text
    assert "No epoch was completed" in text


def test_the_text_of_an_unforeseen_error_is_not_quoted(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="bundle")
    text, _ = train(tmp_path, RuntimeError("PatientName=Doe"))
    assert "by an error: RuntimeError." in text
    assert "Doe" not in text
    assert caplog.text.count("# Pre-training summary") == 1, "Ignite passes the error on twice"


def test_the_epoch_with_the_best_validation_is_shown(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.history.open("w") as file:
        file.write("epoch,seconds,validation/dice,train/loss\n1,1,0.2,3\n2,1,0.7,2\n3,1,,1\n4,1,0.5,1\n")
    network = ToyNetwork()
    metrics = {"validation/dice": "Dice", "train/loss": "loss"}
    summary = Summary(run_folder=folder, network=network, metrics=metrics, best="validation/dice")
    trainer = toy_trainer(network, SGD(network.parameters(), lr=0.1), toy_loader(2), 1, [summary])
    trainer.run()
    text = folder.summary.read_text()
    assert "## Metrics of epoch 2" in text and "best validation of 3" in text
    assert "| Dice | 0.7 |" in text and "| loss | 2 |" in text


def fine_tuned(path: Path, columns: str, row: str, **options):
    """The summary of a run with this last epoch, trained further for none."""
    folder = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    folder.history.write_text(f"epoch,seconds,{columns}\n1,1,{row}\n")
    folder.model.write_bytes(b"weights")
    network = ToyNetwork()
    metrics = {"validation/dice": "Dice of the validation volumes, mean of the classes"}
    summary = Summary(run_folder=folder, network=network, metrics=metrics, best="validation/dice", **options)
    toy_trainer(network, SGD(network.parameters(), lr=0.1), toy_loader(2), 1, [summary]).run()
    return folder.summary.read_text(), folder.report.read_text()


def test_each_class_has_a_row_below_the_mean(tmp_path):
    columns = "validation/dice,validation/dice/anterior,validation/dice/posterior"
    text, page = fine_tuned(tmp_path, columns, "0.7,0.8,0.6")
    rows = re.findall(r"^\| (.+) \| (\S+) \|$", text, flags=re.MULTILINE)
    named = "Dice of the validation volumes"
    assert rows == [
        (f"{named}, mean of the classes", "0.7"),
        (f"{named}, anterior", "0.8"),
        (f"{named}, posterior", "0.6"),
    ]
    assert f"<dt>{named}, posterior</dt><dd>0.6</dd>" in page


def test_one_class_has_one_row(tmp_path):
    text, _ = fine_tuned(tmp_path, "validation/dice,validation/dice/liver", "0.7,0.7")
    assert re.findall(r"^\| (.+) \| (\S+) \|$", text, flags=re.MULTILINE) == [
        ("Dice of the validation volumes, liver", "0.7")
    ]


def test_of_many_classes_the_lowest_have_rows(tmp_path):
    columns = ["validation/dice", *(f"validation/dice/rib_{n}" for n in range(30))]
    text, _ = fine_tuned(tmp_path, ",".join(columns), ",".join(["0.5", *(str(n / 100) for n in range(30))]))
    assert "volumes, rib_19 (of the 20 lowest of 30) | 0.19 |" in text and "rib_20" not in text


def test_what_comes_next_is_said_in_commands_that_a_shell_takes_as_they_are(tmp_path):
    run = tmp_path / "my run"
    text, page = fine_tuned(run, "validation/dice", "0.7", task="segmentation")
    for start in ("predict_segmentation.yaml --model", "evaluate_segmentation.yaml --model", "export_bundle.py --run"):
        assert f"{start} '{run}'" in text and start in page
    pretrained, _ = fine_tuned(tmp_path / "other run", "validation/dice", "0.7")
    assert f"configs/finetune_segmentation.yaml --pretrained '{tmp_path / 'other run/model.pt'}'" in pretrained
    assert f"configs/reconstruct.yaml --run_folder '{tmp_path / 'other run'}'" in pretrained
    for line in [line for line in (text + pretrained).splitlines() if "monai.bundle run" in line]:
        assert (ROOT / shlex.split(line.split("--config_file ")[1])[0]).is_file()


def test_the_report_says_the_same_with_curves_and_pictures(tmp_path):
    folder = RunFolder(tmp_path)
    folder.panels.mkdir()
    for epoch, colour in {1: 10, 2: 20, 3: 30}.items():
        imsave(folder.panel(epoch), np.full((8, 8, 3), colour, dtype=np.uint8))
    text, history = train(tmp_path)
    page = folder.report.read_text()
    assert "<h1>Pre-training summary</h1>" in page and "Training completed 3 of 3 epochs." in page
    shown = html.unescape(re.sub(r"<[^>]+>", " ", page))
    facts = [
        line.removeprefix("- ").strip() for line in text.splitlines() if re.match(r"- (network|training|time)", line)
    ]
    assert len(facts) == 3 and all(fact.partition(": ")[2] in shown for fact in facts)
    for row in re.findall(r"^\| (.+) \| (\S+) \|$", text, flags=re.MULTILINE):
        assert " ".join(row) in " ".join(shown.split())
    assert "b.nii.gz" in shown and "fetch it again" in shown and "2 image(s) left out: a localizer" in shown
    assert page.count("<img ") == 4, "the curves, the last epoch, and two earlier ones"
    assert [f"Epoch {n}" in page for n in (1, 2, 3)] == [True] * 3
    assert f'<td class="number">{history.rows[1]["epoch"]}</td>' in page
    assert str(tmp_path) not in page.partition("tensorboard --logdir")[0], (
        "files are named as they lie in the run's folder"
    )


def test_a_run_that_fails_has_its_report_too_and_a_damaged_picture_does_not_stop_it(tmp_path):
    folder = RunFolder(tmp_path)
    folder.panels.mkdir()
    folder.panel(1).write_text("no picture")
    train(tmp_path, UserError("the gradient is not finite: lower --lr"), at_epoch=1)
    page = folder.report.read_text()
    assert "stopped in epoch 1 of 3 by an error: the gradient is not finite: lower --lr." in page
    assert "epoch_0001.png is no picture" in page


@pytest.mark.parametrize("hash_names", [True, False])
def test_with_hashed_names_the_report_hides_what_the_command_was_given(tmp_path, monkeypatch, hash_names):
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "monai.bundle", "run", "--dataset_dir", "/data/HANS"])
    train(tmp_path, hash_names=hash_names)
    assert ("/data/HANS" in RunFolder(tmp_path).report.read_text()) != hash_names
