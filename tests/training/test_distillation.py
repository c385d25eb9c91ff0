# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""How a teacher changes over a run, and the warning where a distillation teaches nothing."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events

from bundle.errors import UserError
from bundle.losses import Distillation
from bundle.networks import Decoder, PretrainingNetwork, build_encoder
from bundle.training import CollapseWarning, TeacherMomentum, TeacherTemperature


def distillation() -> Distillation:
    return Distillation(channels=[4], level_weights=[1.0], prototypes=4, dim=4, teacher_temperature=0.08)


def network(momentum: float | None = 0.9) -> PretrainingNetwork:
    encoder = build_encoder("SegResEncoder", init_filters=4, blocks_down=(1, 1), norm="instance")
    return PretrainingNetwork(
        encoder=encoder,
        decoder=Decoder(levels=encoder.levels, width=4, stride=1),
        objectives={} if momentum is None else {"distillation": distillation()},
        teacher_momentum=momentum,
    )


def values(handler, read, start: int = 0) -> list[float]:
    """What `read` gives in each of five steps, or the rest of them after a resume."""
    found = []
    engine = Engine(lambda *_: found.append(read()))
    handler.attach(engine)
    engine.load_state_dict({"iteration": start, "epoch_length": 5, "max_epochs": 1})
    engine.run(range(5))
    return found


def test_the_momentum_rises_along_a_cosine_and_is_the_same_after_a_resume():
    net = network(0.9)
    handler = TeacherMomentum(network=net, steps=4)
    found = values(handler, lambda: net.teacher.momentum)
    assert found == pytest.approx([0.9, 0.9 + 0.1 * (1 - 0.5**0.5) / 2, 0.95, 0.9 + 0.1 * (1 + 0.5**0.5) / 2, 1.0])
    again = network(0.9)
    assert values(TeacherMomentum(network=again, steps=4), lambda: again.teacher.momentum, start=2) == found[2:]
    # and the teacher averages with it
    net.teacher.momentum = 0.75
    before = [parameter.clone() for parameter in net.encoder.parameters()]
    net.update_teacher()
    with torch.no_grad():
        for parameter in net.encoder.parameters():
            parameter.add_(1.0)
    net.update_teacher()
    for parameter, old in zip(net.teacher.average.module["encoder"].parameters(), before):
        torch.testing.assert_close(parameter, old + 0.25)


def test_the_temperature_rises_along_a_line_to_that_of_the_config():
    objective = distillation()
    loss = SimpleNamespace(objectives={"distillation": objective})
    handler = TeacherTemperature(loss=loss, first=0.04, steps=4)
    found = values(handler, lambda: objective.teacher_temperature)
    assert found == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.08])
    assert values(handler, lambda: objective.teacher_temperature, start=3) == found[3:]
    at_once = TeacherTemperature(loss=loss, first=0.04, steps=0)
    assert values(at_once, lambda: objective.teacher_temperature)[0] == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("entropy", "information", "said"),
    [(0.99, 0.01, "targets stay uniform"), (0.01, 0.02, r"1\.2 prototypes are in use"), (0.5, 0.4, None)],
)
def test_a_collapse_is_said_in_one_line(entropy: float, information: float, said: str | None, caplog):
    engine = Engine(lambda *_: None)
    found = {"entropy": entropy, "information": information, "used": 1.2}
    engine.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda e: e.state.metrics.update({f"train/distillation_{name}": value for name, value in found.items()}),
    )
    CollapseWarning().attach(engine)
    with caplog.at_level(logging.WARNING):
        engine.run([0], max_epochs=1)
    assert len(caplog.messages) == (said is not None)
    if said is not None:
        assert caplog.messages[0].startswith("the distillation collapses") and "\n" not in caplog.messages[0]
        assert re.search(said, caplog.messages[0])


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="teacher_momentum"):
        TeacherMomentum(network=network(None), steps=4)
    with pytest.raises(UserError, match=r"from 0\.9 to 0\.5"):
        TeacherMomentum(network=network(0.9), steps=4, last=0.5)
    loss = SimpleNamespace(objectives={"distillation": distillation()})
    with pytest.raises(UserError, match="no distillation 'other'"):
        TeacherTemperature(loss=loss, first=0.04, steps=4, objective="other")
    with pytest.raises(UserError, match="first 0"):
        TeacherTemperature(loss=loss, first=0, steps=4)
