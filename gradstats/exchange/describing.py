"""A communication hook in one line: its compressor, its workers, and what it saved."""

from __future__ import annotations

from gradstats.exchange.counts import Traffic


def describe_state(
    compressor: str, workers: int | None, steps: tuple[int, int], traffic: Traffic
) -> str:
    """What `repr` of a hook's state prints.

    Args:
        compressor: Its spec.
        workers: Number of workers; None while there is no process group.
        steps: Number of steps, and how many of them a checkpoint has brought; those are not in
            `traffic`.
        traffic: What this worker sent.

    Example:
        >>> describe_state("ef(topk(0.01))", 2, (0, 0), Traffic())
        "CompressorState('ef(topk(0.01))', 2 workers, no step yet)"
        >>> describe_state("ef(topk(0.01))", 1, (3, 0), Traffic())
        "CompressorState('ef(topk(0.01))', 1 worker, 3 steps, nothing sent)"
    """
    step, before = steps
    parts = [repr(compressor), _counted(workers, "worker") if workers else "no process group yet"]
    parts.append(_counted(step, "step") if step else "no step yet")
    if step > before:
        sent, *share = traffic.saving()
        parts += [f"{sent} per worker" if traffic.wire else sent, *share]
        parts[-1] += f" since step {before:,}" if before else ""
    return f"CompressorState({', '.join(parts)})"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number != 1 else "")
