"""Compression in real trainers on two workers, against a hook that is registered by hand."""

import pytest
import torch

pytest.importorskip("lightning.pytorch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

from tests.exchange.launching import launch  # noqa: E402
from tests.integrations import compressed  # noqa: E402
from tests.integrations.compressed import SPECS, STEPS, WAYS  # noqa: E402

MODULE = compressed.__name__
CASES = [(way, spec) for way in WAYS for spec in SPECS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    return launch(MODULE, "trained", 2, tmp_path_factory.mktemp("trained"), str(folder))


@pytest.fixture(scope="module")
def resumed(trained, folder, tmp_path_factory):
    return launch(MODULE, "resumed", 2, tmp_path_factory.mktemp("resumed"), str(folder))


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
        assert dense == 2 * STEPS * (6 * 16 + 16 + 16 * 2 + 2) * 4  # a ring of two
        assert wire < 0.8 * dense
        share = f"1/{dense / wire:.1f} of dense"
        assert text == (
            f"CompressorState('{spec}', 2 workers, 12 steps, {wire / 1e3:.1f} kB sent per worker,"
            f" {share})"
        )
    for found in resumed:
        _, (wire, dense, text), _ = found[way, spec]
        assert dense == STEPS * 146 * 4
        assert text.startswith(f"CompressorState('{spec}', 2 workers, 12 steps, ")
        assert text.endswith(f"1/{dense / wire:.1f} of dense since step 6)")


@pytest.mark.parametrize(("way", "spec"), CASES)
def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(trained, resumed, way, spec):
    for worker, found in enumerate(resumed):
        weights, _, step = found[way, spec]
        assert step == 2 * STEPS
        assert torch.equal(weights, trained[worker][way, spec][0])
