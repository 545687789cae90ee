"""One strict JSON document on stdout: what `--json` prints."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """A value as JSON has it: no NaN or infinity, which become null.

    Example:
        >>> plain({"error": math.nan, 0.01: (1, math.inf)})
        {'error': None, '0.01': [1, None]}
    """
    if hasattr(value, "tolist"):  # of numpy
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    return records(value)


def records(table: Any) -> list[dict[str, Any]]:
    """The rows of a DataFrame, each by its columns."""
    columns = [str(column) for column in table.columns]
    rows = table.itertuples(index=False, name=None)
    return [dict(zip(columns, map(plain, row), strict=True)) for row in rows]


def print_json(document: Any) -> None:
    """Print a document, and nothing else."""
    text = json.dumps(plain(document), indent=1, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(f"{text}\n")
