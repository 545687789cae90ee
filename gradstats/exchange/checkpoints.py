"""What checkpoints of communication hooks must agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PARTS = ("settings", "worker", "step", "parameters", "memories")
WRITTEN_BEFORE = {"min_dims": 2}  # settings that checkpoints of earlier versions do not name
WORKERS_REMEDY = "load_state_dict([those of all workers, in order], reshard=True)"


def check_checkpoints(
    saved: Sequence[Mapping[str, Any]], own: Mapping[str, Any], reshard: bool
) -> None:
    """Raise ValueError unless these are the checkpoint of one worker, or those of all.

    Args:
        saved: what `state_dict()` gave, of this worker or of all workers in order.
        own: the settings of this worker, and its number.
        reshard: they may be of another number of workers.
    """
    if len(saved) != 1 and not reshard:
        rule = "load_state_dict must be given the checkpoint of this worker"
        raise ValueError(f"{rule}, got {len(saved)}: of all with reshard=True")
    for place, each in enumerate(saved):
        if not isinstance(each, Mapping) or not set(PARTS) <= set(each):
            got = list(each) if isinstance(each, Mapping) else each
            raise ValueError(f"a checkpoint must be what state_dict() gives, got {got!r}")
        expected = {**own, "workers": len(saved), "worker": place} if reshard else own
        theirs = {**WRITTEN_BEFORE, **each["settings"], "worker": each["worker"]}
        _check_settings(theirs, expected)
        for name in ("step", "parameters"):
            if each[name] != saved[0][name]:
                rule = f"checkpoints of all workers must have the same {name}"
                raise ValueError(f"{rule}, got another one from worker {place}")


def _check_settings(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for name, value in own.items():
        if theirs.get(name) != value:
            remedy = f": {WORKERS_REMEDY}" if name == "workers" else ""
            got = f"got one of {theirs.get(name)!r}"
            raise ValueError(f"a checkpoint must be of {name} {value!r}, {got}{remedy}")
