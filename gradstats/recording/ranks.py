"""Which process of a training run this is."""

import os

import torch.distributed


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes.

    The process group says it; before there is one, what a launcher such as torchrun put into the
    environment does.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return (rank, world) if 0 <= rank < world else (0, 1)
    except (KeyError, ValueError):
        return 0, 1


def group_is_missing() -> bool:
    """Whether rank and world come from the environment alone."""
    return not (torch.distributed.is_available() and torch.distributed.is_initialized())
