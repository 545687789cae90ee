"""Replace the layers of a model by layers of low rank, fresh or from the weights there are."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradstats.lowrank.layers import (
    LowRankAttention,
    LowRankConv2d,
    LowRankLinear,
    LowRankLSTM,
)

LOW_RANK = (LowRankLinear, LowRankConv2d, LowRankLSTM, LowRankAttention)
FACTORED = (nn.Linear, nn.Conv2d, nn.LSTM, nn.MultiheadAttention)
KEPT = (nn.Embedding, nn.EmbeddingBag)  # by design, as published
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass(frozen=True)
class Change:
    """What became of one layer.

    Attributes:
        name: in the model.
        kind: its class.
        rank: r; 0 where it stays as it was.
        before: its parameters.
        after: its parameters now.
        kept: why it stays; "" where it does not.
    """

    name: str
    kind: str
    rank: int
    before: int
    after: int
    kept: str = ""


@dataclass(frozen=True)
class Factorization:
    """A model with layers of low rank.

    Attributes:
        model: the model; the object that was given, unless that was one layer itself.
        changes: of its layers, in order.
        replaced: by each parameter that is gone, those that took its place.
    """

    model: nn.Module
    changes: tuple[Change, ...]
    replaced: dict[Tensor, tuple[nn.Parameter, ...]] = field(repr=False, default_factory=dict)

    @property
    def before(self) -> int:
        """Parameters of the full model."""
        return self.after - sum(change.after - change.before for change in self.changes)

    @property
    def after(self) -> int:
        """Parameters now."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def __str__(self) -> str:
        lines = [
            f"{change.name} ({change.kind}): "
            + (change.kept or f"rank {change.rank}, {change.before:,} → {change.after:,}")
            for change in self.changes
        ]
        total = f"{self.before:,} → {self.after:,} parameters ({self.before / self.after:.2f} ×)"
        return "\n".join([*lines, total])


def factorize(
    model: nn.Module,
    rank_ratio: float = 0.25,
    *,
    keep: Iterable[str] = (),
    full_rank_layers: int = 0,
    ranks: Mapping[str, int] | None = None,
    extra_norm: bool = False,
    warm: bool = False,
) -> Factorization:
    r"""Replace linear layers, 2-D convolutions, LSTMs and attention by products of two factors.

    The rank of a matrix is :math:`r = \lfloor \text{ratio} \cdot \min(m, n) \rfloor`, at least 1;
    a convolution is a matrix of output channels by the rest, in each group, an LSTM one a gate.
    Embeddings stay, so do layers tied with others, and layers that r (m + n) parameters would not
    make smaller: `Factorization.changes` names them. The model is changed in place; its names,
    hooks, modes and the parameters of all other layers stay what they are.

    Args:
        model: not wrapped.
        rank_ratio: in (0, 1].
        keep: globs of names of layers that stay as they are.
        full_rank_layers: so many of the first layers that could be replaced stay: the hybrid rule.
        ranks: by name, where the ratio is not to decide.
        extra_norm: a BatchNorm2d between the factors of convolutions, a variant of its own.
        warm: start from the truncated SVD of the weights, see `warm_start`; else as new layers.

    Raises:
        ValueError: a setting out of range, a layer that cannot be replaced and is not kept, a name
            that is not in the model, or a model that has layers of low rank already.

    References:
        Wang et al., "Pufferfish: Communication-efficient models at no extra cost", MLSys 2021.

    Example:
        >>> found = factorize(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)))
        >>> print(found)
        0 (Linear): rank 16, 4,160 → 2,112
        2 (Linear): rank 1, 260 → 72
        4,420 → 2,184 parameters (2.02 ×)
    """
    ranks, patterns = dict(ranks or {}), tuple(keep)
    _check(model, rank_ratio, patterns, full_rank_layers, ranks)
    changes: list[Change] = []
    replaced: dict[Tensor, tuple[nn.Parameter, ...]] = {}
    full = full_rank_layers
    owners = _owners(model)
    for name, layer in list(_layers(model)):
        why = _kept(name, layer, patterns, owners)
        if not why and full:
            why, full = "kept: one of the first layers", full - 1
        rank = ranks.get(name, 0) or _rank(layer, rank_ratio)
        new = None if why else _low_rank(layer, rank, extra_norm)
        before = _numel(layer)
        if new is not None and _numel(new) >= before:
            why, new = f"kept: rank {rank} would have {_numel(new):,} parameters", None
        after = before if new is None else _numel(new)
        changes.append(Change(name, type(layer).__name__, rank if new else 0, before, after, why))
        if new is None:
            continue
        if warm:
            from gradstats.lowrank.warming import fill

            fill(new, layer)
        _adopt(new, layer)
        replaced |= _successors(layer, new)
        model = _put(model, name, layer, new)
    return Factorization(model, tuple(changes), replaced)


def _check(
    model: nn.Module,
    rank_ratio: float,
    keep: tuple[str, ...],
    full_rank_layers: int,
    ranks: Mapping[str, int],
) -> None:
    if not 0 < rank_ratio <= 1:
        raise ValueError(f"rank_ratio must lie in (0, 1], got {rank_ratio!r}")
    if not isinstance(full_rank_layers, int) or full_rank_layers < 0:
        raise ValueError(f"full_rank_layers must be a whole number, got {full_rank_layers!r}")
    if isinstance(model, DistributedDataParallel):
        raise ValueError("model must not be wrapped, got DistributedDataParallel: pass its module")
    already = [name for name, layer in model.named_modules() if isinstance(layer, LOW_RANK)]
    if already:
        raise ValueError(f"model must be of full rank, got low rank in {', '.join(already)}")
    names = {name for name, _ in model.named_modules()}
    for pattern in (*keep, *ranks):
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"keep and ranks must name layers of the model, got {pattern!r}")
    for name, rank in ranks.items():
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"ranks must be whole numbers from 1, got {rank!r} for {name}")
    unable = [
        f"{name} ({type(layer).__name__})"
        for name, layer in _layers(model)
        if type(layer).__module__.startswith("torch.nn")
        and not isinstance(layer, (*FACTORED, *KEPT))
        and not _matches(name, keep)
    ]
    if unable:
        remedy = "name them in keep"
        raise ValueError(f"cannot factorize {', '.join(unable)}: no rule for it; {remedy}")


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that hold matrices themselves; attention is one layer, with what is in it."""
    inside: str | None = None
    for name, layer in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        if isinstance(layer, nn.utils.parametrize.ParametrizationList):
            continue  # the layer that it belongs to is named itself
        if isinstance(layer, nn.MultiheadAttention):
            inside = f"{name}." if name else ""
            yield name, layer
        elif any(parameter.dim() > 1 for parameter in layer.parameters(recurse=False)):
            yield name, layer
        elif nn.utils.parametrize.is_parametrized(layer):
            yield name, layer


def _owners(model: nn.Module) -> dict[int, set[str]]:
    """By parameter, the layers that have it."""
    found: dict[int, set[str]] = {}
    for name, layer in model.named_modules():
        for parameter in layer.parameters(recurse=False):
            found.setdefault(id(parameter), set()).add(name)
    return found


def _kept(name: str, layer: nn.Module, keep: tuple[str, ...], owners: dict[int, set[str]]) -> str:
    """Why a layer stays; "" where it does not."""
    if _matches(name, keep):
        return "kept: asked for"
    if isinstance(layer, KEPT):
        return "kept: an embedding"
    if nn.utils.parametrize.is_parametrized(layer):
        return "kept: its weight is parametrized"
    if not isinstance(layer, FACTORED):
        return "kept: a parameter of a class of its own"
    others = {o for p in layer.parameters() for o in owners[id(p)]} - {name}
    others = {other for other in others if not other.startswith(f"{name}.")}
    if others:
        return f"kept: tied with {', '.join(sorted(others))}"
    if isinstance(layer, nn.LSTM) and layer.proj_size:
        return "kept: an LSTM with projections"
    if isinstance(layer, nn.MultiheadAttention):
        more = layer.add_zero_attn or getattr(layer, "bias_k", None) is not None
        return "kept: attention to more than its keys" if more else ""
    return ""


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _rank(layer: nn.Module, ratio: float) -> int:
    """⌊ratio · min(m, n)⌋ of the layer's matrix, at least 1."""
    if isinstance(layer, nn.Conv2d):
        inside = layer.in_channels // layer.groups * layer.weight[0, 0].numel()
        least = min(layer.out_channels // layer.groups, inside)
    elif isinstance(layer, nn.LSTM):
        least = min(layer.input_size, layer.hidden_size)
    elif isinstance(layer, nn.MultiheadAttention):
        least = min(layer.embed_dim, layer.kdim, layer.vdim)
    else:
        least = min(next(iter(layer.parameters(recurse=False))).shape)
    return max(1, int(ratio * least))


def _low_rank(layer: nn.Module, rank: int, extra_norm: bool) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return LowRankConv2d(layer, rank, extra_norm=extra_norm)
    if isinstance(layer, nn.LSTM):
        return LowRankLSTM(layer, rank)
    if isinstance(layer, nn.MultiheadAttention):
        return LowRankAttention(layer, rank)
    assert isinstance(layer, nn.Linear)
    where: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    bias = layer.bias is not None
    return LowRankLinear(layer.in_features, layer.out_features, rank, bias=bias, **where)


def _adopt(new: nn.Module, layer: nn.Module) -> None:
    """Hooks, mode and frozenness of the layer whose place it takes."""
    for name in HOOKS:
        if hasattr(layer, name):
            setattr(new, name, getattr(layer, name))
    new.train(layer.training)
    if not any(parameter.requires_grad for parameter in layer.parameters()):
        new.requires_grad_(False)


def _put(model: nn.Module, name: str, layer: nn.Module, new: nn.Module) -> nn.Module:
    """The model with a layer replaced wherever it stands."""
    if layer is model:
        return new
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if module is layer:
                setattr(parent, child, new)
    return model


def _successors(layer: nn.Module, new: nn.Module) -> dict[Tensor, tuple[nn.Parameter, ...]]:
    """By each parameter of the layer what took its place: biases for a bias, else the factors."""
    fresh = list(new.parameters())
    matrices = tuple(p for p in fresh if p.dim() > 1)
    vectors = tuple(p for p in fresh if p.dim() == 1)
    if isinstance(new, LowRankLSTM):
        biases = [cell.bias for cell in new.cells]
        vectors = tuple(bias for bias in biases if isinstance(bias, nn.Parameter))
        matrices = tuple(p for p in fresh if all(p is not bias for bias in vectors))
    found: dict[Tensor, tuple[nn.Parameter, ...]] = {}
    for parameter in layer.parameters():
        found[parameter] = matrices if parameter.dim() > 1 else vectors
    return found


def _numel(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())
