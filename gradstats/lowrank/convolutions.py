"""Convolutions whose matrices are products of two factors."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn


class _LowRankConvolution(nn.Module):
    """What `LowRankConv1d` and `LowRankConv2d` have in common."""

    _convolution: ClassVar[type[nn.Conv1d | nn.Conv2d]]
    _batch_norm: ClassVar[type[nn.Module]]

    def __init__(
        self, conv: nn.Conv1d | nn.Conv2d, rank: int, *, extra_norm: bool = False
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        between = conv.groups * rank
        outputs, inputs = conv.weight.shape[0], conv.weight.shape[1] * conv.groups
        self.rank = rank
        self.first = self._convolution(
            inputs,
            between,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=False,
            padding_mode=conv.padding_mode,
            **where,
        )
        self.norm = self._batch_norm(between, **where) if extra_norm else nn.Identity()
        self.second = self._convolution(
            between, outputs, 1, groups=conv.groups, bias=conv.bias is not None, **where
        )

    @property
    def weight(self) -> Tensor:
        """U Vᵀ of each group, in the shape of the convolution's weight; without an extra norm."""
        first, second = self.first.weight, self.second.weight
        groups = self.first.groups
        product = second.view(groups, -1, self.rank) @ first.reshape(groups, self.rank, -1)
        return product.view(len(second), *first.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        """The bias of the second factor."""
        return self.second.bias

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution."""
        y: Tensor = self.second(self.norm(self.first(x)))
        return y

    def extra_repr(self) -> str:
        """The rank."""
        return f"rank={self.rank}"


class LowRankConv1d(_LowRankConvolution):
    """A convolution to r channels per group, then one of width 1 to the output's channels.

    The first carries stride, padding, dilation and groups, the second the bias.

    Args:
        conv: The layer to replace; its weights are not used.
        rank: r, of each group.
        extra_norm: Put a BatchNorm1d between the two.
    """

    _convolution, _batch_norm = nn.Conv1d, nn.BatchNorm1d


class LowRankConv2d(_LowRankConvolution):
    """A convolution to r channels per group, then one of 1 × 1 to the output's channels.

    The first carries stride, padding, dilation and groups, the second the bias. There is no
    activation in between; a normalisation is a variant of its own.

    Args:
        conv: The layer to replace; its weights are not used.
        rank: r, of each group.
        extra_norm: Put a BatchNorm2d between the two.

    References:
        Wang et al., "Pufferfish: Communication-efficient models at no extra cost", MLSys 2021.
    """

    _convolution, _batch_norm = nn.Conv2d, nn.BatchNorm2d
