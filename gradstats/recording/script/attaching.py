"""Attaching to a script that does not know of it: from its optimizer to its model, and capture."""

import contextlib
import gc
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from gradstats.recording.capturing import capture_by
from gradstats.recording.handle import Capture
from gradstats.recording.idle import Idle
from gradstats.recording.messages import write_line
from gradstats.recording.notes import note
from gradstats.recording.processes import check_points, rank_and_world
from gradstats.recording.provenance import VARIABLE
from gradstats.recording.script.trainings import Trainings, restarted
from gradstats.recording.settings import CaptureSettings, IfExists
from gradstats.settings import SettingError
from gradstats.store import GradientStore, as_place
from gradstats.store.refusals import check_writable

#: The recording of this process. Kept, so that it lasts as long as the model: a script may put
#: another optimizer in the place of the one that is recorded.
_recording: Capture | Idle | None = None


@dataclass(frozen=True)
class Session:
    """One command whose trainings are recorded, as its processes read it from the environment.

    Attributes:
        out: The path that the command names.
        settings: Of every recording.
        folder: Of this command alone, in which its trainings get numbers; "" for none.
    """

    out: str
    settings: CaptureSettings = field(default_factory=CaptureSettings)
    folder: str = ""

    def check(self) -> None:
        """Check what can be checked before the command runs.

        Raises:
            ValueError: `at` names pseudo-gradients, which only the script itself can record.
            FileExistsError: There is something at `out` and `if_exists` is "error".
            StoreFormatError: What is at `out` is not a store.
        """
        if "outer" in check_points(self.settings.at):
            fact = "its rows come from cap.record(...), called in the script"
            raise SettingError("at", f"must not be 'outer' around a command: {fact}")
        path = as_place(self.out)
        if not path.exists():
            check_writable(path)
            return
        if self.settings.if_exists == "error":
            remedy = "--if-exists resume adds to it, --if-exists overwrite replaces it"
            raise FileExistsError(f"cannot record to {path}: it exists; {remedy}")
        GradientStore.open(path)

    def to_json(self) -> str:
        """Write the session as the environment variable's value."""
        return json.dumps(
            {"out": self.out, "settings": self.settings.plain, "folder": self.folder}
        )

    @classmethod
    def from_json(cls, text: str) -> "Session":
        """Read what `to_json` wrote."""
        values = json.loads(text)
        settings = CaptureSettings.from_plain(values["settings"])
        return cls(values["out"], settings, values["folder"])


def attach(optimizer: Optimizer) -> Capture | Idle | None:
    """Record this optimizer from now on; print why where that is impossible."""
    try:
        _start(optimizer, Session.from_json(os.environ[VARIABLE]))
        return _recording
    except Exception as error:
        fact = f"{type(error).__name__}: {error}"
        write_line(f"not recorded: {fact}; training goes on")
        note("failed", fact=fact)
        return None


def _start(optimizer: Optimizer, session: Session) -> None:
    global _recording
    model = find_model(optimizer)
    with _store_of_this_training(session) as (path, if_exists):
        settings = replace(session.settings, if_exists=if_exists)
        _recording = capture_by(model, optimizer, path, settings)


@contextlib.contextmanager
def _store_of_this_training(session: Session) -> Iterator[tuple[str, IfExists]]:
    """The path to record to, and what to do with a store there."""
    if_exists = session.settings.if_exists
    if session.folder and rank_and_world()[0] == 0:
        with Trainings(Path(session.folder)).claim(session.out, if_exists) as claimed:
            yield claimed
    else:  # rank 0 says where
        yield session.out, "resume" if restarted() else if_exists


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
    models: list[nn.Module] = []
    while wanted and owned:
        best, covered = max(owned, key=lambda entry: len(entry[1] & wanted))
        if not covered & wanted:
            break
        models.append(best)
        wanted -= covered
    if not models:
        raise ValueError(
            "cannot find the model: no torch.nn.Module owns a parameter of this "
            f"{type(optimizer).__name__}; call gradstats.capture(model, optimizer, path) in it"
        )
    if wanted:
        write_line(f"{len(wanted)} tensors of the optimizer belong to no module: not recorded")
    return models[0] if len(models) == 1 else _together(models)


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
