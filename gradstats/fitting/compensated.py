"""Groups of what error feedback makes of gradients."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from gradstats.compressors import Compressor, ErrorFeedback
from gradstats.compressors.wrappers.error_feedback import compensated
from gradstats.runs.groups import (
    NOTHING,
    Group,
    check_by,
    group_of,
    joined_summaries,
    left_out_of,
    status_of,
)
from gradstats.runs.run import Run
from gradstats.summary import summarize_segments


def compensated_groups(
    run: Run, compressor: Compressor, *, by: str = "model", seed: int = 0
) -> Iterator[list[Group]]:
    """Summaries of gradient + residual, what a compressor with error feedback gets to see.

    The residual needs consecutive steps, so these are tracked rows where they are there; see
    `gradstats.replaying.planning.plan`.

    Args:
        run: selects parameters and steps.
        compressor: with or without its feedback.
        by: see `group_of`.
        seed: of a random method.
    """
    check_by(run, by)
    kind = run.consecutive
    run.check(kind)
    parts, key = run.reader(kind).parameters, group_of(by, run.names)
    offsets = [0, *accumulate(part.numel for part in parts)]
    fraction, left_out = run.stream(kind).sampling_fraction, left_out_of(run, kind, by)
    fed = compressor if isinstance(compressor, ErrorFeedback) else ErrorFeedback(compressor)
    for step, grad in compensated(run.gradients(kind), fed, seed=seed):
        summaries = summarize_segments(grad, offsets, fraction=fraction)
        pairs = [pair for pair in zip(parts, summaries, strict=True) if pair[0].numel]
        joined = joined_summaries(key, pairs)
        yield [
            Group(step, name, joined.get(name, NOTHING), status_of(True, held, ""), without)
            for name, (held, without) in left_out.items()
        ]
