"""torchrun starts a training again: one run, all workers, a segment more, nothing lost."""

import os
import runpy
import signal
import subprocess
import sys
import threading
from datetime import timedelta

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import gradstats
from gradstats.recording import processes as distribution
from gradstats.recording.processes import Distribution, shared_store
from gradstats.store import GradientStore
from tests.processes import free_port, run_workers, soaked
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow

FIRST, SECOND, CHECKPOINT = 7, 6, 4

# every element of a gradient is 1000 * attempt + 100 * rank + step of the attempt
TRAINING = """
import os, time
import torch
import torch.distributed as dist
from torch import nn

attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
rank, where = int(os.environ["RANK"]), (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
# torchrun's store outlives an attempt: gloo would look for the dead workers in it
meeting = dist.PrefixStore(str(attempt), dist.TCPStore(*where, is_master=False))
dist.init_process_group("gloo", store=meeting, rank=rank, world_size=2)
model = nn.parallel.DistributedDataParallel(nn.Linear(6, 5, bias=False))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
{capture}
for step in range({second} if attempt else {first}):
    optimizer.zero_grad()
    model(torch.full((1, 6), 1000.0 * attempt + 100 * rank + step)).sum().backward()
    optimizer.step()
if not attempt:
    from gradstats.store import GradientStore

    def last_stored(worker):
        steps = GradientStore.open({path!r}).stream(worker, "track").steps
        return max(steps, default=-1)

    # the row of a step is stored after the next step: that of the last one is lost
    while not all(last_stored(worker) == {first} - 2 for worker in (0, 1)):
        time.sleep(0.05)
    os._exit(9) if rank == 1 else time.sleep(300)  # torchrun ends this one
import gradstats
gradstats.close_all()  # forked processes end by os._exit
dist.destroy_process_group()
"""
CAPTURE = """
import gradstats
settings = {{"full": gradstats.every(2), "track": 5, "if_exists": "resume"}}
gradstats.capture(model, optimizer, {path!r}, start_step={start}, **settings)
"""


def written(tmp_path, path, capture):
    """The script of a training of two workers that fails once."""
    script = tmp_path / "train.py"
    script.write_text(TRAINING.format(capture=capture, first=FIRST, second=SECOND, path=str(path)))
    return script


def train(script):
    runpy.run_path(script)


def agent(_rank, _world, _meeting, script):
    """The agent of torchrun, whose workers are forked and not begun anew."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{free_port()}",
        rdzv_configs={"rank": 0, "timeout": PATIENCE},
        max_restarts=1,
        monitor_interval=0.1,
        start_method="fork",
    )
    elastic_launch(config, train)(script)


def torchrun(script, *before):
    """Run a training of two workers that may start once more."""
    words = ["--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.1"]
    words += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    command = [*before, sys.executable, "-m", "torch.distributed.run", *words, str(script)]
    settings = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **settings) as process:
        try:
            _, err = process.communicate(timeout=PATIENCE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err


def check_rows(path, attempts):
    """Rows are those of the steps of each attempt, in its order and with its gradients.

    Args:
        path: of the store.
        attempts: for each, the step it counted from and the steps of it that are due.
    """
    assert GradientStore.open(path).workers == (0, 1)
    for worker in (0, 1):
        for kind, stride in (("full", 2), ("track", 1)):
            stream = GradientStore.open(path).stream(worker, kind)
            segments = stream.coordinates["segment"].tolist()
            there = list(zip(segments, stream.steps.tolist(), strict=True))
            due = [
                (attempt, start + step, 1000.0 * attempt + 100 * worker + step)
                for attempt, (start, steps) in enumerate(attempts)
                for step in steps
                if (start + step) % stride == 0
            ]
            assert there == [(attempt, step) for attempt, step, _ in due]
            for row, (_, _, value) in enumerate(due):
                assert torch.equal(stream.read(row), torch.full_like(stream.read(row), value))


def test_a_script_that_resumes_at_its_checkpoint(tmp_path):
    """Steps 4 to 6 are done again: readers see those of the second attempt."""
    path = tmp_path / "run.zarr"
    start = f"{CHECKPOINT} if attempt else 0"
    script = written(tmp_path, path, CAPTURE.format(path=str(path), start=start))
    ((code, _, err),) = run_workers(agent, 1, tmp_path, str(script))
    assert code == 0, err
    check_rows(path, [(0, range(FIRST - 1)), (CHECKPOINT, range(SECOND))])
    run = gradstats.open(path, worker=1)
    told = [(step, grad[0].item()) for step, grad in run.gradients("track")]
    assert told == [(step, 100.0 + step) for step in range(CHECKPOINT)] + [
        (CHECKPOINT + step, 1100.0 + step) for step in range(SECOND)
    ]
    assert run.read(step=4).unique().tolist() == [1100.0]


@soaked("if_exists", "overwrite", "error")
def test_a_command_that_torchrun_restarts(tmp_path, if_exists):
    """The restart adds to what its first attempt began, whatever was there before."""
    path = tmp_path / "run.zarr"
    if if_exists == "overwrite":
        GradientStore.create(path).close()
    words = ["--full-every", "2", "--track", "5", "--if-exists", if_exists, "--out", str(path)]
    wrapper = [sys.executable, "-m", "gradstats.cli", "capture", *words, "--"]
    torchrun(written(tmp_path, path, ""), *wrapper)
    check_rows(path, [(0, range(FIRST - 1)), (0, range(SECOND))])  # from the first step on


def test_what_an_earlier_attempt_said_is_not_believed(tmp_path, monkeypatch):
    """torchrun's c10d rendezvous on one node gives the next attempt the same key-value store."""
    meeting, path = torch.distributed.HashStore(), tmp_path / "run.zarr"
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: meeting)

    def rank_0(segment):
        store = GradientStore.create(path, if_exists="resume")
        shared_store(Distribution(0, 2, meeting=0), path, lambda: (store, segment))

    for attempt, segment in enumerate((0, 1)):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        late = threading.Timer(0.3, rank_0, [segment])
        late.start()
        _, heard = shared_store(Distribution(1, 2, meeting=0), path, None)
        late.join()
        assert heard == segment


def test_a_store_that_is_left_on_another_machine_is_not_the_one_of_rank_0(tmp_path, monkeypatch):
    """Folders of one name that the machines do not share, with equal provenance."""
    meeting = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: meeting)
    monkeypatch.setattr(distribution, "_PATIENCE", timedelta(seconds=0.5))
    here, there = tmp_path / "here/run.zarr", tmp_path / "there/run.zarr"
    GradientStore.create(there).close()
    made = GradientStore.create(here)
    shared_store(Distribution(0, 2, meeting=0), here, lambda: (made, 0))
    store, _ = shared_store(Distribution(1, 2, meeting=0), here, None)
    assert store.run == made.run
    with pytest.raises(RuntimeError, match=r"rank 1 sees another run at .* than rank 0"):
        shared_store(Distribution(1, 2, meeting=0), there, None)
