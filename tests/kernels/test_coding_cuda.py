"""The codes in triton: interpreted against torch, or on a GPU if there is one."""

import os
import subprocess
import sys

import pytest
import torch

from gradstats.kernels import coding, coding_eager
from gradstats.kernels.coding_eager import Rounding
from gradstats.kernels.packing import packing
from tests.kernels.test_coding import KEY, symbols

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="triton is not installed")
coding_cuda = pytest.importorskip("gradstats.kernels.coding_cuda")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OTHERS = [pytest.param(count, marks=pytest.mark.soak) for count in (11, 16, 31, 247)]
LEVELS = [2, 3, 15, 256, *OTHERS]


@pytest.mark.parametrize("rounding", coding.ROUNDINGS)
@pytest.mark.parametrize("count", LEVELS)
def test_triton_packs_the_bytes_of_torch(rounding, count):
    levels = torch.linspace(-1, 1, count)
    program = coding_cuda.WORDS * packing(count).group  # elements, of which the last has few
    for n in (0, 1, 41, program + 881):
        values = torch.randn(n, generator=torch.Generator().manual_seed(n))
        if n > 50:
            values[7] = torch.nan
        for bucket in (32, max(n, 1)):
            inverse = torch.rand(-(-n // bucket), generator=torch.Generator().manual_seed(1))
            ours = coding_cuda.quantize(
                values.to(DEVICE),
                Rounding(inverse.to(DEVICE), bucket, levels.to(DEVICE), rounding, KEY),
            )
            expected = coding_eager.quantize(
                values, Rounding(inverse, bucket, levels, rounding, KEY)
            )
            assert torch.equal(ours.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", LEVELS)
def test_triton_adds_what_torch_adds(dtype, count):
    generator = torch.Generator().manual_seed(2)
    for n in (1, 41, 3001):
        packed = coding_eager.pack(symbols(n, count), count)
        scales = torch.rand(-(-n // 100), generator=generator)
        books = torch.randn(-(-n // 100), count, generator=generator)
        for of_bucket, table in ((scales, torch.linspace(-1, 1, count)), (None, books)):
            out, expected = torch.ones(n, dtype=dtype), torch.ones(n, dtype=dtype)
            coding_eager.add_dequantized(packed, of_bucket, 100, table, expected, 0.5)
            there = [None if each is None else each.to(DEVICE) for each in (of_bucket, table, out)]
            coding_cuda.add_dequantized(packed.to(DEVICE), there[0], 100, *there[1:], 0.5)
            torch.testing.assert_close(there[2].cpu(), expected, rtol=1e-6, atol=1e-7)


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gradstats.kernels import coding_cuda

types = dict.fromkeys(["values", "inverse", "bounds", "scales", "books", "out"], "*fp32")
types |= dict.fromkeys(["levels", "gaps"], "*fp64") | dict.fromkeys(["words", "key"], "*i64")
types |= {"n": "i32", "bucket": "i32", "weight": "fp32"}
for levels, group, base, power in ((3, 40, 3, 0), (15, 8, 16, 4)):
    constants = {"LEVELS": levels, "M": levels - 1, "HALVINGS": 4, "GROUP": group, "BASE": base}
    constants |= {"STOCHASTIC": True, "WORDS": 128, "POWER": power, "OWN": False}
    for kernel in (coding_cuda._quantize, coding_cuda._add):
        names = kernel.arg_names
        signature = {name: types.get(name, "constexpr") for name in names}
        known = {name: constants[name] for name in names if name in constants}
        source = ASTSource(kernel, signature, known)
        assert triton.compile(source, GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels run")
def test_the_codes_compile_for_a_gpu():
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)


def test_what_has_no_kernel_is_plain_torch():
    values, levels = torch.randn(500), torch.linspace(-1, 1, 300)
    how = Rounding(torch.ones(1), 500, levels, "nearest", KEY)
    ours = coding_cuda.quantize(values, how)
    assert torch.equal(ours, coding_eager.quantize(values, how))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_tensors_on_a_gpu_go_to_triton(monkeypatch):
    monkeypatch.setattr(coding_eager, "quantize", None)
    values, levels = torch.randn(500, device="cuda"), torch.tensor([-1.0, 1.0], device="cuda")
    scales = torch.ones(1, device="cuda")
    assert coding.quantize(values, scales, 500, levels, rounding="nearest").is_cuda
