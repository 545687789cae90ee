"""Replace the layers of a model by layers of low rank, fresh or from its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from gradstats.lowrank.filling import fill
from gradstats.lowrank.kinds import FACTORED, LOW_RANK
from gradstats.lowrank.replacing import adopt, heirs, low_rank, put
from gradstats.lowrank.rules import Matrix, Shapes, matrices_of, numel_after, rank_of
from gradstats.lowrank.staying import WITHOUT_A_RULE, Places, layers, parameters, why_kept
from gradstats.patterns import matching


@dataclass(frozen=True)
class Change:
    """The outcome for one layer.

    Attributes:
        name: The layer's name in the model.
        kind: The name of its class.
        rank: r; 0 where the layer stays.
        before: Number of its parameters before.
        after: Number of its parameters now.
        kept: Why the layer stays; "" where it is replaced.
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
        model: The model; the object that was given, unless that was one layer itself.
        changes: The outcome for each layer, in the model's order.
        replaced: By each parameter that is gone, the parameters that took its place.
    """

    model: nn.Module
    changes: tuple[Change, ...]
    replaced: dict[Tensor, tuple[Tensor, ...]] = field(repr=False, default_factory=dict)

    @property
    def before(self) -> int:
        """Parameters of the full model."""
        return self.after - sum(change.after - change.before for change in self.changes)

    @property
    def after(self) -> int:
        """Parameters now."""
        return _numel(self.model)

    def __str__(self) -> str:
        lines = [
            f"{change.name} ({change.kind}): "
            + (change.kept or f"rank {change.rank}, {change.before:,} → {change.after:,}")
            for change in self.changes
        ]
        ratio = self.before / self.after if self.after else 1.0
        total = f"{self.before:,} → {self.after:,} parameters ({ratio:.2f} ×)"
        return "\n".join([*lines, total])


@dataclass(frozen=True)
class Settings:
    """The settings of `factorize`."""

    rank_ratio: float = 0.25
    keep: str | Iterable[str] = ()
    full_rank_layers: int = 0
    ranks: Mapping[str, int] | None = None
    extra_norm: bool = False
    warm: bool = False

    def __post_init__(self) -> None:
        ratio: object = self.rank_ratio
        first = self.full_rank_layers
        if not isinstance(ratio, float | Real) or not 0 < float(ratio) <= 1:
            raise ValueError(f"rank_ratio must lie in (0, 1], got {ratio!r}")
        if not _whole(first) or first < 0:
            raise ValueError(f"full_rank_layers must be a whole number, got {first!r}")
        keep = [self.keep] if isinstance(self.keep, str) else self.keep
        object.__setattr__(self, "keep", tuple(keep))
        object.__setattr__(self, "ranks", dict(self.ranks or {}))
        for name, rank in (self.ranks or {}).items():
            if not _whole(rank) or rank < 1:
                raise ValueError(f"ranks must be whole numbers from 1, got {rank!r} for {name}")


@dataclass(frozen=True)
class Plan:
    """What is to become of a model, which is untouched.

    Attributes:
        changes: The outcome for each layer, in the model's order.
        layers: Pairs of a layer that goes and the layer that takes its place.
        replaced: By each parameter that goes, the parameters that take its place.
        names: Names of the new parameters in the model.
    """

    changes: list[Change]
    layers: list[tuple[nn.Module, nn.Module]]
    replaced: dict[Tensor, tuple[Tensor, ...]]
    names: dict[Tensor, str]

    def carried_out(self, model: nn.Module) -> Factorization:
        """Put the new layers into the model."""
        for layer, new in self.layers:
            model = put(model, layer, new)
        return Factorization(model, tuple(self.changes), self.replaced)


def factorize(
    model: nn.Module,
    rank_ratio: float = 0.25,
    *,
    keep: str | Iterable[str] = (),
    full_rank_layers: int = 0,
    ranks: Mapping[str, int] | None = None,
    extra_norm: bool = False,
    warm: bool = False,
) -> Factorization:
    r"""Replace linear layers, convolutions, LSTMs, GRUs and attention by products of two factors.

    The rank of a matrix is :math:`r = \lfloor \text{ratio} \cdot \min(m, n) \rfloor`, at least 1;
    a convolution is a matrix of output channels by the rest, in each group, and recurrent layers
    are one per gate.
    Only layers of exactly torch's classes are replaced. Embeddings stay, and so do subclasses,
    layers under weight_norm, spectral_norm, pruning or any parametrization, layers tied with
    others, and layers that r (m + n) parameters would not make smaller: `Factorization.changes`
    names each with the reason. The model is changed in place, or not at all where this raises;
    its names, hooks, modes, what is frozen, and all other parameters stay what they are.

    Args:
        model: The model, not wrapped.
        rank_ratio: Rank over the shortest side of a matrix, in (0, 1].
        keep: Globs of names of layers that stay as they are, or one glob.
        full_rank_layers: Number of first layers that stay although they could be replaced.
        ranks: Ranks by layer name, which take precedence over the ratio.
        extra_norm: Put a BatchNorm between the factors of convolutions, a variant of its own.
        warm: Start from the truncated SVD of the weights, see `warm_start`; else as new layers.

    Raises:
        ValueError: A setting out of range, a layer that cannot be replaced and is not kept, a name
            that is not in the model, weights that are not finite under `warm`, or a model that has
            layers of low rank already.

    References:
        Wang et al., "Pufferfish: Communication-efficient models at no extra cost", MLSys 2021.

    Example:
        >>> result = factorize(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)))
        >>> print(result)
        0 (Linear): rank 16, 4,160 → 2,112
        2 (Linear): rank 1, 260 → 72
        4,420 → 2,184 parameters (2.02 ×)
    """
    settings = Settings(rank_ratio, keep, full_rank_layers, ranks, extra_norm, warm)
    return planned(model, settings).carried_out(model)


def planned(model: nn.Module, settings: Settings) -> Plan:
    """Make the layers of low rank, beside the model.

    Raises:
        ValueError: as `factorize` does.
    """
    _check(model, settings)
    places, full, ranks = Places(model), settings.full_rank_layers, dict(settings.ranks or {})
    plan, asked_for = Plan([], [], {}, {}), _asked_for(model, settings)
    for name, layer in layers(model):
        asked = not asked_for.isdisjoint(places.names(*layer.modules()))
        why = "kept: asked for" if asked else why_kept(layer, places)
        if not why and full:
            why, full = "kept: one of the first layers", full - 1
        asked_ranks = [ranks[each] for each in places.names(layer) if each in ranks]
        change = _change(name, layer, why, asked_ranks, settings)
        plan.changes.append(change)
        if change.kept:
            continue
        new = low_rank(layer, change.rank, extra_norm=settings.extra_norm)
        if settings.warm:
            fill(new, layer, change.rank, name)
        adopt(new, layer)
        plan.layers.append((layer, new))
        plan.replaced.update(heirs(new, layer))
        plan.names.update((p, each) for each, p in new.named_parameters(name))
    return plan


def _change(name: str, layer: nn.Module, why: str, asked: list[int], settings: Settings) -> Change:
    """Decide about one layer: its rank, and whether that saves anything."""
    kind, before = type(layer).__name__, _numel(layer)
    if why:
        return Change(name, kind, 0, before, before, why)
    shapes, matrices = described(layer)
    rank = int(asked[0]) if asked else rank_of(matrices, settings.rank_ratio)
    after = numel_after(kind, shapes, matrices, rank, extra_norm=settings.extra_norm)
    if after >= before:
        why = f"kept: rank {rank} would have {after:,} parameters"
        return Change(name, kind, 0, before, before, why)
    return Change(name, kind, rank, before, after)


def described(layer: nn.Module) -> tuple[Shapes, tuple[Matrix, ...]]:
    """The shapes of a layer's parameters, and its matrices."""
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    groups = getattr(layer, "groups", 1)
    return shapes, matrices_of(type(layer).__name__, shapes, groups)


def _check(model: nn.Module, settings: Settings) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, DistributedDataParallel):
        raise ValueError("model must not be wrapped, got DistributedDataParallel: pass its module")
    names = {name: layer for name, layer in model.named_modules(remove_duplicate=False)}
    already = [name for name, layer in names.items() if isinstance(layer, LOW_RANK)]
    if already:
        raise ValueError(f"model must be of full rank, got low rank in {', '.join(already)}")
    unknown = [pattern for pattern in settings.keep if not matching(names, pattern)]
    unknown += [name for name in settings.ranks or {} if name not in names]
    if unknown:
        raise ValueError(f"keep and ranks must name layers of the model, got {unknown[0]!r}")
    unable = [
        f"{name} ({type(layer).__name__})"
        for name, layer in layers(model)
        if type(layer).__module__.startswith("torch.nn")
        and isinstance(layer, WITHOUT_A_RULE)
        and not isinstance(layer, FACTORED)
        and not nn.utils.parametrize.is_parametrized(layer)
        and name not in _asked_for(model, settings)
    ]
    if unable:
        remedy = "name them in keep"
        raise ValueError(f"cannot factorize {', '.join(unable)}: no rule for it; {remedy}")


def _whole(number: object) -> bool:
    """Whether it is an integer, of numpy's too, and not a bool."""
    return isinstance(number, Integral) and not isinstance(number, bool)


def _asked_for(model: nn.Module, settings: Settings) -> set[str]:
    """The names of layers that the user asks to keep."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    return {name for pattern in settings.keep for name in matching(names, pattern)}


def _numel(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in parameters(layer) if not is_lazy(parameter))
