"""What a batch of images and labels has to be.

All but `check_range` look at types and shapes alone: to look at numbers, the host would wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aalp.errors import DataError

ROUNDING = 1e-6
"""How far from [0, 1] a pixel may be and count as rounding: resizing white float images gives 1 + 2e-7."""


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one that was made under `torch.inference_mode`, on which no gradient can be taken."""
    return tensor.clone() if tensor.is_inference() else tensor


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """Values (N,), one an image, shaped to multiply images (N, ...) or to choose between them."""
    return values.view(-1, *[1] * (images.dim() - 1))


def float_images(images: Tensor) -> Tensor:
    """The images (N, ...) as they are.

    Raises:
        DataError: they are no floats.
    """
    if not isinstance(images, Tensor):
        raise DataError(f"images are of type {type(images).__name__}: give a tensor of floats in [0, 1]")
    if not images.is_floating_point():
        raise DataError(f"images are {images.dtype}: give floats in [0, 1], such as images.float() / 255")
    return images


def class_numbers(labels: Tensor) -> Tensor:
    """Labels (N,) of any integer type as int64.

    Raises:
        DataError: they are none.
    """
    if not isinstance(labels, Tensor):
        raise DataError(f"labels are of type {type(labels).__name__}: give a tensor of integers, torch.as_tensor(labels)")
    if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        found = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise DataError(f"labels are {found}: give one class number an image, (N,) integers (of one-hot rows labels.argmax(1))")
    return labels.long()


def check_range(images: Tensor) -> None:
    """Refuse images outside [0, 1], where eps means something else and an attack would cut them to another image.

    What is not finite passes: whoever looks at the loss has a better word on it.

    Raises:
        DataError: naming the range that they are in, or that they are no floats.
    """
    if float_images(images).numel() == 0:
        return
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise DataError(
            f"images have pixel values in [{low:g}, {high:g}]: scale them to [0, 1], and leave the normalisation to the "
            "classifier, aalp.Classifier(network, mean=..., std=...)"
        )
