"""Fit every family to known data: against scipy, against its own simulations, against a clock."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import scipy
import torch
from scipy import stats

import gradstats
from gradstats.families import DGamma, DGenPareto, DWeibull, GenNorm, Laplace, LogNorm, Normal, T
from gradstats.fitting.rows import fit_rows
from gradstats.fitting.uncertainty import standard_errors
from gradstats.summary import Summary, summarize

LAWS = (
    Laplace(2.0),
    DGamma(0.6, 1e-3),
    DGenPareto(0.25, 5.0),
    Normal(1e-4),
    GenNorm(0.7, 1.0),
    DWeibull(0.6, 1e-6),
    T(3.0, 1.0),
    LogNorm(1.2, 1.0),
)
# what scipy fits, whether to magnitudes, and where its shapes and scale stand in its answer
SCIPY = {
    "laplace": (stats.laplace, False),
    "dgamma": (stats.dgamma, False),
    "dgenpareto": (stats.genpareto, True),
    "normal": (stats.norm, False),
    "gennorm": (stats.gennorm, False),
    "dweibull": (stats.dweibull, False),
    "t": (stats.t, False),
    "lognorm": (stats.lognorm, True),
}


def draw(law: object, n: int, seed: int) -> np.ndarray:
    """`[n]` float32 values of a law."""
    return law.rvs(n, np.random.default_rng([seed, 7])).astype(np.float32)


def seconds(work: Callable[[], object], repetitions: int) -> float:
    """Median of `repetitions` runs after one that is not counted."""
    times = []
    for _ in range(1 + repetitions):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def against_scipy(n: int, repetitions: int) -> list[dict[str, object]]:
    """Every family on data of its own law: parameters, likelihoods and seconds of both."""
    rows = []
    for law in LAWS:
        values = draw(law, n, 0)
        distribution, magnitudes = SCIPY[law.name]
        data = np.abs(values).astype(np.float64) if magnitudes else values.astype(np.float64)
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scipy's search, on its way
            *shape, _, scale = distribution.fit(data, floc=0)
        scipys = time.perf_counter() - start
        theirs = {"shape": shape[0], "scale": scale} if shape else {"scale": scale}
        ours = type(law).fit(summarize(values))
        likelihoods = [
            float(np.mean(type(law)(**each).logpdf(values.astype(np.float64))))
            for each in (ours.parameters, theirs)
        ]
        rows.append(
            {
                "family": law.name,
                "truth": law.parameters,
                "ours": ours.parameters,
                "scipy": theirs,
                "nats_over_scipy": likelihoods[0] - likelihoods[1],
                "seconds": seconds(
                    lambda v=values, like=law: type(like).fit(summarize(v)), repetitions
                ),
                "scipy_seconds": scipys,
            }
        )
    return rows


def coverage(n: int, draws: int) -> list[dict[str, object]]:
    """How often 95 % intervals hold the truth, and the standard errors over the scatter."""
    rows = []
    for law in LAWS:
        fits = []
        for seed in range(draws):
            summary = summarize(draw(law, n, seed))
            fitted = type(law).fit(summary)
            fits.append((fitted.parameters, standard_errors(fitted, summary)))
        for name, truth in law.parameters.items():
            found = np.array([parameters[name] for parameters, _ in fits])
            errors = np.array([error[name] for _, error in fits])
            rows.append(
                {
                    "family": law.name,
                    "parameter": name,
                    "truth": truth,
                    "covered": float((np.abs(found - truth) < 1.96 * errors).mean()),
                    "bias_over_scatter": float((found.mean() - truth) / found.std()),
                    "error_over_scatter": float(errors.mean() / found.std()),
                }
            )
    return rows


def whole_gradient(n: int, repetitions: int) -> dict[str, float]:
    """Milliseconds of the pass, and of all families with all distances after it."""
    grad = torch.from_numpy(draw(GenNorm(0.7, 1e-3), n, 1))
    following = summarize(draw(GenNorm(0.75, 1.1e-3), n, 2))
    summary = summarize(grad)

    def fit(summary: Summary = summary) -> None:
        for row in fit_rows(summary, following=following):
            if row["status"] != "ok" or not math.isfinite(row["ks"]):
                raise RuntimeError(f"no fit: {row}")

    return {
        "pass": 1e3 * seconds(lambda: summarize(grad), repetitions),
        "all families, all distances": 1e3 * seconds(fit, repetitions),
    }


def main() -> None:
    """Write report.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short vectors")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("report.json"))
    options = parser.parse_args()
    n, draws, whole = (20_000, 20, 10**6) if options.quick else (10**6, 2_000, 25_600_000)
    report = {
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {"gradstats": gradstats.__version__, "scipy": scipy.__version__},
        "whole": {"elements": whole, "milliseconds": whole_gradient(whole, 5)},
        "scipy": {"elements": n, "rows": against_scipy(n, 5)},
        "coverage": {"elements": 10_000, "draws": draws, "rows": coverage(10_000, draws)},
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(report["whole"])
    for row in report["scipy"]["rows"]:
        times = row["scipy_seconds"] / row["seconds"]
        print(f"{row['family']:12} {1e3 * row['seconds']:7.2f} ms, scipy {times:,.0f} times")


if __name__ == "__main__":
    main()
