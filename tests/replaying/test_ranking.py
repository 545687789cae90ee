"""From replay rows to a ranking and a sentence of advice, on tables made by hand."""

import math

import numpy as np
import pandas
import pytest
import torch

import gradstats
from gradstats.compressors import Rng, compressor
from gradstats.fitting.ranking import best_distribution
from gradstats.network import Network
from gradstats.replaying import ranking as tables
from gradstats.replaying.folding import measure
from gradstats.replaying.ranking import break_even, methods_table, ranking, timing_table
from gradstats.reporting.advice import advice, law_sentence


def method(compressor, **changes):
    """A line of a table of methods: bf16-like unless told otherwise."""
    line = {
        "compressor": compressor,
        "method": compressor.partition("(")[0],
        "target_ratio": 0.01 if "(" in compressor else math.nan,
        "feedback": "ef" if "(" in compressor else "none",
        "granularity": "model",
        "dense": "",
        "rows": "track",
        "steps": 400,
        "bits": 16.0,
        "reduced_bits": 0.0,
        "error": 0.002 if "(" not in compressor else 0.9,
        "encode_seconds": 1e-4,
        "decode_seconds": 1e-4,
        "collective": "all_gather" if "(" in compressor else "all_reduce",
        "rounds": 1,
        "numel": 10**7,
        "residual_ratio": 3.0 if "(" in compressor else math.nan,
        "settled": True if "(" in compressor else None,
        "status": "ok",
        "wants_feedback": "(" in compressor,
    } | changes
    return line


def ranked_of(*lines, network):
    table = pandas.DataFrame(lines)
    table["exchange_seconds"] = [_exchange(line, network) for line in lines]
    return ranking(table)


def _exchange(line, network):
    """Encode, send to all, decode what comes: once where it was summed on the way."""
    nbytes = line["bits"] * line["numel"] / 8
    seconds = line["encode_seconds"]
    if line["collective"] == "all_reduce":
        return seconds + line["decode_seconds"] + network.all_reduce(nbytes)
    return seconds + network.workers * line["decode_seconds"] + network.all_gather(nbytes)


SLOW_LINKS, FAST_LINKS = Network(8, 1e7, 0.0), Network(8, 1e12, 0.0)
SPARSE = {"bits": 0.5, "encode_seconds": 1e-3}


@pytest.mark.parametrize("network", [SLOW_LINKS, FAST_LINKS], ids=["slow", "fast"])
def test_advice_follows_the_time_and_may_be_not_to_compress(network):
    ranked = ranked_of(method("bf16"), method("topk(0.01)", **SPARSE), network=network)
    sentence = advice(ranked, network)
    seconds = ranked.set_index("method")["exchange_seconds"]
    if seconds["topk"] < seconds["bf16"]:
        assert network is SLOW_LINKS
        assert sentence.startswith("Use ef(topk(0.01))")
        assert "pays below" in sentence
    else:
        assert network is FAST_LINKS
        assert sentence.startswith("Do not compress beyond bf16")
        assert "would pay below" in sentence


def test_a_method_that_saves_nothing_pays_nowhere():
    network = SLOW_LINKS
    wasteful = method("dgc(0.01)", bits=40.0)
    sentence = advice(ranked_of(method("bf16"), wasteful, network=network), network)
    assert sentence.startswith("Do not compress")
    assert "on any network" in sentence


def test_times_are_equal_at_the_bandwidth_of_break_even():
    dense, sparse = method("bf16"), method("topk(0.01)", **SPARSE)
    limit = break_even(sparse, dense, Network(latency=0.0))
    assert 0 < limit < math.inf
    for factor, order in ((0.99, ["topk", "bf16"]), (1.01, ["bf16", "topk"])):
        network = Network(bandwidth=factor * limit, latency=0.0)
        assert list(ranked_of(dense, sparse, network=network)["method"]) == order


def test_unsettled_methods_are_shown_without_a_rank():
    fast = method("topk(0.01)", bits=1e-3, settled=False)
    steady = method("dgc(0.01)", **SPARSE)
    ranked = ranked_of(method("bf16"), fast, steady, network=SLOW_LINKS)
    ranks = ranked.set_index("method")["rank"]
    assert math.isnan(ranks["topk"])
    assert sorted(ranks.dropna()) == [1, 2]
    assert "topk" not in advice(ranked, SLOW_LINKS)
    alone = ranked_of(method("bf16"), fast, network=SLOW_LINKS)
    assert advice(alone, SLOW_LINKS).startswith("No advice yet")


def test_at_most_ten_are_ranked_and_bf16_is_among_them_however_slow():
    names = [f"m{i}(0.01)" for i in range(12)]
    lines = [method(name, bits=0.1 + i) for i, name in enumerate(names)]
    lines += [method("bf16", encode_seconds=1e3), method("m0(0.1)", target_ratio=0.1, bits=0.0)]
    lines += [method("m1(0.01)", granularity="parameter", bits=0.0)]
    ranked = ranked_of(*lines, network=SLOW_LINKS)
    assert list(ranked["compressor"]) == [*names[:9], "bf16"]
    assert list(ranked["rank"]) == list(range(1, 11))
    assert ranked["exchange_seconds"].is_monotonic_increasing


def test_lines_are_medians_and_feedback_is_judged_on_its_last_quarter():
    steps = 400
    errors = np.linspace(0.9, 0.1, steps)
    row = {"compressor": "topk(0.1)", "method": "topk", "target_ratio": 0.1, "status": "ok"}
    row |= {"wants_feedback": True, "workers": 1}
    row |= {
        "granularity": "model",
        "dense": "",
        "cosine": 0.5,
        "bits": 6.4,
        "reduced_bits": 0.0,
        "n": 100,
        "k": 10,
        "error": 0.7,
    }
    row |= {"nmse": 0.5, "nmse_workers": 0.25, "wire": 0.0, "sum_bits": 0, "fp16_error": math.nan}
    rows = [
        {**row, "feedback": "ef", "rows": "track", "step": step, "error_compensated": errors[step]}
        | {"residual_ratio": 2.0, "khat_over_k": 1 + step}
        for step in range(steps)
    ]
    rows.append({**rows[0], "status": "skipped: NaN", "step": steps, "khat_over_k": math.nan})
    rows += [
        {**row, "feedback": "none", "rows": "full", "step": step, "error_compensated": error}
        | {"residual_ratio": math.nan, "khat_over_k": 1.0}
        for step, error in enumerate((0.2, 0.4, 0.9))
    ]
    times = {"compressor": "topk(0.1)", "method": "topk", "target_ratio": 0.1, "n": 1000}
    times |= {"collective": "all_gather", "encode_seconds": 0.5, "decode_seconds": 0.25}
    times |= {"rounds": 1}
    network = Network(workers=4, bandwidth=1e3, latency=0.0)
    table = methods_table(
        pandas.DataFrame(rows),
        timing_table([times | {"feedback": each} for each in ("none", "ef")]),
        network,
    )
    fed_back, open_loop = (table[table["feedback"] == each].iloc[0] for each in ("ef", "none"))
    assert fed_back["error_compensated"] == pytest.approx(np.median(errors[-100:]))
    assert fed_back["khat_over_k"] == pytest.approx(np.median(np.arange(301, 401)))
    assert fed_back["miss"] == pytest.approx(
        np.median(np.log((10 * np.arange(301, 401) + 0.5) / 10.5))
    )
    assert fed_back["settled"]
    assert (fed_back["steps"], fed_back["skipped_rows"]) == (steps, 1)
    assert open_loop["error_compensated"] == 0.4
    exchange = 0.5 + 4 * 0.25 + 3 * 6.4 * 1000 / 8 / 1e3
    assert open_loop["exchange_seconds"] == pytest.approx(exchange)


def test_the_sentence_on_laws_names_the_nearest_and_the_runner_up(small_run):
    run = gradstats.open(small_run)
    fits = gradstats.fit(run, ratios=[0.1])
    laws = best_distribution(fits)
    thresholds = pandas.DataFrame(
        {"variant": "e", "stages": stages, "target_ratio": 0.1, "khat_over_k": khat}
        for stages, khat in ((1, 3.0), (1, 5.0), (3, 1.0))
    )
    sentence = law_sentence(laws, thresholds, 0.1)
    first, second = laws.to_dict("records")[:2]
    assert sentence.startswith(f"{first['family']} describes the gradients best: its thresholds ")
    assert f"keep {np.exp(first['tail']) - 1:.0%} too many or too few" in sentence
    assert f"(next, {second['family']}: " in sentence
    assert "SIDCo-E 4.00 → 1.00" in sentence


def test_methods_that_send_too_little_come_last_and_are_not_advised():
    good = method("topk(0.01)", residual_ratio=3.0, **SPARSE)
    close = method("dgc(0.01)", residual_ratio=4.4, bits=0.6)
    stale = method("threshold(0.01)", residual_ratio=4.6, bits=1e-3)
    lines = (method("bf16"), stale, good, close)
    ranked = ranked_of(*lines, network=SLOW_LINKS)
    assert list(ranked["method"]) == ["topk", "dgc", "bf16", "threshold"]
    assert list(ranked["behind"]) == [False, False, False, True]
    assert advice(ranked, SLOW_LINKS).startswith("Use ef(topk(0.01))")
    open_loop = [
        line
        | {"feedback": "none", "error": line["residual_ratio"] / 10, "residual_ratio": math.nan}
        for line in lines[1:]
    ]
    unfed = ranked_of(method("bf16"), *open_loop, network=SLOW_LINKS)
    assert list(unfed["method"]) == ["topk", "dgc", "bf16", "threshold"]
    assert advice(unfed, SLOW_LINKS).startswith("No advice yet")


def test_break_even_and_times_agree_with_latency():
    dense = method("bf16", numel=10**6)
    sparse = method("topk(0.01)", numel=10**6, bits=0.6, encode_seconds=3e-3)
    limit = break_even(sparse, dense, Network())
    for factor, faster in ((0.99, "topk"), (1.01, "bf16")):
        network = Network(bandwidth=factor * limit)
        ranked = ranked_of(dense, sparse, network=network)
        assert ranked["method"].iloc[0] == faster


def test_a_method_that_sends_too_much_does_not_set_the_bar():
    greedy = method("gaussiank(0.01)", residual_ratio=1.5, bits=2.0)
    exact = method("topk(0.01)", residual_ratio=3.0, **SPARSE)
    ranked = ranked_of(method("bf16"), greedy, exact, network=SLOW_LINKS)
    assert not ranked["behind"].any()
    assert advice(ranked, SLOW_LINKS).startswith("Use ef(topk(0.01))")


@pytest.mark.parametrize(("collective", "messages"), [("all_reduce", 14), ("all_gather", 7)])
def test_every_round_waits_for_its_messages(collective, messages):
    """On 8 workers: a method of two rounds of 20 µs a message, and nothing else."""
    network, seconds = Network(8, math.inf, 20e-6), []
    for rounds in (1, 2):
        line = method("powersgd", collective=collective, rounds=rounds)
        line |= {"encode_seconds": 0.0, "decode_seconds": 0.0, "exchange_seconds": 0.0}
        limit = Network(8, 1e9, 20e-6)
        dense = {**line, "bits": 32.0, "encode_seconds": 1e-3}
        assert break_even(line, dense, limit) == math.inf
        seconds.append(tables._exchange(line, network))
    assert seconds == pytest.approx([messages * 20e-6, 2 * messages * 20e-6])


@pytest.mark.parametrize(
    ("spec", "decoded"), [("twoshot(mxfp8, second=bf16)", 1), ("ring(mxfp8)", 2 - 1 / 8)]
)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_two_shots_are_priced_by_both_codes_whatever_was_replayed(spec, decoded, workers):
    """n-1 messages of 1/8 of c = 8.25 bits per element, and as many of c₂ = 16 or 8.25."""
    member = compressor(spec)
    grads = [
        torch.randn(2**15, generator=torch.Generator().manual_seed(w)) for w in range(workers)
    ]
    states = [member.init(grad) for grad in grads]
    measured, _ = measure(member, grads, states, Rng(workers=workers))
    replayed = {"bits": measured.bits, "wire_bits": 8 * measured.wire / 2**15, "workers": workers}
    network = Network(8, 1e6, 1e-3)
    line = method(spec, collective=member.contract.collective, **replayed)
    line |= {"encode_seconds": 0.5, "decode_seconds": 0.25}
    both = (8.25 + (16 if "bf16" in spec else 8.25)) / 8 * line["numel"]
    seconds = 0.5 + decoded * 0.25 + 7 * (2e-3 + both / 8 / 1e6)
    assert tables._exchange(line, network) == pytest.approx(seconds, rel=0.01)


def test_a_method_without_feedback_is_held_to_the_bar_by_its_error():
    """It holds nothing back: what it loses stands for ‖e‖/‖g‖, or noise would be advised."""
    exact = method("topk(0.01)", residual_ratio=3.0, **SPARSE)
    lines = [
        method(name, bits=bits, error=error, encode_seconds=0.0)
        for name, bits, error in (("qsgd", 0.02, 4.4), ("terngrad", 0.01, 4.6))
    ]
    ranked = ranked_of(method("bf16"), exact, *lines, network=SLOW_LINKS)
    assert list(ranked["method"]) == ["qsgd", "topk", "bf16", "terngrad"]
    assert list(ranked["behind"]) == [False, False, False, True]
    assert advice(ranked, SLOW_LINKS).startswith("Use qsgd")


@pytest.mark.parametrize(
    ("seconds", "begins"),
    [(0.79, "Use ef(topk(0.01))"), (0.81, "Do not compress"), (1.2, "Do not compress")],
)
def test_an_advice_needs_a_fifth_of_the_time(seconds, begins):
    """On links without end, where an exchange is its encoding: bf16 takes a second."""
    network = Network(8, math.inf, 0.0)
    dense = method("bf16", encode_seconds=0.6, decode_seconds=0.4)
    sparse = method("topk(0.01)", encode_seconds=seconds, decode_seconds=0.0, bits=0.5)
    sentence = advice(ranked_of(dense, sparse, network=network), network)
    assert sentence.startswith(begins)
    assert ("saves 19%, too little" in sentence) == (seconds == 0.81)


def test_nothing_that_loses_too_much_is_advised_where_it_is_all_there_is():
    """Top-k without its feedback sets the bar, and is no advice itself."""
    topk = method("topk(0.01)", feedback="none", error=0.9, residual_ratio=math.nan, **SPARSE)
    noise = method("qsgd", bits=0.02, error=1.5)
    ranked = ranked_of(method("bf16"), topk, noise, network=SLOW_LINKS)
    assert dict(zip(ranked["method"], ranked["behind"], strict=True)) == {
        "topk": False,
        "bf16": False,
        "qsgd": True,
    }
    assert advice(ranked, SLOW_LINKS).startswith("No advice yet")


def test_what_sends_more_pays_below_no_bandwidth_however_fast_it_is():
    dense, fast = method("bf16"), method("fp32", bits=32.0, encode_seconds=0.0)
    assert break_even(fast, dense, Network()) == 0
    assert break_even(dense, dense, Network()) == 0


def test_a_small_saving_is_not_advised():
    dense, sparse = method("bf16"), method("topk(0.01)", **SPARSE)
    limit = break_even(sparse, dense, Network(latency=0.0))
    for factor, advised in ((0.95, False), (0.1, True)):
        network = Network(bandwidth=factor * limit, latency=0.0)
        sentence = advice(ranked_of(dense, sparse, network=network), network)
        assert sentence.startswith("Use") == advised
        assert advised or "too little" in sentence
