"""Which steps get a full row: callables `step -> bool` with a readable `repr`."""

import ast
import bisect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

#: Later than any step: a schedule that is over answers this.
NEVER = 2**63 - 1


@dataclass(frozen=True)
class Schedule:
    """A schedule that also knows its next due step, so that the steps between cost one comparison.

    Attributes:
        text: The expression that makes this schedule.
        upcoming: Maps a step to the first step at or after it that may be due, or to `NEVER`.
        asked: Decides on such a step; None: it is due.
    """

    text: str
    upcoming: Callable[[int], int]
    asked: Callable[[int], bool] | None = None

    def __call__(self, step: int) -> bool:
        """Whether `step` is due."""
        if self.asked is not None:
            return bool(self.asked(step))
        return self.upcoming(step) == step

    def __repr__(self) -> str:
        return self.text


def every(interval: int) -> Schedule:
    """Every step that is a multiple of `interval`, 0 among them.

    Example:
        >>> [step for step in range(10) if every(4)(step)]
        [0, 4, 8]

    Raises:
        ValueError: `interval` is not a positive integer.
    """
    if not isinstance(interval, int) or interval < 1:
        raise ValueError(f"interval must be an integer of at least 1, got {interval!r}")
    return Schedule(f"every({interval})", lambda step: -(-step // interval) * interval)


def log_spaced(per_decade: int = 10) -> Schedule:
    """Step 0 and the steps `round(10 ** (i / per_decade))`: dense early, sparse late.

    Example:
        >>> [step for step in range(101) if log_spaced(per_decade=2)(step)]
        [0, 1, 3, 10, 32, 100]

    Raises:
        ValueError: `per_decade` is not a positive integer.
    """
    if not isinstance(per_decade, int) or per_decade < 1:
        raise ValueError(f"per_decade must be an integer of at least 1, got {per_decade!r}")

    def upcoming(step: int) -> int:
        if step <= 0:
            return 0
        # Two grid points below: rounding to whole steps can lift one of them onto `step`.
        index = max(0, math.floor(per_decade * math.log10(step)) - 1)
        while (due := round(10 ** (index / per_decade))) < step:
            index += 1
        return due

    return Schedule(f"log_spaced(per_decade={per_decade})", upcoming)


def window(start: int, stop: int) -> Schedule:
    """The consecutive steps `start <= step < stop`.

    Example:
        >>> [step for step in range(10) if window(2, 5)(step)]
        [2, 3, 4]

    Raises:
        ValueError: The window holds no step.
    """
    if not 0 <= start < stop:
        raise ValueError(f"window must have 0 <= start < stop, got {(start, stop)!r}")

    def upcoming(step: int) -> int:
        return max(start, step) if step < stop else NEVER

    return Schedule(f"window({start}, {stop})", upcoming)


def at_steps(steps: Iterable[int]) -> Schedule:
    """Exactly these steps.

    Example:
        >>> at_steps([7, 3])
        at_steps([3, 7])

    Raises:
        TypeError: A step is not an integer.
    """
    wanted = set(steps)
    for step in wanted:
        if not isinstance(step, int):
            raise TypeError(f"steps must be integers, got {step!r}")
    due = sorted(wanted)

    def upcoming(step: int) -> int:
        index = bisect.bisect_left(due, step)
        return due[index] if index < len(due) else NEVER

    return Schedule(f"at_steps({due})", upcoming)


def as_schedule(full: Callable[[int], bool] | Iterable[int] | None) -> Schedule:
    """Make a schedule of what a user writes: a schedule, steps, any `step -> bool`, or None.

    A callable of the user's own is asked at every step, in order, and once.

    Raises:
        TypeError: `full` is none of these.
    """
    if isinstance(full, Schedule):
        return full
    if full is None:
        return Schedule("never", lambda _: NEVER)
    if callable(full):
        # not asked ahead of time: it may look at the state of training
        return Schedule(getattr(full, "__name__", repr(full)), lambda step: step, full)
    if isinstance(full, Iterable) and not isinstance(full, str | bytes):
        return at_steps(full)
    raise TypeError(f"full must be a schedule such as every(500), steps or None, got {full!r}")


def parse(text: str) -> Schedule:
    """Read a schedule from its expression, which is its `repr`.

    Example:
        >>> parse("log_spaced(per_decade=2)")
        log_spaced(per_decade=2)

    Raises:
        ValueError: `text` is no such expression.
    """
    makers = {maker.__name__: maker for maker in (every, log_spaced, window, at_steps)}
    try:
        call: Any = ast.parse(text, mode="eval").body
        make = makers[call.func.id]
        keywords = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
        return make(*map(ast.literal_eval, call.args), **keywords)
    except (AttributeError, KeyError, SyntaxError, TypeError) as error:
        raise ValueError(f"full must be one of {', '.join(makers)}, got {text!r}") from error
