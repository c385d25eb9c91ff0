# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Negatives from other people at the same place: from the batch, from earlier ones and from other processes."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bundle.errors import UserError
from bundle.losses import Alignment, AlignmentLoss
from bundle.networks import BodyPlaces, Decoder, EncoderDepthPairs, KeyQueue, Pairs, PretrainingNetwork, build_encoder

ROWS = 12


def example(seed: int = 0, queue: KeyQueue | None = None) -> Pairs:
    """Places of three crops of 10 x 12 x 16 voxels."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(ROWS, 4, generator=generator) for _ in range(2))
    position = torch.rand(ROWS, 3, generator=generator) * torch.tensor([10.0, 24.0, 16.0])
    return Pairs(query, key, torch.arange(ROWS) % 3, position, queue)


def target(first_number: int = 0) -> dict[str, torch.Tensor]:
    """The crops cover half of each axis; the third one is of a volume three times as long on the last axis."""
    place = torch.tensor([[0.0, 0.5], [0.25, 0.75], [0.5, 1.0]]).expand(3, 3, 2).clone()
    place[1, 0] = torch.tensor([0.1, 0.6])
    place[2, 2] = torch.tensor([0.3, 0.3 + 0.5 / 3])
    return {
        "image": torch.zeros(3, 1, 10, 12, 16),
        "spacing": torch.tensor([[1.0, 2.0, 1.0]] * 3),
        "volume": torch.tensor([4, 5, 6]) + first_number,
        "place": place,
    }


def bodies_by_hand(pair: Pairs, wanted: dict[str, torch.Tensor]) -> list[tuple[list[float], list[float], int]]:
    """Share, extent and volume of each place, axis by axis."""
    found = []
    for row in range(ROWS):
        crop, share, extent = int(pair.volume[row]), [], []
        for axis, size in enumerate((10, 12, 16)):
            first, last = wanted["place"][crop, axis].tolist()
            spacing = wanted["spacing"][crop, axis].item()
            voxel = pair.position[row, axis].item() / spacing - 0.5
            share.append(first + voxel / (size - 1) * (last - first))
            extent.append((size - 1) * spacing / (last - first))
        found.append((share, extent, int(wanted["volume"][crop])))
    return found


def is_negative(one, other, millimetres: float = 8.0, ratio: float = 1.25) -> bool:
    alike = all(1 / ratio <= a / b <= ratio for a, b in zip(one[1], other[1]))
    apart = math.dist([p * e for p, e in zip(one[0], one[1])], [p * e for p, e in zip(other[0], one[1])])
    return one[2] != other[2] and alike and apart < millimetres


def by_hand(pair: Pairs, mine, keys: torch.Tensor, others, first: int = 0) -> float:
    total = 0.0
    for i, (query, body) in enumerate(zip(pair.query, mine)):
        counted = [j for j, other in enumerate(others) if j == i + first or is_negative(body, other)]
        cosines = [torch.cosine_similarity(query, keys[j], 0).item() / 0.5 for j in counted]
        total += math.log(sum(map(math.exp, cosines))) - cosines[counted.index(i + first)]
    return total / len(mine)


def loss(**options) -> AlignmentLoss:
    return AlignmentLoss(temperature=0.5, negatives="same_place", same_mm=8.0, **options)


def test_negatives_are_near_places_of_other_volumes_of_such_an_extent():
    pair, wanted = example(), target()
    bodies = bodies_by_hand(pair, wanted)
    table = [[is_negative(one, other) for other in bodies] for one in bodies]
    assert 0 < sum(map(sum, table)) < ROWS * ROWS / 3
    assert not any(any(row) for row, body in zip(table, bodies) if body[2] == 6), "another extent"
    found, terms = Alignment(pairs=loss()).loss([pair], wanted)
    assert found.item() == pytest.approx(by_hand(pair, bodies, pair.key, bodies), rel=1e-5)
    counts = [1 + sum(row) for row in table]
    assert terms["alignment_chance"].item() == pytest.approx(sum(map(math.log, counts)) / ROWS, rel=1e-5)


def test_two_crops_of_one_person_are_no_negatives_of_each_other():
    pair, wanted = example(), target()
    wanted["volume"][:] = 4
    found, terms = loss()([pair], wanted)
    assert found.item() == pytest.approx(0, abs=1e-6) and terms["alignment_chance"] == 0


def test_keys_of_earlier_batches_are_negatives():
    queue = KeyQueue(20, 4)
    earlier, pair = example(1, queue), example(0, queue)
    alone = loss()([example(0)], target())[0].item()
    with torch.no_grad():  # a validation remembers nothing
        assert loss()([pair], target())[0].item() == pytest.approx(alone, rel=1e-6)
    loss()([earlier], target(10))
    assert (queue.volume >= 0).sum() == ROWS
    pair.query.requires_grad_()
    found, _ = loss()([pair], target())
    found.backward()
    mine, old = bodies_by_hand(pair, target()), bodies_by_hand(earlier, target(10))
    assert any(is_negative(one, other) for one in mine for other in old)
    both = torch.cat([pair.key, earlier.key])
    assert found.item() == pytest.approx(by_hand(pair, mine, both, mine + old), rel=1e-5)
    assert found.item() > alone and pair.query.grad.abs().sum() > 0


def test_the_oldest_keys_make_room():
    queue = KeyQueue(5, 2)
    for number in range(4):
        rows = torch.full((2, 2), float(number))
        queue.push(rows, BodyPlaces(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([number, number])))
    assert queue.volume.tolist() == [2, 3, 3, 1, 2] and queue.keys[:, 0].tolist() == [2.0, 3.0, 3.0, 1.0, 2.0]
    many = torch.arange(7.0)[:, None].expand(7, 2)
    queue.push(many, BodyPlaces(torch.zeros(7, 3), torch.ones(7, 3), torch.arange(7)))
    assert sorted(queue.volume.tolist()) == [2, 3, 4, 5, 6]


class TwoProcesses:
    """`torch.distributed` of two processes, as two threads."""

    def __init__(self) -> None:
        self.barrier, self.given, self.rank = threading.Barrier(2, timeout=60), {}, threading.local()

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_world_size(self) -> int:
        return 2

    def get_rank(self) -> int:
        return self.rank.number

    def all_gather(self, parts: list[torch.Tensor], x: torch.Tensor) -> None:
        self.given[self.rank.number] = x
        self.barrier.wait()
        for number, part in enumerate(parts):
            part.copy_(self.given[number])
        self.barrier.wait()


def test_other_processes_people_are_negatives_and_are_remembered(monkeypatch):
    processes = TwoProcesses()
    for module in ("bundle.losses.alignment", "bundle.ranks"):
        monkeypatch.setattr(f"{module}.dist", processes)
    queues = [KeyQueue(4 * ROWS, 4) for _ in range(2)]
    pairs, targets = [example(rank, queues[rank]) for rank in range(2)], [target(10 * rank) for rank in range(2)]

    def one(rank: int) -> float:
        processes.rank.number = rank
        return loss(across_ranks=True)([pairs[rank]], targets[rank])[0].item()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, range(2)))
    bodies = [bodies_by_hand(pair, wanted) for pair, wanted in zip(pairs, targets)]
    keys = torch.cat([pair.key for pair in pairs])
    for rank in range(2):
        expected = by_hand(pairs[rank], bodies[rank], keys, bodies[0] + bodies[1], first=rank * ROWS)
        assert found[rank] == pytest.approx(expected, rel=1e-5)
    for name, value in queues[0].state_dict().items():
        assert torch.equal(value, queues[1].state_dict()[name]), name


def test_the_queues_are_in_the_checkpoint_and_fill_through_the_network():
    torch.manual_seed(0)
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1), norm="instance")
    heads = EncoderDepthPairs(levels=encoder.levels, dim=4, samples=8, queue=16)
    decoder = Decoder(levels=encoder.levels, width=4, stride=2)
    net = PretrainingNetwork(encoder=encoder, decoder=decoder, alignment=heads, teacher_momentum=0.9)
    visible = torch.ones(3, 1, 2, 2, 2, dtype=torch.bool)
    image = torch.randn(3, 1, 8, 8, 8)
    output = net(image, visible=visible, hidden=~visible, spacing=torch.ones(3, 3))
    pairs = output["made"]["alignment"]
    assert len({id(pair.queue) for pair in pairs}) == len(pairs) == 4
    wanted = {**target(), "image": image}
    loss()(pairs, wanted)[0].backward()
    for pair in pairs:
        torch.testing.assert_close(pair.queue.keys[:8], torch.nn.functional.normalize(pair.key, dim=1))
    assert net.state_dict()["alignment.queues.3.volume"].max() >= 4
    without = EncoderDepthPairs(levels=encoder.levels, dim=4)
    assert not any("queue" in key for key in without.state_dict())


def test_crops_without_a_place_are_refused():
    with pytest.raises(UserError, match=r"same_place needs the place.*alignment_place\.yaml"):
        loss()([example()])
    for options in ({"same_mm": 0.0}, {"extent_ratio": 0.5}):
        with pytest.raises(UserError, match=next(iter(options))):
            AlignmentLoss(**options)
