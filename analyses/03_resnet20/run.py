"""Which law describes ResNet-20's gradients, by layer kind and over training?"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import pandas
from train import train

import gradstats
from gradstats.fitting.over_steps import over_steps, rank_table
from gradstats.fitting.ranking import (
    best_distribution,
    by_ratio,
    reuse_table,
    structure_table,
    winners,
)
from gradstats.fitting.run import fit_tables
from gradstats.fitting.settings import FitSettings

LAWS = ["family", "wins", "transfer", "tail", "ks", "anderson_darling", "shape", "shape_se"]
LAWS += ["shape_spread", 0.1, 0.01, 0.001]


def collect(path: Path) -> dict[str, object]:
    """The answers as JSON values."""
    run = gradstats.open(path)
    report: dict[str, object] = {"rows": len(run.rows("full")), "gradstats": gradstats.__version__}
    for by in ("model", "module-type"):
        tables = fit_tables(run, FitSettings(by=by))
        fits = tables["fits"]
        report[by] = {
            "laws": {
                group: records(best_distribution(rows)[LAWS])
                for group, rows in fits.groupby("group")
            },
            "winners": records(winners(fits)[["step", "group", "family", "shape"]]),
            "thresholds": records(by_ratio(tables["thresholds"], ["group", "variant", "stages"])),
            "structure": records(structure_table(tables["structure"])),
        }
    tracked = fit_tables(run, FitSettings(kind="track", stride=48))
    report["reuse"] = records(reuse_table(tracked["reuse"]))
    topk = gradstats.compressor("topk(0.01)")
    compensated = fit_tables(run, FitSettings(compensated=topk, stride=48))
    late = compensated["fits"][compensated["fits"]["step"] >= 300]
    report["compensated"] = records(best_distribution(late)[LAWS])
    report["reuse_compensated"] = records(reuse_table(compensated["reuse"]))
    series = over_steps(run).groupby("module_type")
    columns = ["snr", "tail_index", "autocorrelation"]
    report["over_steps"] = records(series[columns].median().reset_index())
    ranks = rank_table(run).groupby("parameter", sort=False)
    columns = ["stable_rank", "entropy_rank", "r90", "r99", "full"]
    report["ranks"] = records(ranks[columns].median().reset_index())
    return report


def records(table: pandas.DataFrame) -> list[dict[str, object]]:
    """Rows with six digits a number."""
    named = table.rename(columns=lambda name: f"k̂/k at {name:g}" if name in FLOATS else name)
    return json.loads(named.to_json(orient="records", double_precision=6))


FLOATS = (0.1, 0.01, 0.001)


def main() -> None:
    """Write report.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="60 steps")
    parser.add_argument("--run", type=Path, help="a captured run; default: train one")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("report.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.run or Path(folder) / "resnet20.zarr"
        if not options.run:
            data = Path(os.environ.get("GRADSTATS_DATA", "data"))
            train(data, path, steps=60 if options.quick else 780)
        report = collect(path)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
