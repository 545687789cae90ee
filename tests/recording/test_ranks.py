"""A group of processes that calls capture() itself makes one recording, by rank 0."""

import subprocess
import sys

import torch

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from gradstats.recording import capture, every

rank, meeting, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
model = nn.parallel.DistributedDataParallel(nn.Linear(3, 1, bias=False))
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
with capture(model, optimizer, path, full=every(1)) as cap:
    for step in range(4):
        optimizer.zero_grad()
        model(torch.full((1, 3), float(rank + step))).sum().backward()
        optimizer.step()
        cap.log(loss=rank)
print(rank, type(cap).__name__, cap.stats.full_rows)
dist.destroy_process_group()
"""


def test_rank_0_records_what_both_agreed_on(tmp_path, read):
    script, path = tmp_path / "train.py", tmp_path / "run.zarr"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(script)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meeting"), str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    (out0, err0), (out1, err1) = [process.communicate(timeout=60) for process in processes]
    assert (out0, out1) == ("0 Capture 4\n", "1 Idle 0\n"), err0 + err1
    assert "rank 0 of 2 records" in err0
    assert "gradstats" not in err1
    stream = read(path)
    assert [p.name for p in stream.parameters] == ["weight"]
    assert [stream.read(row)[0] for row in range(4)] == [0.5, 1.5, 2.5, 3.5]
    assert torch.equal(stream.read(3), torch.full((3,), 3.5))
    assert set(stream.coordinates["loss"]) == {0.0}
