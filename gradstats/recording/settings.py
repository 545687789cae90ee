"""Settings of a recording: the keywords of `capture`, options of its command, provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from gradstats.recording.budget import parse_bytes
from gradstats.recording.processes import check_points
from gradstats.recording.schedules import as_schedule, every, parse
from gradstats.recording.writer import OnSummary
from gradstats.settings import SettingError, check_fields, naming, setting, several

IfExists = Literal["error", "resume", "overwrite"]
WhenFull = Literal["block", "drop", "thin"]
LocalBy = Literal["hooks", "comm_hook"]
Full = Callable[[int], bool] | Iterable[int] | None


@dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """What is recorded, where in the step, and what happens when there is no room for it.

    The arguments of `gradstats.capture` say more of each.

    Raises:
        ValueError: A setting is out of range, or nothing would be recorded.
        TypeError: `full` is not a schedule.
    """

    full: Full = setting(every(500), "Steps at which the whole gradient is kept.")
    track: int | None = setting(
        65_536, "Number of elements kept at every step, always the same random ones; 0: none."
    )
    summary: bool = setting(
        False, "Keep a Summary (a histogram and sums) of each parameter at every step."
    )
    on_summary: OnSummary | None = setting(
        None, "Function called with (step, {parameter: Summary}) at every step."
    )
    shadow: Sequence[str] = setting(
        (), "Compressors that run on the tracked elements beside the training (comma-separated)."
    )
    weights: bool = setting(False, "Keep the weights too, with every whole gradient.")
    at: str | Sequence[str] = setting(
        "auto",
        "Where in the step: auto, or local, reduced or clipped, or several (comma-separated).",
    )
    parameters: str | Sequence[str] = setting("*", "Which parameters, by a glob on their names.")
    max_bytes: int | str = setting("20GB", "Most that is written, with its unit.")
    if_exists: IfExists = setting(
        "error", "What to do if the run exists already.", choices=get_args(IfExists)
    )
    when_full: WhenFull = setting(
        "block",
        "When the disk is too slow: block the training, drop the row, or thin the full rows.",
        choices=get_args(WhenFull),
    )
    local_by: LocalBy = setting(
        "hooks",
        "How local gradients are read: hooks on the parameters, or a DDP communication hook.",
        choices=get_args(LocalBy),
    )
    start_step: int = setting(0, "Number of the first optimizer step.", least=0)
    seed: int = setting(0, "Seed of the choice of tracked elements.", least=0)
    quiet: bool = setting(False, "Print nothing but errors and warnings.")

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "shadow", several(self.shadow))
        if self.full is not None:  # once: it may be an iterator
            object.__setattr__(self, "full", _schedule(self.full))
        check_points(self.at)
        if not isinstance(self.parameters, str) and not _are_texts(self.parameters):
            fact = f"must be globs over parameter names, got {self.parameters!r}"
            raise SettingError("parameters", fact)
        if self.on_summary is not None and not callable(self.on_summary):
            raise SettingError("on_summary", f"must be a function, got {self.on_summary!r}")
        if self.shadow:
            _check_shadow(self.shadow)
        parse_bytes(self.max_bytes)
        _check_rows_wanted(whole=self.full is not None or self.summaries, track=self.track)
        if self.shadow and not self.track:
            raise SettingError("track", f"must be on for shadow compressors, got {self.track!r}")

    @property
    def summaries(self) -> bool:
        """Whether Summaries are made: they are stored, and passed to `on_summary` if given."""
        return self.summary or self.on_summary is not None

    @property
    def plain(self) -> dict[str, Any]:
        """The settings as JSON values; functions go by their names, schedules as expressions."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["full"] = None if self.full is None else repr(as_schedule(self.full))
        values["on_summary"] = self.on_summary and getattr(
            self.on_summary, "__qualname__", type(self.on_summary).__qualname__
        )
        return {
            name: list(value) if isinstance(value, (list, tuple)) else value
            for name, value in values.items()
        }

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> CaptureSettings:
        """Read what `plain` gave; a function cannot be read.

        Raises:
            ValueError: `full` is no expression of a schedule.
        """
        full = values["full"] and parse(values["full"])
        return cls(**{**values, "full": full, "on_summary": None})


def _schedule(full: Any) -> Callable[[int], bool]:
    """A schedule of what a user writes, or of its expression as text.

    Raises:
        TypeError: It is no schedule.
    """
    if isinstance(full, str):
        return parse(full)
    try:
        if not isinstance(full, type | Mapping):
            return as_schedule(full)
    except TypeError as error:
        reason = f": {error}"
    else:
        reason = ""
    rule = "full must be a schedule such as every(500), steps or None"
    raise TypeError(f"{rule}, got {full!r}{reason}")


def _are_texts(values: Any) -> bool:
    return isinstance(values, Sequence) and all(isinstance(each, str) for each in values)


def _check_shadow(specs: Sequence[str]) -> None:
    """Check that each spec makes a compressor.

    Raises:
        SettingError: One does not.
    """
    if not _are_texts(specs):
        fact = "must be specs such as topk(0.01)"
        raise SettingError("shadow", f"{fact}, got {', '.join(map(repr, specs))}")
    from gradstats.replaying.shadow import Shadow  # nobody else pays for its import

    with naming("shadow"):
        Shadow(specs, 0)


def _check_rows_wanted(*, whole: bool, track: int | None) -> None:
    """Check that there is something to record.

    Raises:
        ValueError: `track` is not a number of elements, or neither whole rows nor elements.
    """
    wrong = isinstance(track, bool) or not isinstance(track, int)
    if track is not None and (wrong or track < 0):
        raise SettingError(
            "track", f"must be a number of elements from 1, or 0 for none, got {track!r}"
        )
    if not whole and not track:
        rule = "must be on where no whole gradient is recorded: full and track are both off"
        raise SettingError("track", f"{rule}, got {track!r}")
