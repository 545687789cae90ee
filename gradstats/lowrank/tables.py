"""Which parameters of a run low rank would replace, from the table of its parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from gradstats.lowrank.kinds import BY_NAME, LOW_RANK
from gradstats.lowrank.rules import Matrix, blocks_of, matrices_of, numel_after, rank_of
from gradstats.lowrank.staying import Places, layers, parameters, why_kept

OUT_PROJ = ("out_proj.weight", "out_proj.bias")
RECURRENT = re.compile(r"weight_(ih|hh)_l\d+(_reverse)?")
MADE_OTHERWISE = ("_g", "_v", "_orig", "_raw")  # weight_norm, spectral_norm, pruning, DropConnect
MORE = ("weight_hr", "bias_k", "bias_v")  # projections of an LSTM, attention to more than keys
GATES = {4: "LSTM", 3: "GRU"}


class Part(Protocol):
    """What a table knows of one parameter, see `gradstats.store.Parameter`."""

    @property
    def name(self) -> str:
        """In the model."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""

    @property
    def module_type(self) -> str:
        """The class of the module that has it, "" where that is not known."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its other names."""

    @property
    def matrices(self) -> int | None:
        """How many low rank makes of it, 0 where it stays, None where that is not known."""


@dataclass(frozen=True)
class Replaced:
    """One layer that low rank would replace.

    Attributes:
        kind: its class.
        parts: its parameters, by their names in the layer.
        matrices: that become products of two factors.
        rank: of each.
        saved: parameters fewer.
    """

    kind: str
    parts: dict[str, Part]
    matrices: tuple[Matrix, ...]
    rank: int
    saved: int


def matrices_by_parameter(model: nn.Module) -> dict[int, int]:
    """By the id of a parameter, how many matrices low rank makes of it; 0 where it stays.

    Hooks do not count: they are those of the training, not of the model. Parameters that are
    sharded are left out: what becomes of them is told from the whole ones.
    """
    places, found = Places(model), {}
    low = [f"{name}." for name, layer in model.named_modules() if isinstance(layer, LOW_RANK)]
    for name, layer in layers(model):
        if any(type(parameter) is not nn.Parameter for parameter in parameters(layer)):
            continue
        stays = why_kept(layer, places, hooks=False) or name.startswith(tuple(low))
        groups = getattr(layer, "groups", 1)
        for own, parameter in nn.Module.named_parameters(layer):
            if parameter.dim() > 1:
                blocks = blocks_of(type(layer).__name__, own, groups)
                found[id(parameter)] = 0 if stays else blocks
    return found


def replaced_in(parts: Iterable[Part], ratio: float) -> Iterator[Replaced]:
    """The layers that `factorize` would replace in the model of a run.

    What a run does not say is taken from names and shapes: a convolution over one channel per
    group is depthwise, a parameter of an unknown module is that of a linear layer or convolution.

    Args:
        parts: the table.
        ratio: r over the shortest side.
    """
    table = {part.name: part for part in parts}
    for kind, layer in _layers(table).values():
        shapes = {own: tuple(part.shape) for own, part in layer.items()}
        if kind not in BY_NAME or _stays(kind, layer, table):
            continue
        groups = max((_groups(part) for part in layer.values()), default=1)
        matrices = matrices_of(kind, shapes, groups if BY_NAME[kind].grouped else 1)
        if not matrices:
            continue
        rank = rank_of(matrices, ratio)
        before = sum(math.prod(shape) for shape in shapes.values())
        saved = before - numel_after(kind, shapes, matrices, rank)
        if saved > 0:
            yield Replaced(kind, layer, matrices, rank, saved)


def _layers(table: dict[str, Part]) -> dict[str, tuple[str, dict[str, Part]]]:
    """The kinds and the parameters of layers; recurrent ones and attention have several."""
    kinds = {name: part.module_type or _guessed(part, table) for name, part in table.items()}
    attention = {n.rpartition(".")[0] for n, kind in kinds.items() if kind == "MultiheadAttention"}
    found: dict[str, tuple[str, dict[str, Part]]] = {}
    for name, part in table.items():
        layer, _, own = name.rpartition(".")
        kind = kinds[name].removeprefix("FSDP")  # what fully_shard makes of a class
        parent, _, child = layer.rpartition(".")
        if f"{child}.{own}" in OUT_PROJ and parent in attention:
            kind, layer, own = "MultiheadAttention", parent, f"{child}.{own}"
        if kind in BY_NAME and BY_NAME[kind].blocks > 1:
            found.setdefault(f"{kind} {layer}", (kind, {}))[1][own] = part
        elif len(part.shape) > 1:
            found[name] = (kind, {own: part})
    return found


def _guessed(part: Part, table: dict[str, Part]) -> str:
    """The class of a module that the run does not name."""
    layer, dot, own = part.name.rpartition(".")
    if own.startswith("in_proj_") or own in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        return "MultiheadAttention"
    if RECURRENT.fullmatch(own) or own.startswith(("bias_ih_l", "bias_hh_l")):
        state = table.get(f"{layer}{dot}weight_hh_l0")
        gates, rest = (4, 0) if state is None else divmod(state.shape[0], state.shape[1])
        return "RNN" if rest else GATES.get(gates, "RNN")
    if len(part.shape) == 3:  # positions of a transformer have three dimensions too
        return "Conv1d" if own == "weight" else ""
    return {2: "Linear", 4: "Conv2d"}.get(len(part.shape), "")


def _stays(kind: str, layer: dict[str, Part], table: dict[str, Part]) -> bool:
    weights = {own: part for own, part in layer.items() if len(part.shape) > 1}
    if any(
        part.matrices == 0 or len(part.shape) != BY_NAME[kind].dimensions
        for part in weights.values()
    ):
        return True
    if any(own.startswith(MORE) or own.endswith(MADE_OTHERWISE) for own in layer):
        return True
    return any(part.matrices is None and _tied(part, table) for part in weights.values())


def _tied(part: Part, table: dict[str, Part]) -> bool:
    """Whether a weight has other names, and not because its whole layer has them."""
    if not part.aliases:
        return False
    layer, dot, own = part.name.rpartition(".")
    bias = table.get(f"{layer}{dot}{own.replace('weight', 'bias')}")
    ends = {alias.rpartition(".")[2] for alias in part.aliases}
    whole = bias is not None and bias is not part and len(bias.aliases) == len(part.aliases)
    return not (whole and ends == {own})


def _groups(part: Part) -> int:
    if part.matrices is not None:
        return part.matrices
    return part.shape[0] if len(part.shape) > 2 and part.shape[1] == 1 else 1
