"""The demo's training: a small language model on the Python standard library's own source text."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradstats.recording import capture, every
from gradstats.runs import Run

BYTES = 256
CORPUS_BYTES = 4_000_000


@dataclass(frozen=True)
class Plan:
    """How long the demo trains.

    Attributes:
        steps: optimizer steps, all of them tracked.
        full_rows: whole gradients kept, evenly spaced.
        batch: sequences per step.
        budget: seconds for replays in the report.
    """

    steps: int
    full_rows: int
    batch: int
    budget: float


DEMO = Plan(steps=1000, full_rows=15, batch=12, budget=55.0)
QUICK = Plan(steps=60, full_rows=6, batch=8, budget=8.0)


def check_free(out: Path, overwrite: bool) -> None:
    """Raise FileExistsError if there is something that must not be replaced."""
    if out.exists() and not overwrite:
        raise FileExistsError(f"cannot create {out}: it exists; --overwrite replaces it")


class Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, length, width]` to the same."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        hidden = functional.gelu(self.expand(self.norm_mlp(x)))
        out: Tensor = x + self.contract(hidden)
        return out


class ByteModel(nn.Module):
    """A language model over bytes with about a million parameters."""

    def __init__(self, *, width: int = 144, layers: int = 4, context: int = 64) -> None:
        super().__init__()
        self.context = context
        self.token = nn.Embedding(BYTES, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads=4) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES)

    def forward(self, text: Tensor) -> Tensor:
        """Mean cross-entropy, in nats per byte, of next bytes; text `[batch, 1 + context]`."""
        source, target = text[:, :-1], text[:, 1:]
        x = self.token(source) + self.position.weight
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def corpus() -> Tensor:
    """The source of the standard library's top-level modules, as bytes, uint8 `[n]`.

    Raises:
        RuntimeError: this Python comes without its library's source.
    """
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = bytearray(b"".join(file.read_bytes() for file in files)[:CORPUS_BYTES])
    if len(text) < 100_000:
        raise RuntimeError(
            f"cannot train the demo: {len(text)} bytes of standard library source were found "
            f"beside {sysconfig.__file__}, 100000 are needed"
        )
    return torch.frombuffer(text, dtype=torch.uint8)


def train(
    plan: Plan,
    path: str | Path,
    *,
    seed: int = 0,
    if_exists: Literal["error", "resume", "overwrite"] = "error",
    progress: Callable[[int, int, float], None] | None = None,
) -> float:
    """Train the model and capture its gradients; returns the last loss, in nats per byte.

    Args:
        plan: how long.
        path: of the store to write.
        seed: of weights, batches and tracked elements.
        if_exists: as in `gradstats.capture`.
        progress: called with (step, steps, loss).
    """
    text = corpus()
    batches = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ByteModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    full = every(max(1, plan.steps // plan.full_rows))
    value = float("nan")
    with capture(model, optimizer, path, full=full, if_exists=if_exists, seed=seed) as cap:
        for step in range(plan.steps):
            starts = torch.randint(len(text) - model.context, (plan.batch,), generator=batches)
            rows = [text[start : start + model.context + 1] for start in starts]
            loss = model(torch.stack(rows).long())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            cap.log(loss=loss)
            value = loss.item()
            if progress:
                progress(step + 1, plan.steps, value)
    return value


def report_on(
    run: Run, plan: Plan, *, seed: int, progress: Callable[[str, int, int], None]
) -> Path:
    """Write the report of a demo's run, within the plan's budget; returns its path."""
    from gradstats.reporting.report import report

    return report(run, budget=plan.budget, seed=seed, progress=progress)
