"""Schedules against torch's, and against their formulas where torch has none."""

from __future__ import annotations

import copy
import math
import pickle

import pytest

from culux import errors
from culux.optim.schedules import constant, cosine, exponential, join, linear, step_decay, warmup_cosine
from tests.support import requires

ALL = [
    constant(0.1),
    step_decay(0.1, every=3, factor=0.5),
    exponential(0.1, 0.9),
    linear(0.1, 0.01, steps=7),
    cosine(0.1, steps=7, final=0.01),
    warmup_cosine(0.1, warmup=3, steps=8),
    join([constant(0.1), exponential(0.2, 0.5)], [4]),
]


def by_torch(make):
    """What a torch scheduler gives from a learning rate of 0.1 over 12 steps."""
    torch = requires("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    found = []
    for _ in range(12):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "make", "count"),
    [
        (constant(0.1), lambda s, o: s.ConstantLR(o, factor=1.0), 12),
        (step_decay(0.1, 3, 0.5), lambda s, o: s.StepLR(o, step_size=3, gamma=0.5), 12),
        (step_decay(0.1, 5), lambda s, o: s.StepLR(o, step_size=5), 12),
        (exponential(0.1, 0.9), lambda s, o: s.ExponentialLR(o, gamma=0.9), 12),
        (linear(0.1, 0.02, 7), lambda s, o: s.LinearLR(o, start_factor=1.0, end_factor=0.2, total_iters=7), 12),
        # torch's cosine goes up again after its end
        (cosine(0.1, 11, 0.01), lambda s, o: s.CosineAnnealingLR(o, T_max=11, eta_min=0.01), 12),
    ],
    ids=lambda value: repr(value) if hasattr(value, "__dataclass_fields__") else "",
)
def test_schedules_against_torch(schedule, make, count):
    assert [schedule(step) for step in range(count)] == pytest.approx(by_torch(make)[:count], rel=1e-12)


def test_cosine_and_linear_stay_at_their_end():
    assert [cosine(0.1, 4, 0.02)(step) for step in (4, 5, 100)] == [0.02] * 3
    assert [linear(0.1, 0.3, 4)(step) for step in (2, 4, 5, 100)] == pytest.approx([0.2, 0.3, 0.3, 0.3])


def test_warmup_cosine():
    schedule = warmup_cosine(1.0, warmup=4, steps=12, initial=0.2, final=0.1)
    assert [schedule(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert schedule(8) == pytest.approx(0.55)
    assert schedule(10) == pytest.approx(0.1 + 0.9 * (1 + math.cos(0.75 * math.pi)) / 2)
    assert [schedule(step) for step in (12, 13, 1000)] == pytest.approx([0.1] * 3)


def test_join_counts_from_each_boundary():
    schedule = join([linear(0.0, 1.0, 2), constant(5.0), exponential(8.0, 0.5)], [2, 4])
    assert [schedule(step) for step in range(7)] == [0.0, 0.5, 5.0, 5.0, 8.0, 4.0, 2.0]


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_schedules_are_records(schedule):
    assert eval(repr(schedule)) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert hash(copy.deepcopy(schedule)) == hash(schedule)
    assert [other for other in ALL if other == schedule] == [schedule]
    assert {type(schedule(step)) for step in range(12)} == {float}
    with pytest.raises(AttributeError):
        schedule.initial = 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: step_decay(0.1, 0), "step_decay: expected every to be a number of steps, 1 or more, got int 0"),
        (lambda: linear(0.1, 0.2, -3), "linear: expected steps to be a number of steps, 1 or more, got int -3"),
        (lambda: cosine(0.1, 2.5), "cosine: expected steps to be a number of steps, 1 or more, got float 2.5"),
        (lambda: cosine(0.1, True), "cosine: expected steps to be a number of steps, 1 or more, got bool True"),
        (
            lambda: warmup_cosine(0.1, 5, 5),
            "expected steps > warmup, got steps=5 and warmup=5; steps counts the warm-up",
        ),
        (lambda: join([constant(1)], [2]), "join: expected 0 boundaries between 1 schedules, got 1"),
        (lambda: join([constant(1)] * 3, [4, 2]), r"join: expected boundaries that rise, got \(4, 2\)"),
        (lambda: join([0.1, constant(1)], [2]), r"join: expected schedules, got float 0.1; a number is constant"),
        (lambda: cosine(0.1, stepz=3), r"cosine takes no stepz= \(did you mean 'steps'\?\)"),
        (
            lambda: cosine(0.1),
            r"cosine: missing a required argument: 'steps'; it is cosine\(initial, steps, final=0.0\)",
        ),
    ],
)
def test_schedules_that_are_spelled_wrong(call, message):
    with pytest.raises(errors.LayerError, match=message):
        call()
