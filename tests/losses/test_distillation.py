# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""Self-distillation against plain formulas, alone and through the pre-training network."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bundle.errors import UserError
from bundle.losses import Distillation
from bundle.losses.distillation import balance_assignment
from bundle.networks import Decoder, PlacePrototypes, PretrainingNetwork, SegResDecoder, build_encoder

K, N = 5, 20


def objective(**options) -> Distillation:
    options = {"channels": [4, 8], "level_weights": [1.0], "prototypes": K, "dim": 6, "samples": N, **options}
    return Distillation(**options)


def made(seed: int = 0, grid: tuple[int, int, int] = (8, 8, 8)) -> PlacePrototypes:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.rand(2, N, K, generator=generator, dtype=torch.float64) - 1 for _ in range(2))
    sites = grid[0] * grid[1] * grid[2]
    places = torch.stack([torch.randperm(sites, generator=generator)[:N] for _ in range(2)])
    return PlacePrototypes(student, teacher, places, grid, torch.zeros(K, dtype=torch.float64))


def target(seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.rand(2, 1, 8, 8, 8, generator=generator) < share for share in (0.9, 0.7)]
    hidden = torch.rand(2, 1, 2, 2, 2, generator=generator) < 0.5
    return {"valid": masks[0], "foreground": masks[1], "hidden": hidden}


def by_hand(level: PlacePrototypes, share, wanted, hidden_weight: float, visible_weight: float) -> tuple[float, dict]:
    """Loss and gradient, place by place: (softmax(student / 0.1) - share) / 0.1, weighted."""
    step = 8 // level.grid[0]
    total, weights, gradient = 0.0, 0.0, torch.zeros_like(level.student)
    for row in range(2):
        for n in range(N):
            place = int(level.places[row, n])
            d, rest = divmod(place, level.grid[1] * level.grid[2])
            h, w = divmod(rest, level.grid[2])
            at = tuple(step * i + step // 2 for i in (d, h, w))
            if not (wanted["valid"][(row, 0, *at)] and wanted["foreground"][(row, 0, *at)]):
                continue
            weight = hidden_weight if wanted["hidden"][(row, 0, *(i // 4 for i in at))] else visible_weight
            exponents = [math.exp(level.student[row, n, k].item() / 0.1) for k in range(K)]
            for k in range(K):
                probability = exponents[k] / sum(exponents)
                total -= weight * share[row, n, k].item() * math.log(probability)
                gradient[row, n, k] = weight * (probability - share[row, n, k].item()) / 0.1
            weights += weight
    return total / weights, gradient / weights


@pytest.mark.parametrize("grid", [(8, 8, 8), (4, 4, 4)], ids=["voxels", "coarser sites"])
def test_loss_and_gradient_are_those_of_the_formula(grid):
    level, wanted = made(grid=grid), target()
    level.centre[:] = torch.linspace(-0.3, 0.3, K)
    level.student.requires_grad_()
    share = ((level.teacher - level.centre) / 0.05).softmax(-1)
    distillation = objective(balance="centre", hidden_weight=2.0, visible_weight=0.5)
    distillation.heads.eval()
    loss, terms = distillation.loss([level], wanted)
    loss.backward()
    expected, gradient = by_hand(level, share, wanted, 2.0, 0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(level.student.grad, gradient, rtol=1e-9, atol=1e-12)
    assert 0 <= terms["distillation_agreement_hidden"] <= 1


def test_levels_are_averaged_by_their_weights():
    levels, wanted = [made(0), made(3, (4, 4, 4))], target()
    alone = [objective().loss([level], wanted)[0].item() for level in levels]
    loss, _ = objective(level_weights=[1.0, 0.25]).loss(levels, wanted)
    assert loss.item() == pytest.approx((alone[0] + 0.25 * alone[1]) / 1.25, rel=1e-9)


def test_the_batch_is_shared_out_evenly_over_the_prototypes():
    level, counted = made(), torch.arange(2 * N).reshape(2, N) % 3 > 0
    logits = level.teacher / 0.05
    found = balance_assignment(logits, counted, iterations=3)
    rows = logits.softmax(-1)[counted]  # the formula on those that count, as a matrix
    for _ in range(3):
        rows = rows / rows.sum(0)
        rows = rows / rows.sum(1, keepdim=True)
    torch.testing.assert_close(found[counted], rows, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, N, dtype=torch.float64))
    even = balance_assignment(logits, counted, iterations=500)[counted].sum(0)
    torch.testing.assert_close(even, torch.full_like(even, counted.sum().item() / K), rtol=1e-6, atol=1e-6)
    # a prototype that all places are nearest to takes no more than its share
    pulled = balance_assignment(logits + 40 * torch.eye(K, dtype=torch.float64)[0], counted, iterations=500)
    torch.testing.assert_close(pulled[counted].sum(0), even, rtol=1e-4, atol=1e-4)


def test_the_centre_follows_the_mean_in_training_only():
    level, wanted = made(), target()
    distillation = objective(balance="centre", centre_momentum=0.75)
    with torch.no_grad():
        distillation.loss([level], wanted)
    distillation.heads.eval()
    distillation.loss([level], wanted)
    assert level.centre.abs().max() == 0
    distillation.heads.train()
    distillation.loss([level], wanted)
    body = (wanted["valid"] & wanted["foreground"]).flatten(1).gather(1, level.places)
    torch.testing.assert_close(level.centre, 0.25 * level.teacher[body].mean(0))
    before = level.centre.clone()
    distillation.loss([level], wanted)
    torch.testing.assert_close(level.centre, 0.75 * before + 0.25 * level.teacher[body].mean(0))


def measured(teacher: torch.Tensor) -> dict[str, float]:
    level = made()
    level.teacher = teacher.double().expand(2, N, K)
    wanted = {name: torch.ones(2, 1, 8, 8, 8, dtype=torch.bool) for name in ("valid", "foreground")}
    terms = objective(balance="centre").loss([level], {**wanted, "hidden": torch.ones(2, 1, 2, 2, 2).bool()})[1]
    return {name.removeprefix("distillation_"): value.item() for name, value in terms.items()}


def test_collapse_is_measured():
    uniform = measured(torch.zeros(K))
    assert uniform["entropy"] == pytest.approx(1) and uniform["used"] == pytest.approx(K)
    assert uniform["information"] == pytest.approx(0, abs=1e-9)
    one = measured(torch.tensor([9.0, 0, 0, 0, 0]))
    assert one["entropy"] == pytest.approx(0, abs=1e-9) and one["used"] == pytest.approx(1)
    assert one["information"] == pytest.approx(0, abs=1e-9) and one["guess"] == 1
    two = measured(9 * torch.eye(K)[torch.arange(N) % 2])
    assert two["used"] == pytest.approx(2) and two["guess"] == 0.5
    assert two["information"] == pytest.approx(math.log(2) / math.log(K))


def network(distillation: Distillation, segres: bool = True) -> PretrainingNetwork:
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1, 1), norm="instance")
    decoder = SegResDecoder(encoder=encoder) if segres else Decoder(levels=encoder.levels, width=4, stride=2)
    return PretrainingNetwork(
        encoder=encoder, decoder=decoder, objectives={"distillation": distillation}, teacher_momentum=0.5
    )


def run(net: PretrainingNetwork, image: torch.Tensor, **more):
    hidden = torch.zeros(2, 1, 2, 2, 2, dtype=torch.bool)
    hidden[:, :, 0] = True
    torch.manual_seed(3)
    return net(image, visible=~hidden, hidden=hidden, spacing=torch.ones(2, 3), **more)


@pytest.mark.parametrize("segres", [True, False], ids=["full resolution", "half"])
def test_it_trains_encoder_decoder_and_heads_and_not_the_teacher(segres: bool):
    torch.manual_seed(0)
    distillation = objective(level_weights=[1.0, 1.0])
    net, wanted = network(distillation, segres), target()
    output = run(net, torch.randn(2, 1, 8, 8, 8))
    loss, _ = distillation.loss(output["made"]["distillation"], {**wanted, "hidden": output["hidden"]})
    (loss + output["reconstruction"].square().mean()).backward()
    for name, parameter in net.named_parameters():  # DistributedDataParallel waits for each
        assert (parameter.grad is not None) == (not name.startswith("teacher.")), name
    assert all(p.grad.abs().sum() > 0 for p in net.distillation.parameters() if p.ndim > 1)
    assert [level.grid[0] for level in output["made"]["distillation"]] == ([8, 4] if segres else [4, 2])


def test_the_teacher_sees_all_of_its_own_image_and_averages_the_decoder():
    torch.manual_seed(0)
    net = network(objective(level_weights=[1.0, 1.0]))
    image = torch.randn(2, 1, 8, 8, 8)
    other = image.clone()
    other[:, :, :4] += 1  # what is hidden
    plain, changed = run(net, image), run(net, other)
    whole = run(net, image, teacher_image=other)
    for a, b, c in zip(*(out["made"]["distillation"] for out in (plain, whole, changed)), strict=True):
        assert torch.equal(a.student, b.student) and torch.equal(a.student, c.student)
        assert not torch.equal(a.teacher, b.teacher) and torch.equal(b.teacher, c.teacher)
        assert not a.teacher.requires_grad and a.teacher.abs().max() <= 1
    before = net.decoder.state_dict()["up_layers.0.blocks.0.conv1.weight"].clone()
    net.update_teacher()  # the first update copies
    with torch.no_grad():
        for parameter in net.decoder.parameters():
            parameter.add_(1.0)
    net.update_teacher()
    averaged = net.teacher.average.module["decoder"].state_dict()["up_layers.0.blocks.0.conv1.weight"]
    torch.testing.assert_close(averaged, before + 0.5)
    assert "distillation.centre" in net.state_dict()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"balance": "none"}, "balance 'none'"),
        ({"level_weights": [1.0, 1.0, 1.0]}, "at most 2"),
        ({"level_weights": [0.0]}, "level_weights"),
        ({"teacher_temperature": 0.2}, "teacher_temperature 0.2"),
        ({"prototypes": 1}, "1 prototypes"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, said: str):
    with pytest.raises(UserError, match=said):
        objective(**options)


class TwoProcesses:
    """`torch.distributed` of two processes, as two threads: sums what both give."""

    def __init__(self) -> None:
        self.barrier, self.given = threading.Barrier(2, timeout=60), {}

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def all_reduce(self, x: torch.Tensor) -> None:
        self.given[threading.get_ident()] = x.clone()
        self.barrier.wait()
        x.copy_(sum(self.given.values()))
        self.barrier.wait()


@pytest.mark.parametrize("balance", ["centre", "sinkhorn"])
def test_two_processes_balance_and_centre_as_one_would_on_both_batches(balance: str, monkeypatch):
    levels, targets = [made(rank) for rank in range(2)], [target(rank) for rank in range(2)]
    alone = objective(balance=balance).loss([made(0)], targets[0])[0].item()
    processes = TwoProcesses()
    for module in ("bundle.losses.distillation", "bundle.ranks"):
        monkeypatch.setattr(f"{module}.dist", processes)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(objective(balance=balance).loss, [level], one) for level, one in zip(levels, targets)]
        found = [job.result()[0].item() for job in jobs]
    bodies = [(t["valid"] & t["foreground"]).flatten(1).gather(1, level.places) for level, t in zip(levels, targets)]
    if balance == "centre":
        mean = torch.cat([level.teacher[body] for level, body in zip(levels, bodies)]).mean(0)
        for level in levels:
            torch.testing.assert_close(level.centre, 0.1 * mean)
        both = torch.cat([level.teacher for level in levels]).div(0.05).softmax(-1)
    else:
        both = balance_assignment(torch.cat([level.teacher for level in levels]) / 0.05, torch.cat(bodies))
    for rank in range(2):
        expected, _ = by_hand(levels[rank], both[2 * rank : 2 * rank + 2], targets[rank], 1.0, 1.0)
        assert found[rank] == pytest.approx(expected, rel=1e-9)
    assert (found[0] == alone) == (balance == "centre")
    with torch.no_grad():  # a validation that the other process does not have
        assert objective(balance=balance).loss([made(0)], targets[0])[0].item() == alone
