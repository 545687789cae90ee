"""Small rows that wait are committed together, copied by one thread, and read once."""

import math
import threading
import tracemalloc

import numpy as np
import pytest
import torch

from gradstats.recording import capture, every
from gradstats.recording.row_contents import norm
from gradstats.recording.row_layout import SMALL, in_pieces
from gradstats.recording.slots import BATCH_BYTES, BATCH_ROWS, Pool, waiting
from gradstats.store import GradientStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.zarr"


@pytest.fixture
def held_up(monkeypatch):
    """The first append waits for the event; the rows of each append, by step."""
    append, go, appended = GradientStore.append_rows, threading.Event(), []

    def waits(store, rows, worker=0, kind="full"):
        go.wait()
        appended.append([row.step for row in rows])
        append(store, rows, worker, kind)

    monkeypatch.setattr(GradientStore, "append_rows", waits)
    return go, appended


def test_full_rows_that_wait_are_one_commit(path, training, held_up, read):
    go, appended = held_up
    with capture(training.model, training.optimizer, path, full=every(1), track=0) as cap:
        for _ in range(9):
            training.step()
        go.set()
    assert [step for steps in appended for step in steps] == list(range(9))
    assert max(map(len, appended)) > 4
    assert (cap.stats.full_rows, cap.stats.dropped) == (9, 0)
    for row in range(9):
        assert torch.equal(read(path).read(row), training.flat(row))
        exact = math.sqrt(math.fsum(training.flat(row).double().square().tolist()))
        assert read(path).coordinates["grad_norm"][row] == pytest.approx(exact, rel=1e-14)


def test_a_row_that_fails_takes_no_other_with_it(path, training, held_up, monkeypatch, read):
    go, appended = held_up
    append = GradientStore.append_rows

    def failing(store, rows, worker=0, kind="full"):
        append(store, rows, worker, kind) if 3 not in [row.step for row in rows] else 1 / 0

    monkeypatch.setattr(GradientStore, "append_rows", failing)
    with capture(training.model, training.optimizer, path, full=every(1), track=0) as cap:
        for _ in range(7):
            training.step()
        go.set()
    assert read(path).steps.tolist() == [0, 1, 2, 4, 5, 6]
    assert (cap.stats.full_rows, cap.stats.dropped) == (6, 1)
    assert appended


def test_twice_as_many_rows_wait_as_are_committed_together():
    rows = {nbytes: waiting("full", nbytes) for nbytes in (0, 1, 10**5, 10**6, 10**7, 10**9)}
    assert rows == {0: 64, 1: 64, 10**5: 64, 10**6: 32, 10**7: 2, 10**9: 2}
    assert all(n == 2 or n * nbytes <= 2 * BATCH_BYTES for nbytes, n in rows.items())
    assert {waiting("track", nbytes) for nbytes in rows} == {2 * BATCH_ROWS}
    assert {waiting("summary", nbytes) for nbytes in rows} == {2}


def test_the_slot_used_last_is_used_next():
    pool = Pool(object, 3)
    slots = [pool.take(wait=False)]
    assert not pool.busy
    slots += [pool.take(wait=False) for _ in range(2)]
    assert pool.busy
    assert pool.take(wait=False) is None
    for slot in slots:
        pool.give_back(slot)
    assert not pool.busy
    assert [pool.take(wait=False) for _ in range(3)] == slots[::-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_pieces_are_small_and_copy_alike(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (32_767,), (2**15,), (300, 301), (64, 33, 5, 7), (0,)]
    grads = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    grads.append(grads[4].contiguous(memory_format=torch.channels_last))
    grads.append(grads[3].t())
    views = [torch.empty(grad.shape, dtype=dtype) for grad in grads]
    targets, sources = in_pieces(views, grads)
    torch._foreach_copy_(targets, sources)
    assert all(torch.equal(view, grad) for view, grad in zip(views, grads, strict=True))
    contiguous = [piece for piece in sources if piece.is_contiguous()]
    assert all(piece.numel() < 2**15 for piece in contiguous)
    assert len(contiguous) >= len(grads) - 2


class Holding:
    """A slot's vectors alone."""

    def __init__(self, *flats):
        self.flat = {str(i): flat for i, flat in enumerate(flats)}
        self.sparse = {}


def test_the_norm_of_a_large_row_takes_little_memory():
    flat = torch.ones(4_000_000, dtype=torch.bfloat16)
    norm(Holding(flat[:1]))
    tracemalloc.start()
    try:
        assert norm(Holding(flat)) == 2000.0
        assert tracemalloc.get_traced_memory()[1] < flat.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0, 1, 8_191, 8_193, 65_536, 262_144, 300_001])
def test_the_norm_of_a_row_is_exact_whatever_its_length(dtype, size):
    flat = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
    exact = math.sqrt(math.fsum(flat.double().square().tolist()))
    assert norm(Holding(flat)) == pytest.approx(exact, rel=1e-14)
    if size > 1:
        flat[size - 1] = math.nan
        assert math.isnan(norm(Holding(torch.ones(3), flat)))
        flat[size - 1] = -math.inf
        assert norm(Holding(torch.ones(3), flat)) == math.inf


def test_a_row_of_many_pieces_is_stored_exactly(tmp_path):
    shapes = {"wide": (500, 400), "deep": (64, 64, 5, 5), "bias": (500,)}
    model = torch.nn.ParameterDict(
        {n: torch.nn.Parameter(torch.zeros(s)) for n, s in shapes.items()}
    )
    assert sum(4 * p.numel() for p in model.parameters()) < SMALL
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    generator, rows = torch.Generator().manual_seed(1), []
    with capture(model, optimizer, tmp_path / "run.zarr", full=every(1), track=0, quiet=True):
        for _ in range(40):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            rows.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
            optimizer.step()
    stream = GradientStore.open(tmp_path / "run.zarr").stream()
    names = [p.name for p in stream.table]
    assert names == list(dict(model.named_parameters()))
    assert all(torch.equal(stream.read(row), rows[row]) for row in range(40))
    whole = np.stack([row.numpy() for row in rows])
    assert (np.asarray(stream.arrays["grad_float32"]) == whole).all()
