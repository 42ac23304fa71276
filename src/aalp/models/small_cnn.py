"""The small CNN of the MNIST experiments in the TRADES code (arXiv 1901.08573), adapting to the image size."""

from __future__ import annotations

from torch import Tensor, nn

from aalp.errors import ModelError


class SmallCNN(nn.Module):
    """Four 3x3 convolutions (32, 32, 64, 64), two poolings, two hidden layers of 200 units, logits.

    28x28 images and larger go through unpadded convolutions as in the original; smaller ones are padded,
    so that a map remains to pool. Maps are pooled before the ReLU, not after it as there: the largest is the largest either
    way, gradients are the same to the bit, and the ReLU has a quarter of the work.

    Args:
        num_classes: C.
        image_shape: (channels, height, width); at least 4x4 pixels.
        hidden: units of each hidden layer; the last is the feature layer.
    """

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int], hidden: int = 200) -> None:
        super().__init__()
        channels, height, width = image_shape
        if min(height, width) < 4:
            raise ModelError(f"images of {height}x{width} pixels are too small for small-cnn: it needs at least 4x4")
        padding = 1 if min(height, width) < 28 else 0
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=padding),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=padding),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, padding=padding),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3, padding=padding),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
        )
        rows, columns = (_pooled(size, padding) for size in (height, width))
        self.hidden = nn.Sequential(nn.Linear(64 * rows * columns, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.logits = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.hidden(self.convolutions(images)))
        return logits


def _pooled(size: int, padding: int) -> int:
    """Rows or columns left after both blocks of two convolutions and a pooling."""
    for _ in range(2):
        size = (size - 4 * (1 - padding)) // 2
    return size
