"""Local gradients under `fully_shard`, against autograd on whole weights without FSDP."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gradstats.recording.unsharding import divided_before, whole_gradients
from gradstats.store import GradientStore
from tests.processes import run_workers, soaked
from tests.recording.sharded import MICRO, STEPS, Net, work

pytestmark = pytest.mark.slow


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


def succeed(path, name, *args, world=2):
    ended = run_workers(work, world, path.parent, name, str(path), *args)
    assert [code for code, _, _ in ended] == [0] * world, ended
    return [(out, err) for _, out, err in ended]


def check(path, world, *, absent=(), bits=True, micro=MICRO - 1):
    """Each worker's rows are its own whole gradients."""
    shapes = {name: tuple(p.shape) for name, p in Net().named_parameters() if p.requires_grad}
    for worker in range(world):
        exact = torch.load(f"{path}.{worker}")
        stream = GradientStore.open(path).stream(worker)
        assert {p.name: p.shape for p in stream.table} == shapes
        assert not any(p.placement for p in stream.table)
        assert stream.steps.tolist() == list(range(STEPS))
        assert set(stream.coordinates["point"]) == {"local"}
        assert set(stream.coordinates["micro_step"]) == {micro}
        track = GradientStore.open(path).stream(worker, "track")
        ids = track.element_ids["float32"]
        for row in range(STEPS):
            for place, name in enumerate(shapes):
                if row in absent and name.startswith("middle"):
                    assert not stream.present[row, place]
                    continue
                got, want = stream.read(row, name), exact[row][name]
                assert torch.equal(got, want) if bits else torch.allclose(got, want, rtol=1e-2)
            assert torch.equal(track.read(row), stream.read(row)[ids])


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "mixed", "float16"])
def test_rows_are_what_each_worker_computed(path, name, world):
    """To the bit; in float16 what is divided by two before the reduction is made whole again."""
    succeed(path, "precision", name, world=world)
    check(path, world)


def test_gradients_that_are_reduced_once_a_step(path):
    succeed(path, "no_sync")
    check(path, 2)


@pytest.mark.parametrize("name", ["columns", "together", "kept", "compiled", "divisor"])
def test_other_groups_and_shards(path, name):
    succeed(path, name)
    check(path, 2)


def test_what_is_divided_before_the_sum():
    """As the installed torch does it."""
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import _get_gradient_divide_factors

    for workers in range(1, 70):
        group = SimpleNamespace(size=lambda n=workers: n)
        before, after, *_ = _get_gradient_divide_factors(group, None, torch.float16, "cpu")
        assert before == divided_before(workers)
        assert before * after == workers


def test_shards_of_pseudo_gradients(path):
    succeed(path, "shards_of_rounds")
    for worker in range(2):
        stream = GradientStore.open(path).stream(worker)
        assert stream.coordinates["point"].tolist() == ["outer"]
        exact = torch.load(f"{path}.{worker}")
        for p in stream.table:
            assert p.placement == "Shard(0)"
            assert torch.equal(stream.read(0, p.name), exact[p.name])


def test_checkpointed_layers_are_seen_once(path):
    succeed(path, "checkpointed")
    for worker in range(2):
        exact = torch.load(f"{path}.{worker}")
        stream = GradientStore.open(path).stream(worker)
        for row in range(STEPS):
            for p in stream.table:
                want = exact[row][p.name.replace("_checkpoint_wrapped_module.", "")]
                assert torch.equal(stream.read(row, p.name), want)


def test_a_scaler_leaves_its_scale_in_the_rows(path):
    succeed(path, "scaled")
    check(path, 2)
    for worker in range(2):
        facts = GradientStore.open(path).stream(worker).coordinates
        assert set(facts["loss_scale"]) == {256.0}
        assert set(facts["unscaled"]) == {0}


def test_replicas_of_shards(path):
    succeed(path, "hybrid", world=4)
    check(path, 4)


def test_parameters_without_a_gradient(path):
    succeed(path, "unused")
    check(path, 2, absent={1})


def test_parameters_whose_zeros_are_reduced(path):
    succeed(path, "unused_reduced")
    stream = GradientStore.open(path).stream()
    assert stream.present.all()
    assert not stream.read(1, "middle.weight").any()
    assert stream.read(0, "middle.weight").any()


@pytest.mark.parametrize("how", ["none", "zero"])
def test_a_batch_that_is_left_out_is_in_no_row(path, how):
    succeed(path, "left_out", how)
    for worker in range(2):
        exact = torch.load(f"{path}.{worker}")
        stream = GradientStore.open(path).stream(worker)
        for row in range(STEPS):
            for name, want in exact[row].items():
                assert torch.equal(stream.read(row, name), want)


def test_a_list_of_optimizers(path):
    succeed(path, "listed")
    for worker in range(2):
        exact = torch.load(f"{path}.{worker}")
        stream = GradientStore.open(path).stream(worker)
        assert stream.steps.tolist() == [0, 2, 4]
        assert len(stream.table) == 5
        for row, step in enumerate((0, 2, 4)):
            for p in stream.table:
                assert torch.equal(stream.read(row, p.name), exact[step][p.name])


def test_one_process_has_no_reduction(path):
    succeed(path, "alone", world=1)
    check(path, 1)


def test_the_users_own_communication_is_called_and_put_back(path):
    ends = succeed(path, "users_own")
    assert [out for out, _ in ends] == ["1 2\n"] * 2


def test_a_replaced_communication_is_named(path):
    for _, err in succeed(path, "replaced"):
        assert "another custom reduce-scatter has replaced that of ''" in err


@soaked("kills", 1, 6)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_leaves_exact_rows_and_the_run_goes_on(path, victim, kills):
    for at in range(1, kills + 1):
        ended = run_workers(work, 2, path.parent, "killed", str(path), victim, at)
        assert ended[victim][0] == -signal.SIGKILL
        assert ended[1 - victim][0] == 1  # the error is gloo's: the training's own
        for worker in range(2):
            steps = check_segment(path, worker, at - 1)
            assert steps == list(range(len(steps)))
            assert len(steps) == at if worker != victim else len(steps) <= at
    succeed(path, "killed", -1, -1)
    for worker in range(2):
        last = max(GradientStore.open(path).stream(worker).coordinates["segment"])
        assert check_segment(path, worker, last) == list(range(6))


def check_segment(path, worker, segment):
    """The steps of a segment that are stored, each exact."""
    exact = torch.load(f"{path}.{worker}")
    stream = GradientStore.open(path).stream(worker)
    here = np.flatnonzero(stream.coordinates["segment"] == segment)
    for row in here:
        for name, want in exact[stream.steps[row]].items():
            assert torch.equal(stream.read(int(row), name), want)
    return stream.steps[here].tolist()


def test_what_cannot_be_seen_is_refused_by_name(path):
    for out, _ in succeed(path, "refusals"):
        lines = out.splitlines()
        assert [line.split(";")[0].split(", got")[0] for line in lines] == [
            "at must be 'local' alone under DTensor (fully_shard, FSDP2)",
            "weights must be off: DTensor (fully_shard, FSDP2) leaves shards of them here",
            "at must not be 'local' under fully_shard here: 'scale' is replicated and not "
            "sharded, so that no reduce-scatter sees it",
            "at must not be 'local' under fully_shard here: 'the model' has 2 parameter groups, "
            "and torch takes no custom reduce-scatter there",
            f"at must not be 'local' under fully_shard here: torch {torch.__version__} has no "
            "FSDPModule.set_custom_reduce_scatter",
        ]
    assert not path.exists()


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_a_flat_input_is_cut_into_whole_gradients(world):
    """Against the layout said in words: rows of each rank, one padded shard after another."""
    shapes = [(7,), (1, 4), (5, 2, 3), (2 * world, 3 * world)]
    dims = [0, 0, 0, 1]
    grads = [torch.randn(shape) for shape in shapes]
    rows = []
    for rank in range(world):
        parts = []
        for grad, dim in zip(grads, dims, strict=True):
            size = -(-grad.shape[dim] // world)
            part = grad.narrow(dim, min(rank * size, grad.shape[dim]), 0)
            if rank * size < grad.shape[dim]:
                part = grad.narrow(dim, rank * size, min(size, grad.shape[dim] - rank * size))
            padding = size * grad.numel() // grad.shape[dim] - part.numel()
            parts.append(np.concatenate([part.reshape(-1).numpy(), np.full(padding, np.nan)]))
        rows.append(np.concatenate(parts))
    flat = torch.from_numpy(np.concatenate(rows).astype(np.float32))
    got = whole_gradients(flat, world, list(zip(shapes, dims, strict=True)))
    for one, grad in zip(got, grads, strict=True):
        assert torch.equal(one, grad)
