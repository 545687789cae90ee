"""Stages behind each other: what they send, what they promise, what is refused."""

import pytest
import torch

from gradstats.compressors import Pipe, Rng, compressor, compressors, from_bytes
from gradstats.payloads.base import Dense
from gradstats.payloads.quantized import Coded
from gradstats.payloads.sparse import Masked, Sparse
from gradstats.testing import check_compressor

GRAD = torch.randn(20_000, generator=torch.Generator().manual_seed(3)) ** 3
SPECS = [
    "topk(0.01) | qsgd(bits=4) | golomb",
    "exact-threshold(0.01) | sign | bitmap",
    "sidco-e(0.01) | mxfp4",
    "topk(0.01) | packed",
    "randomk(0.05) | sign",
    "qsgd(bits=3) | ans",
    "dgc(0.01) | qsgd(bits=2, bucket=64) | ans | golomb",
    "topk(0.1) | bf16",
]


def encoded(spec, grad=GRAD):
    member = compressor(spec)
    return member.encode(grad, member.init(grad), Rng())[0]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.slow
def test_pipes_obey_the_laws(spec):
    check_compressor(compressor(spec), fresh_process=False)


@pytest.mark.parametrize("spec", SPECS)
def test_pipes_round_trip_through_the_grammar(spec):
    made = compressor(spec)
    assert isinstance(made, Pipe)
    assert compressor(str(made)) == made
    assert str(compressor(f"ef({spec})")) == f"ef({made})"


def test_bars_in_python_are_bars_in_the_grammar():
    assert compressor("topk(0.01)") | compressor("sign") == compressor("topk(0.01) | sign")
    three = compressor("topk(0.01)") | compressor("sign") | compressor("bf16")
    assert len(three.stages) == 3


def test_a_pipe_without_ratio_takes_each():
    made = compressors("ef(topk | sign)", [0.1, 0.01])
    assert [str(each) for each in made] == ["ef(topk(0.1) | sign)", "ef(topk(0.01) | sign)"]
    assert [each.target_count(1000) for each in made] == [100, 10]


def test_a_value_code_encodes_the_kept_values_alone():
    payload = encoded("topk(0.01) | sign | raw")
    kept = GRAD[GRAD.abs() >= GRAD.abs().topk(200).values[-1]]
    assert isinstance(payload, Sparse)
    assert isinstance(payload.kept, Coded)
    assert payload.indices.tolist() == GRAD.abs().topk(200).indices.sort().values.tolist()
    torch.testing.assert_close(payload.values, kept.sign() * kept.abs().mean())
    assert payload.nbytes < 200 * 4 + 200 // 8 + 64


def test_a_mask_that_all_share_sends_no_index():
    payload = encoded("randomk(0.05) | sign")
    assert isinstance(payload, Masked)
    assert not payload.summable
    assert payload.nbytes < 1000 // 8 + 64


@pytest.mark.parametrize("code", ["raw", "packed", "bitmap", "golomb", "delta"])
def test_index_codes_change_bytes_and_nothing_else(code):
    plain, coded = encoded("topk(0.01)"), encoded(f"topk(0.01) | {code}")
    assert torch.equal(from_bytes(coded.to_bytes()).decode(), plain.decode())
    assert plain.nbytes <= coded.nbytes  # which takes the shortest


def test_entropy_coding_shortens_what_is_skewed():
    plain, coded = encoded("qsgd(bits=4, bucket=0)"), encoded("qsgd(bits=4, bucket=0) | ans")
    assert torch.equal(from_bytes(coded.to_bytes()).decode(), plain.decode())
    symbols = plain.decode().unique(return_counts=True)[1].double()
    entropy = -(symbols * (symbols / len(GRAD)).log2()).sum() / 8
    assert entropy < coded.nbytes < 1.01 * entropy + 100 < plain.nbytes


def test_the_contraction_of_a_pipe_is_the_product():
    contract = compressor("topk(0.1) | mxfp4").contract
    payload = encoded("topk(0.1) | mxfp4")
    assert contract.delta(payload) == pytest.approx(0.1 * 13 / 16)
    assert contract.wants_feedback
    assert not contract.unbiased
    error = (payload.decode() - GRAD).square().sum() / GRAD.square().sum()
    assert error <= 1 - contract.delta(payload)


def test_unbiased_behind_unbiased_is_unbiased():
    contract = compressor("randomk(0.1, scaled=True) | qsgd(bits=4)").contract
    payload = encoded("randomk(0.1, scaled=True) | qsgd(bits=4)")
    inner = min(512 / (4 * 49), 512**0.5 / 7)
    assert contract.unbiased
    assert contract.omega(payload) == pytest.approx(10 * (1 + inner) - 1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("golomb", "must follow a compressor"),
        ("golomb | topk(0.1)", "first stage must be a compressor"),
        ("qsgd(bits=4) | golomb", "golomb must follow a sparsifier"),
        ("topk(0.1) | ans", "ans must follow a quantizer"),
        ("topk(0.1) | threshold(0.1)", "no memory"),
        ("topk(0.1) | 3", "must be a name"),
        ("topk(0.1) |", "ends too early"),
        ("ef(topk(0.1)) | ef(sign)", "no memory"),
    ],
)
def test_pipes_that_cannot_work_are_refused_when_they_are_made(spec, message):
    with pytest.raises(ValueError, match=message):
        compressor(spec)


def test_a_bar_needs_a_stage():
    with pytest.raises(ValueError, match="must be a compressor or a code"):
        compressor("topk(0.1)") | 3


def test_dense_values_inside_are_what_a_code_sees():
    payload = encoded("topk(0.1) | bf16")
    assert isinstance(payload.kept, Dense)
    assert payload.kept.values.dtype == torch.bfloat16
