"""Starts the processes of a group, each with a timeout, and hands back what they found."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import torch

from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]


def launch(module, function, world, folder, *arguments):
    """What `function(rank, world, *arguments)` of a test module returns on each worker."""
    # a file of each run's own: what an earlier one left there would be believed
    meeting = folder / f"meeting-{uuid.uuid4().hex}"
    outs = [folder / f"{meeting.name}-{rank}.pt" for rank in range(world)]
    command = [sys.executable, "-m", "tests.distributed.launching", module, function]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(meeting), str(outs[rank]), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for rank in range(world)
    ]
    try:
        told = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert codes == [0] * world, "\n".join(told)
    return [torch.load(out, weights_only=False) for out in outs]


def main():
    """One worker."""
    import importlib
    from datetime import timedelta

    import torch.distributed as dist

    module, function, rank, world, meeting, out, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=int(rank),
        world_size=int(world),
        timeout=timedelta(seconds=PATIENCE),
    )
    work = getattr(importlib.import_module(module), function)
    torch.save(work(int(rank), int(world), *arguments), out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    os._exit(0)  # gloo's threads may abort a process that ends while a group is in use
