"""Pairs of distributions compared on the elements of a gradient, as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import combinations
from os import PathLike
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from gradstats.families import Family
from gradstats.fitting.columns import PairRow
from gradstats.fitting.settings import PairKeywords, PairSettings
from gradstats.fitting.vuong import NESTED, Blocks, Comparison, compare
from gradstats.runs import Run, opened
from gradstats.runs.groups import check_by, group_of, joined_summaries
from gradstats.runs.results import Results
from gradstats.runs.tables import Made, Row, frame
from gradstats.runs.tasks import in_order
from gradstats.settings import from_keywords, lists_settings
from gradstats.summary import Summary, summarize, summarize_segments
from gradstats.summary.tensors import as_tensor

Progress = Callable[[int, int], None]  # done, of how many
CANNOT_TELL = "cannot tell"
VUONG, CHI_SQUARED, NONE = "vuong", "chi-squared", "none"


@lists_settings(PairSettings, PairKeywords)
def compare_distributions(
    data: Any,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
    **settings: Unpack[PairKeywords],
) -> Any:
    r"""Compare families of distributions in pairs, by Vuong's test with blocks of elements.

    The mean log ratio, in nats per element, is the size of the difference, and comes first. z and
    p say whether its sign can be trusted: :math:`z = (\sum l_i - c) / \sqrt{n}\omega` with
    :math:`l_i` the log ratio of the two densities at element i, and :math:`\omega^2` the variance
    of sums over contiguous blocks, so that z does not grow because neighbours are alike.

    Args:
        data: an open run or its path, of which evenly spaced rows are read; a gradient in any form
            that `gradstats.summarize` takes; or a Summary, which has no order of elements: mean
            log ratios and `z_independent` only.
        executor: any `concurrent.futures.Executor`; default: the calling process.
        progress: called with (rows done, rows in all).
        **settings: fields of `gradstats.fitting.settings.PairSettings`: families (names or
            classes; default: all), by (the groups of a run), method, correction ("bic", "aic" or
            "none"), blocks (their number), kind and most_rows.

    Returns:
        A pandas DataFrame, one row per captured row, group and pair, with the columns of
        `gradstats.fitting.columns.PairRow`. Of a gradient, the step is 0 and the group "model".

    Raises:
        ValueError: a setting out of its range, or fewer than two families.
        TypeError: an unknown setting.

    References:
        Vuong, "Likelihood ratio tests for model selection and non-nested hypotheses",
        Econometrica 57(2), 1989.

    Example:
        >>> import numpy as np
        >>> grad = np.random.default_rng(0).laplace(size=100_000)
        >>> table = compare_distributions(grad, families=("laplace", "normal"))
        >>> table["better"].item(), round(table["mean_log_ratio"].item(), 2)
        ('laplace', 0.07)
    """
    chosen = from_keywords(PairSettings, settings, verb="compare_distributions")
    if isinstance(data, Run | str | PathLike):
        return frame(_run_rows(opened(data), chosen, executor, progress), PairRow)
    blocks = Blocks(data) if isinstance(data, Summary) else _cut(_flat(data), chosen.blocks)
    return frame(pair_rows(blocks, chosen), PairRow)


def _flat(data: Any) -> Tensor:
    """A gradient as one vector; of several gradients, one after another."""
    parts = list(data.values()) if isinstance(data, dict) else data
    if isinstance(parts, list | tuple) and any(isinstance(each, Tensor) for each in parts):
        return torch.cat([_flat(each) for each in parts if each is not None])
    return as_tensor(parts).to_dense().reshape(-1)


def _cut(flat: Tensor, count: int) -> Blocks:
    """The elements in blocks of equal length; at least two elements per block."""
    bounds = np.linspace(0, flat.numel(), min(count, flat.numel() // 2) + 1).astype(int)
    if len(bounds) < 3:
        return Blocks(summarize(flat))
    parts = [part for part in summarize_segments(flat, bounds) if part.nonzero]
    return Blocks(summarize(flat), parts)


def pair_rows(
    blocks: Blocks, settings: PairSettings, *, step: int = 0, group: str = "model"
) -> Iterator[Row]:
    """One row per pair of families, in the order of the settings."""
    laws: dict[str, Family | str] = {}
    for family in settings.families:
        try:
            laws[family.name] = family.fit(blocks.whole, method=settings.method)
        except Exception as error:  # a family may be anyone's
            laws[family.name] = str(error) or type(error).__name__
    common: Row = {
        "step": step,
        "group": group,
        "n": blocks.whole.nonzero,
        "method": settings.method,
        "correction": settings.correction,
        "blocks": len(blocks.parts),
        "block_length": blocks.whole.n / len(blocks.parts) if blocks.parts else float("nan"),
    }
    for names in combinations(laws, 2):
        pair: Row = dict(zip(("first", "second"), names, strict=True))
        failed = [law for name in names if isinstance(law := laws[name], str)]
        scored = {"status": failed[0]} if failed else _compared(laws, names, blocks, settings)
        yield vars(PairRow(**common, **pair, **scored))


def _compared(
    laws: dict[str, Any], names: Sequence[str], blocks: Blocks, settings: PairSettings
) -> Row:
    one, two = (laws[name] for name in names)
    try:
        result = compare(one, two, blocks, correction=settings.correction)
    except Exception as error:  # a family may be anyone's
        return {"status": f"cannot compare {names[0]}, {names[1]}: {error}"}
    test, notes = _test(result, names, bool(blocks.parts))
    return {
        "mean_log_ratio": result.mean_log_ratio,
        "z": result.z,
        "p": result.p,
        "z_independent": result.z_independent,
        "inflation": result.inflation,
        "relation": result.relation,
        "test": test,
        "better": (CANNOT_TELL, *names)[result.better],
        "notes": notes,
    }


def _test(result: Comparison, names: Sequence[str], in_blocks: bool) -> tuple[str, str]:
    """The test behind a p-value, and why there is none or nothing can be scored."""
    if not np.isfinite(result.mean_log_ratio):
        both = np.isnan(result.mean_log_ratio)
        ending = " and ".join(names) if both else names[0 if result.better == 2 else 1]
        return NONE, f"{ending} ends before the largest magnitude"
    if not in_blocks:
        return NONE, "counts have no order of elements, so that there are no blocks"
    if result.relation == NESTED:
        return CHI_SQUARED, "nested: z has no normal limit; p is of the likelihood ratio"
    if result.alike:
        return NONE, "the two fitted distributions are too alike: z has no normal limit"
    return (VUONG, "") if np.isfinite(result.z) else (NONE, "the blocks do not differ")


def _run_rows(
    run: Run, settings: PairSettings, executor: Executor | None, progress: Progress | None
) -> Iterator[Row]:
    """The pairs of every group of evenly spaced captured rows."""
    check_by(run, settings.by)
    kind = settings.kind or run.fitted_kind
    run.check(kind)
    rows = run.rows(kind)
    places = np.linspace(0, len(rows) - 1, min(settings.most_rows, len(rows))).astype(int)
    tasks = in_order(partial(_row, run, settings, kind), [rows[i] for i in places], executor)
    for done, lines in enumerate(tasks, 1):
        yield from lines
        if progress:
            progress(done, len(places))


def _row(run: Run, settings: PairSettings, kind: str, row: int) -> list[Row]:
    step = int(run.stream(kind).steps[row])
    return [
        line
        for group, blocks in _groups(run, settings, kind, row)
        for line in pair_rows(blocks, settings, step=step, group=group)
    ]


def _groups(run: Run, settings: PairSettings, kind: str, row: int) -> Iterator[tuple[str, Blocks]]:
    """The elements of each group, in the order of its parameters."""
    key = group_of(settings.by, run.names)
    if kind == "summary":
        by_name = run.summaries(row)
        pairs = [(p, by_name[p.name]) for p in run.reader(kind).parameters if p.name in by_name]
        for name, summary in joined_summaries(key, pairs).items():
            yield name, Blocks(summary)
        return
    _, flat = run.gradient(row, kind)
    parts: dict[str, list[Tensor]] = {}
    parameters = run.reader(kind).parameters
    shares = torch.split(flat, [each.numel for each in parameters])
    for parameter, part in zip(parameters, shares, strict=True):
        group = key(parameter)
        if group and parameter.numel:
            parts.setdefault(group, []).append(part)
    for group, tensors in parts.items():
        yield group, _cut(torch.cat(tensors), settings.blocks)


def pair_table(pairs: Any) -> Any:
    """Medians over steps of each group and pair, and how often each family was better.

    Args:
        pairs: the table of `compare_distributions`.

    Returns:
        A pandas DataFrame, one row per group and pair: medians of mean_log_ratio, z, p and
        inflation, and the shares of steps at which the first and the second family were better.
    """
    good = pairs[pairs["status"] == "ok"]
    good = good.assign(
        first_better=good["better"] == good["first"],
        second_better=good["better"] == good["second"],
    )
    by_pair = good.groupby(["group", "first", "second"], sort=False)
    medians = by_pair[["mean_log_ratio", "z", "p", "inflation"]].median()
    return medians.join(by_pair[["first_better", "second_better"]].mean()).reset_index()


def _make_pairs(results: Results, settings: PairSettings, key: Row) -> None:
    rows = _run_rows(results.opened, settings, results.executor, results.stage("pairs"))
    results.keep("pairs", frame(rows, PairRow), key)


KEY = ("by", "families", "method", "correction", "blocks", "kind", "most_rows")
PAIRS = Made({"pairs": PairRow}, _make_pairs, KEY)
