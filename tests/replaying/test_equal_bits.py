"""Methods at equal bits: the yardstick is Top-k of as many bytes, and costs nothing else."""

import math

import pytest
import torch

import gradstats
from gradstats.compressors import SUPPORTED, ErrorFeedback, Rng, compressor
from gradstats.replaying.columns import EqualBitsRow
from gradstats.replaying.equal_bits import HYBRIDS, equal_bits
from gradstats.runs.tables import names

GRAD = torch.randn(30_000, generator=torch.Generator().manual_seed(0)) ** 3


def error(grad, sent):
    return float((sent - grad).norm() / grad.norm())


def test_every_supported_method_has_its_rows_in_order():
    rows = equal_bits(GRAD).to_dict("records")
    assert {row["method"] for row in rows} >= set(SUPPORTED) - {"powersgd"}
    assert not any(row["method"] == "powersgd" for row in rows), "a vector has no rank"
    assert sum(row["compressor"] in ("eden", "eden(4)") for row in rows) == 2
    known = [row["over_topk"] for row in rows if not math.isnan(row["over_topk"])]
    assert known == sorted(known)
    exact = next(row for row in rows if row["compressor"] == "none")
    assert exact["error"] == 0
    assert sum(" | " in row["method"] for row in rows) == 3 * len(HYBRIDS)


@pytest.mark.parametrize("spec", ["sign", "mxfp4", "co3", "qsgd(3)", "sidco-e(0.01)"])
@pytest.mark.slow
def test_the_yardstick_is_the_best_top_k_of_as_many_bytes(spec):
    (row,) = equal_bits(GRAD, [spec]).to_dict("records")
    member = compressor(spec)
    payload, _ = member.encode(GRAD, member.init(GRAD), Rng())
    assert row["bits"] == 8 * payload.nbytes / len(GRAD)
    assert row["error"] == pytest.approx(error(GRAD, payload.decode()), rel=1e-5)
    order = GRAD.abs().argsort(descending=True)
    fitting = []
    for k in range(1, len(GRAD), 37):
        top, _ = compressor(f"exact-threshold({k / len(GRAD)})").encode(GRAD, None)
        if top.nbytes <= payload.nbytes:
            kept = torch.zeros_like(GRAD)
            kept[order[:k]] = GRAD[order[:k]]
            fitting.append(error(GRAD, kept))
    assert row["topk_error"] == pytest.approx(min(fitting), rel=0.02)
    assert row["over_topk"] == pytest.approx(row["error"] / row["topk_error"])


def test_exchanges_that_encode_twice_have_no_row():
    """One message of theirs has half of what they send, and half of what they lose."""
    specs = ["mxfp8", "twoshot(mxfp8)", "ring(mxfp8)", "twoshot(sign, second=bf16)"]
    assert equal_bits(GRAD, specs)["compressor"].tolist() == ["mxfp8"]


def test_threshold_methods_are_top_k_at_equal_bits():
    table = equal_bits(GRAD, ["exact-threshold", "topk", "threshold", "sidco-p"])
    assert table["over_topk"].to_numpy() == pytest.approx(1, abs=0.01)


def test_what_averages_out_over_workers_is_told_apart():
    unbiased, shared = equal_bits(GRAD, ["qsgd(2)"]), equal_bits(GRAD, ["randomk(0.1)"])
    (one,), (other,) = (table.to_dict("records") for table in (unbiased, shared))
    assert one["averaged_error"] == pytest.approx(one["error"] / 8**0.5, rel=0.1)
    assert other["averaged_error"] == pytest.approx(other["error"], rel=1e-5)


def test_memories_are_refused():
    with pytest.raises(ValueError, match="must have no memory here"):
        gradstats.equal_bits(GRAD, [ErrorFeedback(compressor("topk(0.1)"))])


def test_the_answer_is_a_table_as_of_every_verb():
    table = equal_bits(GRAD, ["topk"], ratios=0.1)
    assert list(table.columns) == names(EqualBitsRow)
    nothing = equal_bits(GRAD, ["powersgd"])
    assert (len(nothing), list(nothing.columns)) == (0, names(EqualBitsRow))
