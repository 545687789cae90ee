"""The models of Pufferfish's table, as published, and which of their layers stay of full rank."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

VGG19 = (64, 64, 0, 128, 128, 0, *(256,) * 4, 0, *(512,) * 4, 0, *(512,) * 4)  # 0: pooling


class VGG(nn.Module):
    """VGG-19 with BatchNorm for CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in VGG19:
            if not width:
                layers.append(nn.MaxPool2d(2))
                continue
            conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        head = [nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]
        self.classifier = nn.Sequential(*head, nn.Linear(512, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[n, 10]` of pictures `[n, 3, 32, 32]`."""
        return self.classifier(self.features(x))


VGG_KEEP = {"full_rank_layers": 9, "keep": ["classifier.4"]}


class Basic(nn.Module):
    """Two 3 × 3 convolutions, and a 1 × 1 where the width changes."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(before, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, before, h, w]` to `[n, width, h / stride, w / stride]`."""
        hidden = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(hidden + self.shortcut(x))


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 with the stride, 1 × 1 to four times the width."""

    def __init__(self, before: int, width: int, stride: int, wider: int) -> None:
        super().__init__()
        after, inside = 4 * width, wider * width
        self.conv1 = nn.Conv2d(before, inside, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = nn.Conv2d(inside, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.shortcut = shortcut(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, before, h, w]` to `[n, 4 width, h / stride, w / stride]`."""
        hidden = functional.relu(self.bn1(self.conv1(x)))
        hidden = functional.relu(self.bn2(self.conv2(hidden)))
        return functional.relu(self.bn3(self.conv3(hidden)) + self.shortcut(x))


def shortcut(before: int, after: int, stride: int) -> nn.Sequential:
    """Nothing, or a convolution where the shape changes."""
    if before == after and stride == 1:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


class ResNet18(nn.Module):
    """For CIFAR-10, without normalisation of the stem.

    Args:
        width: of the first stage; 64 as published.
        classes: of the output.
    """

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(Basic(before, after, 1 + (stage > 0)), Basic(after, after, 1))
                for stage, (before, after) in enumerate(pairwise(widths))
            )
        )
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures `[n, 3, 32, 32]`."""
        hidden = self.stages(functional.relu(self.conv(x)))
        return self.fc(hidden.mean(dim=(2, 3)))


RESNET18_KEEP = {"keep": ["conv", "stages.0.0.*", "*shortcut.0", "fc"]}


class ResNet50(nn.Module):
    """For ImageNet.

    Args:
        wider: of the 3 × 3 convolutions; 2 for the wide one.
    """

    def __init__(self, wider: int = 1) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        stages, before = [], 64
        for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
            made = []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                made.append(Bottleneck(before, width, stride, wider))
                before = 4 * width
            stages.append(nn.Sequential(*made))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(2048, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[n, 1000]` of pictures `[n, 3, h, w]`."""
        hidden = functional.max_pool2d(functional.relu(self.bn(self.conv(x))), 3, 2, 1)
        return self.fc(self.stages(hidden).mean(dim=(2, 3)))


RESNET50_KEEP = {"keep": ["conv", "stages.[012].*", "fc"]}


class Words(nn.Module):
    """A language model: embedding, LSTM layers, and a decoder tied with the embedding.

    Args:
        words: of the vocabulary.
        size: of embedding and state.
        dropout: before, between and after the layers.
    """

    def __init__(self, words: int = 33_278, size: int = 1500, dropout: float = 0.65) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.lstm = nn.LSTM(size, size, 2, dropout=dropout)
        self.decoder = nn.Linear(size, words)
        self.decoder.weight = self.embedding.weight
        self.drop = nn.Dropout(dropout)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(
        self, ids: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits `[steps, n, words]` of words `[steps, n]`, and the state."""
        hidden, state = self.lstm(self.drop(self.embedding(ids)), state)
        return self.decoder(self.drop(hidden)), state


class Attention(nn.Module):
    """Multi-head attention in four projections without bias."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(size, size, bias=False) for _ in range(4)
        )
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor, memory: Tensor, causal: bool = False) -> Tensor:
        """`[n, t, size]`, which looks at `[n, s, size]`."""
        q, k, v = (
            project(each).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, each in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.norm(x + self.out(mixed.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Four times as wide inside."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, t, size]`."""
        return self.norm(x + self.down(functional.relu(self.up(x))))


class Layer(nn.Module):
    """A layer of the encoder, or of the decoder, which also attends to the encoder."""

    def __init__(self, size: int, heads: int, decoder: bool) -> None:
        super().__init__()
        self.own = Attention(size, heads)
        self.other = Attention(size, heads) if decoder else None
        self.forth = FeedForward(size)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """`[n, t, size]`."""
        x = self.own(x, x, causal=self.other is not None)
        if self.other is not None and memory is not None:
            x = self.other(x, memory)
        return self.forth(x)


class Transformer(nn.Module):
    """Six layers each of encoder and decoder, one embedding for both languages and the output."""

    def __init__(self, words: int = 9521, size: int = 512, heads: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.encoder = nn.ModuleList(Layer(size, heads, False) for _ in range(6))
        self.decoder = nn.ModuleList(Layer(size, heads, True) for _ in range(6))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits `[n, t, words]` of words `[n, s]` and `[n, t]`, without positions."""
        x, y = (
            norm(self.embedding(e)) for norm, e in zip(self.norms, (source, target), strict=True)
        )
        for layer in self.encoder:
            x = layer(x)
        for layer in self.decoder:
            y = layer(y, x)
        return y @ self.embedding.weight.T


TRANSFORMER_KEEP = {"keep": ["encoder.0.*", "decoder.0.*"]}


def numel(model: nn.Module) -> int:
    """Parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, x: Tensor) -> int:
    """Multiplications of convolutions and linear layers in one forward pass of `x`."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, Tensor)
        total += output.numel() * weight[0].numel()

    hooks = [
        layer.register_forward_hook(count)
        for layer in model.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return total
