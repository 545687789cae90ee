"""Replay rows → one row per method: what an engineer compares."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from gradstats import extras
from gradstats.network import Network
from gradstats.replaying.columns import Labels, Line, MethodRow, ReplayRow, TimingRow
from gradstats.replaying.folding import settled
from gradstats.runs.given import given_table, of_one
from gradstats.runs.tables import frame, names

Table = Any
METHOD = names(Labels)
REPLAYED = [name for name in names(ReplayRow) if name not in ("sampling_fraction", "left_out")]
REPLAYED.remove("whole")  # a column of the folder of results
TAIL = 4  # methods with memory are judged on the last quarter of their steps
TIMED = [name for name in names(TimingRow) if name != "encode_over_topk"]
MOST_RANKED = 10
FAR_BEHIND = 1.5  # times what Top-k holds back


def methods(
    replayed: Table, timings: Table | None = None, *, network: Network | None = None
) -> Table:
    """Reduce a replay to one row per method and setting, with what an exchange would cost.

    Columns are medians over the steps. Methods that were replayed on consecutive steps are judged
    on the last quarter of them, the others on all rows. `exchange_seconds` is encode + collective
    + decode, the collective as the network models it.

    Args:
        replayed: the table of `gradstats.replay`, of one number of workers.
        timings: the table of `gradstats.timings` for the same compressors; without it no time is
            known, and those columns are NaN.
        network: on which the exchange is projected; default: `Network()`, 8 workers on 10 Gbit/s.

    Returns:
        A pandas DataFrame with the columns of `gradstats.replaying.columns.MethodRow`.

    Raises:
        ValueError: a table is not of that verb, or the rows are of several numbers of workers.

    Example:
        >>> import gradstats
        >>> replayed = gradstats.replay(gradstats.load_example(), ["topk", "bf16"], ratios=0.01)
        >>> gradstats.methods(replayed)[["method", "steps", "status"]].to_dict("records")
        [{'method': 'topk', 'steps': 2, 'status': 'ok'}, {'method': 'bf16', 'steps': 2, \
'status': 'ok'}]
    """
    rows = given_table(replayed, REPLAYED, name="replayed", verb="replay")
    times = frame([], TimingRow)
    if timings is not None:
        times = given_table(timings, names(TimingRow), name="timings", verb="timings")
    return methods_table(of_one(rows, "workers", "replayed"), times, network or Network())


def methods_table(replayed: Table, timings: Table, network: Network) -> Table:
    """Medians over steps of every method and setting, with what an exchange would cost.

    Methods replayed on consecutive steps are judged on the last quarter of them, the others on all
    rows. `exchange_seconds` is encode + collective + decode, the collective as modelled; each of
    several rounds waits for its messages. `sent_bits` compares methods whose collectives differ:
    of the bits that a method hands over, an all-reduce on n workers sends 2 (n-1)/n times as much
    from each, a gather n-1 times, a two-shot exchange (n-1)/n times both codes.

    Args:
        replayed: the table of `gradstats.replay`, which may be empty.
        timings: the table of `gradstats.timings`, which may be empty.
        network: that the exchange is projected on.
    """
    pandas = extras.load("pandas")
    if not len(replayed):
        return frame([], MethodRow)
    lines = [
        {**dict(zip(METHOD, key, strict=True)), **vars(_line(rows))}
        for key, rows in replayed.groupby(METHOD, dropna=False, sort=False)
    ]
    by = ["compressor", "feedback"]
    times = timings[[*by, "encode_seconds", "decode_seconds", "collective", "rounds", "n"]]
    table = pandas.DataFrame(lines).merge(times.rename(columns={"n": "numel"}), on=by, how="left")
    every = table.to_dict("records")
    table["sent_bits"] = [8 * _sent(line, network) / line["numel"] for line in every]
    table["exchange_seconds"] = [_exchange(line, network) for line in every]
    return table


def _line(rows: Table) -> Line:
    good = rows[rows["status"] == "ok"].sort_values("step")
    status = "ok" if len(good) else str(rows["status"].iloc[0])
    feedback = bool(good["residual_ratio"].notna().any())
    steady = feedback or good["rows"].eq("track").all()
    last = good.tail(max(1, len(good) // TAIL)) if steady else good
    ratio = rows["target_ratio"].fillna(1.0).iloc[0]
    khat = last["khat_over_k"] * last["k"]
    return Line(
        steps=len(good),
        khat_over_k=last["khat_over_k"].median(),
        khat_low=last["khat_over_k"].quantile(0.1),
        khat_high=last["khat_over_k"].quantile(0.9),
        miss=float(np.abs(np.log((khat + 0.5) / (last["k"] + 0.5))).median()),
        error=last["error"].median(),
        error_compensated=last["error_compensated"].median(),
        cosine=last["cosine"].median(),
        bits=last["bits"].median(),
        reduced_bits=last["reduced_bits"].median(),
        nmse=last["nmse"].median(),
        nmse_workers=last["nmse_workers"].median(),
        wire=last["wire"].median(),
        wire_bits=(8 * last["wire"] / last["n"]).median(),
        workers=int(rows["workers"].iloc[0]),
        sum_bits=last["sum_bits"].max(),
        fp16_error=last["fp16_error"].max(),
        residual_ratio=last["residual_ratio"].median(),
        settled=settled(list(good["residual_ratio"]), ratio) if feedback else None,
        skipped_rows=int((rows["step"] >= 0).sum()) - len(good),
        status=status,
    )


def _exchange(line: dict[str, Any], network: Network) -> float:
    n = network.workers
    decoded = {"all_gather": n, "ring": 2 - 1 / n}.get(line["collective"], 1)  # hops are, too
    coding = line["encode_seconds"] + decoded * line["decode_seconds"]
    return float(coding + _collectives(line, network))


def _collectives(line: dict[str, Any], network: Network) -> float:
    """Seconds of the method's collectives, and of an all-reduce of what is sent dense."""
    elements = line["numel"] / 8
    nbytes, reduced = line["bits"] * elements, line["reduced_bits"] * elements
    if line["collective"] == "all_reduce":
        return network.all_reduce(nbytes, line["rounds"])
    if nbytes == reduced:
        return network.all_reduce(nbytes)
    dense = network.all_reduce(reduced) if reduced else 0.0
    if line["collective"] in ("two_shot", "ring"):
        return dense + network.two_shot(_both_codes(line))
    return dense + network.all_gather(nbytes - reduced, line["rounds"])


def _both_codes(line: dict[str, Any]) -> float:
    """Bytes of both codes of all that is not dense, c + c₂, of which a worker sends (n-1)/n."""
    workers, reduced = line["workers"], line["reduced_bits"]
    if workers > 1:
        bits = line["wire_bits"] * workers / (workers - 1) - 2 * reduced
    else:
        codes = 2 if line["collective"] == "ring" else 1  # alone, a ring encodes once
        bits = codes * (line["bits"] - reduced)
    return float(bits * line["numel"] / 8)


def _sent(line: dict[str, Any], network: Network) -> float:
    """Bytes that one worker sends in an exchange."""
    return _collectives(line, replace(network, bandwidth=1.0, latency=0.0))


def low_rank(rows: Table) -> Table:
    """Medians over steps of the rows of factorised training, one row per kind."""
    keys = ["method", "kind", "error_on", "status"]
    columns = ["error", "cosine", "captured", "weight_error", "nbytes", "amortised_nbytes"]
    grouped = rows.groupby(keys, sort=False, dropna=False)
    return grouped[[*columns, "step_seconds"]].median().reset_index()


def ranking(methods: Table) -> Table:
    """The first screen's rows: at most ten ranked by time, then the unsettled, without rank.

    Compared on the whole model are methods that train as they are, and those that want error
    feedback with it, sparsifiers at one ratio. Error feedback delivers everything in the end, so
    the time of an exchange is what counts, as long as a method does not hold back much more than
    it needs to: those with ‖e‖/‖g‖ above 1.5 times Top-k's (the least, without Top-k) come last
    (`behind`). Where no feedback row has settled, the methods without feedback are ranked, by what
    they lose: error for ‖e‖/‖g‖.
    """
    wants = methods["wants_feedback"].astype(bool)
    alone = ~wants & (methods["feedback"] == "none")
    whole = (methods["granularity"] == "model") & (methods["status"] == "ok")
    ratios = methods["target_ratio"]
    at_ratio = ratios.isna() | (ratios == headline_ratio(methods))
    feedback = wants & (methods["feedback"] == "ef")
    steady = feedback & (methods["settled"] == True)  # noqa: E712  (None and NaN are not settled)
    wanted = steady if (whole & at_ratio & steady).any() else methods["feedback"] == "none"
    ranked = methods[whole & at_ratio & (alone | wanted)]
    held = ranked["residual_ratio"].where(ranked["feedback"] == "ef", ranked["error"])
    # Top-k sets the bar: a method that sends too much holds back less than it needs to
    sparse = ranked["target_ratio"].notna()
    topk = held[sparse & (ranked["method"] == "topk")]
    least = topk.min() if len(topk) else held[sparse].min()
    order = ["behind", "exchange_seconds"]
    ranked = ranked.assign(behind=held > FAR_BEHIND * least).sort_values(order)
    if len(ranked) > MOST_RANKED:
        baseline = ranked[ranked["method"] == "bf16"]
        others = ranked[ranked["method"] != "bf16"].head(MOST_RANKED - len(baseline))
        ranked = extras.load("pandas").concat([others, baseline]).sort_values(order)
    ranked = ranked.assign(rank=range(1, len(ranked) + 1))
    unsettled = methods[whole & at_ratio & feedback & ~steady].assign(rank=math.nan, behind=False)
    return extras.load("pandas").concat([ranked, unsettled]) if len(unsettled) else ranked


def headline_ratio(methods: Table) -> float:
    """The ratio of the ranking: 0.01 where it was replayed, else the middle one."""
    ratios = sorted(methods["target_ratio"].dropna().unique())
    if not ratios:
        return math.nan
    return 0.01 if 0.01 in ratios else float(ratios[len(ratios) // 2])


def timing_table(rows: Any) -> Table:
    """Timings with `encode_over_topk`, the time over Top-k's at the same ratio.

    Methods without a ratio are compared with Top-k at the ratio of the ranking.
    """
    table = extras.load("pandas").DataFrame(rows, columns=TIMED)
    if not len(table):
        return frame([], TimingRow)
    key = ["target_ratio", "feedback"]
    topk = table[table["method"] == "topk"][[*key, "encode_seconds"]]
    asked = table[key].fillna({"target_ratio": headline_ratio(table)})
    topk = asked.merge(topk.drop_duplicates(key), on=key, how="left")["encode_seconds"]
    return table.assign(encode_over_topk=table["encode_seconds"] / topk)


def break_even(line: dict[str, Any], dense: dict[str, Any], network: Network) -> float:
    """Bytes a second below which an exchange is faster than the dense one, 0 if it never is."""
    seconds, volume = _parts(line, network)
    dense_seconds, dense_volume = _parts(dense, network)
    saved = dense_volume - volume
    if saved <= 0:
        return 0.0
    extra = seconds - dense_seconds
    return saved / extra if extra > 0 else math.inf


def _parts(line: dict[str, Any], network: Network) -> tuple[float, float]:
    """Seconds whatever the bandwidth, and bytes through a link, of one exchange."""
    return _exchange(line, replace(network, bandwidth=math.inf)), _sent(line, network)
