"""What the tables come to, in sentences."""

from __future__ import annotations

import math
from typing import Any

from gradstats.network import Network
from gradstats.ratios import DenseRule
from gradstats.replaying.ranking import break_even

Table = Any
PLAIN = ("none", "bf16", "fp16")
WORTHWHILE = 0.8  # of the time of a bf16 exchange: less is within the noise of timings


def advice(ranked: Table, network: Network) -> str:
    """One plain sentence: which compressor, or none, and below which bandwidth that changes."""
    lines = ranked[ranked["rank"].notna()].to_dict("records")
    dense = next((line for line in lines if line["method"] == "bf16"), None)
    if dense is None:
        return "No advice: bf16, the baseline, was not replayed."
    others = [line for line in lines if _trains(line) and not line["behind"]]
    if not others:
        most = int(ranked["steps"].max())
        return (
            f"No advice yet: no method with error feedback has settled within {most} steps; until "
            "more are captured, bf16 is the safe choice."
        )
    best = others[0]
    limit = 8 * break_even(best, dense, network) / 1e9
    times = f"{_ms(best['exchange_seconds'])} against {_ms(dense['exchange_seconds'])} for bf16"
    where = f"an exchange takes {times}, {network}"
    name, held = _named(best)
    share = best["exchange_seconds"] / dense["exchange_seconds"]
    if share < WORTHWHILE:
        pays = "at any bandwidth" if math.isinf(limit) else f"below {limit:.2g} Gbit/s"
        return f"Use {name}: {where}; it pays {pays}, and {held}. {_hook(name)}"
    pays = f"would pay below {limit:.2g} Gbit/s" if limit > 0 else "would not pay on any network"
    if share < 1:
        pays = f"saves {1 - share:.0%}, too little for what it adds"
    return (
        f"Do not compress beyond bf16: with the fastest good compressor, {name}, {where}; it "
        f"{pays}, and {held}."
    )


def _trains(line: dict[str, Any]) -> bool:
    """Whether a line is of a compressor that can be advised: it has what it wants."""
    fed = line["feedback"] != "none" or not line["wants_feedback"]
    return fed and line["method"] not in PLAIN


def _named(line: dict[str, Any]) -> tuple[str, str]:
    """How a method is written, and what it costs besides time."""
    if line["feedback"] == "none":
        return line["compressor"], f"each step's error is {line['error']:.2g} of the gradient"
    held = f"it holds back {line['residual_ratio']:.2g} gradients' worth on the way"
    return f"{line['feedback']}({line['compressor']})", held


def _hook(name: str) -> str:
    """How the method is used in a training, and what is sent dense there."""
    call = f'gradstats.ddp_hooks.CompressorState(None, "{name}")'
    return f"In a training: {call}; parameters of {DenseRule()} are sent dense there."


def law_sentence(laws: Table, thresholds: Table, ratio: float) -> str:
    """The family that ranks first and how well SIDCo's thresholds hit the smallest ratio."""
    if not len(laws):
        return "No family could be fitted."
    laws = laws[laws["rank"].notna()]
    if not len(laws):
        return "No family was ranked: references, such as scipy:norm, are not."
    best = laws.iloc[0]
    rows = thresholds[thresholds["target_ratio"] == ratio]
    pairs = rows.groupby(["variant", "stages"])["khat_over_k"].median()
    quality = ", ".join(
        f"SIDCo-{variant.upper()} {pairs[variant, 1]:.2f} → {pairs[variant, stages]:.2f}"
        for variant in dict.fromkeys(rows["variant"])
        for stages in [max(rows["stages"])]
    )
    return (
        f"{best['family']} describes the gradients best: {_scores(best)}{_runner_up(laws)}. "
        f"SIDCo's k̂/k at {ratio:g}, on gradients without feedback, with one → "
        f"{max(rows['stages'])} stages: {quality}."
    )


def _scores(law: Any) -> str:
    """What the two scores that rank a family mean, in words."""
    off = f"its thresholds keep {math.expm1(law['tail']):.0%} too many or too few"
    return (
        f"{off}, and it loses {law['transfer']:.2g} nats per element to the best on the next row"
    )


def _runner_up(laws: Table) -> str:
    if len(laws) < 2:
        return ""
    second = laws.iloc[1]
    scores = f"{math.expm1(second['tail']):.0%} and {second['transfer']:.2g} nats"
    return f" (next, {second['family']}: {scores})"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
