"""Attaching to a script that does not know of it: from its optimizer to its model, and capture."""

import contextlib
import gc
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from gradstats.recording.budget import parse_bytes
from gradstats.recording.capturing import (
    DEFAULT_TRACK,
    IfExists,
    WhenFull,
    capture,
    check_choice,
    check_rows_wanted,
)
from gradstats.recording.handle import Capture
from gradstats.recording.idle import Idle
from gradstats.recording.messages import write_line
from gradstats.recording.processes import check_points, rank_and_world
from gradstats.recording.provenance import VARIABLE
from gradstats.recording.schedules import every
from gradstats.recording.script.trainings import Trainings, restarted
from gradstats.store import GradientStore, as_place

#: The recording of this process. Kept, so that it lasts as long as the model: a script may put
#: another optimizer in the place of the one that is recorded.
_recording: Capture | Idle | None = None


@dataclass(frozen=True)
class Settings:
    """What can be set from the command line; as in `capture`.

    Attributes:
        session: A folder of the command's own, in which its trainings get numbers; "" for none.
    """

    out: str
    full_every: int | None = 500
    track: int | None = DEFAULT_TRACK
    summary: bool = False
    shadow: Sequence[str] = ()
    weights: bool = False
    at: str | Sequence[str] = "auto"
    parameters: str | Sequence[str] = "*"
    max_bytes: int | str = "20GB"
    if_exists: IfExists = "error"
    when_full: WhenFull = "block"
    start_step: int = 0
    seed: int = 0
    quiet: bool = False
    session: str = ""

    def check(self) -> None:
        """Check what can be before the command runs.

        Raises:
            ValueError: A setting out of range.
            FileExistsError: There is something at ``out`` and ``if_exists`` is "error".
            StoreFormatError: What is at ``out`` is not a store.
        """
        parse_bytes(self.max_bytes)
        check_rows_wanted(whole=bool(self.full_every) or self.summary, track=self.track)
        if "outer" in check_points(self.at):
            rule = "at must not be 'outer' around a command"
            raise ValueError(f"{rule}: its rows come from cap.record(...), called in the script")
        if self.full_every:
            every(self.full_every)
        check_choice("if_exists", self.if_exists, IfExists)
        check_choice("when_full", self.when_full, WhenFull)
        path = as_place(self.out)
        if not path.exists():
            return
        if self.if_exists == "error":
            remedy = "if_exists='resume' adds to it, if_exists='overwrite' replaces it"
            raise FileExistsError(f"cannot record to {path}: it exists; {remedy}")
        GradientStore.open(path)

    def to_json(self) -> str:
        """Write the settings as the environment variable's value."""
        return json.dumps(asdict(self))


def attach(optimizer: Optimizer) -> Capture | Idle | None:
    """Record this optimizer from now on; print why where that is impossible."""
    try:
        settings = Settings(**json.loads(os.environ[VARIABLE]))
        _start(optimizer, settings)
        return _recording
    except Exception as error:
        write_line(f"not recorded: {type(error).__name__}: {error}; training goes on")
        return None


def _start(optimizer: Optimizer, settings: Settings) -> None:
    global _recording
    model = find_model(optimizer)
    with _store_of_this_training(settings) as (path, if_exists):
        _recording = capture(
            model,
            optimizer,
            path,
            full=every(settings.full_every) if settings.full_every else None,
            track=settings.track,
            summary=settings.summary,
            shadow=settings.shadow,
            weights=settings.weights,
            at=settings.at,
            parameters=settings.parameters,
            max_bytes=settings.max_bytes,
            if_exists=if_exists,
            when_full=settings.when_full,
            start_step=settings.start_step,
            seed=settings.seed,
            quiet=settings.quiet,
        )


@contextlib.contextmanager
def _store_of_this_training(settings: Settings) -> Iterator[tuple[str, IfExists]]:
    """The path to record to, and what to do with a store there."""
    if settings.session and rank_and_world()[0] == 0:
        with Trainings(Path(settings.session)).claim(settings.out, settings.if_exists) as claimed:
            yield claimed
    else:  # rank 0 says where
        yield settings.out, "resume" if restarted() else settings.if_exists


def find_model(optimizer: Optimizer) -> nn.Module:
    """Find the module whose parameters an optimizer updates.

    It is the one that owns most of them, and of those the outermost. Where one module does not own
    them all, several stand together under the names of their classes.

    Raises:
        ValueError: No module owns any of them.
    """
    wanted = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    # type() and not isinstance(): objects that pretend to be others may not survive being asked
    modules = [one for one in gc.get_objects() if issubclass(type(one), nn.Module)]
    owned = [(one, {id(tensor) for tensor in _parameters_of(one)} & wanted) for one in modules]
    owned = [(one, covered) for one, covered in owned if covered]
    owned.sort(key=lambda entry: sum(1 for _ in nn.Module.modules(entry[0])), reverse=True)
    found: list[nn.Module] = []
    while wanted and owned:
        best, covered = max(owned, key=lambda entry: len(entry[1] & wanted))
        if not covered & wanted:
            break
        found.append(best)
        wanted -= covered
    if not found:
        raise ValueError(
            "cannot find the model: no torch.nn.Module owns a parameter of this "
            f"{type(optimizer).__name__}; call gradstats.capture(model, optimizer, path) in it"
        )
    if wanted:
        write_line(f"{len(wanted)} tensors of the optimizer belong to no module: not recorded")
    return found[0] if len(found) == 1 else _together(found)


def _parameters_of(module: nn.Module) -> list[Tensor]:
    """A module's parameters; none of one that does not say: then others own them.

    By the method of torch's class, because those of others may need an argument.
    """
    try:
        return [tensor for _, tensor in nn.Module.named_parameters(module)]
    except Exception:
        return []


def _together(modules: Sequence[nn.Module]) -> nn.ModuleDict:
    named: dict[str, nn.Module] = {}
    for module in modules:
        name = type(module).__name__
        count = sum(key == name or key.startswith(f"{name}_") for key in named)
        named[f"{name}_{count + 1}" if count else name] = module
    return nn.ModuleDict(named)
