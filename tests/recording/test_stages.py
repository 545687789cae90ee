"""Processes that train different parts of a model: each row is read by its worker's table."""

import pytest
import torch

import gradstats
from gradstats.store import GradientStore
from tests.processes import run_workers
from tests.recording.workers import STEPS, stage_gradient, stage_net, work

pytestmark = pytest.mark.slow
WAYS = {  # name: processes, whether the stages have other shapes, who records
    "stages": (2, False, (0, 1)),
    "stages_wide": (2, True, (0, 1)),
    "stages_alone": (2, False, (0, 1)),
    "stages_reduced": (4, False, (0, 2)),
}


@pytest.mark.parametrize("name", WAYS)
def test_rows_of_a_stage_go_by_its_own_names(name, tmp_path):
    world, wide, recording = WAYS[name]
    path = tmp_path / "run.zarr"
    ended = run_workers(work, world, tmp_path, name, str(path))
    assert [code for code, _, _ in ended] == [0] * world, ended
    for rank, (_, out, _) in enumerate(ended):
        expected = f"Capture {STEPS} 0" if rank in recording else "Idle 0 0"
        assert out.strip() == expected
    store = GradientStore.open(path)
    assert store.workers == recording
    for worker in recording:
        stage = worker * 2 // world
        names = [name for name, _ in stage_net(stage, wide).named_parameters()]
        run = gradstats.open(path, worker=worker)
        assert [p.name for p in run.table] == list(run.names) == names
        track, full = (store.stream(worker, kind) for kind in ("track", "full"))
        peers = range(stage * world // 2, (stage + 1) * world // 2)
        for step in range(STEPS):
            grads = [stage_gradient(stage, rank, step, wide) for rank in peers]
            for each in names:
                mean = sum(grad[each] for grad in grads) / len(grads)
                assert torch.allclose(run.read(step, each), mean, atol=1e-7)
            ids = track.element_ids["float32"]
            assert torch.equal(track.read(step), full.read(step)[ids])


def test_readers_keep_stages_apart(tmp_path, capsys):
    path = tmp_path / "run.zarr"
    run_workers(work, 4, tmp_path, "stages_local", str(path))
    run, other = (gradstats.open(path, worker=worker) for worker in (0, 2))
    assert run.stages == ((0, 1), (2, 3))
    assert [one.worker for one in run.beside(2)] == [0, 1]
    assert [one.worker for one in other.beside(2)] == [2, 3]
    with pytest.raises(ValueError, match="from 1 to 2, those captured with the same parameters"):
        run.beside(4)
    from gradstats.cli.printing import print_info

    print_info(run)
    shown = capsys.readouterr().out
    for name in ("0.weight", "2.bias", "4.weight", "6.bias"):
        assert shown.count(f"  {name}  ") == 1
    assert "worker 2, 3: parameters that other workers do not have" in shown
    table = gradstats.fit(other, by="parameter", ratios=[0.1])
    assert set(table["group"]) == {"4.weight", "4.bias", "6.weight", "6.bias"}
    rows = gradstats.replay(other, ["topk(0.1)"], workers=2)
    assert set(rows["status"]) == {"ok"}


def test_a_stage_that_resumes_with_another_table_is_refused(tmp_path):
    path = tmp_path / "run.zarr"
    run_workers(work, 2, tmp_path, "stages", str(path))
    ended = run_workers(work, 2, tmp_path, "stages_swapped", str(path))
    assert all("cannot resume worker" in err or "rank 0" in err for _, _, err in ended)
