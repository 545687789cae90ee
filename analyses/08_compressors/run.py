"""What every supported compressor costs, and what it loses on real gradients at equal bits."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

import gradstats
from gradstats.compressors import Rng, compressor, from_bytes
from gradstats.payloads.symbol_codes import ModelANS
from gradstats.replaying.equal_bits import MOST_ELEMENTS, equal_bits
from gradstats.replaying.run import last_finite
from gradstats.summary import summarize

DATA = Path(__file__).parents[2] / "data"
RATIO = 0.001
SPARSIFIERS = ["topk", "exact-threshold", "randomk", "threshold", "dgc", "sidco-e", "sidco-gp"]
SPARSIFIERS += ["sidco-p"]
FIXED = [f"sidco-{variant}({RATIO}, stages={m})" for variant in ("e", "gp", "p") for m in (1, 3)]
QUANTIZERS = ["bf16", "fp16", "qsgd", "qsgd(2)", "sign", "fp8", "mxfp8", "mxfp4", "nvfp4"]
QUANTIZERS += ["eden(1)", "eden", "eden(4)", "co3", "co3(fp8)"]
HYBRIDS = [f"exact-threshold({RATIO}) | {code}" for code in ("bf16", "mxfp4", "sign")]
WITH_MEMORY = ["ef(co3)", "ef(co3, gamma=0.7)", "ef21(topk(0.01))"]
WITH_MEMORY += [
    f"ef({name}({ratio}))"
    for ratio in (0.01, 0.001)
    for name in ("topk", "exact-threshold", "dgc", "threshold", "sidco-e", "sidco-gp", "sidco-p")
]
STEPS = 12  # in which adaptive stages settle


def milliseconds(work: Callable[[], object], repetitions: int) -> float:
    """Median of `repetitions` runs after two that are not counted."""
    times = []
    for _ in range(2 + repetitions):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * median(times[2:])


def laplace(numel: int) -> torch.Tensor:
    """Laplace-distributed float32 values, `[numel]`, seed 0."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (numel,), generator=generator) * 2 - 1
    return signs * torch.empty(numel).exponential_(generator=generator)


def costs(numel: int, repetitions: int) -> dict[str, dict[str, float]]:
    """Milliseconds of encoding, of encoding up to bytes, of decoding from them into a buffer."""
    grad = laplace(numel)
    out = torch.zeros(numel)
    k = round(RATIO * numel)
    array = np.abs(grad.numpy())
    rows = {
        "torch.sum": {"encode": milliseconds(lambda: grad.sum(), repetitions)},
        "numpy.partition": {
            "encode": milliseconds(lambda: np.partition(array, numel - k), repetitions)
        },
        "summarize": {"encode": milliseconds(lambda: summarize(grad), repetitions)},
    }
    specs = [*(f"{name}({RATIO})" for name in SPARSIFIERS), *FIXED, *QUANTIZERS, *HYBRIDS]
    for spec in specs:
        rows[spec] = _cost(spec, grad, out, repetitions)
        print(f"{numel:>10} {spec:32} {rows[spec]}", flush=True)
    return rows


def _cost(spec: str, grad: torch.Tensor, out: torch.Tensor, repetitions: int) -> dict[str, float]:
    member = compressor(spec)
    state = member.init(grad)
    for step in range(STEPS if member.contract.has_memory else 1):
        payload, state = member.encode(grad, state, Rng(step=step))
    data = payload.to_bytes()

    def encode() -> object:
        return member.encode(grad, state, Rng())[0]

    return {
        "encode": milliseconds(encode, repetitions),
        "encode_to_bytes": milliseconds(lambda: encode().to_bytes(), repetitions),
        "decode": milliseconds(lambda: from_bytes(data).add_to(out), repetitions),
        "bits": 8 * len(data) / len(grad),
        "khat_over_k": payload.count / round(RATIO * len(grad)),
    }


def on_real_gradients(names: tuple[str, ...]) -> dict[str, dict[str, object]]:
    """The last captured gradient of each run: CO3's bits, and all methods at equal bits."""
    found = {}
    for name in names:
        grad = last_finite(gradstats.open(DATA / f"{name}.zarr.zip")).float()
        grad = grad[:: -(-grad.numel() // MOST_ELEMENTS)].contiguous()
        found[name] = {
            "elements": grad.numel(),
            "co3": {form: _co3(form, grad) for form in ("fp4", "fp8")},
            "equal_bits": equal_bits(grad).to_dict("records"),
        }
    return found


def with_memory(names: tuple[str, ...]) -> dict[str, dict[str, dict[str, float]]]:
    """Over consecutive steps: k̂/k, bits and what is held back, medians of the last quarter."""
    found = {}
    for name in names:
        table = gradstats.replay(gradstats.open(DATA / f"{name}.zarr.zip"), WITH_MEMORY)
        found[name] = {}
        for spec, rows in table.groupby(table["feedback"] + " " + table["compressor"]):
            last = rows.sort_values("step").tail(len(rows) // 4)
            columns = ["khat_over_k", "bits", "error", "error_compensated", "residual_ratio"]
            found[name][spec] = {"steps": len(rows), **last[columns].median().to_dict()}
    return found


def _co3(form: str, grad: torch.Tensor) -> dict[str, float]:
    payload, _ = compressor(f"co3({form})").encode(grad, None)
    assert isinstance(payload.coder, ModelANS)
    counts = np.unique(payload.decode().numpy(), return_counts=True)[1]
    share = counts / counts.sum()
    error = payload.decode() - grad
    return {
        "bits": 8 * payload.nbytes / grad.numel(),
        "entropy": float(-(share * np.log2(share)).sum()),
        "shape": payload.coder.shape,
        "nmse": float(error.square().sum() / grad.square().sum()),
        "zeros": float((payload.decode() == 0).float().mean()),
    }


def main() -> None:
    """Write report.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small size, one short run")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("report.json"))
    options = parser.parse_args()
    numel = 262_144 if options.quick else 25_600_000
    runs = ("demo",) if options.quick else ("resnet20", "lstm", "demo")
    report = {
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {"gradstats": gradstats.__version__, "torch": torch.__version__},
        "ratio": RATIO,
        "elements": numel,
        "milliseconds": costs(numel, 3 if options.quick else 7),
        "real": on_real_gradients(runs),
        "with_memory": with_memory(runs),
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
