"""What factorised training (Pufferfish) would send, and what it would lose: rows beside a replay.

Factorising changes the model; there is no encoder. So its rows are of three kinds that are never
mixed: what a captured factorised run did (native), what the gradients of a full-rank run would
have been worth to the factors (implied), and what no method of that rank can beat (bound).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradstats.lowrank.tables import Replaced, replaced_in
from gradstats.replaying.columns import FactorisedRow
from gradstats.runs.opening import opened
from gradstats.runs.parts import Collect, at_once
from gradstats.runs.run import Progress, Run
from gradstats.runs.tables import frame
from gradstats.settings import SettingError

Row = dict[str, Any]
FLOAT_BYTES = 4
NO_WEIGHTS = "skipped: the run holds no weights, capture with weights=True"
NOT_FINITE = "skipped: a weight is NaN or inf"
ROUNDING = 1e-6  # of the largest singular value of a float32 weight: below it is no direction


@dataclass(frozen=True)
class Share:
    """Full rank for some epochs of a training, low rank for the rest.

    Attributes:
        warm_up: epochs of full rank.
        epochs: of the training.
    """

    warm_up: float = 0.0
    epochs: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up <= self.epochs or not self.epochs > 0:
            raise ValueError(
                f"warm_up must be from 0 to the epochs, got {self.warm_up!r} of {self.epochs!r}"
            )

    def amortised(self, full: float, low: float) -> float:
        """The mean over the training of what is `full` per step first and `low` later.

        Example:
            >>> round(Share(80, 300).amortised(11_173_834, 3_336_138))
            5426190
        """
        return (self.warm_up * full + (self.epochs - self.warm_up) * low) / self.epochs


@dataclass(frozen=True)
class _Matrix:
    """A matrix that low rank would replace: one block of a parameter, and its rank."""

    name: str
    block: int
    blocks: int
    sides: tuple[int, int]
    rank: int

    def of(self, run: Run, row: int, quantity: str = "grad") -> Tensor:
        """Its gradient or weight in one row, float64; zero where it has no gradient."""
        try:
            matrix = run.parameter(row, self.name, quantity)
        except LookupError:
            return torch.zeros(self.sides, dtype=torch.float64, device=run.device)
        return matrix.double().flatten(1).chunk(self.blocks)[self.block]


def factorised_rows(
    run: Run | str | PathLike[str],
    *,
    rank_ratio: float = 0.25,
    native: Run | str | PathLike[str] | None = None,
    share: Share | None = None,
    most_rows: int = 8,
    progress: Progress | None = None,
    collect: Collect = at_once,
) -> Any:
    r"""What low rank would send of a run's model, and what its gradients would lose.

    Matrices and ranks are those of `gradstats.lowrank.factorize` at the same ratio, by the same
    rules: convolutions per group, LSTMs per gate, attention per projection; not what it keeps.
    Where a run does not say how many groups a convolution has (one from before this version, or
    imported), it is taken as depthwise if it has one input channel per group, else as whole.
    With G the gradient of a matrix, W its weight, U_h S V_hᵀ the best rank-r approximation of W:

    - `lowrank/bound`: the best rank-r approximation of G, :math:`\text{error}^2 = \sum_{i>r}
      \sigma_i^2/\sum \sigma_i^2` over all matrices, everything else exact; weight_error is the
      same of W, what a warm start loses.
    - `pufferfish/implied`, counterfactual: the change of the product that factor gradients make,
      :math:`D = G V_h S V_h^T + U_h S U_h^T G`. cosine is that of D and G, error =
      :math:`\sqrt{1 - \cos^2}`, that of D at the best length; captured is the share of ‖G‖² in
      the directions that a rank-r model can follow, those of
      :math:`G - (I - U_h U_h^T) G (I - V_h V_h^T)`. Where W has a lower rank than r, U_h and V_h
      have so many columns: factors that are zero do not move at first.
    - `pufferfish/native`: another run, of the factorised model. Its gradient is its own, exact;
      against this run's there is no error to speak of, the parameters are others.

    Args:
        run: of the full-rank model, or its path; its full rows are read, the implied ones need
            weights.
        rank_ratio: r = ⌊ratio · min(m, n)⌋, at least 1.
        native: a captured run of the factorised model, or its path.
        share: of full rank in the training, for amortised_nbytes; default none.
        most_rows: at most that many rows, evenly spaced.
        progress: called with (rows done, rows).
        collect: makes the rows of each captured row, but for those that are kept.

    Returns:
        A pandas DataFrame with the columns of `gradstats.replaying.columns.FactorisedRow`: encode
        and decode take no time, because nothing is encoded; step_seconds is the median of the
        captured steps, of native rows.

    Raises:
        ValueError: the ratio is out of range, no row is whole, or a loss scale is not known.

    References:
        Wang et al., "Pufferfish: Communication-efficient models at no extra cost", MLSys 2021.
    """
    if not 0 < rank_ratio <= 1:
        raise SettingError("rank_ratio", f"must lie in (0, 1], got {rank_ratio!r}")
    run = opened(run)
    native = None if native is None else opened(native, "native")
    rows = run.rows("full")
    if not rows:
        raise ValueError(f"run must have whole gradients, got none in {run}")
    run.check("full")
    share = share or Share()
    replaced = list(replaced_in(run.reader("full").parameters, rank_ratio))
    matrices = [matrix for layer in replaced for matrix in _matrices(layer)]
    full = sum(part.numel for part in run.parts("full"))
    sizes = _sizes(full, full - sum(layer.saved for layer in replaced), share)
    places = np.linspace(0, len(rows) - 1, min(most_rows, len(rows))).astype(int)

    def measured(first: int) -> Iterator[list[Row]]:
        for done, place in enumerate(places[first:], first + 1):
            yield [vars(row) for row in _measured(run, rows[place], matrices, sizes, rank_ratio)]
            if progress:
                progress(done, len(places))

    lines = [line for of_step in collect(measured) for line in of_step]
    lines += [vars(_native(native, full, share))] if native else []
    return frame(lines, FactorisedRow)


def _sizes(full: float, low: float, share: Share) -> Row:
    return {
        "floats": low,
        "nbytes": FLOAT_BYTES * low,
        "amortised_nbytes": FLOAT_BYTES * share.amortised(full, low),
    }


def _matrices(layer: Replaced) -> Iterator[_Matrix]:
    for each in layer.matrices:
        name = layer.parts[each.parameter].name
        yield _Matrix(name, each.block, each.blocks, each.sides, layer.rank)


def _measured(
    run: Run, row: int, matrices: Sequence[_Matrix], sizes: Row, rank_ratio: float
) -> Iterator[FactorisedRow]:
    step, whole = run.gradient(row)
    unit = float(whole.abs().max())  # all that is told are ratios
    total = float((whole.double() / unit).square().sum()) if unit else 0.0
    weights = "weight" in run.stream("full").quantities
    common = {**sizes, "step": step}
    bound = FactorisedRow(**common, method=f"lowrank/bound({rank_ratio:g})", kind="bound")
    name = f"pufferfish/implied({rank_ratio:g})"
    implied = FactorisedRow(**common, method=name, kind="counterfactual")
    if not math.isfinite(total) or not total:
        status = "skipped: the gradient is zero, or not finite"
        yield from (replace(row, status=status) for row in (bound, implied))
        return
    sums = torch.zeros(7, dtype=torch.float64)
    for matrix in matrices:
        weight = matrix.of(run, row, "weight") if weights else None
        sums += _sums(matrix.of(run, row) / unit, weight, matrix.rank)
    lost, captured, dg, dd, weight_lost, weight_total, inside = sums.tolist()
    rest = total - inside if total - inside > 1e-12 * total else 0.0  # of all other parameters
    yield replace(
        bound,
        error_on="captured gradient",
        error=math.sqrt(lost / total),
        captured=1 - lost / total,
        weight_error=math.sqrt(weight_lost / weight_total) if weight_total else math.nan,
    )
    if not weights or math.isnan(weight_total):
        yield replace(implied, status=NOT_FINITE if weights else NO_WEIGHTS)
        return
    length = math.sqrt((dd + rest) * total)
    cosine = (dg + rest) / length if length else math.nan
    yield replace(
        implied,
        error_on="product update",
        cosine=cosine,
        error=math.sqrt(max(1 - cosine**2, 0.0)),
        captured=(captured + rest) / total,
    )


def _sums(grad: Tensor, weight: Tensor | None, rank: int) -> Tensor:
    """Squares that add up over matrices: see the names in `_measured`."""
    energies, _ = _spectrum(grad, vectors=False)
    amounts = [float(energies[rank:].sum()), 0.0, 0.0, 0.0, 0.0, 0.0, float(energies.sum())]
    if weight is not None and not bool(weight.isfinite().all()):
        amounts[1:6] = [math.nan] * 5
    elif weight is not None:
        squares, vectors = _spectrum(weight, vectors=True)
        sigma = squares[:rank].sqrt()
        real = sigma > ROUNDING * sigma[0]  # a weight of lower rank has fewer directions
        sh, near = sigma[real], vectors[:, :rank][:, real]
        wide = weight.shape[0] <= weight.shape[1]
        far = (weight.T if wide else weight) @ near / sh
        uh, vh = (near, far) if wide else (far, near)
        gv, ug = grad @ vh, uh.T @ grad
        follows = float(gv.square().sum() + ug.square().sum() - (uh.T @ gv).square().sum())
        change = (gv * sh) @ vh.T + (uh * sh) @ ug
        amounts[1:6] = [
            follows,
            float((change * grad).sum()),
            float(change.square().sum()),
            float(squares[rank:].sum()),
            float(squares.sum()),
        ]
    return torch.tensor(amounts, dtype=torch.float64)


def _spectrum(matrix: Tensor, *, vectors: bool) -> tuple[Tensor, Tensor]:
    """Squares of the singular values, falling, and the singular vectors of the shorter side.

    From the Gram matrix: what is below 1e-8 of the largest value is noise, which no sum here sees.
    """
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = short @ short.T
    if not vectors:
        return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0), gram
    values, columns = torch.linalg.eigh(gram)
    return values.flip(0).clamp(min=0), columns.flip(1)


def _native(run: Run, full: float, share: Share) -> FactorisedRow:
    """The factorised run itself."""
    low = sum(part.numel for part in run.parts("full"))
    stream = run.stream(run.kind)
    seconds = stream.coordinates["step_seconds"][run.rows(run.kind)]
    known = seconds[np.isfinite(seconds)]
    return FactorisedRow(
        **_sizes(full, low, share),
        method="pufferfish/native",
        kind="model-change",
        error_on="own gradient",
        error=0.0,
        step_seconds=float(np.median(known)) if len(known) else math.nan,
    )
