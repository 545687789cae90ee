import math

import pytest

from gradstats.recording import at_steps, every, log_spaced, window
from gradstats.recording.schedules import NEVER, Schedule, as_schedule

SCHEDULES = [
    (every(1), lambda s: True),
    (every(7), lambda s: s % 7 == 0),
    (window(3, 9), lambda s: 3 <= s < 9),
    (at_steps([90, 2, 5]), lambda s: s in (2, 5, 90)),
    *(
        (
            log_spaced(per_decade=n),
            lambda s, n=n: s == 0 or any(round(10 ** (i / n)) == s for i in range(4 * n)),
        )
        for n in (1, 2, 3, 10, 50, 1000)
    ),
]


@pytest.mark.parametrize(("schedule", "rule"), SCHEDULES, ids=lambda x: repr(x)[:24])
def test_is_due_by_its_rule_and_knows_the_next_due_step(schedule, rule):
    due = [step for step in range(1001) if rule(step)]
    assert [step for step in range(1001) if schedule(step)] == due
    for step in range(1001):
        upcoming = schedule.upcoming(step)
        later = [s for s in due if s >= step]
        assert upcoming == later[0] if later else upcoming > 1000


@pytest.mark.parametrize("schedule", [s for s, _ in SCHEDULES], ids=repr)
def test_is_made_again_by_its_repr(schedule):
    names = {"every": every, "window": window, "at_steps": at_steps, "log_spaced": log_spaced}
    again = eval(repr(schedule), names)
    assert [again(s) for s in range(200)] == [schedule(s) for s in range(200)]


def test_what_a_user_writes_becomes_a_schedule():
    assert as_schedule(every(3)) is not None
    assert [s for s in range(9) if as_schedule([4, 2])(s)] == [2, 4]
    assert [s for s in range(9) if as_schedule(range(3))(s)] == [0, 1, 2]
    assert as_schedule(None).upcoming(0) == NEVER
    assert isinstance(as_schedule(math.isfinite), Schedule)


def test_a_users_callable_is_asked_once_a_step_and_not_ahead():
    asked = []
    schedule = as_schedule(lambda step: asked.append(step) or step == 2)
    due = []
    for step in range(4):
        assert schedule.upcoming(step) == step
        if schedule(step):
            due.append(step)
    assert (asked, due) == ([0, 1, 2, 3], [2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: every(0), "interval must be an integer of at least 1, got 0"),
        (lambda: every(2.5), "got 2.5"),
        (lambda: log_spaced(per_decade=0), "per_decade must"),
        (lambda: window(5, 5), r"0 <= start < stop, got \(5, 5\)"),
        (lambda: window(-1, 5), "start < stop"),
        (lambda: at_steps([1, "2"]), "steps must be integers"),
        (lambda: as_schedule(500), r"full must be a schedule such as every\(500\).*got 500"),
    ],
)
def test_bad_schedules_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
