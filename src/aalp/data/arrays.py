"""Arrays of images and labels, as .npz archives and data sets hold them: their layouts, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from aalp.data.images import Resizing
from aalp.data.split import Loaded, ResidentSplit
from aalp.errors import DataError
from aalp.method.batches import ROUNDING, ordinary


def check_images(images: Tensor, labels: Tensor, num_classes: int, what: str) -> Tensor:
    """Refuse images and labels that no classifier can be trained or judged on.

    Returns:
        The images, without the rounding out of [0, 1] that is forgiven.

    Raises:
        DataError: naming the first thing that is wrong.
    """
    for name, given in (("images", images), ("labels", labels)):
        if given.dim() == 0:
            raise DataError(f"{what} has a single number as {name}: give an array with one entry an image")
    if len(images) != len(labels):
        raise DataError(f"{what} has {len(images)} images and {len(labels)} labels: there has to be one label an image")
    if len(images) == 0:
        raise DataError(f"{what} has no images: name a source with at least one")
    if images.dim() != 4:
        raise DataError(f"{what} has images of shape {tuple(images.shape)}: they have to be (N, channels, height, width)")
    if images.is_floating_point():
        if not torch.isfinite(images).all():
            position = int((~torch.isfinite(images).flatten(1).all(1)).nonzero()[0])
            raise DataError(f"{what} image {position} has a value that is not finite: clean the data first")
        low, high = float(images.min()), float(images.max())
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise DataError(f"{what} has pixel values in [{low:g}, {high:g}]: scale them to [0, 1] or pass uint8")
        if low < 0 or high > 1:  # rounding, which attacks and balls do not know
            images = images.clamp(0, 1)
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.dim() != 1:
        raise DataError(f"{what} has labels of type {labels.dtype} and shape {tuple(labels.shape)}: one integer an image")
    low_label, high_label = int(labels.min()), int(labels.max())
    if low_label < 0 or high_label >= num_classes:
        wrong = low_label if low_label < 0 else high_label
        raise DataError(f"{what} has the label {wrong}: labels have to be 0..{num_classes - 1}")
    return images


def check_every_class(labels: Tensor, what: str) -> None:
    """Refuse training labels from 0 on that leave one out: it would be a class that nothing trains.

    Raises:
        DataError: naming the first one that is left out.
    """
    found = np.unique(labels.numpy())  # sorted: the k-th one is k, up to the first that is left out
    missing = np.flatnonzero(found != np.arange(len(found)))
    if len(missing):
        label, remedy = int(missing[0]), "number the classes anew" if found[0] == 0 else "subtract the lowest label"
        raise DataError(f"{what} has no training image with the label {label} of 0..{int(found[-1])}: {remedy}")


def largest_class(labels: Tensor) -> float:
    """The share of the most frequent label, in [0, 1]: the accuracy of the best constant answer; 0 without labels."""
    return max(labels.bincount().tolist(), default=0) / max(1, len(labels))


def as_tensors(images: Any, labels: Any, num_classes: int, what: str) -> tuple[Tensor, Tensor]:
    """What a caller gave as images and labels, the labels int64.

    Raises:
        DataError: it is none, naming the first thing that is wrong.
    """
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise DataError(f"{what} has {name} of type {type(value).__name__}: give a tensor, torch.as_tensor({name})")
    images = check_images(images, labels, num_classes, what)
    return ordinary(images), ordinary(labels.long())


def open_npz(path: Path) -> Loaded:
    """The splits of an archive, validation images of its own among them; classes are called by their labels.

    Raises:
        DataError: there is none, or its arrays are not images and labels.
    """
    if not path.is_file():
        raise DataError(f"there is no file '{path}': name an .npz with x_train, y_train, x_test and y_test")
    arrays = _read_archive(path)
    num_classes = 1 + _largest_label(arrays["train"][1])
    splits: dict[str, ResidentSplit] = {}
    for split, (x, y) in arrays.items():
        what = f"'{path}' {split}"
        images, labels = as_images(x, what), _labels(y, what)
        splits[split] = ResidentSplit(check_images(images, labels, num_classes, what), labels)
    train = splits["train"]
    for name, other in splits.items():
        if other.image_shape != train.image_shape:
            raise DataError(
                f"'{path}' has training images of {train.image_shape} and {name} images of {other.image_shape}: "
                "they have to agree"
            )
    if num_classes < 2:
        raise DataError(f"'{path}' has training labels of 1 class: at least 2 classes are needed")
    check_every_class(train.labels, f"'{path}'")
    return Loaded(train, splits["test"], tuple(str(label) for label in range(num_classes)), splits.get("validation"))


def _read_archive(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each split, by the names of Keras or of MedMNIST; validation images where it has some.

    Raises:
        DataError: it cannot be read, or lacks arrays.
    """
    try:
        _refuse_bomb(path)
        with np.load(path, allow_pickle=False) as archive:
            images, labels = ("{}_images", "{}_labels") if "train_images" in archive.files else ("x_{}", "y_{}")
            keys = {split: (images.format(split), labels.format(split)) for split in ("train", "test")}
            validation = images.format("val"), labels.format("val")
            if any(key in archive.files for key in validation):
                keys["validation"] = validation
            missing = [key for pair in keys.values() for key in pair if key not in archive.files]
            if missing:
                raise DataError(f"'{path}' lacks {', '.join(missing)}: it has {', '.join(archive.files) or 'nothing'}")
            return {split: (archive[x], archive[y]) for split, (x, y) in keys.items()}
    except DataError:
        raise
    except Exception as error:  # numpy raises many kinds for a broken archive
        raise DataError(f"'{path}' is not a readable .npz of plain arrays: {error}") from error


def _refuse_bomb(path: Path) -> None:
    """Images shrink to a tenth at best; what shrinks to a thousandth was made to fill the memory.

    Raises:
        DataError: a member of the archive is small, and huge once unpacked.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > max(1e9, 200 * member.compress_size):
                size = f"{member.file_size / 1e9:.1f} GB out of {member.compress_size / 1e6:.1f} MB"
                raise DataError(f"'{path}' unpacks '{member.filename}' to {size}: save it anew if that is no mistake")


def _largest_label(labels: np.ndarray) -> int:
    return int(labels.max()) if labels.size and np.issubdtype(labels.dtype, np.integer) else 0


def as_images(array: np.ndarray, what: str) -> Tensor:
    """An array of images, of whatever layout, as (N, channels, height, width)."""
    if array.dtype == np.uint8:
        if array.size and array.max() == 1:
            remedy = "multiply them by 255, or give floats in [0, 1]"
            raise DataError(f"{what} has uint8 pixels that are all 0 or 1, of 255: {remedy}")
        images = torch.from_numpy(array)
    elif np.issubdtype(array.dtype, np.floating):
        images = torch.from_numpy(array.astype(np.float32))
    else:
        raise DataError(f"{what} has pixels of type {array.dtype}: give uint8, or floats in [0, 1]")
    if images.dim() == 3:  # (N, H, W), grey
        images = images[:, None]
    elif images.dim() == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)  # (N, H, W, channels), as Keras stores it
    elif images.dim() == 4 and images.shape[-1] in (2, 4) and not 1 <= images.shape[1] <= 4:
        kept = (
            "RGBA: drop the fourth channel, x[..., :3]" if images.shape[-1] == 4 else "grey and alpha: drop alpha, x[..., :1]"
        )
        raise DataError(f"{what} has images of shape {tuple(images.shape)}, which looks like {kept}")
    return images.contiguous()


def with_channels(pixels: Tensor, channels: int) -> Tensor:
    """Images turned grey (1) or into colour (3).

    Raises:
        DataError: they are neither.
    """
    if pixels.shape[1] == channels:
        return pixels
    if pixels.shape[1] not in (1, 3):
        found = f"data channels is {channels} and the images have {pixels.shape[1]}"
        raise DataError(f"{found}: only grey and RGB are turned into one another")
    if channels == 3:
        return pixels[:, :1].expand(-1, 3, -1, -1).contiguous()
    # ITU-R 601 luma, as Pillow has it.
    grey = (pixels[:, :3].float() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return grey if pixels.is_floating_point() else grey.round().to(torch.uint8)


def resized(pixels: Tensor, size: int, resizing: Resizing) -> Tensor:
    """Images (N, channels, height, width) as (N, channels, size, size), in the way files are brought to it: see `Layout`."""
    height, width = pixels.shape[2:]
    if height == width == size:
        return pixels
    if resizing == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[:, :, top : top + side, left : left + side]
    made = torch.empty(*pixels.shape[:2], size, size, dtype=pixels.dtype)
    for start in range(0, len(pixels), 1024):
        # Antialiased, which is what Pillow calls bilinear.
        images = F.interpolate(pixels[start : start + 1024].float(), (size, size), mode="bilinear", antialias=True)
        made[start : start + 1024] = images if pixels.is_floating_point() else images.round()
    return made


def _labels(array: np.ndarray, what: str) -> Tensor:
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{what} has labels of type {array.dtype}: give integers 0..C-1")
    labels = torch.from_numpy(array.astype(np.int64))
    return labels[:, 0] if labels.dim() == 2 and labels.shape[1] == 1 else labels  # (N, 1), as Keras stores CIFAR's
