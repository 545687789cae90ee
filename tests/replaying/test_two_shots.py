"""Replays of two-shot exchanges and rings: parameter by parameter, and what they are priced at."""

import math

import numpy as np
import pandas
import pytest
import torch

import gradstats
from gradstats.compressors import DEPLOYED, PerParameter, Rng, compressor
from gradstats.exchange import simulate
from gradstats.exchange.counts import Traffic
from gradstats.network import Network
from gradstats.ratios import Part
from gradstats.replaying import ranking as tables
from gradstats.replaying.folding import measure
from gradstats.replaying.ranking import methods_table, timing_table
from gradstats.store import GradientStore
from tests.replaying.test_ranking import method

SHAPES = {"a.weight": (40, 50), "b.bias": (40,), "c.weight": (30, 64)}
STEPS = 3
ONE_ELEMENT = (Part("first", 1, False), Part("second", 99, False))


def gradients(worker, step):
    rng = np.random.default_rng([5, worker, step])
    return {
        name: torch.from_numpy(rng.laplace(size=shape).astype("f4") * (1 + worker))
        for name, shape in SHAPES.items()
    }


def drawn(numel, workers):
    return [torch.randn(numel, generator=torch.Generator().manual_seed(w)) for w in range(workers)]


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    path = tmp_path_factory.mktemp("two") / "run.zarr"
    with GradientStore.create(path) as store:
        for worker in range(2):
            for step in range(STEPS):
                store.append(step, gradients(worker, step), worker, point="local")
    return gradstats.open(path)


def by_hand(spec, workers):
    """‖g - ĝ‖/‖g‖ and ‖e‖/‖g‖ per step: an exchange per matrix, e by conservation."""
    member, waiting = compressor(f"ef({spec})"), 0.0
    states = {name: [member.init(torch.zeros(SHAPES[name]))] * workers for name in SHAPES}
    for step in range(STEPS):
        of_workers = [gradients(worker, step) for worker in range(workers)]
        means, updates = [], []
        for name in SHAPES:
            grads = [grads[name] for grads in of_workers]
            means.append(torch.stack(grads).double().mean(dim=0).numpy().reshape(-1))
            if name == "b.bias":
                updates.append(means[-1])
                continue
            exchanges = [
                member.exchange(grad, state, Rng(0, step, "", worker, workers))
                for worker, (grad, state) in enumerate(zip(grads, states[name], strict=True))
            ]
            steps = simulate(exchanges)
            states[name] = [each.state for each in steps]
            updates.append(steps[0].update.double().numpy().reshape(-1))
        lost = np.concatenate(means) - np.concatenate(updates)
        waiting, size = waiting + lost, np.linalg.norm(np.concatenate(means))
        yield np.linalg.norm(lost) / size, np.linalg.norm(waiting) / size


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("spec", [*DEPLOYED, "ring(mxfp8)"])
def test_parameters_have_two_shots_of_their_own(run_of_two, spec, workers):
    asked = {"feedback": "ef", "granularity": "parameter", "workers": workers}
    table = gradstats.replay(run_of_two, spec, **asked)
    assert set(table["status"]) == {"ok"}
    rows = table.sort_values("step")[["error", "residual_ratio"]].to_numpy()
    np.testing.assert_allclose(rows, list(by_hand(spec, workers)), rtol=1e-4)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_part_of_one_element_holds_back_its_own(workers):
    """Not on all the others, to which it could be broadcast."""
    member = compressor("ef(twoshot(sign))")
    parted = type(member)(PerParameter(member.compressor, ONE_ELEMENT))
    grads = drawn(100, workers)
    states, waiting = [parted.init(grad) for grad in grads], np.zeros(100)
    mean = torch.stack(grads).double().mean(dim=0).numpy()
    for step in range(3):
        rngs = [Rng(0, step, "", worker, workers) for worker in range(workers)]
        asked = [parted.exchange(*each) for each in zip(grads, states, rngs, strict=True)]
        waiting = waiting + mean - simulate(asked)[0].update.double().numpy()
        row, states = measure(parted, grads, states, rngs[0])
        assert row.residual_ratio == pytest.approx(
            np.linalg.norm(waiting) / np.linalg.norm(mean), rel=1e-4
        )


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("spec", ["none", "mxfp8", "clt-k(0.1)", "twoshot(mxfp8)", "ring(mxfp8)"])
def test_rounds_are_those_of_two_workers_and_a_ring_has_one_per_worker(spec, workers):
    member, ledgers = compressor(spec), [Traffic() for _ in range(workers)]
    asked = [
        member.exchange(grad, member.init(grad), Rng(0, 0, "", worker, workers))
        for worker, grad in enumerate(drawn(400, workers))
    ]
    simulate(asked, ledgers)
    calls = sum(volume.calls for volume in ledgers[0].volumes.values())
    assert calls == (workers if "ring" in spec else member.contract.rounds)


# --- prices ---

NETWORK = Network(8, 1e6, 1e-3)


def line(spec, parts, workers):
    """A line of the table of methods, without the time of coding."""
    member = PerParameter(compressor(spec), parts) if parts else compressor(spec)
    numel = sum(part.numel for part in parts) or 2**16
    grads = [
        torch.randn(numel, generator=torch.Generator().manual_seed(w)) for w in range(workers)
    ]
    states = [member.init(grad) for grad in grads]
    measured, _ = measure(member, grads, states, Rng(workers=workers))
    contract = member.contract
    known = {"bits": measured.bits, "reduced_bits": measured.reduced_bits, "workers": workers}
    known |= {"wire_bits": 8 * measured.wire / numel, "numel": numel, "rounds": contract.rounds}
    known |= {"encode_seconds": 0.0, "decode_seconds": 0.0, "collective": contract.collective}
    return method(spec, **known)


def parts(dense):
    return (Part("weight", 2**16 - dense, False), Part("bias", dense, True))


AROUND = ["twoshot(mxfp8)", "twoshot(mxfp8, second=bf16)", "ring(mxfp8)", "mxfp8", "topk(0.01)"]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("spec", AROUND)
def test_where_all_is_dense_the_price_is_that_of_no_compression(spec, workers):
    all_dense = line(spec, (Part("weight", 2**16, True),), workers)
    nothing = line("none", (), workers)
    assert all_dense["bits"] == nothing["bits"] == 32
    assert tables._exchange(all_dense, NETWORK) == tables._exchange(nothing, NETWORK)
    assert tables._sent(all_dense, NETWORK) == 2 * 7 / 8 * 4 * 2**16


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("spec", AROUND)
@pytest.mark.parametrize("dense", [2**10, 2**15])
def test_dense_parameters_are_reduced_beside_the_messages(spec, dense, workers):
    mixed = line(spec, parts(dense), workers)
    coded = line(spec, parts(0)[:1], workers)
    share = 1 - dense / 2**16
    sent = share * tables._sent(coded, NETWORK) + 2 * 7 / 8 * 4 * dense
    assert tables._sent(mixed, NETWORK) == pytest.approx(sent, rel=0.01)
    latency = 1e-3 * 7 * (2 + (1 if coded["collective"] == "all_gather" else 2))
    seconds = latency + tables._sent(mixed, NETWORK) / 1e6
    assert tables._exchange(mixed, NETWORK) == pytest.approx(seconds)


SENT = {  # per bit of a code of 8.25 bits, on 8 workers
    "none": 2 * 7 / 8 * 32,
    "bf16": 2 * 7 / 8 * 16,
    "mxfp8": 7 * 8.25,
    "twoshot(mxfp8)": 7 / 8 * 2 * 8.25,
    "twoshot(mxfp8, second=bf16)": 7 / 8 * (8.25 + 16),
    "ring(mxfp8)": 7 / 8 * 2 * 8.25,
    "twoshot(none)": 2 * 7 / 8 * 32,
}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_bits_that_are_sent_compare_collectives(workers):
    """However many workers were replayed."""
    rows, times = [], []
    for spec in SENT:
        one = line(spec, (), workers)
        rows.append({**one, "step": 0, "n": 2**16, "wire": one["wire_bits"] * 2**13, "k": 2**16})
        times.append({name: one[name] for name in ("compressor", "method", "feedback", "rounds")})
        times[-1] |= {"collective": one["collective"], "n": 2**16, "target_ratio": math.nan}
        times[-1] |= {"encode_seconds": 0.0, "decode_seconds": 0.0}
    unmeasured = ("khat_over_k", "error_compensated", "cosine", "nmse", "nmse_workers", "sum_bits")
    replayed = pandas.DataFrame(rows).assign(fp16_error=math.nan, **dict.fromkeys(unmeasured, 1.0))
    replayed = replayed.drop(columns=["encode_seconds", "decode_seconds", "rounds", "collective"])
    replayed = replayed.drop(columns=["numel"]).assign(feedback="none", target_ratio=math.nan)
    timings = timing_table([each | {"feedback": "none"} for each in times])
    table = methods_table(replayed, timings, NETWORK).set_index("compressor")
    for spec, sent in SENT.items():
        assert table["sent_bits"][spec] == pytest.approx(sent, rel=0.01), spec
