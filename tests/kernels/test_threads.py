"""Threads share chunks, each of which goes to one of them, and end nobody's program."""

import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from gradstats.kernels import threads
from gradstats.kernels.threads import CHUNK, in_threads, shared


@pytest.fixture
def many():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [0, 1, CHUNK, 2 * CHUNK - 1, 9 * CHUNK + 5])
def test_chunks_cover_all_elements_once(many, n):
    chunks = [(c.start, c.stop) for each in in_threads(list, n) for c in each]
    assert sorted(chunks) == [(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK)]


def test_work_in_a_thread_may_have_threads(many):
    def work(chunks):
        return sum(len(each) for _ in chunks for each in in_threads(list, 4 * CHUNK))

    assert sum(in_threads(work, 16 * CHUNK)) == 16 * 4


@pytest.mark.parametrize("failing", ["caller", "other"])
def test_after_an_error_no_thread_goes_on(failing):
    """The others have what they took still in hand when the first one fails."""
    began, ended, caller = threading.Barrier(2), [], threading.current_thread()

    def work(items):
        for _ in items:
            began.wait()
            if (threading.current_thread() is caller) == (failing == "caller"):
                raise ZeroDivisionError
            spin(10_000_000)
            ended.append(True)

    with pytest.raises(ZeroDivisionError):
        shared(work, iter(range(2)), 2)
    assert ended == [True]


def spin(rounds):
    for _ in range(rounds):
        pass


def test_vectors_of_all_lengths_have_the_same_threads(monkeypatch):
    """A pool for each number of threads would keep as many as all these numbers together."""
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    threads._pool.cache_clear()
    before = set(threading.enumerate())
    for number in (2, 3, 4, 3, 2):
        together = threading.Barrier(number)
        waits = [together.wait] * number
        shared(lambda items: [wait() for wait in items], iter(waits), number)
    assert len(set(threading.enumerate()) - before) <= 3
    threads._pool.cache_clear()


LATE = """
import atexit, sys, threading
import torch
from gradstats.kernels import sum_magnitudes

torch.set_num_threads(2)
values = torch.ones(3_000_000)

def measure():
    print(*sum_magnitudes(values))

def after_main():
    threading.main_thread().join()
    measure()

{begin}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "begin", ["atexit.register(measure)", "threading.Thread(target=after_main).start()"]
)
def test_what_runs_while_python_ends_runs_alone(begin):
    script = textwrap.dedent(LATE).replace("{begin}", begin)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.stdout.split() == ["3000000", "3000000.0"], ran.stderr
