"""The communication hook trains as the same training without processes does."""

import pytest
import torch

from gradstats.compressors import compressor
from gradstats.compressors.states import plain
from tests.exchange.launching import launch
from tests.exchange.nets import STEPS, simulated
from tests.exchange.trainings import RESUMED, SPECS

pytestmark = pytest.mark.slow

WAYS = [(spec, by) for spec in SPECS for by in ("parameter", "bucket")]
COMPRESSED = [800, 1200, 120]  # elements of the weights; biases go dense


@pytest.fixture(scope="module", params=[1, 2, pytest.param(4, marks=pytest.mark.soak)])
def launched(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hooks")
    return launch("tests.exchange.trainings", "every_way", request.param, folder)


def by_worker(launched, scenario):
    return [found[scenario] for found in launched]


def assert_same(tensors):
    for tensor in tensors:
        assert torch.equal(tensor, tensors[0])


def matrices_only(spec, by):
    return "parameter" if "matrix" in compressor(spec).contract.needs else by


@pytest.mark.parametrize(("spec", "by"), WAYS)
def test_a_training_is_that_without_processes(launched, spec, by):
    expected = simulated(spec, len(launched), range(STEPS), by=matrices_only(spec, by))
    (first, *_), *_ = (found[spec, by] for found in by_worker(launched, "trained"))
    # sums of floats in another order; Signum's are whole numbers
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("spec", "by"), [*WAYS, ("none", "bucket")])
def test_workers_stay_identical_to_the_bit(launched, spec, by):
    assert_same([found[spec, by][0] for found in by_worker(launched, "trained")])


def test_sending_all_is_what_ddp_does_without_a_hook(launched):
    for found in launched:
        for by in ("parameter", "bucket"):
            weights_, *_ = found["trained"]["none", by]
            torch.testing.assert_close(weights_, found["without_a_hook"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("spec", ["ef(topk(0.05))", "qsgd", "ef(powersgd)"])
def test_a_memory_follows_its_parameter_into_rebuilt_buckets(launched, spec):
    expected = simulated(spec, len(launched), range(STEPS))
    for found in by_worker(launched, "small_buckets"):
        got, seen = found[spec, "parameter"]
        assert len(seen) > STEPS, "several buckets"
        assert sorted(seen[: len(seen) // STEPS]) != sorted(seen[-(len(seen) // STEPS) :]) or (
            seen[: len(seen) // STEPS] != seen[-(len(seen) // STEPS) :]
        ), "buckets are rebuilt"
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert_same([found[spec, "bucket"][0] for found in by_worker(launched, "small_buckets")])


@pytest.mark.parametrize("spec", ["ef(topk(0.05))", "ef(randomk(0.1))"])
def test_nothing_is_lost_when_buckets_are_rebuilt(launched, spec):
    """Over all workers what came out and what waits is what went in, by parameter."""
    found = [each[spec] for each in by_worker(launched, "rebuilt")]
    *_, seen = found[0]
    assert len({tuple(bucket) for bucket in seen}) > len(set(seen[0])), "the buckets have changed"
    for i, out in enumerate(found[0][0]):
        went_in = torch.stack([given[i] for _, given, _, _ in found]).double().mean(0)
        waits = torch.stack([waiting[i] for _, _, waiting, _ in found]).double().mean(0)
        assert waits.any()
        torch.testing.assert_close(out.double() + waits, went_in, rtol=1e-5, atol=1e-5)


def test_gradients_may_be_views_of_the_buckets(launched):
    for found in launched:
        assert torch.equal(found["views"], found["trained"]["ef(topk(0.05))", "parameter"][0])


def test_accumulated_gradients_are_compressed_once(launched):
    for accumulated, whole, steps in by_worker(launched, "accumulated"):
        assert steps == STEPS
        torch.testing.assert_close(accumulated, whole, rtol=1e-4, atol=1e-6)


def test_memories_outlast_changes_of_the_loss_scale(launched):
    for scaled, unscaled in by_worker(launched, "scaled"):
        weights_, nonfinite, scales = scaled
        assert nonfinite == 1
        assert len(set(scales)) > 1, "the scale changes"
        torch.testing.assert_close(weights_, unscaled[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("spec", ["ef(topk(0.05))", "qsgd", "ef(powersgd)", "ef(acp-sgd)"])
def test_nan_on_one_worker_costs_one_step(launched, spec):
    found = [each[spec] for each in by_worker(launched, "broken")]
    for got, skipped, nonfinite, steps in found:
        assert (skipped, nonfinite, steps) == ([2], 1, STEPS)
        assert got.isfinite().all()
    assert_same([got for got, *_ in found])


@pytest.mark.parametrize("spec", ["ef(thc)", "intsgd"])
def test_nan_on_one_worker_does_not_stay_in_a_shared_scale(launched, spec):
    for got, skipped, *_ in (each[spec] for each in by_worker(launched, "broken")):
        assert skipped == [2]
        assert got.isfinite().all()


def test_a_parameter_that_one_worker_does_not_use(launched):
    found = by_worker(launched, "unused")
    assert_same(found)
    expected = simulated("ef(topk(0.05))", len(launched), range(STEPS), branch=True)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "by"), [(s, by) for s in RESUMED for by in ("parameter", "bucket")]
)
def test_a_resumed_training_goes_on_exactly(launched, spec, by):
    for whole, resumed, _ in (found[spec, by] for found in by_worker(launched, "resumed")):
        assert torch.equal(whole, resumed)


def test_checkpoints_are_plain(launched, tmp_path):
    """They load without running code, and name parameters from the last one."""
    for worker, found in enumerate(by_worker(launched, "resumed")):
        _, _, saved = found["ef(sidco-e(0.05))", "bucket"]
        torch.save(saved, tmp_path / "state.pt")
        loaded = torch.load(tmp_path / "state.pt", weights_only=True)
        assert loaded["worker"] == worker
        assert loaded["step"] == 3
        numels = {key: memory["numel"] for key, memory in loaded["memories"].items()}
        assert numels == {1: 120, 3: 1200, 5: 800}
        assert plain(loaded["memories"][1]["state"]["residual"]).shape == (120,)


def test_a_late_start_is_dense_until_then(launched):
    for after_two, volumes, later in by_worker(launched, "late"):
        assert volumes["all_gather"].calls == 0
        assert later["all_gather"].calls == STEPS - 2
        expected = simulated("none", len(launched), range(2))
        torch.testing.assert_close(after_two, expected, rtol=1e-5, atol=1e-7)


def test_global_generators_are_untouched(launched):
    for states in by_worker(launched, "private"):
        assert_same(states)


def test_registration_refuses_what_cannot_work(launched):
    for told in by_worker(launched, "refused"):
        assert told["backend"].startswith("RuntimeError: cannot exchange sixteen over the backend")
        assert told["loss"].startswith("ValueError: compressor must not need the loss")
        assert told["by"] == "SettingError: by must be one of bucket, parameter, got 'layer'"
        assert told["start"].startswith(
            "SettingError: start_step must be a whole number from 0, got -1"
        )
        for name in ("settings", "min_numel"):
            alone = len(launched) == 1
            start = "nothing" if alone else "ValueError: settings must be the same on all workers"
            assert told[name].startswith(start)


def test_workers_that_disagree_are_told_and_do_not_hang(launched):
    for lengths, kinds, buckets in by_worker(launched, "disagreeing"):
        if len(launched) == 1:
            assert (lengths, kinds, buckets) == ("nothing",) * 3
            continue
        assert "must ask for the same collective" in lengths
        assert "must ask for the same collective" in kinds
        assert "a bucket must be alike on all workers" in buckets


def test_nobody_waits_for_a_worker_that_failed(launched):
    told = by_worker(launched, "failing")
    if len(told) > 1:
        assert told[-1] == "ArithmeticError: out of luck"
        for other in told[:-1]:
            assert "must ask for the same collective" in other


def test_an_empty_payload_is_a_payload(launched):
    for count, total, shape in by_worker(launched, "empty"):
        assert (count, total, shape) == (0, 0.0, (0,))


def test_bytes_and_seconds_are_counted(launched):
    n, kept = len(launched), round(0.05 * sum(COMPRESSED))
    for traffic, seconds, khat_over_k, steps in by_worker(launched, "counted"):
        assert steps == STEPS
        assert khat_over_k == 1
        gathered, reduced = traffic.volumes["all_gather"], traffic.volumes["all_reduce"]
        assert gathered.calls == reduced.calls == STEPS
        assert reduced.nbytes == STEPS * 4 * (40 + 30 + 4)
        assert reduced.wire == pytest.approx(2 * (n - 1) / n * reduced.nbytes)
        # values of 4 bytes, places of 1 to 2, a header
        assert STEPS * 4 * kept < gathered.nbytes < STEPS * (6 * kept + 64)
        assert 0.97 * (n - 1) * gathered.nbytes <= gathered.wire
        assert traffic.nbytes == gathered.nbytes + reduced.nbytes
        assert min(seconds.encode, seconds.communicate, seconds.decode) > 0


def test_fsdp_is_told_what_is_possible(tmp_path):
    for told in launch("tests.exchange.refusals", "sharded", 2, tmp_path):
        assert told.startswith("TypeError: compress_hook must be given a bucket")
        assert "hybrid-sharded" in told


def test_sparse_gradients_are_refused(tmp_path):
    for told in launch("tests.exchange.refusals", "sparse", 2, tmp_path):
        assert "gradients must be dense to be compressed" in told


def test_a_state_may_be_made_before_the_process_group(tmp_path):
    meeting = str(tmp_path / "second")
    expected = simulated("ef(topk(0.05))", 2, range(STEPS))
    for found in launch("tests.exchange.refusals", "early", 2, tmp_path, meeting):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
