"""The hook where something is out of the way: docs/workers.md says what happens, these hold it."""

import os
import uuid

import pytest
import torch

from tests.exchange.counting import ROUNDS
from tests.exchange.launching import launch, work
from tests.exchange.unusual import KINDS
from tests.exchange.values import MOMENTA, moderate
from tests.processes import run_workers

pytestmark = pytest.mark.slow

MODULE = "tests.exchange.situations"
WORKERS = [2, 3, pytest.param(4, marks=pytest.mark.soak)]
FINITE = {torch.float16: 40_000.0, torch.bfloat16: 2.0**127}


@pytest.fixture(scope="module", params=WORKERS)
def launched(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("situations")
    return launch(MODULE, "everything", request.param, folder)


def of_each(launched, scenario):
    return [found[scenario] for found in launched]


def test_a_sum_stays_in_the_range_of_its_operands_and_their_mean(launched):
    for found in of_each(launched, "half_near_the_range"):
        for (spec, dtype), (buffer, nonfinite) in found.items():
            assert nonfinite == 0, spec
            value = FINITE[dtype]
            sent = buffer[buffer != 0].double()
            assert len(sent) >= 32 + 5, spec  # a half of 64, and the small parameter
            # IntSGD's first step is exact, the others send what all have
            assert (sent - value).abs().max() <= torch.finfo(dtype).eps * value, spec


def test_a_broken_bucket_is_averaged_as_ddp_does(launched):
    for found in of_each(launched, "half_broken"):
        for spec, (buffer, nonfinite) in found.items():
            assert nonfinite == 1, spec
            assert buffer.isnan().nonzero().flatten().tolist() == [3], spec
            assert (buffer[buffer.isfinite()] == 40_000).all(), spec


def test_extreme_gradients_are_exchanged_as_ordinary_ones_are(launched):
    exact = torch.stack([moderate(worker) for worker in range(len(launched))]).double().mean(0)
    for found in of_each(launched, "extreme_values"):
        errors = {way: float((mean - exact).norm()) for way, (mean, _) in found.items()}
        for spec, scale in found:
            # where a norm would leave the range it is the end of the range, and rounding finer
            assert errors[spec, scale] <= 1.01 * errors[spec, 1.0], (spec, scale)
            assert found[spec, scale][1] == 0


def test_outside_the_hook_workers_stay_alike(launched):
    found = of_each(launched, "outside_the_hook")
    first, r, *_ = found[0]
    assert [bool(update.isfinite().all()) for update in first] == [True, True, False, True]
    for updates, state, largest, spoilt in found:
        assert state == r
        for mine, theirs in zip(updates, first, strict=True):
            assert torch.equal(mine.nan_to_num(), theirs.nan_to_num())
        assert largest.tolist() == [5, 9, 9]
        assert torch.equal(spoilt, found[0][3])


def test_a_threshold_is_fixed_on_a_gradient_that_has_one(launched):
    for counts in of_each(launched, "first_gradients_of_zeros"):
        plain, fed = counts[:3], counts[3:]
        assert plain[:2] == fed[:2] == [0, 1]
        assert 0.7 < plain[2] < 1.3
        assert 0.7 < fed[2] < 3  # with what waited


def test_what_comes_out_broken_is_averaged_and_leaves_the_memory(launched):
    mean = (len(launched) + 1) / 2
    for found, memories in of_each(launched, "broken_on_the_way_out"):
        assert [nonfinite for _, nonfinite in found] == [0, 1, 1]
        assert all((buffer == mean).all() for buffer, _ in found)
        assert memories == [2.0]  # of three steps one was called off


@pytest.mark.parametrize("spec", MOMENTA)
def test_everything_dense_is_the_optimizer_without_compression(launched, spec):
    for found, plain in zip(
        of_each(launched, "momentum_on_dense_paths"),
        of_each(launched, "plain_momentum"),
        strict=True,
    ):
        for (which, way, by), trained in found.items():
            if which == spec:
                expected = plain["nesterov" in spec]
                message = f"{spec}, {way}, by {by}"
                torch.testing.assert_close(
                    trained, expected, rtol=1e-4, atol=1e-6, msg=lambda m, t=message: f"{t}: {m}"
                )


def test_a_broken_bucket_gets_its_momentum(launched):
    for found in of_each(launched, "momentum_in_a_broken_bucket"):
        (first, _, after_first), (second, before, after), _ = found
        assert (first[64:] == 1).all()
        torch.testing.assert_close(second[64:], torch.full((5,), 1.9))
        assert second[0].isnan()
        assert second[1:].isfinite().all()
        assert_alike(before, after_first)
        assert_alike(before, after)


def assert_alike(memories, others):
    assert memories.keys() == others.keys()
    for key, memory in memories.items():
        assert_same_tree(memory["state"], others[key]["state"])


def assert_same_tree(state, other):
    if isinstance(state, dict):
        for name, each in state.items():
            assert_same_tree(each, other[name])
    elif isinstance(state, torch.Tensor):
        assert torch.equal(state, other)
    else:
        assert state == other


def test_memories_find_their_parameters_by_name(launched):
    for found in of_each(launched, "by_name"):
        whole, reordered = found["whole"], found["registered in another order"]
        for name, weights in whole.items():
            torch.testing.assert_close(reordered[name], weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("way", "lost", "word"), [("frozen", "d", "has"), ("thawed", "a", "lacks")]
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(launched, way, lost, word):
    for found in of_each(launched, "by_name"):
        assert (
            f"ValueError: cannot load the checkpoint: it {word} {lost}.weight"
            in found[way, "strict"]
        )
        assert "strict=False" in found[way, "strict"]
        missing, unexpected = found[way, "unfit"]
        named = missing if word == "lacks" else unexpected
        assert [each.split(" ")[0] for each in named] == [f"{lost}.weight", f"{lost}.bias"]
        theirs, kept = found[way, "kept"]
        assert set(theirs) - set(kept) == ({"d.weight"} if way == "frozen" else set())
        assert_alike(kept, {key: memory for key, memory in theirs.items() if key in kept})


@pytest.mark.parametrize("case", ["the same", "another one frozen", "the last frozen"])
def test_equal_shapes_without_names_are_refused(launched, case):
    for found in of_each(launched, "without_names"):
        assert "ValueError: cannot tell which parameter of a checkpoint is which" in found[case]
        assert "named_parameters=model.named_parameters()" in found[case]


def test_what_is_known_by_its_shape_needs_no_name(launched):
    for found in of_each(launched, "without_names"):
        assert found["different shapes"] == "nothing"
        assert "parameters, got a model that trains 4" in found["fewer"]
        assert "its number 0 is 0 (float32 of [4]), got 0 (float32 of [30])" in found["others"]
        assert "without names any could be any" in found["names wanted"]


def test_another_dtype_is_refused(launched):
    for text in of_each(launched, "other_dtype"):
        assert "it lacks b.weight (bfloat16 of [20, 20])" in text
        assert "it has b.weight (float32 of [20, 20])" in text


def test_a_model_of_two_dtypes_goes_on_under_other_options(launched):
    for whole, found in of_each(launched, "mixed_dtypes"):
        for name, resumed in found.items():
            # sums of several workers run in another order in other buckets
            limit = 0 if len(launched) == 2 else 1e-2
            assert (whole.double() - resumed.double()).abs().max() <= limit, name


def test_a_frozen_layer_keeps_its_memory_in_a_checkpoint(launched):
    for found in of_each(launched, "memories_of_a_frozen_layer"):
        for (unfit, before, after), missing in zip(found, ([], ["d.bias"]), strict=True):
            assert [each.split(" ")[0] for each in unfit[0]] == missing  # which never had one
            assert unfit[1] == []
            assert_same_tree(before["state"], after["state"])


def test_a_load_that_is_refused_leaves_the_state_as_it_was(launched):
    for texts, step, memories in of_each(launched, "refused_checkpoints"):
        assert (step, memories) == (0, {})
        expected = [
            "it has d.weight",
            "given the checkpoint of this worker, got",
            "checkpoints of all workers must have the same step",
            "must be what state_dict() gives, got ['step']",
            "a checkpoint must be of worker",
            "rebind must be given what a state that was pickled has left behind, nothing, got",
        ]
        for text, part in zip(texts, expected, strict=True):
            assert part in text


def test_a_loaded_checkpoint_stays_the_callers(launched):
    for before, after in of_each(launched, "caller_keeps_checkpoint"):
        assert_alike(before, after)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("ef(topk(0.05))", "residual"),
        ("velocity(topk(0.05))", "momentum"),
        ("velocity(topk(0.05))", "residual"),
        ("lowpass(clt-k(0.05))", "residual"),
    ],
)
def test_another_number_of_workers_shares_what_was_not_sent(launched, spec, name):
    found = of_each(launched, "resharded")
    for alone, *_ in (each[spec] for each in found):
        assert "ValueError: a checkpoint must be of workers" in alone
        assert "reshard=True" in alone
    _, theirs, _ = found[0][spec]
    for key in theirs[0]["memories"]:
        before = torch.stack([each["memories"][key]["state"][name] for each in theirs]).mean(0)
        mine = [each[spec][2][key]["state"][name] for each in found]
        assert before.any() or key.endswith("bias")  # of which everything is sent
        torch.testing.assert_close(torch.stack(mine).mean(0), before)


def test_signs_go_on_from_the_mean_momentum(launched):
    for _, theirs, mine in (each["signum"] for each in of_each(launched, "resharded")):
        for key, memory in mine.items():
            before = torch.stack([each["memories"][key]["state"] for each in theirs]).mean(0)
            torch.testing.assert_close(memory["state"], before)


def test_a_memory_that_does_not_allow_it_is_refused(launched):
    for found in of_each(launched, "resharded"):
        assert (
            "ValueError: the number of workers must stay, got another one for own"
            in (found["unknown"])
        )


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_any_layout_are_exchanged_whole(launched, kind):
    for found in of_each(launched, "unusual_parameters"):
        for (which, cap, spec), (grads, exact) in found.items():
            if which != kind:
                continue
            for grad, expected in zip(grads, exact, strict=True):
                error = float((grad - expected).norm() / (expected.norm() or 1.0))
                assert error <= limits(kind, spec, len(launched)), (spec, cap)


def limits(kind, spec, workers):
    """What a method may lose of gradients of rank 2 on each worker."""
    if "topk(1.0)" in spec or spec == "none":
        return 1e-6
    if spec == "qsgd(bits=8)":
        return 0.3
    # a complex matrix is one of its real and imaginary parts, and n workers' is of rank 2n
    low = "complex" not in kind and (spec == "svd(rank=4)" or workers == 2)
    return 1e-3 if low else 1.0


def test_all_workers_get_the_same_of_unusual_parameters(launched):
    first, *others = of_each(launched, "unusual_parameters")
    for other in others:
        for way, (grads, _) in first.items():
            assert all(map(torch.equal, grads, other[way][0])), way


def test_a_bucket_that_is_not_covered_is_refused(launched):
    for text in of_each(launched, "not_covered"):
        assert "ValueError: parameters of a bucket must add up to its 14 elements, got 12" in text


def test_workers_that_drift_apart_are_told_which_bucket(launched):
    for at_once, later, never, spoilt in of_each(launched, "drifting"):
        assert "bucket 0 of step 0, of parameters 0 to 1, must be the same" in at_once[1]
        assert later[:5] == ["nothing"] * 5
        assert "bucket 0 of step 4" in later[5]
        assert "have drifted apart" in later[5]
        assert never == ["nothing"] * 6
        told = spoilt[-1]
        assert f"a NaN or inf came out of the exchange on workers [{len(launched) - 1}]" in told


def test_nobody_waits_for_a_worker_that_fails_in_the_hook(launched):
    *others, last = of_each(launched, "failing_in_the_hook")
    for error, texts in last.items():
        assert texts == ["nothing"] * 2 + [f"{error}: out of luck"]
        for texts in (other[error] for other in others):
            assert texts[:-1] == ["nothing"] * 2
            assert f"worker {len(launched) - 1} failed before bucket 0 of step" in texts[-1]


def test_a_damaged_message_is_an_error_of_all(launched):
    """On the worker that received it before it writes anything; on others in the next bucket."""
    *others, last = of_each(launched, "damaged_on_the_way")
    for spec, (texts, total) in last.items():
        assert texts[:2] == ["nothing"] * 2
        assert "CollectiveError: bucket 2 of step 0: cannot read a message" in texts[2]
        assert "checksum" in texts[2]
        assert total == 1024 * 1023 / 2 + 2 * 1024
        for texts, _ in (other[spec] for other in others):
            assert texts[:3] == ["nothing"] * 3
            assert f"worker {len(launched) - 1} failed before bucket 3 of step 0" in texts[3]


def test_outside_the_hook_damage_is_an_error_of_all_at_once(launched):
    *others, last = of_each(launched, "damaged_outside_the_hook")
    for case, text in last.items():
        assert text.startswith("MessageError: cannot read a message"), (case, text)
        for other in others:
            assert other[case].startswith("DisagreementError"), (case, other[case])


@pytest.mark.parametrize("spec", ROUNDS)
def test_the_checks_add_one_round_of_a_few_numbers(launched, spec):
    workers = len(launched)
    rounds = [  # gloo gathers messages by one broadcast from each worker
        call
        for name in ROUNDS[spec]
        for call in (["broadcast"] * workers if name == "messages" else [name])
    ]
    for found in of_each(launched, "counted_rounds"):
        assert sorted(found[spec]) == sorted(["all_gather", *rounds])


def test_the_checks_read_what_goes_in_and_what_comes_out_once(launched):
    for found in of_each(launched, "counted_reads"):
        mean = found.pop("none")  # which is finite where what goes in is
        assert 0.9 < mean < 1.2
        assert all(1.9 < reads < 2.2 for reads in found.values()), found


def test_attributes_may_be_read_on_one_worker(launched):
    texts, *_ = of_each(launched, "quiet_attributes")
    assert texts == ["nothing"] * 4


def test_an_error_of_the_compressor_is_not_laid_to_the_backend(launched):
    for text, lacks in of_each(launched, "what_is_the_backends"):
        assert text == "RuntimeError: shapes do not match"
        assert "RuntimeError: cannot exchange twoshot(mxfp8) over the backend gloo" in lacks
        assert "alltoall_base" in lacks


def test_a_pickled_state_goes_on_once_it_has_its_group_again(launched):
    for refused, whole, resumed, settings in of_each(launched, "pickled"):
        assert "rebind() its process_group, named_parameters" in refused
        assert torch.equal(whole, resumed)
        assert settings["compressor"] == "ef(topk(0.05))"


def test_a_step_that_the_scaler_skips_leaves_the_memories(launched):
    for found, nonfinite in of_each(launched, "skipped_by_the_scaler"):
        assert nonfinite == 0
        for step, (before, after) in enumerate(found):
            if step == 3:
                assert_alike(before, after)
            else:
                residuals = [memory["state"]["momentum"] for memory in after.values()]
                earlier = [
                    before.get(key, {"state": {"momentum": torch.zeros(1)}}) for key in after
                ]
                assert not any(
                    torch.equal(mine, each["state"]["momentum"])
                    for mine, each in zip(residuals, earlier, strict=True)
                )


def test_a_scale_that_is_set_by_hand_is_no_skipped_step(launched):
    for (before, after), _ in of_each(launched, "scales_that_change"):
        assert not any(
            torch.equal(before[key]["state"]["momentum"], after[key]["state"]["momentum"])
            for key in before
        )


def test_all_passes_of_a_skipped_step_are_taken_back(launched):
    for _, (before, after) in of_each(launched, "scales_that_change"):
        assert_alike(before, after)


@pytest.mark.parametrize("workers", WORKERS)
def test_a_state_of_another_group_is_refused(tmp_path, monkeypatch, workers):
    monkeypatch.setenv("MEETING_AGAIN", str(tmp_path / uuid.uuid4().hex))
    for worker, found in enumerate(
        launch("tests.exchange.counting", "another_group", workers, tmp_path)
    ):
        text, kept, again = found
        assert f"the process group must be the one in which this was worker {worker}" in text
        assert "make a new CompressorState" in text
        assert kept == worker
        assert again == "nothing"


@pytest.mark.parametrize("workers", WORKERS)
def test_a_worker_that_dies_is_an_error_of_the_others(tmp_path, workers):
    dies(tmp_path, workers, "ef(topk(0.5))", "before")


def test_a_worker_that_dies_in_the_second_shot_is_an_error_of_the_others(tmp_path):
    dies(tmp_path, 2, "twoshot(mxfp8)", "second shot")


def dies(folder, workers, spec, moment):
    args = ("tests.exchange.unusual", "dying", str(folder), (spec, moment))
    ends = run_workers(work_and_leave, workers, folder, *args)
    assert [code for code, _, _ in ends] == [0] * workers, ends
    for worker in range(workers - 1):
        text = torch.load(f"{folder}/found-{worker}.pt")
        assert "CollectiveError: bucket 0 of step 2" in text
        assert "another worker has died or is stalled" in text


def work_and_leave(rank, world, meeting, *args):
    """As `work`, without meeting at the end."""
    import torch.distributed as dist

    dist.barrier = lambda: os._exit(0)
    work(rank, world, meeting, *args)
