"""Compensated gradients of a run: what the memory of a compressor makes of its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from gradstats.compressors import Compressor, ErrorFeedback, Memory
from gradstats.compressors.wrappers.memory import encoded
from gradstats.compressors.wrappers.per_parameter import in_parts, without_parts
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
    """Summarise gradient + residual, the vector that a compressor inside a memory encodes.

    The residual needs consecutive steps: these are the tracked rows if the run has them, else the
    full rows if their steps are consecutive. Steps with a NaN or inf are skipped, as in a replay.

    Args:
        run: selects parameters and steps.
        compressor: with its memory, such as `lowpass(topk(0.01))`; without one it gets error
            feedback.
        by: see `group_of`.
        seed: of a random method.

    Yields:
        The groups of one step.

    Raises:
        ValueError: unknown grouping, no consecutive steps, a loss scale that is not known, or a
            compressor that needs more than these rows hold.
    """
    check_by(run, by)
    kind = run.consecutive
    run.check(kind)
    parts, key = run.reader(kind).parameters, group_of(by, run.names)
    offsets = [0, *accumulate(part.numel for part in parts)]
    fraction, left_out = run.stream(kind).sampling_fraction, left_out_of(run, kind, by)
    memory, grads = _with_memory(run, compressor, kind), run.gradients(kind)
    for step, vector in encoded(grads, memory, seed=seed, losses=run.losses(kind)):
        summaries = summarize_segments(vector, offsets, fraction=fraction)
        pairs = [pair for pair in zip(parts, summaries, strict=True) if pair[0].numel]
        joined = joined_summaries(key, pairs)
        yield [
            Group(step, name, joined.get(name, NOTHING), status_of(True, held, ""), without)
            for name, (held, without) in left_out.items()
        ]


def _with_memory(run: Run, given: Compressor, kind: str) -> Memory:
    """The compressor in its memory, and in parts where it is written so or needs matrices."""
    bare, rule = without_parts(given)
    memory = bare if isinstance(bare, Memory) else ErrorFeedback(bare)
    matrices = "matrix" in memory.contract.needs
    if matrices and kind != "full":
        fact = "it needs whole matrices, the consecutive steps are those of tracked elements"
        raise ValueError(f"cannot compensate gradients as {given} does: {fact}")
    if rule is None and not matrices:
        return memory
    divided = in_parts(memory, run.parts(kind, rule), rule)
    return divided if isinstance(divided, Memory) else memory
