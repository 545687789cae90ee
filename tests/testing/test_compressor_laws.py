"""The law suite rejects each broken compressor by exactly the laws that it breaks."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from gradstats.compressors import Rng, TopK
from gradstats.testing import check_compressor, compressor_checks
from gradstats.testing.compressor_laws import FRESH_PROCESS, LAWS
from tests.testing import broken_compressors as broken
from tests.testing import broken_contracts as contracts

ROOT = Path(__file__).parents[2]
BREAKS = {
    broken.SignedThreshold: "contraction honesty",
    broken.PositionalTrim: "contraction",
    broken.WithReplacement: """payload bytes randomness separate-states
        several-workers expectation finite near-the-range""",
    broken.TooRarely: "expectation",
    broken.Reseeds: "randomness",
    broken.DrawsGlobally: "randomness",
    broken.Alias: "ownership conservation",
    broken.WritesGradient: "ownership randomness separate-states conservation",
    broken.InvertedSigns: "contraction finite near-the-range",
    broken.SharedState: "separate-states finite near-the-range",
    broken.DecodesLocally: "bytes",
    broken.UnderstatesBytes: "bytes",
    broken.IgnoresWeight: "payload conservation several-workers near-the-range",
    broken.SumsWorkers: "several-workers finite near-the-range",
    broken.OwnMasks: "several-workers near-the-range",
    broken.HidesNaN: "honesty",
    broken.FailsOnEmpty: """ownership payload bytes randomness contraction untouched-states
        finite""",
    broken.LosesSmall: "contraction finite near-the-range",
    contracts.RoundsTheWrongWay: "expectation",
    contracts.ShrinksALittle: "expectation finite homogeneity near-the-range",
    contracts.ForgetsTheScale: "expectation",
    contracts.UnderstatesVariance: "expectation variance finite near-the-range",
    contracts.WideSigns: "size finite near-the-range",
    contracts.LongIndices: "bytes size",
    contracts.ClampsToTheSignedMaximum: "contraction homogeneity",
    contracts.FloatIndices: "contraction",
    contracts.PadsWithGarbage: "contraction finite homogeneity near-the-range",
    contracts.ReadsUnseen: "host-reads",
    contracts.CopiesATable: "host-reads",
    contracts.LeavesZerosOut: "fixed-length",
}
# what the broken laws say of them
FACTS = {
    contracts.RoundsTheWrongWay: "E C(x) = x",
    contracts.ShrinksALittle: "E C(x) = x, along x",
    contracts.UnderstatesVariance: "omega",
    contracts.WideSigns: "within 5 % of bits",
    contracts.ReadsUnseen: "wait for reads from the device, got 1, at most 0: _local_scalar_dense",
    contracts.CopiesATable: "wait for copies to the device, got 1, at most 0: tensor in",
    contracts.LongIndices: "from_bytes reads the bytes",
    broken.TooRarely: "E‖x - C(x)‖²",
    broken.Reseeds: "global generators",
    broken.Alias: "owns its values",
    broken.WritesGradient: "is not written",
    broken.SharedState: "share a state",
    broken.DecodesLocally: "the bytes alone",
    broken.UnderstatesBytes: "nbytes is the length",
    broken.IgnoresWeight: "add_to takes a weight",
    broken.SumsWorkers: "mean of what was sent",
    broken.OwnMasks: "the same update",
    broken.HidesNaN: "NaN and inf",
    broken.FailsOnEmpty: "on the gradient 'empty': no call fails",
    broken.PositionalTrim: "‖x - C(x)‖²",
}


def broken_laws(member):
    """The ids of the checks that fail, without a fresh process."""
    return {
        law.name
        for law in LAWS
        if law is not FRESH_PROCESS and law.binds(member)
        if next(law.broken(member, Rng()), None)
    }


def fails(check):
    try:
        check()
    except AssertionError:
        return True
    return False


SILENT = [member for member in BREAKS if member not in FACTS]


@pytest.mark.parametrize("member", SILENT, ids=lambda member: member.__name__)
@pytest.mark.slow
def test_a_broken_member_breaks_exactly_these_laws(member):
    assert broken_laws(member()) == set(BREAKS[member].split())


@pytest.mark.parametrize("member", FACTS, ids=lambda member: member.__name__)
@pytest.mark.slow
def test_these_laws_are_broken_and_say_what_is_wrong(member):
    with pytest.raises(AssertionError, match="broken must obey the law") as caught:
        check_compressor(member(), fresh_process=False)
    text = str(caught.value)
    assert FACTS[member] in text
    laws = re.findall(r"^broken must obey the law ([\w-]+),", text, re.MULTILINE)
    assert sorted(laws) == sorted(BREAKS[member].split())


def test_checks_are_the_laws_one_by_one():
    """One broken law hides no other: the rest pass, and each says what it is."""
    member = broken.HidesNaN()
    checks = dict(compressor_checks(member, fresh_process=False))
    quick = ("ownership", "payload", "honesty", "conservation", "separate-states")
    assert {name for name in quick if fails(checks[name])} == {"honesty"}
    with pytest.raises(
        AssertionError, match="law honesty, on the gradient 'two NaN': NaN and inf"
    ):
        checks["honesty"]()


@dataclass(frozen=True)
class TwoFaults(broken.Broken):
    """Hides NaN, and scales what it sends."""

    def choose(self, flat, rng):
        return super().choose(flat.nan_to_num() * 3, rng)


def test_check_compressor_reports_every_broken_law_with_its_values(monkeypatch):
    kept = [law for law in LAWS if law.name in ("contraction", "honesty", "payload")]
    monkeypatch.setattr("gradstats.testing.compressor_laws.LAWS", kept)
    with pytest.raises(AssertionError) as caught:
        check_compressor(TwoFaults(), fresh_process=False)
    contraction, honesty = str(caught.value).split("\n")
    assert "obey the law contraction, on the gradient" in contraction
    assert "(1 - delta)‖x‖², got " in contraction
    assert ", at most " in contraction
    assert "obey the law honesty, on the gradient 'two NaN': NaN and inf" in honesty


def test_bytes_are_reported_with_the_length_and_the_first_byte_that_differs():
    checks = dict(compressor_checks(broken.UnderstatesBytes(), fresh_process=False))
    with pytest.raises(AssertionError, match=r"length of the bytes, got \d+, expected \d+"):
        checks["bytes"]()
    checks = dict(compressor_checks(broken.Reseeds(), fresh_process=False))
    with pytest.raises(AssertionError, match="law randomness"):
        checks["randomness"]()
    checks = dict(compressor_checks(contracts.LongIndices(), fresh_process=False))
    with pytest.raises(AssertionError, match=r"5 % of bits, got \d+ bytes, expected \d+\.\d"):
        checks["size"]()


def test_every_broken_class_is_named():
    classes = {
        each
        for each in [*vars(broken).values(), *vars(contracts).values()]
        if isinstance(each, type) and issubclass(each, broken.Broken)
    }
    assert classes == set(BREAKS) | {broken.Broken}


def test_every_law_is_broken_by_someone():
    """Laws on memories have their own broken members: test_memory_laws."""
    broken_ids = {name for names in BREAKS.values() for name in names.split()}
    memories = {"untouched-states", "nothing-compressed"}
    assert broken_ids | memories == {law.name for law in LAWS} - {"fresh-process"}


def test_a_law_that_the_contract_does_not_promise_is_no_check():
    names = {spec: {name for name, _ in compressor_checks(spec)} for spec in ("topk(0.1)", "qsgd")}
    assert {"contraction", "size"} <= names["topk(0.1)"] - {"expectation", "variance"}
    assert {"expectation", "variance"} <= names["qsgd"]
    assert "contraction" not in names["qsgd"]
    assert "nothing-compressed" in dict(compressor_checks("ef(topk(0.1))"))
    assert "nothing-compressed" not in names["topk(0.1)"]
    assert "homogeneity" not in dict(compressor_checks("fp16"))


def test_checks_take_a_spec_or_an_instance():
    written, made = (
        [name for name, _ in compressor_checks(each)] for each in ("topk(0.01)", TopK(0.01))
    )
    assert written == made
    with pytest.raises(ValueError, match="topq"):
        list(compressor_checks("topq(0.01)"))


@dataclass(frozen=True)
class Lazy(broken.Broken):
    """Fails in every call."""

    def choose(self, flat, rng):
        raise KeyError("no idea")


def test_many_broken_facts_are_counted():
    (check,) = (check for name, check in compressor_checks(Lazy()) if name == "bytes")
    with pytest.raises(AssertionError, match=r"no call fails, got KeyError.*; and \d+ more"):
        check()


@pytest.mark.slow
def test_a_fresh_process_decodes_what_the_bytes_hold_alone():
    def last(member):
        return dict(compressor_checks(member))["fresh-process"]

    last(broken.Broken())()
    with pytest.raises(AssertionError, match="a fresh process decodes the same"):
        last(broken.DecodesLocally())()


@pytest.mark.slow
def test_the_unbroken_base_of_the_broken_ones_obeys_the_laws():
    assert broken_laws(broken.Broken()) == set()


OWN_TESTS = """
import pytest
from gradstats.testing import compressor_checks

NOT_YET = {"honesty": pytest.mark.xfail(reason="NaN is not sent yet", strict=True)}
CHECKS = [
    pytest.param(check, id=name, marks=NOT_YET.get(name, ()))
    for name, check in compressor_checks(
        "tests.testing.broken_compressors:HidesNaN()", fresh_process=False
    )
]

@pytest.mark.parametrize("check", CHECKS)
def test_mine_obeys(check):
    check()
"""


@pytest.mark.slow
def test_an_author_marks_one_law_as_expected_to_fail(tmp_path):
    (tmp_path / "test_mine.py").write_text(OWN_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    end = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert end.returncode == 0, end.stdout
    others = len(dict(compressor_checks(broken.HidesNaN(), fresh_process=False))) - 1
    assert f"{others} passed, 1 xfailed" in end.stdout
