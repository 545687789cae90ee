"""Which matrices low rank makes of a layer, of which rank, and how many parameters they have.

The one owner of these rules: `factorize` asks with layers, `gradstats.factorised_rows` with the
shapes of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gradstats.lowrank.kinds import BY_NAME

Shapes = Mapping[str, tuple[int, ...]]
WHOLE = ("q_proj", "k_proj", "v_proj", "out_proj", "weight_hr", "bias_k", "bias_v")
ROUNDING = 1e-12  # relative: 0.29 · 100 is 28.999999999999996 in float64


@dataclass(frozen=True)
class Matrix:
    """One matrix that becomes a product of two factors.

    Attributes:
        parameter: its parameter's name in the layer.
        block: its index among the equal blocks of the parameter's first dimension.
        blocks: their number.
        sides: m and n.
    """

    parameter: str
    block: int
    blocks: int
    sides: tuple[int, int]


def blocks_of(kind: str, parameter: str, groups: int = 1) -> int:
    """Number of matrices that lie in one parameter: groups, gates or projections.

    Args:
        kind: the layer's class.
        parameter: its name in the layer.
        groups: of a convolution.
    """
    if parameter.startswith(WHOLE):
        return 1
    return groups if kind not in BY_NAME or BY_NAME[kind].grouped else BY_NAME[kind].blocks


def matrices_of(kind: str, shapes: Shapes, groups: int = 1) -> tuple[Matrix, ...]:
    """The matrices of one layer.

    Args:
        kind: its class.
        shapes: of its parameters, by their names in the layer.
        groups: of a convolution.

    Example:
        >>> [matrix.sides for matrix in matrices_of("Conv2d", {"weight": (64, 1, 3, 3)}, 64)][:2]
        [(1, 9), (1, 9)]
    """
    matrices = []
    for name, shape in shapes.items():
        if len(shape) > 1:
            blocks = blocks_of(kind, name, groups)
            sides = (shape[0] // blocks, math.prod(shape[1:]))
            matrices += [Matrix(name, block, blocks, sides) for block in range(blocks)]
    return tuple(matrices)


def full_rank(matrices: tuple[Matrix, ...]) -> int:
    """The shortest side of a layer's matrices."""
    return min(min(matrix.sides) for matrix in matrices)


def rank_of(matrices: tuple[Matrix, ...], ratio: float) -> int:
    r"""The rank of a layer, :math:`\max(1, \lfloor \text{ratio} \cdot \min(m, n) \rfloor)`.

    Example:
        >>> rank_of((Matrix("weight", 0, 1, (100, 200)),), 0.29)
        29
    """
    return max(1, math.floor(ratio * full_rank(matrices) * (1 + ROUNDING)))


def numel_after(
    kind: str, shapes: Shapes, matrices: tuple[Matrix, ...], rank: int, *, extra_norm: bool = False
) -> int:
    """Parameters of the layer of low rank; an LSTM has one bias per gate instead of two.

    Example:
        >>> shapes = {"weight_ih_l0": (256, 16), "weight_hh_l0": (256, 64)}
        >>> shapes |= {"bias_ih_l0": (256,), "bias_hh_l0": (256,)}
        >>> numel_after("LSTM", shapes, matrices_of("LSTM", shapes), 4)
        3584
        >>> shapes = {"weight_ih_l0": (192, 16), "weight_hh_l0": (192, 64)}
        >>> numel_after("GRU", shapes, matrices_of("GRU", shapes), 4)
        2496
    """
    vectors = {name: math.prod(shape) for name, shape in shapes.items() if len(shape) < 2}
    dropped, grouped = BY_NAME[kind].dropped, BY_NAME[kind].grouped
    biases = sum(n for name, n in vectors.items() if not name.startswith(dropped))
    factors = sum(rank * sum(matrix.sides) for matrix in matrices)
    norm = 2 * len(matrices) * rank if extra_norm and grouped else 0
    return factors + biases + norm
