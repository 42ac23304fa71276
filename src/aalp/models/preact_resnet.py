"""Pre-activation ResNets for small images (He et al., arXiv 1603.05027), in the CIFAR form used by robust training papers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F


@fx.wrap
def averaged(maps: Tensor) -> Tensor:
    """The mean of each map, (N, C) of (N, C, H, W), with a gradient that lies in memory as the maps do.

    To the bit what `maps.mean((2, 3))` is. The gradient of that comes back channels first, and the backward pass of a ReLU
    before it then takes ten times as long on maps that are channels last. `fx.wrap`: a tracer has no layout to ask for.
    """
    if maps.is_contiguous(memory_format=torch.channels_last):
        return maps.permute(0, 2, 3, 1).mean((1, 2))
    return maps.mean((2, 3))


class PreActBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        changes_shape = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes_shape else None

    def forward(self, images: Tensor) -> Tensor:
        # In place what no layer needs for its gradient, so that less memory is passed over.
        activated = F.relu(self.norm1(images), inplace=True)
        # As in the original: a shortcut that changes the shape starts from the activated input.
        shortcut = images if self.shortcut is None else self.shortcut(activated)
        inner = self.dropout(F.relu(self.norm2(self.conv1(activated)), inplace=True))
        result: Tensor = self.conv2(inner).add_(shortcut)
        return result


class PreActResNet(nn.Module):
    """A 3x3 stem, stages of pre-activation blocks, a last BatchNorm and ReLU, global average pooling, a linear head.

    Args:
        num_classes: C.
        channels: colour channels of the images.
        widths: channels of each stage; every stage after the first halves the resolution.
        blocks: blocks a stage.
        stem: channels after the first convolution; by default the first stage's.
        dropout: chance of dropping a unit inside a block.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: int = 2,
        stem: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        previous = stem if stem is not None else widths[0]
        self.stem = nn.Conv2d(channels, previous, 3, 1, 1, bias=False)
        stages: list[nn.Module] = []
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(PreActBlock(previous, width, stride, dropout))
                previous = width
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(previous)
        self.logits = nn.Linear(previous, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.norm(self.stages(self.stem(images))), inplace=True)
        logits: Tensor = self.logits(averaged(maps))
        return logits


def preact_resnet18(num_classes: int, channels: int) -> PreActResNet:
    """PreActResNet-18: 64-128-256-512, two blocks a stage (11.2 million parameters on CIFAR-10)."""
    return PreActResNet(num_classes, channels)


def thin_resnet(num_classes: int, channels: int) -> PreActResNet:
    """The CPU-sized one: 16-32-64-128, one block a stage (0.3 million parameters on CIFAR-10)."""
    return PreActResNet(num_classes, channels, widths=(16, 32, 64, 128), blocks=1)


def wide_resnet(num_classes: int, channels: int, depth: int, widening: int, dropout: float = 0.0) -> PreActResNet:
    """WideResNet-depth-widening (arXiv 1605.07146): the same blocks, three wide stages after a 16-channel stem."""
    blocks = (depth - 4) // 6
    return PreActResNet(num_classes, channels, (16 * widening, 32 * widening, 64 * widening), blocks, 16, dropout)
