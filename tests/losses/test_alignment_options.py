# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""The alignment loss's choices, against plain formulas."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from bundle.errors import UserError
from bundle.losses import AlignmentLoss
from bundle.networks import Pairs
from bundle.runs import stop_distributed
from tests.commands import run_processes


def example(rows: int = 6, seed: int = 0) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(rows, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    volume = torch.arange(rows) % 2
    return Pairs(query, key, volume, torch.rand(rows, 3, generator=generator) * 40)


def by_hand(pair: Pairs, temperature: float, counts) -> float:
    """Cross-entropy of the positive among it and the keys j with counts(i, j)."""
    total = 0.0
    for i in range(len(pair.query)):
        cosine = [(pair.query[i] @ k / pair.query[i].norm() / k.norm()).item() / temperature for k in pair.key]
        others = [c for j, c in enumerate(cosine) if j == i or counts(i, j)]
        total += math.log(sum(math.exp(c) for c in others)) - cosine[i]
    return total / len(pair.query)


def test_neighbours_in_mm_are_no_negatives():
    pair = example()
    apart = torch.cdist(pair.position, pair.position)

    def counts(i: int, j: int) -> bool:
        return bool(pair.volume[i] != pair.volume[j] or apart[i, j] >= 25)

    assert any(not counts(i, j) for i in range(6) for j in range(6) if i != j)
    loss, terms = AlignmentLoss(temperature=0.5, exclusion_mm=25)([pair])
    assert loss.item() == pytest.approx(by_hand(pair, 0.5, counts), rel=1e-6)
    numbers = [1 + sum(counts(i, j) for j in range(6) if j != i) for i in range(6)]
    assert terms["alignment_chance"].item() == pytest.approx(sum(map(math.log, numbers)) / 6, rel=1e-6)


def test_negatives_of_other_volumes_only():
    pair = example()
    loss, _ = AlignmentLoss(temperature=0.5, negatives="other_volumes")([pair])
    assert loss.item() == pytest.approx(by_hand(pair, 0.5, lambda i, j: pair.volume[i] != pair.volume[j]), rel=1e-6)


def test_cosine_is_two_minus_twice_the_cosine_and_reports_the_retrieval_all_the_same():
    pair = example()
    loss, terms = AlignmentLoss(kind="cosine")([pair])
    cosine = torch.nn.functional.cosine_similarity(pair.query, pair.key)
    assert loss.item() == pytest.approx((2 - 2 * cosine).mean().item(), rel=1e-6)
    assert 0 <= terms["alignment_top1"] <= 1


def test_identical_sides_are_reported():
    pair = example()
    assert AlignmentLoss()([pair])[1]["alignment_same"] == 0
    same = Pairs(pair.query, pair.query.clone(), pair.volume, pair.position)
    assert AlignmentLoss()([same])[1]["alignment_same"] == 1


@pytest.mark.parametrize("arguments", [{"kind": "l2"}, {"negatives": "none"}, {"temperature": 0}, {"exclusion_mm": -1}])
def test_unknown_choices_are_named(arguments: dict):
    with pytest.raises(UserError, match="alignment"):
        AlignmentLoss(**arguments)


def _rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    pair = example(5 + 2 * rank, seed=rank)
    pair.query.requires_grad_()
    pair.key.requires_grad_()
    loss, _ = AlignmentLoss(temperature=0.5, exclusion_mm=1e6, across_ranks=True)([pair])
    loss.backward()
    alone = None
    if rank == 0:  # the other process has no such batch to validate
        with torch.no_grad():
            alone = AlignmentLoss(temperature=0.5, across_ranks=True)([pair])[0].item()
    torch.save({"loss": loss.item(), "key": pair.key.grad is not None, "alone": alone}, Path(folder) / f"{rank}.pt")
    stop_distributed()


def test_the_other_processes_keys_are_negatives_of_other_volumes(tmp_path: Path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    run_processes(_rank, port, str(tmp_path))
    pairs = [example(5 + 2 * rank, seed=rank) for rank in range(2)]
    for rank, pair in enumerate(pairs):
        # the same volume's are all excluded; volume 0 of the other process is another volume than volume 0 here
        other = pairs[1 - rank]
        both = Pairs(
            pair.query,
            torch.cat([pair.key, other.key]),
            torch.cat([pair.volume, other.volume + 2]),
            torch.cat([pair.position, other.position]),
        )
        expected = by_hand(both, 0.5, lambda i, j, v=both.volume: v[i] != v[j])
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["loss"] == pytest.approx(expected, rel=1e-5)
        assert found["key"], "this process's own keys lost their gradient"
        if rank == 0:  # validation: this process's places only, and no waiting for the other
            assert found["alone"] == pytest.approx(AlignmentLoss(temperature=0.5)([pair])[0].item(), rel=1e-6)
