"""The laws that every compressor obeys; public as `gradstats.testing.compressor_checks`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

from torch import Tensor

from gradstats.compressors import Compressor, Rng
from gradstats.compressors import compressor as from_spec
from gradstats.testing import (
    contract_laws,
    device_laws,
    exchange_laws,
    gradients,
    memory_laws,
    payload_laws,
)
from gradstats.testing import scale_laws as scales
from gradstats.testing.gradients import Gradients
from gradstats.testing.laws import Check, Facts, Law, run_all


def compressor_checks(
    compressor: str | Compressor, *, rng: Rng | None = None, fresh_process: bool = True
) -> Iterator[tuple[str, Check]]:
    """Yield one check per law that every compressor, or this compressor's contract, promises.

    A contract is what a compressor declares: bounds, unbiasedness, bytes (`Contract`). Laws that
    it does not declare are left out. The checks use these inputs and limits:

    - One step: gradients of every dtype from a generator and from a captured training, and edge
      cases: two dimensions, strides, all negative, equal magnitudes, constants, one non-zero
      element, zeros, one element, no element, every scale, subnormal, NaN, infinite.
    - Bounds: also inputs that reach published bounds with equality, such as constants, elements
      midway between two levels, or equal singular values.
    - Expectations: 100 draws of the random numbers. A bound fails if the mean is more than 5
      standard errors above it. Unbiasedness fails if the error of the mean, projected on the
      gradient, on its signs or on all ones, is more than 5 standard errors from 0, or if its
      squared norm is 5 standard deviations larger than the variance predicts.
    - Bytes: compared with the declared formula at 10⁵ elements.
    - Reads from the device: what `Contract.host_reads` declares, counted on ordinary tensors (see
      `counting_host_reads`), for a gradient that is encoded and added to a sum.
    - Fixed length, if `Contract.fixed_length` promises it: other values, other random numbers.
    - Range: a finite gradient gives a finite update, up to the ends of every dtype. If the
      gradient is multiplied by a power of 2, the update is too, with the tolerance
      `Contract.scaling`, as long as the sent numbers are normal numbers of float32.

    Args:
        compressor: An instance of any class, or a spec such as `"my.module:Mine(0.01)"`.
        rng: Seed of the random numbers; other steps and workers are derived from it.
        fresh_process: Whether to decode in a new process too, from the bytes alone (two seconds).

    Yields:
        (id, check): the name of a law, and a function that raises AssertionError with the
        gradients and facts that break the law.

    Raises:
        ValueError: The spec is not one of a compressor.

    Example:
        In a test file, with one law that is known to fail:

            NOT_YET = {"bytes": pytest.mark.xfail(reason="indices are not packed yet")}

            @pytest.mark.parametrize(
                "check",
                [
                    pytest.param(check, id=name, marks=NOT_YET.get(name, ()))
                    for name, check in compressor_checks("my.module:Mine(0.01)")
                ],
            )
            def test_mine_obeys(check):
                check()

        >>> [name for name, _ in compressor_checks("topk(0.01)")][:4]
        ['ownership', 'payload', 'bytes', 'randomness']
    """
    member, start = from_spec(compressor), Rng() if rng is None else rng
    for law in LAWS:
        if (fresh_process or law is not FRESH_PROCESS) and law.binds(member):
            yield law.name, partial(law.hold, member, start)


def check_compressor(
    compressor: str | Compressor, *, rng: Rng | None = None, fresh_process: bool = True
) -> None:
    """Run all checks of `compressor_checks`, also after a law that is broken.

    Args:
        compressor: See `compressor_checks`, as are the others.
        rng: Where the random numbers start.
        fresh_process: Also decode in a process that knows nothing but the bytes.

    Raises:
        AssertionError: One line per broken law, with the gradients and facts that break it, the
            values got and the values expected.

    Example:
        >>> from gradstats.compressors import TopK
        >>> check_compressor(TopK(0.01))
    """
    run_all(compressor_checks(compressor, rng=rng, fresh_process=fresh_process))


@cache
def _all() -> Gradients:
    return {**gradients.ordinary(), **gradients.awkward(), **gradients.unpromised()}


@cache
def _bounded() -> Gradients:
    exact = {**gradients.ordinary(), **gradients.awkward(), **gradients.long()}
    return {**exact, **{f"{name}, extremal": g for name, g in gradients.extremal().items()}}


@cache
def _laid_out() -> Gradients:
    awkward = gradients.awkward()
    return {**gradients.ordinary(), **{name: awkward[name] for name in gradients.LAID_OUT}}


@cache
def _drawn() -> Gradients:
    """Gradients whose mean over 100 draws is that of the expectation: not heavy-tailed ones."""
    ordinary, extremal = gradients.ordinary(), gradients.extremal()
    return {
        "sorted": ordinary["normal"].sort().values,
        "tied": ordinary["tied"],
        "two-dimensional": ordinary["two-dimensional"],
        **{name: extremal[name] for name in gradients.FREQUENT},
    }


@cache
def _on_device() -> Gradients:
    """Gradients of every kind that may need one more read: short, extreme, broken, all zero."""
    ordinary, extremes = gradients.ordinary(), gradients.extremes()
    named = ("float64", "bfloat16", "zero", "one element", "empty", "every scale")
    ends = ("up to the largest of float64", "near the least of float32", "subnormal of float16")
    return {
        "normal": ordinary["normal"],
        "two-dimensional": ordinary["two-dimensional"],
        "two NaN": gradients.nonfinite()["two NaN"],
        "a thousand of float64": gradients.awkward()["float64"][:1000],
        **{name: gradients.awkward()[name] for name in named},
        **{name: extremes[name] for name in ends},
    }


@cache
def _rare() -> Gradients:
    return {gradients.RARE: gradients.extremal()[gradients.RARE]}


def _fresh_process(compressor: Compressor, grad: Tensor, rng: Rng) -> Facts:
    grads = tuple(gradients.long().values())
    yield (
        "a fresh process decodes the same",
        payload_laws.fresh_process(compressor, grads, rng),
    )


def _one() -> Gradients:
    """A name for the gradients that one fresh process decodes."""
    return {", ".join(gradients.long()): next(iter(gradients.long().values()))}


FRESH_PROCESS = Law("fresh-process", _fresh_process, _one)
LAWS = (
    Law("ownership", payload_laws.ownership, _all),
    Law("payload", payload_laws.payload, _all),
    Law("bytes", payload_laws.readable, _all),
    Law("randomness", payload_laws.randomness, _all),
    Law("contraction", contract_laws.contraction, _bounded, contract_laws.contracts),
    Law("separate-states", memory_laws.separate_states, gradients.ordinary),
    Law("conservation", memory_laws.conservation, gradients.ordinary, memory_laws.conserves),
    Law("several-workers", exchange_laws.several_workers, gradients.ordinary),
    Law("untouched-states", memory_laws.untouched_states, _laid_out),
    Law("nothing-compressed", memory_laws.nothing_compressed, _laid_out, memory_laws.adds_all_up),
    Law("expectation", contract_laws.expectation, _drawn, contract_laws.promises_a_mean),
    Law("variance", contract_laws.variance, _rare, contract_laws.promises_a_variance),
    Law("size", contract_laws.size, gradients.long, contract_laws.promises_a_size),
    Law("host-reads", device_laws.host_reads, _on_device, device_laws.limits_reads),
    Law("fixed-length", device_laws.fixed_length, _on_device, device_laws.has_fixed_length),
    Law("honesty", scales.honesty, gradients.nonfinite),
    Law("finite", scales.finite, gradients.extremes),
    Law("homogeneity", scales.homogeneity, gradients.moderate, scales.has_no_unit),
    Law("near-the-range", exchange_laws.near_the_range, gradients.moderate),
    FRESH_PROCESS,
)
