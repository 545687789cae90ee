"""The sources of rows that settings ask for, and whether there is room for a row of each."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from gradstats.recording.budget import TABLE_BYTES, format_bytes, parse_bytes
from gradstats.recording.processes import Distribution
from gradstats.recording.selection import Selected, sample_elements
from gradstats.recording.settings import CaptureSettings
from gradstats.recording.slots import KINDS, Kind, Point
from gradstats.recording.staging import Source
from gradstats.store import Parameter


def sources_of(
    table: Sequence[Parameter],
    tensors: Sequence[nn.Parameter],
    points: Iterable[Point],
    settings: CaptureSettings,
    element_ids: Mapping[str, np.ndarray],
) -> list[Source]:
    """Make a source for each observation point and kind of rows.

    Args:
        table: The parameters as the store lays them out.
        tensors: The parameters themselves, in the same order.
        points: Where in the step gradients are taken.
        settings: Those of the capture.
        element_ids: The tracked elements by dtype; empty if none is tracked.

    Raises:
        ValueError: There is nothing to keep.
    """
    sources = [
        Source(
            table,
            tensors,
            kind,
            point,
            element_ids=element_ids if kind == "track" else None,
            wait=settings.when_full == "block",
            weights=settings.weights,
        )
        for point in points
        for kind in _kinds(settings, track=bool(element_ids))
    ]
    if not sources:
        fact = "all parameters get sparse gradients, of which no elements are tracked"
        raise ValueError(f"full or summary must be on, got neither: {fact}")
    return sources


def _kinds(settings: CaptureSettings, *, track: bool) -> list[Kind]:
    wanted = {"full": settings.full is not None, "track": track, "summary": settings.summaries}
    return [kind for kind in KINDS if wanted[kind]]


def tracked(
    table: Sequence[Parameter], settings: CaptureSettings, *, share: float, spread: Distribution
) -> dict[str, np.ndarray]:
    """The elements to track; every process draws its part of them from its own shards."""
    if not settings.track:
        return {}
    source = [settings.seed, spread.rank] if spread.sharded else settings.seed
    count = round(settings.track * share) if spread.sharded else settings.track
    return sample_elements(table, count, np.random.default_rng(source))


def checked_limit(max_bytes: int | str, sources: Iterable[Source]) -> int:
    """Return the bytes that rows may take, beside the tables.

    Raises:
        ValueError: They do not hold one row.
    """
    limit = parse_bytes(max_bytes) - TABLE_BYTES
    needed = max(source.cost for source in sources)
    if needed > limit:
        raise ValueError(
            f"max_bytes must leave room for one row, which takes {format_bytes(needed)} beside "
            f"{format_bytes(TABLE_BYTES)} of tables, got {max_bytes!r}; raise it, or select "
            "fewer parameters"
        )
    return limit


def check_weights(chosen: Sequence[Selected], table: Sequence[Parameter]) -> None:
    """Check that weights fit into rows of their gradients' dtypes.

    Raises:
        ValueError: One does not.
    """
    for one, parameter in zip(chosen, table, strict=True):
        dtype = getattr(torch, parameter.dtype)
        if torch.promote_types(one.tensor.dtype, dtype) != dtype:
            raise ValueError(
                f"weights must be off: {one.name!r} is {one.tensor.dtype}, and its gradient, in "
                f"whose rows it would be kept, {dtype}"
            )
