"""Starts the processes of a group, and hands back what they found."""

import importlib
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from tests.processes import run_workers
from tests.waiting import PATIENCE


def launch(module, function, world, folder, *arguments):
    """What `function(rank, world, *arguments)` of a test module returns on each worker."""
    ends = run_workers(work, world, folder, module, function, str(folder), arguments)
    assert [code for code, _, _ in ends] == [0] * world, ends
    return [torch.load(found(folder, rank), weights_only=False) for rank in range(world)]


def found(folder, rank):
    return f"{folder}/found-{rank}.pt"


def work(rank, world, meeting, module, function, folder, arguments):
    """One worker."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=PATIENCE),
    )
    result = getattr(importlib.import_module(module), function)(rank, world, *arguments)
    torch.save(result, found(folder, rank))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort a process that ends while a group is in use
