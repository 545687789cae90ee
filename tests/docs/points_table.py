"""The table of what is seen at each point under each way of training, from what rows hold.

`python -m tests.docs.points_table --write` puts it into docs/capture.md, between its marks; a
test holds the page to it.
"""

import argparse
import json
import os
import sys
import tempfile
import uuid
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from gradstats.store import GradientStore
from tests.processes import run_workers
from tests.recording import rounds, workers
from tests.recording.ways import WAYS

POINTS = ("local", "reduced", "clipped", "outer")
PAGE = Path(__file__).parents[2] / "docs" / "capture.md"
BEGIN, END = "<!-- points: written by tests/docs/points_table.py -->", "<!-- /points -->"
LIMIT, WORLD = 0.05, 2


def same(row, exact):
    """Equal but for the order of sums: clipping and reducing have orders of their own."""
    scale = exact[exact.isfinite()].abs().max().item()
    return torch.allclose(row, exact, rtol=1e-5, atol=1e-6 * scale)


def phrase(row, candidates):
    """The one thing that a row can be.

    Raises:
        AssertionError: It is none of them, or several that differ.
    """
    found = [name for name, exact in candidates.items() if same(row, exact)]
    assert len(found) == 1, f"a row must be one of {list(candidates)}, it is {found}"
    return found[0]


def last_row(path, point, worker=0):
    """The last row of a point, flat, and what it says of itself."""
    stream = GradientStore.open(path).stream(worker)
    index = max(i for i, at in enumerate(stream.coordinates["point"]) if at == point)
    facts = {name: column[index] for name, column in stream.coordinates.items()}
    first = stream.table[0]
    if first.layout == "sparse":
        kept = stream.read(index, first.name)
        assert kept.is_sparse
        return kept.to_dense().reshape(-1), facts, ", kept sparse"
    return stream.read(index), facts, ""


def cell(way, point, folder):
    """What a row holds at a point under a way of training."""
    path = Path(folder) / f"{uuid.uuid4().hex}.zarr"
    try:
        candidates = way(path, point)
    except ValueError as error:
        return refused(error)
    if not len(GradientStore.open(path).stream()):
        return "no row"
    row, facts, kept = last_row(path, point)
    text = phrase(row, candidates)
    assert facts["unscaled"] == (0 if "×" in text else 1 - uncertain(point, candidates))
    skipped = ", flagged `skipped`" if facts["skipped"] else ""
    return text + kept + skipped


def uncertain(point, candidates):
    """Local rows under a scaler are scaled, whatever the scale."""
    return int(point == "local" and any("×" in name for name in candidates))


def refused(error):
    return "refused: " + str(error).split(":")[0].split("; ")[0]


# --- on two processes ---


def ddp(path, rank, at, micros=workers.MICRO, limit=LIMIT, by="hooks", **settings):
    model = DistributedDataParallel(workers.net(), **settings)
    how = {"micros": micros, "limit": limit, "local_by": by}
    workers.train(model, path, rank=rank, at=at, **how)


def fsdp2(path, rank, at, fully=True):
    model = workers.net()
    fully_shard(model[0])
    fully_shard(model)
    workers.train(model, path, rank=rank, at=at, fully=fully)


def fsdp1(path, rank, at):
    model = FullyShardedDataParallel(
        workers.net(), use_orig_params=True, device_id=torch.device("cpu")
    )
    workers.train(model, path, rank=rank, at=at, clip=lambda limit: model.clip_grad_norm_(limit))


def diloco(path, rank, at):
    rounds.train(rank, WORLD, path, at)


WORKER_WAYS = {
    "DDP": (ddp, {"micros": 1}),
    "DDP, accumulation in `no_sync`": (ddp, {}),
    "DDP, `gradient_as_bucket_view`": (ddp, {"gradient_as_bucket_view": True}),
    "DDP, `static_graph`": (ddp, {"micros": 1, "static_graph": True}),
    'DDP, `local_by="comm_hook"`': (ddp, {"micros": 1, "by": "comm_hook"}),
    "FSDP1, `use_orig_params=True`": (fsdp1, {}),
    "FSDP2 (`fully_shard`)": (fsdp2, {}),
    "FSDP2, every micro-batch reduced": (fsdp2, {"fully": "each"}),
    "DiLoCo, the outer optimizer": (diloco, {}),
}


def part(flat, stream):
    """The shards of a stream out of a whole gradient."""
    pieces, start = [], 0
    for p, whole in zip(stream.table, workers.net().parameters(), strict=True):
        grad = flat[start : start + whole.numel()]
        start += whole.numel()
        if p.placement.startswith("Shard"):
            first = p.shard_offset[0]
            grad = grad.reshape(p.global_shape)[first : first + p.shape[0]].reshape(-1)
        elif p.placement:
            grad = grad[p.shard_offset[0] :][: p.numel]
        pieces.append(grad)
    return torch.cat(pieces)


def inner_or_outer(rank):
    """What a row of DiLoCo could be."""
    own, last, means = rounds.expected(WORLD)
    return {
        "own, of the last inner step": last[rank][-1],
        "own pseudo-gradient": own[rank][-1],
        "mean of the pseudo-gradients": means[-1],
    }


def worker_cell(path, rank, point, micros, way):
    """What a worker's row holds, among what it could be."""
    stores = GradientStore.open(path)
    if rank not in stores.workers or point not in stores.stream(rank).coordinates["point"]:
        return "not recorded"
    row, _, _ = last_row(path, point, rank)
    stream = stores.stream(rank)
    if way is diloco:
        return phrase(row, inner_or_outer(rank))
    kinds = {"own": "local", "mean": "reduced", "mean, clipped": "clipped"}
    exact = {
        name: part(workers.expected(rank, at, WORLD, LIMIT, micros)[-1], stream)
        for name, at in kinds.items()
    }
    shard = any(p.placement for p in stream.table)
    return ("own shard of the " if shard else "") + phrase(row, exact)


def on_worker(rank, folder):
    """All ways on this worker; what its rows hold, as JSON."""
    found = {}
    for number, (name, (way, settings)) in enumerate(WORKER_WAYS.items()):
        for point in POINTS if way is diloco else POINTS[:-1]:
            path = str(Path(folder) / f"{number}-{point}.zarr")
            dist.barrier()
            try:
                way(path, rank, point, **settings)
            except ValueError as error:
                found[f"{name}|{point}"] = refused(error)
                continue
            dist.barrier()
            micros = settings.get("micros", workers.MICRO)
            found[f"{name}|{point}"] = worker_cell(path, rank, point, micros, way)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def work(rank, world, meeting, folder):
    """One worker."""
    meet = {"init_method": f"file://{meeting}", "rank": rank, "world_size": world}
    dist.init_process_group("gloo", **meet)
    on_worker(rank, folder)
    dist.barrier()
    dist.destroy_process_group()


def on_workers(folder):
    """(way, point) -> what rows hold, on rank 0 and on the others."""
    ends = run_workers(work, WORLD, folder, str(folder))
    assert [code for code, _, _ in ends] == [0] * WORLD, ends
    return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(WORLD)]


# --- the table ---


def table(folder):
    """The table, in Markdown."""
    cells = {name: [cell(way, p, folder) for p in POINTS[:-1]] for name, way in WAYS.items()}
    first, second = on_workers(folder)
    for name in WORKER_WAYS:
        keys = [f"{name}|{p}" for p in POINTS]
        cells[name] = [joined(first[key], second[key]) for key in keys if key in first]
    head = (
        "| way of training | `local` | `reduced` | `clipped` | `outer` |\n|---|---|---|---|---|\n"
    )
    padded = {name: [*row, *["–"] * (len(POINTS) - len(row))] for name, row in cells.items()}
    return head + "".join(f"| {' | '.join([name, *row])} |\n" for name, row in padded.items())


def joined(first, other):
    """What rank 0 and another rank see."""
    return first if first == other else f"{first}; rank 1: {other}"


def filled(page, text):
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        text = table(folder)
    if options.write:
        PAGE.write_text(filled(PAGE.read_text(), text))
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
