"""Specs and compressors are two ways of writing the same thing."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradstats.compressors import (
    COMPRESSORS,
    Compressor,
    Contract,
    ErrorFeedback,
    compressor,
    compressors,
)
from gradstats.compressors.methods.bf16 import BF16
from gradstats.compressors.methods.dgc import DGC
from gradstats.compressors.methods.gaussiank import GaussianK
from gradstats.compressors.methods.hard_threshold import HardThreshold
from gradstats.compressors.methods.none import NoCompression
from gradstats.compressors.methods.randomk import RandomK
from gradstats.compressors.methods.redsync import RedSync
from gradstats.compressors.methods.sidco import SIDCo
from gradstats.compressors.methods.topk import TopK

RATIO = st.floats(0, 1, exclude_min=True)
PLAIN = st.one_of(
    st.sampled_from([NoCompression(), BF16()]),
    *(st.builds(each, RATIO) for each in (TopK, RandomK, HardThreshold, RedSync, GaussianK)),
    st.builds(DGC, RATIO, RATIO),
    st.builds(
        SIDCo,
        RATIO,
        variant=st.sampled_from(["e", "gp", "p"]),
        stages=st.integers(0, 20),
        rule=st.sampled_from(["step", "reverse", "escape"]),
        first_ratio=st.floats(0, 1, exclude_min=True, exclude_max=True),
    ),
)


@settings(max_examples=300)
@given(PLAIN | st.builds(ErrorFeedback, PLAIN))
def test_round_trip(member):
    assert compressor(str(member)) == member
    assert str(compressor(str(member))) == str(member)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_name_makes_a_compressor_of_that_name(name):
    for spec in (name, f"ef({name})"):
        for member in compressors(spec, [0.25]):
            written = "topk(0.25) | sign" if name == "stc" else name
            assert str(member).replace("ef(", "").startswith(written)


def test_percentages_are_ratios():
    assert compressor("ef(topk(1%))") == ErrorFeedback(TopK(0.01))
    assert compressor("topk(ratio=0.7%)") == TopK(0.007)
    assert str(compressor("sidco-e(12.5%, stages=2)")) == "sidco-e(0.125, stages=2)"


def test_a_pipe_needs_no_blanks():
    assert compressor("topk(0.1)|qsgd") == compressor("topk(0.1) | qsgd")


def test_white_space_and_named_ratio():
    assert compressor(" ef ( topk( ratio = 1e-2 ) ) ") == ErrorFeedback(TopK(0.01))
    assert compressor("sidco-gp(0.01,stages=2,rule=escape)") == SIDCo(
        0.01, "gp", stages=2, rule="escape"
    )


def test_instances_pass_through():
    member = TopK(0.5)
    assert compressor(member) is member


def test_open_ratios_expand_where_the_method_takes_one():
    assert compressors("topk", [0.1, 0.01]) == [TopK(0.1), TopK(0.01)]
    assert compressors("ef(dgc(sample=0.5))", [0.1]) == [ErrorFeedback(DGC(0.1, sample=0.5))]
    assert compressors("ef(topk(0.5))", [0.1, 0.01]) == [ErrorFeedback(TopK(0.5))]
    assert compressors("bf16", [0.1, 0.01]) == [BF16()]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("topkk(0.1)", "compressor must be one of none, bf16, fp16, topk,.* got 'topkk'"),
        ("ef(topkk(0.1))", "got 'topkk'"),
        ("ef(topkk)", "'topkk'"),
        ("ef(3)", r"compressor of ef must be a compressor such as topk\(0.01\), got 3"),
        ("ef", "cannot make compressor 'ef'"),
        ("ef(ef(topk(0.1)))", "must not have a memory inside"),
        ("topk(0.1", "must close its bracket"),
        ("qsgd(bit=4)", "settings of qsgd must be one of bits, norm.*'bit'.*did you mean bits"),
        ("topk(a)", "ratio of topk must be a number, got 'a'"),
        ("topk(2)", r"cannot make compressor 'topk\(2\)': ratio must lie in \(0, 1\].*got 2"),
        ("topk(200%)", r"'topk\(200%\)': ratio must lie in .*got 2.0"),
        ("topk(%)", "must not have '%'"),
        (
            "ef()",
            r"'ef\(\)': ef has no value for 'compressor'; its settings are compressor, gamma",
        ),
        ("ef(topk(0.1), gamma=x)", "gamma of ef must be a number, got 'x'"),
        ("ef(topk", "must close its bracket"),
        ("top-k(0.01)", "got 'top-k' .*did you mean topk"),
        ("TopK(0.01)", "got 'TopK' .*did you mean topk"),
        ("qsgd(4, 4)", "norm of qsgd must be a word, got 4"),
        ("qsgd(4, l3)", r"'qsgd\(4, l3\)': norm must be one of l2, max, got 'l3'"),
        (
            "qsgd(4, l2, 512, 0, 1)",
            "qsgd has too many settings; its settings are bits, norm, bucket, steps",
        ),
        ("qsgd(bits=True)", "bits of qsgd must be a whole number, got True"),
        ("randomk(0.1, scaled=3)", "scaled of randomk must be True or False, got 3"),
        ("topk(ratio=0.1, 0.2)", "multiple values for argument 'ratio'"),
        ("topk(0.1, ratio=0.2)", "multiple values for argument 'ratio'"),
        ("topk(0.1))", "must have no bracket too many"),
        ("topk(0.1) x", "must look like"),
        ("topk((0.1))", r"must not have '\('"),
        ("dgc(0.1 0.2)", "must close its bracket"),
        ("topk(,)", "must not have ','"),
        ("", "must be named, such as"),
        ("  ", "must be named, such as"),
        ("topk(ratio=", "ends too early"),
        ("0.1", "must look like"),
        ("topk(0.1e)", "must have a number instead of '0.1e'"),
        ("topk(ratio=0.1, ratio=0.2)", "must be given ratio once"),
        ("topk(0)", r"ratio must lie in \(0, 1\].* got 0"),
        ("topk(-0.1)", r"got -0.1"),
        ("topk(1.5)", r"got 1.5"),
        ("ef(redsync(2))", r"got 2"),
        ("topk", r"must be given a ratio, e.g. topk\(0.01\)"),
        ("ef(topk)", "must be given a ratio"),
        ("topk(0.1, size=3)", "settings of topk must be one of ratio, got 'size' in"),
        ("none(0.1)", "cannot make compressor"),
        ("sidco-e(0.1, rule=up)", "rule must be one of step, reverse, escape, got 'up'"),
        ("sidco-e(0.1, stages=-1)", "stages must be a whole number, 0 to adapt, got -1"),
        ("sidco-e(0.1, stages=2.5)", "stages of sidco-e must be a whole number, got 2.5 in"),
        ("dgc(0.1, sample=-3)", "sample must lie in"),
        ("sidco-e(0.1, first_ratio=1)", r"first_ratio must lie in \(0, 1\), got 1"),
        ("no.such.module:Thing", "cannot import compressor"),
        ("math:Thing", "cannot import compressor"),
        ("math:pi", "must be a class, got 3.14"),
        ("fractions:Fraction(1)", "must be a subclass of .*Compressor, got .*Fraction"),
        ("math:sqrt(4)", r"must make a Compressor, got 2\.0"),
    ],
)
def test_what_is_not_in_the_grammar_is_refused_with_its_reason(spec, message):
    with pytest.raises(ValueError, match=message):
        compressor(spec)


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("topkk(0.1)", "topk"),
        ("TopK(0.1)", "topk"),
        ("tokp(0.1)", "topk"),
        ("ef(tpok)", "topk"),
        ("randk(0.1)", "randomk"),
        ("qsdg", "qsgd"),
        ("power-sgd", "powersgd"),
        ("sidco(0.1)", "sidco-e"),
        ("ef12(topk(0.1))", "ef21"),
        ("velocty(dgc(0.1))", "velocity"),
        ("warm-up(topk(0.1))", "warmup"),
        ("topk(0.1) | golom", "golomb"),
        ("topk(ration=0.01)", "ratio"),
        ("topk(0.1) | qsgd(bit=4)", "bits"),
        ("ef(topk(0.1), gama=0.5)", "gamma"),
        ("sidco-e(0.1, stage=2)", "stages"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest_known_one(spec, meant):
    with pytest.raises(ValueError, match=rf"; did you mean {meant}\?$"):
        compressor(spec)


@pytest.mark.parametrize(
    "spec",
    ["gzip", "xyz(0.1)", "ef(zip)", "topk(0.1, size=3)", "topk(0.1) | huffman(3)", "bf16(x=1)"],
)
def test_nothing_is_suggested_where_no_known_name_is_near(spec):
    with pytest.raises(ValueError, match="got '") as refusal:
        compressor(spec)
    assert "did you mean" not in str(refusal.value)


def test_a_plug_in_that_takes_any_keyword_is_given_it(tmp_path, monkeypatch):
    (tmp_path / "open_compressors.py").write_text(
        "from gradstats.compressors import compressor\n"
        "def mine(**settings):\n"
        "    return compressor(f'topk({settings[\"anything\"]})')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert compressor("open_compressors:mine(anything=0.5)") == TopK(0.5)


def test_a_spec_of_nonsense_never_raises_anything_but_value_error():
    pieces = ["ef", "topk", "bf16", "(", ")", ",", "=", "0.1", "-", "ratio", ":", "a:b", "é", " "]

    @settings(max_examples=300)
    @given(st.lists(st.sampled_from(pieces), max_size=8).map("".join))
    def parse(spec):
        try:
            assert isinstance(compressor(spec), Compressor)
        except ValueError:
            pass

    parse()


def test_a_class_of_ones_own_is_named_by_module_and_class(tmp_path, monkeypatch):
    (tmp_path / "own_compressors.py").write_text(
        "from dataclasses import dataclass\n"
        "from gradstats.compressors.methods.topk import TopK\n"
        "@dataclass(frozen=True)\n"
        "class Mine(TopK):\n"
        "    name = 'own_compressors:Mine'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = compressor("own_compressors:Mine(0.5)")
    assert type(mine) is sys.modules["own_compressors"].Mine
    assert compressor(str(mine)) == mine
    assert compressors("ef(own_compressors:Mine)", [0.25])[0].ratio_asked == 0.25
    assert isinstance(mine.contract, Contract)
