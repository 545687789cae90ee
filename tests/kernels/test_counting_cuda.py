"""The triton kernels: interpreted against torch, compiled for a GPU, and on one if there."""

import os
import subprocess
import sys

import pytest
import torch

from gradstats import kernels
from gradstats.kernels import counting_eager, selecting_eager
from tests.kernels.test_counting import COUNTED, DTYPES, draws, same_pair, same_rows, specials

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="triton is not installed")
counting_cuda = pytest.importorskip("gradstats.kernels.counting_cuda")
selecting_cuda = pytest.importorskip("gradstats.kernels.selecting_cuda")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = (
    0,
    1,
    counting_cuda.BLOCK - 1,
    counting_cuda.BLOCK,
    counting_cuda.BLOCK + 1,
    9 * counting_cuda.BLOCK + 5,
)


def check(values):
    ours, definition = counting_cuda.count(values.to(DEVICE)), counting_eager.count(values)
    assert same_rows(ours, definition)
    assert all(getattr(ours, name) == getattr(definition, name) for name in COUNTED)
    assert ours.max_abs == definition.max_abs
    rounding = 1e-12 * definition.total_abs
    assert ours.total == pytest.approx(definition.total, rel=1e-12, abs=rounding)
    assert ours.total_abs == pytest.approx(definition.total_abs, rel=1e-12)
    assert ours.total_sq == pytest.approx(definition.total_sq, rel=1e-12)
    for threshold in (0.0, 0.7, 1e30):
        chosen = [each.cpu() for each in selecting_cuda.compact(values.to(DEVICE), threshold)]
        assert same_pair(chosen, selecting_eager.compact(values, threshold))


@pytest.mark.filterwarnings("ignore:overflow")  # the square of the largest float64
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_triton_counts_and_selects_what_torch_does(dtype, n):
    values = draws(n, dtype, seed=n)
    if n > 40:
        values[-20:] = specials(dtype).repeat(2)[:20]
    check(values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triton_counts_odd_vectors(dtype):
    n = counting_cuda.BLOCK + 7
    mostly_zero = torch.where(torch.rand(n) < 0.01, torch.randn(n), -0.0)
    every_scale = torch.logspace(-45, 38, n, dtype=torch.float64)  # far beyond the window
    for values in (torch.zeros(n), torch.full((n,), 0.25), mostly_zero, every_scale):
        check(values.to(dtype))
    check(torch.full((n,), torch.nan, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_triton_counts_values_that_were_bfloat16_apart(dtype, share):
    values = draws(3 * counting_cuda.COUNTED + 7, dtype)
    once = torch.rand(len(values), generator=torch.Generator().manual_seed(0)) < share
    values = torch.where(once, values.to(torch.bfloat16).to(dtype), values)
    check(values)
    assert (counting_cuda.count(values.to(DEVICE)).bins % 2 == 0).all() == (share == 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_triton_finds_the_largest(dtype, n):
    values = draws(n, dtype, seed=n)
    if n > 40:
        values[-20:] = specials(dtype).repeat(2)[:20]
    few = torch.randint(-2, 3, (n,), generator=torch.Generator().manual_seed(n)).to(dtype)
    long = n > 2 * counting_cuda.BLOCK
    for vector, every in (
        (values, (n // 7,) if long else (1, 3, n // 7, n - 1, n, n + 4)),
        (few, (n,) if long else (3, n // 7, n - 1)),
    ):
        for k in {k for k in every if k > 0}:
            chosen = [each.cpu() for each in selecting_cuda.largest(vector.to(DEVICE), k)]
            assert same_pair(chosen, selecting_eager.largest(vector, k))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("content", ["ordinary", "ties", "zeros", "odd", "misleading"])
def test_triton_finds_the_largest_by_a_sample(dtype, content, monkeypatch):
    """Whatever the sample says: too few candidates or too many are found out."""
    monkeypatch.setattr(selecting_cuda, "SAMPLE", 256)
    n = 2 * counting_cuda.BLOCK + 77
    values = draws(n, dtype, seed=3)
    if content == "ties":
        values = values.sign()
    if content == "zeros":
        values[torch.rand(n, generator=torch.Generator().manual_seed(1)) < 0.999] = 0
    if content == "odd":
        values[5::7] = specials(dtype).repeat(n)[: len(values[5::7])]
    if content == "misleading":
        values[:: n // 256] = 1e4  # the elements of the sample, and no others
    for k in (1, 30, n // 100, n // 5):
        chosen = [each.cpu() for each in selecting_cuda.largest(values.to(DEVICE), k)]
        assert same_pair(chosen, selecting_eager.largest(values, k))


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gradstats.kernels import counting_cuda
from gradstats.kernels import selecting_cuda
from gradstats.kernels.grid import GRIDS, INFINITY

def compile_all(kernels, types, constants):
    types = types | dict.fromkeys(constants, "constexpr")
    for kernel in kernels:
        signature = {name: types[name] for name in kernel.arg_names}
        known = {name: constants[name] for name in constants if name in signature}
        hopper = GPUTarget("cuda", 90, 32)
        source = ASTSource(kernel, signature, known)
        compiled = triton.compile(source, hopper, counting_cuda.OPTIONS)
        assert compiled.asm["cubin"] and compiled.metadata.shared <= 48 * 1024


for dtype in (torch.float32, torch.float64, torch.float16):
    grid, bits = GRIDS[dtype], 8 * dtype.itemsize
    pointer = f"*fp{bits}"
    constants = {"SHIFT": grid.shift, "KEYS": 2 * grid.cells}
    constants["FLOAT"] = counting_cuda.FLOATS.get(dtype)
    constants |= {"BLOCK": counting_cuda.COUNTED, "WINDOW": counting_cuda.WINDOW}
    types = {"patterns": f"*i{bits}", "window": "*i32", "sums": "*fp64", "n": "i32"}
    types["near"] = "*i32"
    types |= dict.fromkeys(["counts", "specials", "kept", "starts", "indices"], "*i64")
    types |= dict.fromkeys(["values", "limit", "out"], pointer)
    compile_all([counting_cuda._count], types, constants)
    selecting = [selecting_cuda._above, selecting_cuda._write]
    compile_all(selecting, types, constants | {"BLOCK": counting_cuda.BLOCK})

    constants = {"SHIFT": bits - 12, "BINS": 2048, "BLOCK": counting_cuda.COUNTED}
    constants |= {"INFINITE": INFINITY[dtype], "MASK": (1 << bits - 1) - 1}
    types = {"patterns": f"*i{bits}", "n": "i32", "values": pointer, "out": pointer}
    names = ["prefix", "counts", "kth", "above", "equal", "missing", "indices"]
    types |= dict.fromkeys(names, "*i64")
    compile_all([selecting_cuda._digits], types | {"counts": "*i32"}, constants)
    selection = selecting_cuda._classes, selecting_cuda._write_largest
    compile_all(selection, types, constants | {"BLOCK": counting_cuda.BLOCK})
"""


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels run")
def test_the_kernels_compile_for_a_gpu():
    """No GPU is needed to compile: what the interpreter lets pass but the compiler would not."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_tensors_on_a_gpu_go_to_triton(monkeypatch):
    monkeypatch.setattr(counting_eager, "count", None)
    monkeypatch.setattr(selecting_eager, "compact", None)
    values = torch.ones(3, device="cuda")
    assert kernels.count(values).positive.tolist() == [3]
    assert kernels.compact(values, 0.5)[0].tolist() == [0, 1, 2]
