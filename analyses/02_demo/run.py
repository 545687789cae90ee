"""Run the demo and keep what its tables say."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas

from gradstats.fitting.ranking import (
    best_by_group,
    best_distribution,
    reuse_table,
    structure_table,
    winners,
)
from gradstats.replaying.ranking import ranking

NAMES = ("fits", "fits_by_part", "fits_compensated", "methods", "thresholds", "reuse")
NAMES += ("structure_by_part",)
COLUMNS = [
    "compressor",
    "feedback",
    "granularity",
    "rows",
    "steps",
    "khat_over_k",
    "miss",
    "error_compensated",
    "bits",
    "residual_ratio",
    "settled",
]


def collect(folder: Path) -> dict[str, object]:
    """The demo's tables, medians over steps, as JSON values."""
    tables = {name: pandas.read_parquet(folder / f"{name}.parquet") for name in NAMES}
    keys = ["variant", "stages", "target_ratio"]
    thresholds = tables["thresholds"].groupby(keys)["khat_over_k"].median().reset_index()
    ranked = ranking(tables["methods"])
    return {
        "settings": json.loads((folder / "settings.json").read_text()),
        "laws": records(best_distribution(tables["fits"])),
        "laws_by_part": records(best_by_group(tables["fits_by_part"])),
        "winners": records(winners(tables["fits_by_part"])[["step", "group", "family", "shape"]]),
        "laws_compensated": records(best_distribution(tables["fits_compensated"])),
        "structure": records(structure_table(tables["structure_by_part"])),
        "reuse": records(reuse_table(tables["reuse"])),
        "thresholds": records(thresholds),
        "ranking": records(ranked[["rank", *COLUMNS, "behind", "exchange_seconds"]]),
        "methods": records(tables["methods"][COLUMNS]),
    }


def records(table: pandas.DataFrame) -> list[dict[str, object]]:
    """Rows with four digits a number."""
    return json.loads(table.to_json(orient="records", double_precision=6))


def main() -> None:
    """Write report.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the quick demo")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("report.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "gradstats.cli",
            "demo",
            "--out",
            f"{folder}/demo.zarr",
        ]
        subprocess.run([*command, "--quick"] if options.quick else command, check=True)
        report = collect(Path(folder) / "demo.results")
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
