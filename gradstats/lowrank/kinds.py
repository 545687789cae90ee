"""The kinds of layers that low rank replaces: one row of a table per class of torch's.

A row names the class, its counterpart, how its matrices lie in its parameters, which parameters
take the place of which, and which settings keep a layer as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from gradstats.lowrank.convolutions import LowRankConv1d, LowRankConv2d
from gradstats.lowrank.layers import LowRankAttention, LowRankLinear
from gradstats.lowrank.recurrent import LowRankGRU, LowRankLSTM, endings


@dataclass(frozen=True)
class Weight:
    """A weight that becomes products of two factors.

    Attributes:
        old: The weight, `[blocks · m, n]` once its trailing dimensions are flattened.
        blocks: Number of matrices that lie in it, one below the other.
        firsts: Vᵀ of all blocks in order, in one tensor or in several equal ones.
        seconds: U of all blocks, alike.
    """

    old: Tensor
    blocks: int
    firsts: tuple[Tensor, ...]
    seconds: tuple[Tensor, ...]

    @property
    def heirs(self) -> tuple[Tensor, ...]:
        """What takes the place of the weight."""
        pairs = zip(self.firsts, self.seconds, strict=True)
        return tuple(factor for pair in pairs for factor in pair)


@dataclass(frozen=True)
class Bias:
    """Biases whose sum becomes the bias of the new layer.

    Attributes:
        olds: What is added up.
        heirs: The new bias, in one tensor or in several equal ones.
    """

    olds: tuple[Tensor, ...]
    heirs: tuple[Tensor, ...]


@dataclass(frozen=True)
class LayerKind:
    """One class of torch's whose layers low rank replaces.

    Attributes:
        original: The class; its subclasses stay.
        low_rank: The class of low rank.
        make: Makes a fresh layer of low rank from a layer and a rank.
        successions: Of (new layer, layer): what becomes of each weight and each bias.
        names: Of a layer: the names of parameters and modules that it must and that it may have.
        stays: Of a layer: why its settings keep it as it is, "" where they do not.
        dimensions: Of its weights.
        blocks: Matrices in one parameter: gates, or query, key and value.
        grouped: A convolution: each group is a matrix, and a norm may stand between the factors.
        dropped: How the names of biases begin that are added to others.
    """

    original: type[nn.Module]
    low_rank: type[nn.Module]
    make: Callable[..., nn.Module]
    successions: Callable[[Any, Any], Iterator[Weight | Bias]]
    names: Callable[[Any], tuple[set[str], set[str]]]
    stays: Callable[[Any], str] = lambda _: ""
    dimensions: int = 2
    blocks: int = 1
    grouped: bool = False
    dropped: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of torch's class."""
        return self.original.__name__


def _linear(layer: nn.Linear, rank: int) -> nn.Module:
    where: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    m, n = layer.weight.shape
    return LowRankLinear(n, m, rank, bias=layer.bias is not None, **where)


def _of_product(new: Any, layer: Any) -> Iterator[Weight | Bias]:
    """Of a linear layer or a convolution, whose groups are matrices."""
    groups = getattr(layer, "groups", 1)
    yield Weight(layer.weight, groups, (new.first.weight,), (new.second.weight,))
    if layer.bias is not None:
        yield Bias((layer.bias,), (new.second.bias,))


def _of_lstm(new: LowRankLSTM, layer: nn.LSTM) -> Iterator[Weight | Bias]:
    """Gate by gate; the two biases of a gate become their sum."""
    yield from _of_gates(new, layer)
    for end, cell in new.named_cells() if layer.bias else ():
        both = getattr(layer, f"bias_ih{end}"), getattr(layer, f"bias_hh{end}")
        yield Bias(both, (cell.get_parameter("bias"),))


def _of_gru(new: LowRankGRU, layer: nn.GRU) -> Iterator[Weight | Bias]:
    yield from _of_gates(new, layer)
    for end, cell in new.named_cells() if layer.bias else ():
        for name in ("bias_ih", "bias_hh"):
            yield Bias((getattr(layer, f"{name}{end}"),), (cell.get_parameter(name),))


def _of_gates(new: LowRankLSTM | LowRankGRU, layer: nn.RNNBase) -> Iterator[Weight]:
    for end, cell in new.named_cells():
        for which in ("ih", "hh"):
            first, second = getattr(cell, f"first_{which}"), getattr(cell, f"second_{which}")
            weight = getattr(layer, f"weight_{which}{end}")
            yield Weight(weight, cell.gates, (first,), (second,))


def _of_attention(new: LowRankAttention, layer: nn.MultiheadAttention) -> Iterator[Weight | Bias]:
    projections: tuple[Any, ...] = (new.query, new.key, new.value)
    firsts = tuple(each.first.weight for each in projections)
    seconds = tuple(each.second.weight for each in projections)
    if layer._qkv_same_embed_dim:
        yield Weight(layer.in_proj_weight, len(projections), firsts, seconds)
    else:
        weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        for weight, first, second in zip(weights, firsts, seconds, strict=True):
            yield Weight(weight, 1, (first,), (second,))
    if layer.in_proj_bias is not None:
        yield Bias((layer.in_proj_bias,), tuple(each.second.bias for each in projections))
    yield from _of_product(new.out_proj, layer.out_proj)


def _product_names(_: nn.Module) -> tuple[set[str], set[str]]:
    return {"weight"}, {"bias"}


def _recurrent_names(layer: nn.RNNBase) -> tuple[set[str], set[str]]:
    kinds = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * layer.bias
    kinds += ["weight_hr"] * bool(layer.proj_size)
    return {kind + end for end in endings(layer) for kind in kinds}, set()


def _attention_names(_: nn.Module) -> tuple[set[str], set[str]]:
    weights = {"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"}
    return set(), weights | {"in_proj_bias", "bias_k", "bias_v", "out_proj"}


def _lstm_stays(layer: nn.LSTM) -> str:
    return "kept: an LSTM with projections" if layer.proj_size else ""


def _attention_stays(layer: nn.MultiheadAttention) -> str:
    out = type(layer.out_proj)
    if out is not NonDynamicallyQuantizableLinear and out is not nn.Linear:
        return f"kept: its out_proj is a {out.__name__}"
    more = layer.add_zero_attn or getattr(layer, "bias_k", None) is not None
    return "kept: attention to more than its keys" if more else ""


KINDS = (
    LayerKind(nn.Linear, LowRankLinear, _linear, _of_product, _product_names),
    LayerKind(
        nn.Conv1d,
        LowRankConv1d,
        LowRankConv1d,
        _of_product,
        _product_names,
        dimensions=3,
        grouped=True,
    ),
    LayerKind(
        nn.Conv2d,
        LowRankConv2d,
        LowRankConv2d,
        _of_product,
        _product_names,
        dimensions=4,
        grouped=True,
    ),
    LayerKind(
        nn.LSTM,
        LowRankLSTM,
        LowRankLSTM,
        _of_lstm,
        _recurrent_names,
        _lstm_stays,
        blocks=4,
        dropped=("bias_hh",),
    ),
    LayerKind(nn.GRU, LowRankGRU, LowRankGRU, _of_gru, _recurrent_names, blocks=3),
    LayerKind(
        nn.MultiheadAttention,
        LowRankAttention,
        LowRankAttention,
        _of_attention,
        _attention_names,
        _attention_stays,
        blocks=3,
    ),
)
#: The kinds by the names of torch's classes, as a run names them.
BY_NAME = {kind.name: kind for kind in KINDS}
FACTORED = tuple(kind.original for kind in KINDS)
LOW_RANK = tuple(kind.low_rank for kind in KINDS)


def kind_of(layer: nn.Module) -> LayerKind:
    """The kind of a layer of exactly one of torch's classes.

    Raises:
        TypeError: It is of no class that the table has.
    """
    for kind in KINDS:
        if type(layer) is kind.original:
            return kind
    raise TypeError(f"layer must be of a kind with a rule, got {type(layer).__name__}")
