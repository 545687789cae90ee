"""Where a recording comes from, without what is nobody's business."""

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

#: The environment variable that carries settings to the processes of `gradstats capture`.
VARIABLE = "GRADSTATS_CAPTURE"
#: The key under which a store keeps what --out was; the file's name alone.
OUT = "out"

_REDACTED = "<redacted>"
_NAME = (
    r"(?:(?:api|access|auth|private|secret|signing)[-_.]?key"
    r"|token(?![a-z])|secret|passw|credential|bearer|\bauth\b)"
)
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
# inside a word: a query string, JSON, one of several settings
_SECRET_PAIR = re.compile(rf"({_NAME}[\w-]*[\"']?\s*[:=]\s*)[\"']?[^\s\"',;&}}]+", re.IGNORECASE)
# the shapes in which well-known services hand out their keys, and what looks like one
_SECRET_VALUE = re.compile(
    r"\b(sk|pk|rk)[-_][\w-]{16,}|\bhf_\w{16,}|\bgh[pousr]_\w{16,}|\bgithub_pat_\w{16,}"
    r"|\bAKIA[A-Z0-9]{12,}|\bxox[a-z]-[\w-]{10,}|\beyJ[\w-]{10,}\.[\w.-]+|\b[0-9a-f]{40,}\b"
)
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
_HOMES = re.compile(r"(/home|/Users|[A-Za-z]:\\Users)[/\\][^/\\\s:=,'\"]+")


def redact(command: Sequence[str]) -> list[str]:
    """Remove secrets and home directories from the words of a command.

    Example:
        >>> redact(["train.py", "--api-key", "abc", "--token=xyz", "--lr=0.1", "/home/jane/data"])
        ['train.py', '--api-key', '<redacted>', '--token=<redacted>', '--lr=0.1', '~/data']
    """
    words: list[str] = []
    hide_next = False
    for word in command:
        name, equals, _ = word.partition("=")
        secret = _SECRET_NAME.search(name.lstrip("-")) is not None
        if hide_next and not word.startswith("--"):
            words.append(_REDACTED)
        elif secret and equals:
            words.append(f"{name}={_REDACTED}")
        else:
            words.append(_redact_inside(word))
        hide_next = secret and not equals and word.startswith("-")
    return words


def _redact_inside(word: str) -> str:
    word = _SECRET_PAIR.sub(rf"\1{_REDACTED}", _URL_LOGIN.sub("", word))
    word = _SECRET_VALUE.sub(_REDACTED, word)
    home = str(Path.home())
    if len(home) > 1:
        word = re.sub(re.escape(home) + r"(?=$|[/\\:=,'\"\s])", "~", word)
    return _HOMES.sub("~", word)


def provenance(
    model: nn.Module,
    optimizer: Optimizer,
    settings: Mapping[str, Any],
    *,
    command: Sequence[str],
) -> dict[str, Any]:
    """Describe a recording that begins now, as JSON values.

    Args:
        model: What is trained.
        optimizer: What updates it.
        settings: Those of the recording, as JSON values.
        command: The words that started this process; secrets among them are left out.
    """
    # by the method of torch's class: a model's own parameters() may need an argument
    _, parameter = next(nn.Module.named_parameters(model))
    device = parameter.device
    on_cuda = device.type == "cuda"
    versions = {name: _version(name) for name in ("gradstats", "torch", "numpy", "zarr")}
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redact(command),
        "model": type(model).__qualname__,
        "optimizer": type(optimizer).__qualname__,
        "device": torch.cuda.get_device_name(device) if on_cuda else str(device),
        "seed": settings["seed"],
        "settings": dict(settings),
        "versions": {"python": platform.python_version(), **versions, "cuda": torch.version.cuda},
        "platform": f"{platform.system()} {platform.machine()}",
        **_below_a_command(),
    }


def _below_a_command() -> dict[str, str]:
    """What marks the stores of one command: trainings of the next may replace those."""
    settings = os.environ.get(VARIABLE)
    return {OUT: Path(json.loads(settings)["out"]).name} if settings else {}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
