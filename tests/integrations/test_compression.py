"""Compression in real trainers on two workers, against a hook that is registered by hand."""

import re

import pytest
import torch

pytest.importorskip("lightning.pytorch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

from tests.exchange.launching import launch  # noqa: E402
from tests.integrations import compressed  # noqa: E402
from tests.integrations.compressed import MICROS, SPECS, STEPS, WAYS  # noqa: E402
from tests.processes import soaked  # noqa: E402

NUMEL = 6 * 16 + 16 + 16 * 2 + 2
MODULE = compressed.__name__
SITUATIONS = "tests.integrations.compressed_situations"
CASES = [(way, spec) for way in WAYS for spec in SPECS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    return launch(MODULE, "trained", 2, tmp_path_factory.mktemp("trained"), str(folder))


@pytest.fixture(scope="module")
def resumed_all(trained, folder, tmp_path_factory):
    return launch(SITUATIONS, "resumes", 2, tmp_path_factory.mktemp("resumed"), str(folder))


@pytest.fixture(scope="module")
def resumed(resumed_all):
    return [found for found, _, _ in resumed_all]


@pytest.fixture(scope="module")
def resumes(resumed_all):
    return [found for _, *found in resumed_all]


@pytest.mark.parametrize(("way", "spec"), CASES)
def test_a_training_is_that_of_a_hook_registered_by_hand(trained, way, spec):
    for found in trained:
        weights, _, step = found[way, spec]
        assert step == 2 * STEPS
        assert torch.equal(weights, found[way, spec, "by hand"])
        assert torch.equal(weights, trained[0][way, spec][0])


@pytest.mark.parametrize(("way", "spec"), CASES)
def test_fewer_bytes_are_sent_and_the_state_says_so(trained, resumed, way, spec):
    for found in trained:
        _, (wire, dense, text), _ = found[way, spec]
        assert dense == 2 * STEPS * NUMEL * 4  # a ring of two
        assert wire < 0.8 * dense
        share = f"1/{dense / wire:.1f} of dense"
        assert text == (
            f"CompressorState('{spec}', 2 workers, 12 steps, {wire / 1e3:.1f} kB sent per worker,"
            f" {share})"
        )
    for found in resumed:
        _, (wire, dense, text), _ = found[way, spec]
        assert dense == STEPS * NUMEL * 4
        assert text.startswith(f"CompressorState('{spec}', 2 workers, 12 steps, ")
        assert text.endswith(f"1/{dense / wire:.1f} of dense since step 6)")


@pytest.mark.parametrize(("way", "spec"), CASES)
def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(trained, resumed, way, spec):
    for worker, found in enumerate(resumed):
        weights, _, step = found[way, spec]
        assert step == 2 * STEPS
        assert torch.equal(weights, trained[worker][way, spec][0])


@pytest.fixture(scope="module")
def situations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("situations")
    return launch(SITUATIONS, "situations", 2, folder, str(folder))


@pytest.mark.parametrize("name", ["unused parameters", "views", "compiled"])
def test_what_changes_no_gradient_changes_no_weight(situations, name):
    for found in situations:
        weights, step, wire = found["lightning"][name]
        expected, *_ = found["lightning"]["plain"]
        assert step == STEPS
        assert 0 < wire < 0.8 * STEPS * NUMEL * 4
        assert torch.equal(weights, expected)


def test_a_static_graph_and_manual_optimization_train_alike(situations):
    """Both without accumulation, so that each batch is a step."""
    for found in situations:
        (one, step, wire), (other, *rest) = (
            found["lightning"][name] for name in ("static graph", "manual")
        )
        assert step == STEPS * MICROS
        assert rest == [step, wire]
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["bf16-mixed", "bf16-true", "16-mixed"])
def test_other_precisions_train_near_the_plain_one(situations, name):
    for found in situations:
        weights, step, wire = found["lightning"][name]
        assert step == STEPS
        assert 0 < wire < 0.8 * STEPS * NUMEL * weights.element_size()
        assert found["lightning"][name, "scaled"] == (name == "16-mixed")
        torch.testing.assert_close(
            weights.float(), found["lightning"]["plain"][0], rtol=0.1, atol=0.02
        )
        assert torch.equal(weights, situations[0]["lightning"][name][0])


@pytest.mark.parametrize("name", ["unused", "bf16"])
def test_options_of_transformers_are_compressed_too(situations, name):
    for found in situations:
        weights, wire = found["transformers", name]
        assert wire == found["lightning"]["plain"][2]
        tolerance = {"rtol": 0, "atol": 0} if name == "unused" else {"rtol": 0.1, "atol": 0.02}
        torch.testing.assert_close(weights, found["lightning"]["plain"][0], **tolerance)


def test_a_model_that_accelerate_compiles_is_compressed(situations):
    for found in situations:
        (plain, wire), (compiled, same) = (
            found["accelerate", name] for name in ("plain", "compiled")
        )
        assert torch.equal(plain, compiled)
        assert wire == same
        assert 0 < wire < 0.8 * STEPS * MICROS * NUMEL * 4


def test_a_fit_that_goes_on_in_the_same_trainer_keeps_its_memories(situations):
    memories = []
    for found in situations:
        before, carried, step = found["fit twice"]
        assert step == 2 * STEPS
        assert before.keys() == carried.keys() == {"net.body.weight", "net.head.weight"}
        for name, memory in before.items():
            residual = memory["state"]["residual"]
            assert residual.any()
            assert torch.equal(residual, carried[name]["state"]["residual"])
        memories.append(before["net.body.weight"]["state"]["residual"])
    assert not torch.equal(*memories), "each worker has memories of its own"


def test_a_second_training_begins_with_empty_memories(situations):
    for found in situations:
        anew, ((first, _), (second, _)) = found["train twice"]
        assert anew
        assert (first, second) == (3, 3)


@pytest.mark.parametrize("way", ["lightning", "transformers"])
def test_a_recording_beside_it_gets_local_gradients(situations, way):
    first = []
    for found in situations:
        weights, rows = found["recorded"][way]
        assert torch.equal(weights, found["lightning"]["plain"][0])
        assert len(rows) == STEPS
        assert torch.allclose(rows[0], found["recorded"]["expected"], atol=1e-7)
        first.append(rows[0])
    assert not torch.allclose(*first)


REFUSED = {
    "ddp_comm_hook": "ValueError: cannot compress the gradients: torch allows one communication "
    "hook per model, and the ddp_comm_hook fp16_compress_hook of the strategy is registered",
    "local_by": "ValueError: .* and _record_and_reduce is registered; remove .*local_by=",
    "comm_hook": "ValueError: .* and fp16_compress_hook is registered; remove .*comm_hook",
    "twice": "ValueError: .* and compress_bucket is registered",
    "not wrapped": "TypeError: cannot compress the gradients of Model in 2 processes: "
    "it is trained by something else, not by DistributedDataParallel; train with",
    "fully sharded": "TypeError: .* it is trained by FSDPModule, not by DistributedDataParallel",
    "DataParallel": "TypeError: .* it is trained by DataParallel, .* by torchrun",
    "several": "TypeError: .* several DistributedDataParallel: it has 2; register",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compressed_is_refused_in_words(situations, name):
    for found in situations:
        assert re.match(REFUSED[name], found["refused"][name]), found["refused"][name]


def test_backward_passes_around_the_wrapper_are_pointed_out(situations):
    line = (
        "gradstats: nothing was compressed: no backward pass went through DistributedDataParallel"
    )
    assert [found["around"][0] for found in situations] == ["nothing", "nothing"]
    assert [len(found["around"][1]) for found in situations] == [1, 0]
    assert situations[0]["around"][1][0].startswith(line)


@pytest.mark.parametrize("way", WAYS)
def test_memories_of_another_compressor_are_refused(resumes, way):
    for found, _ in resumes:
        fault, lines = found[way, "another spec"]
        assert fault.startswith(
            "ValueError: cannot restore the memories of worker 0: a checkpoint"
        )
        assert "'ef(topk(0.5))', got one of 'ef(topk(0.25))'" in fault
        assert fault.endswith("; restore=False begins with empty memories")
        assert lines == []


@pytest.mark.parametrize("way", WAYS)
def test_memories_can_be_left_out(resumes, way):
    line = "gradstats: memories begin empty, as restore=False asks"
    for (found, _), lines in zip(resumes, ([line], []), strict=True):
        assert found[way, "fresh"] == ("nothing", lines)


@pytest.mark.parametrize("way", ["transformers", "accelerate"])
def test_a_lost_file_of_one_worker_stops_all(resumes, way):
    for found, _ in resumes:
        fault, _ = found[way, "one lost"]
        assert re.match("ValueError: .* of worker 1: .*gradstats-rank1.pt is missing; ", fault)


@pytest.mark.parametrize("way", ["transformers", "accelerate"])
def test_a_checkpoint_without_memories_is_pointed_out(resumes, way):
    line = "gradstats: the checkpoint holds no memories of a compressor; they begin empty"
    for (found, _), lines in zip(resumes, ([line], []), strict=True):
        assert found[way, "all lost"] == ("nothing", lines)


def test_memories_of_other_weights_are_refused_unless_their_folder_is_named(resumes):
    for _, (refused, forced) in resumes:
        assert "gradstats-rank0.pt belongs to other weights than those of the model" in refused[0]
        assert forced == ("nothing", [])


@soaked("workers", 3, 1)
def test_another_number_of_workers_adds_the_memories_up(trained, folder, tmp_path, workers):
    results = launch(SITUATIONS, "another_number", workers, tmp_path, str(folder))
    line = f"gradstats: the memories of 2 workers were added up for {workers}"
    for worker, found in enumerate(results):
        for way in WAYS:
            fault, lines, weights = found[way]
            assert (fault, lines) == ("nothing", [] if worker else [line])
            assert torch.equal(weights, results[0][way][2])
            # alike but for the last bit, which may depend on where the weights lie in memory
            torch.testing.assert_close(weights, found["accelerate"][2], rtol=1e-6, atol=1e-7)
