"""Every member obeys the law suite, and a bound that is declared too well is detected."""

import copy
from dataclasses import replace

import pytest

from gradstats.compressors import COMPRESSORS, Bound, Rng, compressor, compressors
from gradstats.testing import check_compressor, compressor_checks
from gradstats.testing.compressor_laws import LAWS

WITH_FEEDBACK = [str(each) for name in COMPRESSORS for each in compressors(f"ef({name})", [0.01])]


def members(*ratios):
    return [str(each) for name in COMPRESSORS for each in compressors(name, ratios)]


# the laws put a memory around every member; the soak also takes it as a member
FIRST = members(0.01)
SLOW = ["count-sketch", "randomk(0.01)", "wangni(0.01)", "qsparse(0.01)", "co3", "orq"]
SLOW += ["qsgd-shared", "thc", "mstopk(0.01)"]  # expectations over 100 draws each
OTHERS = [spec for spec in members(0.1, 0.001, 1.0) + WITH_FEEDBACK if spec not in FIRST]


# exchanges around methods: these in every test run, the others in the soak
EXCHANGED = ["twoshot(mxfp8)", "twoshot(nvfp4, second=bf16)", "twoshot(eden)", "twoshot(qsgd)"]
EXCHANGED += ["ef(twoshot(sign))", "ring(fp8)", "ef(ring(nvfp4))"]
DEPLOYED = ["none", "mxfp8", "fp8", "nvfp4", "affine(4)", "eden", "qsgd", "sign"]
AROUND = [f"{wrapper}({inner})" for wrapper in ("twoshot", "ring") for inner in DEPLOYED]
AROUND += ["twoshot(topk(0.01), second=none)", "twoshot(sidco-e(0.01))", "velocity(ring(sign))"]
AROUND += ["twoshot(nvfp4, second=mxfp8)", "lowpass(twoshot(nvfp4))", "ef21(twoshot(mxfp8))"]
AROUND += ["velocity(twoshot(mxfp8))", "ef(warmup(twoshot(topk(0.05)), steps=1))"]
OTHERS += [f"ef({spec})" for spec in AROUND[:16]] + AROUND


@pytest.mark.parametrize("spec", EXCHANGED)
@pytest.mark.slow
def test_exchanges_around_a_method_obey_the_laws(spec):
    check_compressor(spec, fresh_process=False)


def checks(spec):
    slow = [pytest.mark.slow] if spec in SLOW else []
    for name, check in compressor_checks(spec, fresh_process=False):
        yield pytest.param(check, id=f"{spec}-{name}", marks=slow)


@pytest.mark.parametrize("check", [each for spec in FIRST for each in checks(spec)])
def test_every_member_obeys_the_laws(check):
    check()


@pytest.mark.parametrize("spec", OTHERS)
@pytest.mark.soak
def test_every_member_obeys_the_laws_at_other_ratios_and_with_feedback(spec):
    check_compressor(spec, fresh_process=False)


@pytest.mark.parametrize("spec", ["randomk(0.01)", "dgc(0.01)"])
@pytest.mark.slow
def test_laws_hold_wherever_the_random_numbers_start(spec):
    rng = Rng(seed=7, step=100, parameter="weight", worker=2)
    check_compressor(spec, rng=rng, fresh_process=False)


@pytest.mark.parametrize("spec", ["sidco-e(0.01, stages=3)", "sidco-gp(0.001, rule=escape)"])
def test_settings_other_than_the_ratio_obey_the_laws(spec):
    check_compressor(spec, fresh_process=False)


# --- a bound that is declared too well is detected, on the inputs at which it is reached ---

SETTINGS = ["terngrad(clip=0)", "terngrad(clip=0, bucket=64)", "terngrad-shared(clip=0)"]
SETTINGS += ["qsgd(bits=2)", "qsgd(bits=8)", "qsgd(norm=max)", "qsgd(bits=2, norm=max)"]
SETTINGS += ["nuqsgd(steps=6)", "randomk(0.01, scaled=True)", "count-sketch(estimate=mean)"]
SETTINGS += ["fp8(e5m2)", "wangni(0.1)", "atomo(3)", "exact-threshold(0.01) | mxfp4"]
EXACT = {"none", "lossless"}  # they lose nothing, and half of nothing is nothing


def declared():
    """(spec, constant) of everything that declares a δ or an ω."""
    for spec in [*FIRST, *SETTINGS]:
        contract = compressor(spec).contract
        for constant in ("omega", "delta"):
            if getattr(contract, constant) and spec not in EXACT:
                yield spec, constant


def boasting(spec, constant):
    """The member with half of the error that its contract allows."""
    member = compressor(spec)
    contract = member.contract
    bound = getattr(contract, constant)
    half = {"omega": lambda p: bound(p) / 2, "delta": lambda p: (1 + bound(p)) / 2}[constant]
    better = replace(contract, **{constant: Bound(f"better than {bound.text}", half)})
    boaster = copy.copy(member)
    kind = type(type(member).__name__, (type(member),), {"contract": better})
    object.__setattr__(boaster, "__class__", kind)
    return boaster


BOUNDS = [law for law in LAWS if law.name in ("contraction", "expectation", "variance")]


def keeps_its_bounds(member):
    laws = [law for law in BOUNDS if law.binds(member)]
    return not any(next(law.broken(member, Rng()), None) for law in laws)


@pytest.mark.parametrize(("spec", "constant"), list(declared()))
def test_half_of_the_error_that_is_declared_is_detected(spec, constant):
    assert not keeps_its_bounds(boasting(spec, constant))


@pytest.mark.parametrize("spec", ["terngrad(clip=0)", "natural", "qsgd"])
@pytest.mark.slow
def test_the_law_suite_rejects_half_of_a_variance(spec):
    with pytest.raises(AssertionError, match="omega"):
        check_compressor(boasting(spec, "omega"), fresh_process=False)


@pytest.mark.parametrize("spec", SETTINGS)
@pytest.mark.slow
def test_settings_with_bounds_of_their_own_keep_them(spec):
    assert keeps_its_bounds(compressor(spec))


@pytest.mark.parametrize("spec", SETTINGS)
@pytest.mark.soak
def test_settings_with_bounds_of_their_own_obey_the_laws(spec):
    check_compressor(spec, fresh_process=False)
