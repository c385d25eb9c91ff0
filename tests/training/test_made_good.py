# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A resume refuses other data and processes, and makes good what a kill after the last checkpoint has prevented."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.optimizers import WarmupCosineSchedule
from torch.optim import SGD

from bundle.data import PlainStore, PreparedVolume
from bundle.errors import UserError
from bundle.runs.folder import RunFolder
from bundle.tasks import ExportBest
from bundle.training import ExportEncoder, History, RecordConfig, RunCheckpoint, Summary, earlier_split

from .toy import ToyNetwork, toy_loader, toy_trainer


class Killed(BaseException):
    """Stops everything at once, as a kill does: no handler of an error acts."""


def volume(name: str, size: tuple[int, ...] = (8, 8, 8), modality: str = "CT") -> PreparedVolume:
    return PreparedVolume(name=name, store=PlainStore(Path()), key=name, modality=modality, size=size)


def split(training=("a", "b"), validation=("c",)) -> SimpleNamespace:
    return SimpleNamespace(training=[volume(name) for name in training], validation=[volume(v) for v in validation])


def train(
    path: Path, epochs: int = 2, *, resume: bool = False, kill: str = "", best: bool = False, volumes=None,
    replace_model: bool = False, **options,
):  # fmt: skip
    """Trains the toy; `kill` names the handler before which the last epoch ends."""
    folder, network = RunFolder(path / "run", resumed=resume), ToyNetwork()
    optimizer = SGD(network.parameters(), lr=0.1)
    product = ExportBest(run_folder=folder, settings={}) if best else ExportEncoder(
        run_folder=folder, network=network, models_dir=path / "models", settings={}, replace_model=replace_model,
    )  # fmt: skip
    handlers = {
        "record": RecordConfig(folder),
        "history": History(run_folder=folder),
        "checkpoint": RunCheckpoint(
            run_folder=folder, network=network, optimizer=optimizer,
            lr_scheduler=WarmupCosineSchedule(optimizer, 1, 100), volumes=volumes, **options,
        ),
        "product": product,
        "summary": Summary(run_folder=folder, network=network),
    }  # fmt: skip

    class Kill:
        def attach(self, engine):
            event = Events.COMPLETED if kill == "summary" else Events.EPOCH_COMPLETED
            engine.add_event_handler(event, self)

        def __call__(self, engine):
            if engine.state.epoch == epochs:
                raise Killed

    order = []
    for name, handler in handlers.items():
        order += [Kill()] if name == kill else []
        order.append(handler)
    trainer = toy_trainer(network, optimizer, toy_loader(), epochs, order)
    if kill:
        with pytest.raises(Killed):
            trainer.run()
    else:
        trainer.run()
    return trainer


def remove_summary_of_the_kill(path: Path) -> None:
    """Ignite calls the handlers of an error; a real kill would leave no page."""
    (path / "run/summary.md").unlink(missing_ok=True)


def assert_is_whole(path: Path, epoch: int = 2, key: str = "epochs") -> None:
    run = path / "run"
    last = torch.load(run / "checkpoints/last.pt", weights_only=True)["network"]
    weights = RunFolder(run).model_files.read_weights()  # compares with model.json
    assert all(torch.equal(value, last.get(f"encoder.{name}", last.get(name))) for name, value in weights.items())
    assert json.loads((run / "model.json").read_text())[key] == epoch
    assert f"Training completed {epoch} of {epoch} epochs" in (run / "summary.md").read_text()


@pytest.mark.parametrize("kill", ["product", "summary"])
def test_a_kill_between_the_last_checkpoint_and_the_end_is_made_good(tmp_path: Path, kill: str):
    train(tmp_path, kill=kill)
    remove_summary_of_the_kill(tmp_path)
    trainer = train(tmp_path, resume=True)
    assert trainer.state.iteration == 8, "nothing more is trained"
    assert_is_whole(tmp_path)
    assert (tmp_path / "models/model.pt").read_bytes() == (tmp_path / "run/model.pt").read_bytes()


def test_a_finished_run_is_published_when_asked(tmp_path: Path):
    (tmp_path / "models").mkdir(parents=True)
    (tmp_path / "models/model.pt").write_bytes(b"another model")
    train(tmp_path)
    assert (tmp_path / "models/model.pt").read_bytes() == b"another model"
    train(tmp_path, resume=True, replace_model=True)
    assert (tmp_path / "models/model.pt").read_bytes() == (tmp_path / "run/model.pt").read_bytes()
    assert (tmp_path / "models/model_previous.pt").read_bytes() == b"another model"


@pytest.mark.parametrize("loss", ["model.pt", "model.json", "stale", "other", "summary.md", "old summary"])
def test_a_finished_run_gets_back_what_it_has_lost(tmp_path: Path, loss: str):
    train(tmp_path, epochs=1)
    old = {name: (tmp_path / "run" / name).read_bytes() for name in ("model.pt", "model.json", "summary.md")}
    train(tmp_path, resume=True)
    if loss == "stale":
        for name in ("model.pt", "model.json"):
            (tmp_path / "run" / name).write_bytes(old[name])
    elif loss == "other":
        (tmp_path / "run/model.pt").write_bytes(old["model.pt"])
    elif loss == "old summary":
        (tmp_path / "run/summary.md").write_bytes(old["summary.md"])
    else:
        (tmp_path / "run" / loss).unlink()
    train(tmp_path, resume=True)
    assert_is_whole(tmp_path)


def test_a_whole_run_is_left_as_it_is(tmp_path: Path):
    train(tmp_path)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.rglob("*") if file.is_file()}
    train(tmp_path, resume=True)
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in before} == before
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == before.keys()


@pytest.mark.parametrize("loss", ["model.pt", "model.json", "other"])
def test_a_fine_tuned_product_is_made_good_too(tmp_path: Path, loss: str):
    train(tmp_path, best=True)
    if loss == "other":
        torch.save({"encoder.0.weight": torch.zeros(1)}, tmp_path / "run/model.pt")
    else:
        (tmp_path / "run" / loss).unlink()
    train(tmp_path, resume=True, best=True)
    assert_is_whole(tmp_path, key="epoch")


@pytest.mark.parametrize(
    ("present", "said"),
    [
        (split(("a", "b", "d")), "1 of these 4 volumes are new or changed, such as d; 0 of its 3 are missing"),
        (split(("a",)), "0 of these 2 volumes are new or changed; 1 of its 3 are missing"),
        (split(("a", "c"), ("b",)), "2 of these 3 volumes are new or changed, such as c; 2 of its 3 are missing"),
    ],
    ids=["more", "fewer", "another split"],
)
def test_other_data_is_refused_by_name_and_the_run_stays_as_it_was(tmp_path: Path, present, said: str):
    train(tmp_path, epochs=1, volumes=split())
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(UserError) as caught:
        train(tmp_path, resume=True, volumes=present)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    # the page tells of the refusal only in the log
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_other_data_goes_on_with_a_report_where_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    train(tmp_path, epochs=1, volumes=split())
    trainer = train(tmp_path, resume=True, volumes=split(("a", "d")), volumes_may_change=True)
    assert trainer.state.epoch == 2
    assert "or on the other side of the split: d\n" in caplog.text and ": a\n" not in caplog.text
    assert (
        "of these 3 volumes 1 are new, changed or on the other side of the split; of the 3 before 1 are gone"
        in caplog.text
    )
    caplog.clear()
    train(tmp_path, 3, resume=True, volumes=split(("a", "d")), volumes_may_change=True)
    assert "of the split" not in caplog.text, "the checkpoint knows the new ones by now"


@pytest.mark.parametrize("change", [{"size": (8, 8, 9)}, {"modality": "MR"}], ids=["size", "modality"])
def test_a_volume_that_was_prepared_otherwise_is_other_data(tmp_path: Path, change: dict):
    train(tmp_path, epochs=1, volumes=split())
    changed = split()
    changed.training[0] = replace(changed.training[0], **change)
    with pytest.raises(UserError, match="1 of these 3 volumes are new or changed, such as a; 1 of its 3 are missing"):
        train(tmp_path, resume=True, volumes=changed)


def test_the_same_data_in_another_folder_goes_on_and_the_checkpoint_tells_no_names(tmp_path: Path):
    train(tmp_path, epochs=1, volumes=split(("secret_name", "b")))
    assert b"secret_name" not in (tmp_path / "run/checkpoints/last.pt").read_bytes()
    moved = split(("secret_name", "b"))
    moved.training[:] = [replace(one, store=PlainStore(Path("elsewhere")), key="other") for one in moved.training]
    assert train(tmp_path, resume=True, volumes=moved).state.epoch == 2


def test_another_number_of_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train(tmp_path, epochs=1)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    with pytest.raises(
        UserError, match="was trained by 1 processes, and this command has 4: resume it with one process"
    ):
        train(tmp_path, resume=True)


def test_as_many_crops_per_step_from_another_number_of_processes_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    train(tmp_path, epochs=1)
    file = tmp_path / "run/checkpoints/last.pt"
    checkpoint = torch.load(file, weights_only=True)
    states = checkpoint["random_states"] * 2
    torch.save({**checkpoint, "random_states": states, "crops_per_step": 2}, file)  # of two processes, one crop each
    caplog.set_level(logging.INFO, logger="bundle")
    assert train(tmp_path, resume=True).state.epoch == 2
    assert "trained by 2 processes before, by 1 now, on 2 crops per step" in caplog.text


def test_a_refused_resume_records_no_settings_and_an_accepted_one_does(tmp_path: Path):
    train(tmp_path, epochs=1, volumes=split())
    assert torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["config"] == "config.yaml"
    (tmp_path / "run/config.yaml").write_text("epochs: 1\n")  # the toy has no config
    with pytest.raises(UserError):
        train(tmp_path, resume=True, volumes=split(("x",)))
    assert not (tmp_path / "run/config_2.yaml").exists()
    train(tmp_path, resume=True, volumes=split())
    assert (tmp_path / "run/config_2.yaml").exists()
    assert torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["config"] == "config_2.yaml"


def test_a_network_that_has_diverged_is_not_resumed(tmp_path: Path):
    train(tmp_path, epochs=1)
    file = tmp_path / "run/checkpoints/last.pt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["network"]["head.bias"][:] = torch.nan
    torch.save(checkpoint, file)
    with pytest.raises(UserError, match=r"last.pt holds NaN or infinite values, in head.bias"):
        train(tmp_path, resume=True)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path: Path):
    train(tmp_path, epochs=1)
    file = tmp_path / "run/checkpoints/last.pt"
    weight = torch.load(file, weights_only=True)["network"]["encoder.0.weight"].numpy().tobytes()
    content = bytearray(file.read_bytes())
    content[content.index(weight)] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"last.pt is truncated .*, or bits of it have flipped: .*resume another run"):
        train(tmp_path, resume=True)


def test_the_table_is_written_back_as_it_was_read(tmp_path: Path):
    train(tmp_path, epochs=1)
    table = tmp_path / "run/metrics.csv"
    table.write_text("epoch,seconds,loss,count\n1,0.5,1e-05,7\n")
    train(tmp_path, resume=True)
    header, first, second = table.read_text().splitlines()
    assert (header, first) == ("epoch,seconds,loss,count", "1,0.5,1e-05,7") and second.startswith("2,")


@pytest.mark.parametrize("text", ["epoch,loss\none,2\n", "loss\n2\n", "epoch,loss\n1,2,3\n", "epoch\n\0\n"])
def test_a_garbled_table_is_one_line(tmp_path: Path, text: str):
    train(tmp_path, epochs=1)
    (tmp_path / "run/metrics.csv").write_text(text)
    with pytest.raises(UserError, match=r"metrics.csv is damaged .*: correct it, or move it away"):
        train(tmp_path, resume=True)
    assert os.listdir(tmp_path / "run").count("config_2.yaml") == 0  # noqa: PTH208


def test_other_content_under_the_same_names_is_refused(tmp_path: Path):
    def with_content(content: str) -> SimpleNamespace:
        volumes = split()
        volumes.training[0] = replace(volumes.training[0], content=content)
        return volumes

    train(tmp_path, volumes=with_content("0a"))
    train(tmp_path, 3, resume=True, volumes=with_content("0a"))
    with pytest.raises(
        UserError, match=r"was trained on other data \(1 of these 3 volumes are new or changed, such as a;"
    ):
        train(tmp_path, 4, resume=True, volumes=with_content("0b"))


def test_a_checkpoint_of_an_older_version_is_compared_without_the_content(tmp_path: Path):
    train(tmp_path, volumes=split())
    path = tmp_path / "run/checkpoints/last.pt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["volumes"] = [digest.split("-")[0] for digest in checkpoint["volumes"]]
    torch.save(checkpoint, path)
    path.with_name(path.name + ".sha256").unlink(missing_ok=True)
    train(tmp_path, 3, resume=True, volumes=split())
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="was trained on other data"):
        train(tmp_path, 4, resume=True, volumes=split(training=("a", "x")))


def test_the_checkpoint_tells_the_part_of_each_volume_it_knows(tmp_path: Path):
    assert earlier_split(run_folder=RunFolder(tmp_path / "run"), volumes_may_change=True) is None
    train(tmp_path, epochs=1, volumes=split(("a", "b"), ("c",)))
    resumed = RunFolder(tmp_path / "run", resumed=True)
    assert earlier_split(run_folder=resumed) is None
    for folder in (resumed, str(tmp_path / "run")):  # an evaluation has the path
        part = earlier_split(run_folder=folder, volumes_may_change=True)
        assert [part(volume(name)) for name in "abcd"] == ["training", "training", "validation", ""]
        assert part(replace(volume("c"), content="0b")) == "validation", "also with other content"
