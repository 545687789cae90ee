"""Pseudo-gradients of DiLoCo beside ordinary gradients: are they sparse, and what compresses them?

`python analyses/13_pseudo_gradients/run.py` writes report.json and, between its marks, the table
of docs/pseudo-gradients.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import gradstats
from gradstats.cli import demo

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))
from trainings import DilocoWorker

PAGE = Path(__file__).parents[2] / "docs" / "pseudo-gradients.md"
BEGIN, END = (
    "<!-- numbers: written by analyses/13_pseudo_gradients/run.py -->",
    "<!-- /numbers -->",
)
SPECS = ("topk(0.01)", "topk(0.1)", "sign", "affine(4)", "mxfp4", "bf16")
ROUNDS = 5  # recorded, the last ones
TOTAL = 640  # inner steps of a training
INNER = {
    "AdamW": partial(torch.optim.AdamW, lr=2e-3),
    "SGD": partial(torch.optim.SGD, lr=0.1),
}


@dataclass(frozen=True)
class Way:
    """A training: which inner optimizer, and how many of its steps make a round."""

    name: str
    optimizer: str
    inner_steps: int


WAYS = (
    Way("gradient", "AdamW", 0),
    *(Way(f"AdamW, H = {steps}", "AdamW", steps) for steps in (1, 8, 64)),
    *(Way(f"SGD, H = {steps}", "SGD", steps) for steps in (1, 8, 64)),
)


def workers_of(way: Way, seed: int) -> list[DilocoWorker]:
    """Two workers that start alike."""
    found = []
    for rank in range(2):
        torch.manual_seed(seed)
        model = demo.ByteModel(width=32, layers=2, context=32)
        found.append(DilocoWorker(model, rank, 16, INNER[way.optimizer]))
    return found


def one_round(way: Way, workers: list[DilocoWorker]) -> tuple[list[dict[str, Tensor]], float]:
    """What each worker hands over, and the loss; without inner steps, its gradient."""
    if way.inner_steps:
        losses = [worker.take_inner_steps(way.inner_steps) for worker in workers]
        return [worker.pseudo_gradient() for worker in workers], sum(losses) / 2
    given, losses = [], []
    for worker in workers:
        worker.inner.zero_grad()
        loss = worker.loss()
        loss.backward()
        losses.append(loss.item())
        grads = {n: p.grad.clone() for n, p in worker.model.named_parameters()}
        given.append(grads)
    return given, sum(losses) / 2


def apply(way: Way, workers: list[DilocoWorker], mean: dict[str, Tensor]) -> None:
    """Take the step that both take alike: the outer one, or that of AdamW on the mean gradient."""
    for worker in workers:
        if way.inner_steps:
            worker.take_outer_step({name: grad.clone() for name, grad in mean.items()})
            continue
        for name, p in worker.model.named_parameters():
            p.grad = mean[name].clone()
        worker.inner.step()


def flat(named: dict[str, Tensor]) -> Tensor:
    """All of a worker, `[elements]`."""
    return torch.cat([grad.reshape(-1) for grad in named.values()])


def train(way: Way, total: int, path: Path, seed: int) -> dict[str, Any]:
    """Train for `total` inner steps; the last rounds of worker 0 are recorded."""
    workers = workers_of(way, seed)
    rounds = max(ROUNDS, total // max(1, way.inner_steps))
    cap = gradstats.capture(
        workers[0].model,
        workers[0].outer,
        path,
        full=gradstats.every(1),
        track=0,
        at="outer",
        seed=seed,
        quiet=True,
        start_step=rounds - ROUNDS,
    )
    cosines, losses = [], []
    for number in range(rounds):
        given, loss = one_round(way, workers)
        losses.append(loss)
        if number >= rounds - ROUNDS:
            cap.record(given[0], inner_steps=way.inner_steps)
            one, two = map(flat, given)
            cosines.append(float(torch.nn.functional.cosine_similarity(one, two, dim=0)))
        apply(way, workers, {name: (given[0][name] + given[1][name]) / 2 for name in given[0]})
    cap.close()
    last = losses[-max(1, rounds // 10) :]
    return {"loss": sum(last) / len(last), "cosine_between_workers": median(cosines)}


def shape_of(path: Path) -> dict[str, float]:
    """Medians over the recorded rounds, of whole vectors."""
    found = []
    for _, grad in gradstats.open(path).gradients():
        energy = grad.double().square().sort(descending=True).values
        shares = energy.cumsum(0) / energy.sum()
        k = len(grad) // 100
        law = gradstats.families.GenNorm.fit(grad)
        found.append(
            {
                "energy_of_top_1_percent": float(shares[k - 1]),
                "energy_of_top_10_percent": float(shares[10 * k - 1]),
                "zeros": float((grad == 0).double().mean()),
                "gennorm_shape": law.parameters["shape"],
            }
        )
    return {name: median(each[name] for each in found) for name in found[0]}


def losses_of(path: Path, seed: int) -> dict[str, dict[str, float]]:
    """By compressor, the median NMSE and bits per element."""
    lines = gradstats.replay(gradstats.open(path), list(SPECS), seed=seed)
    grouped = lines.groupby("compressor")[["nmse", "bits"]].median()
    return {name: grouped.loc[name].to_dict() for name in grouped.index}


def table(rows: list[dict[str, Any]]) -> str:
    """The numbers, in Markdown."""
    heads = ["", "loss", "top 1 %", "top 10 %", "zeros", "shape", "cosine", *SPECS]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [
            row["way"],
            f"{row['loss']:.2f}",
            f"{100 * row['energy_of_top_1_percent']:.0f} %",
            f"{100 * row['energy_of_top_10_percent']:.0f} %",
            f"{100 * row['zeros']:.1f} %",
            f"{row['gennorm_shape']:.2f}",
            f"{row['cosine_between_workers']:.2f}",
            *(f"{row['compressors'][spec]['nmse']:.2g}" for spec in SPECS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_page(rows: list[dict[str, Any]]) -> None:
    """Put the table into the page."""
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n{END}{rest.split(END)[1]}")


def main() -> None:
    """Train all ways, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a few steps; nothing is written")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for way in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.zarr"
            ended = train(way, 16 if options.quick else TOTAL, path, options.seed)
            shape, lost = shape_of(path), losses_of(path, options.seed)
            rows.append(
                {"way": way.name, "inner_steps": way.inner_steps, **ended, **shape}
                | {"compressors": lost}
            )
        print(f"{way.name}: {rows[-1]}", flush=True)
    if options.quick:
        return
    about = {"torch": torch.__version__, "platform": platform.machine(), "seed": options.seed}
    report = {"made_with": about, "inner_steps_in_all": TOTAL, "rows": rows}
    Path(__file__).with_name("report.json").write_text(json.dumps(report, indent=1) + "\n")
    write_page(rows)


if __name__ == "__main__":
    main()
