# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Two processes on gloo stand for two GPUs."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.optimizers import WarmupCosineSchedule
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from bundle.data import FoundVolume, find_scans
from bundle.data.volume_set import listed_by_one
from bundle.errors import UserError
from bundle.runs.distributed import broadcast, is_main_rank, start_distributed, stop_distributed, wrap
from bundle.runs.folder import RunFolder, open_run_folder
from bundle.runs.start import start_run
from bundle.training.checkpoint import RunCheckpoint
from bundle.training.scalars import Scalars
from bundle.training.validation import SameBuffers
from tests.commands import run_processes
from tests.training.toy import ToyNetwork, toy_loader, toy_trainer

CPU = torch.device("cpu")


def process(rank: int, port: int, results: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost")
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    start_run(device="cpu", seed=5)
    start_distributed(CPU)  # again: nothing happens
    results = results / str(rank)
    found = {"first_draw": torch.rand(1), "main": is_main_rank(), "level": logging.getLogger().level}

    found["folder"] = str(open_run_folder(bundle_root=results).path)  # each rank proposes another one
    try:
        open_run_folder(bundle_root=results, resume=True)
    except UserError as error:
        found["error"] = str(error)

    # the second process would see one volume more; then a folder that cannot be used is one error for both
    found["listed"] = [
        volume.name for volume in listed_by_one(lambda: [FoundVolume(f"{n}", ()) for n in range(rank + 1)])
    ]
    try:
        listed_by_one(lambda: find_scans(results / "missing") if rank == 0 else [])
    except UserError as error:
        found["nothing listed"] = str(error)

    network = wrap(ToyNetwork(), CPU)
    optimizer = SGD(network.parameters(), lr=0.1)
    schedule = WarmupCosineSchedule(optimizer, 0, 10)
    folder = RunFolder(Path(found["folder"]))
    checkpoint = RunCheckpoint(run_folder=folder, network=network, optimizer=optimizer, lr_scheduler=schedule)
    scalars = Scalars(name="train", optimizer=optimizer)
    loader = toy_loader(draws=4)
    loader.sampler.set_epoch(rank)  # each rank has its own draws
    trainer = toy_trainer(network, optimizer, loader, 1, [scalars, checkpoint])
    terms = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: terms.append(engine.state.output["loss"].item())
    )
    trainer.run()
    own = nn.BatchNorm1d(3)
    nn.init.constant_(own.weight, rank + 1.0)
    own.num_batches_tracked += rank
    broadcast(own)
    found |= {"broadcast": own.state_dict()}
    validated = nn.BatchNorm1d(3)
    nn.init.constant_(validated.weight, rank + 1.0)
    validated.running_mean += rank
    SameBuffers()(SupervisedEvaluator(device=CPU, val_data_loader=[], epoch_length=1, network=validated))
    found |= {"validated": validated.state_dict()}
    found |= {"weights": network.module.state_dict(), "losses": terms, "metrics": trainer.state.metrics}
    dist.barrier()
    stop_distributed()
    results.mkdir(exist_ok=True)
    torch.save(found, results / "found.pt")
    # on a busy machine a thread of PyTorch's may outlive the interpreter and abort the process after all is done
    os._exit(0)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    run_processes(process, port, results)
    return [torch.load(results / str(rank) / "found.pt", weights_only=True) for rank in range(2)]


def test_rank_0_is_the_main_one_and_the_other_logs_warnings_only(found):
    assert [rank["main"] for rank in found] == [True, False]
    assert found[1]["level"] == logging.WARNING


def test_all_ranks_have_the_same_seed(found):
    assert torch.equal(found[0]["first_draw"], found[1]["first_draw"])


def test_all_ranks_agree_on_the_run_folder_or_on_the_error(found):
    assert found[0]["folder"] == found[1]["folder"]
    assert found[0]["error"] == found[1]["error"]
    assert "no run to resume" in found[0]["error"]


def test_all_ranks_have_the_volumes_that_the_first_one_sees(found):
    assert [process["listed"] for process in found] == [["0"], ["0"]]
    assert all("missing does not exist" in process["nothing listed"] for process in found)


def test_gradients_are_averaged(found):
    for name, tensor in found[0]["weights"].items():
        if "running" not in name:
            assert torch.equal(tensor, found[1]["weights"][name]), name


def test_a_broadcast_gives_all_ranks_the_weights_of_rank_0(found):
    for rank in found:
        assert rank["broadcast"]["weight"].tolist() == [1, 1, 1]
        assert rank["broadcast"]["num_batches_tracked"] == 0


def test_all_ranks_validate_with_the_buffers_of_rank_0(found):
    for number, rank in enumerate(found):
        assert rank["validated"]["running_mean"].tolist() == [0, 0, 0]
        assert rank["validated"]["weight"].tolist() == [number + 1] * 3, "weights are left alone"


def test_epoch_figures_are_means_over_all_ranks(found):
    losses = [loss for rank in found for loss in rank["losses"]]
    assert len(set(losses)) == 4
    for rank in found:
        assert rank["metrics"]["train/loss"] == pytest.approx(sum(losses) / 4)
    assert found[0]["metrics"] == found[1]["metrics"]


def test_the_checkpoint_has_plain_names_and_the_generators_of_all_ranks(found):
    checkpoint = torch.load(RunFolder(Path(found[0]["folder"])).last_checkpoint, weights_only=True)
    assert checkpoint["network"].keys() == ToyNetwork().state_dict().keys()
    assert len(checkpoint["random_states"]) == 2


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    start_distributed(CPU)
    assert not dist.is_initialized()
    assert is_main_rank()
    network = nn.Linear(1, 1)
    assert wrap(network, CPU) is network
    assert not isinstance(wrap(network, CPU), DistributedDataParallel)
    stop_distributed()


def test_a_process_that_prepares_longer_volumes_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    given = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda _, **options: given.update(options))
    start_distributed(torch.device("cpu"))
    assert given["timeout"].total_seconds() >= 6 * 3600
