"""Optional dependencies: a missing one names the command that brings it."""

from __future__ import annotations

import importlib
from typing import Any


def load(module: str, extra: str = "analysis") -> Any:
    """Import a module of an extra.

    Raises:
        ImportError: it is not installed; the message has the pip line.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"cannot import {module}: {error}; pip install 'gradstats[{extra}]' brings it"
        ) from error
