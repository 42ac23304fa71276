"""How an image file becomes pixels: kinds of files, depths, sizes, and the way photographs are turned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import COLOURS, save
from PIL import ExifTags, Image, ImageOps

from aalp.data.folder import open_folder
from aalp.data.images import Decoding, Layout, decode, decoding_like
from aalp.errors import DataError


@pytest.mark.parametrize(
    ("suffix", "kind", "tolerance"),
    [
        (".png", "RGB", 0),
        (".PNG", "RGB", 0),
        (".bmp", "RGB", 0),
        (".ppm", "RGB", 0),
        (".tif", "RGB", 0),
        (".tiff", "RGB", 0),
        (".jpg", "RGB", 40),
        (".jpeg", "L", 10),
        (".webp", "RGB", 40),
        (".png", "L", 0),
        (".pgm", "L", 0),
        (".gif", "L", 0),
        (".png", "1", 0),
        (".png", "I;16", 1),
        (".png", "RGBA", 0),
    ],
)
def test_every_kind_of_image_comes_out_as_bytes_with_channels_first(
    suffix: str, kind: str, tolerance: int, tmp_path: Path
) -> None:
    grey = COLOURS[:, :, 0]
    stored, wanted = {
        "RGB": (COLOURS, COLOURS.transpose(2, 0, 1)),
        "RGBA": (np.concatenate([COLOURS, COLOURS[:, :, :1]], 2), COLOURS.transpose(2, 0, 1)),
        "L": (grey, grey[None]),
        "1": (grey > 70, 255 * (grey > 70)[None]),
        "I;16": (grey.astype(np.uint16) * 257, grey[None]),
    }[kind]
    for label in ("a", "b"):
        for number in (0, 1):
            save(tmp_path / label / f"{number}{suffix}", stored)
    folder = open_folder(tmp_path, Layout(), 0.5, 0)
    pixels = folder.train.decode().pixels.numpy()
    if suffix == ".gif":  # stored with a palette, so it comes as colours that happen to be grey
        wanted = np.repeat(wanted, 3, 0)
    assert pixels.dtype == np.uint8
    assert pixels.shape[1:] == folder.train.image_shape == wanted.shape
    assert np.abs(pixels[0].astype(int) - wanted.astype(int)).max() <= tolerance


def test_cropping_keeps_proportions_where_stretching_does_not(tmp_path: Path) -> None:
    # 12 wide, 6 high; the middle 6 columns are white.
    pixels = np.zeros((6, 12, 3), np.uint8)
    pixels[:, 3:9] = 255
    path = save(tmp_path / "0.png", pixels)
    cropped = decode(path, "0.png", Decoding((3, 6, 6), "crop"))
    stretched = decode(path, "0.png", Decoding((3, 6, 6), "stretch"))
    assert (cropped == 255).all()
    assert (stretched[0, 0, [0, 5]] == 0).all()
    assert abs(float(stretched.mean()) - 127.5) < 2


def test_a_large_jpeg_that_is_made_small_looks_the_same_as_its_png(tmp_path: Path) -> None:
    blobs = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)).resize((640, 480))
    blobs.save(tmp_path / "0.jpg", quality=95)
    blobs.save(tmp_path / "0.png")
    jpeg, png = (decode(tmp_path / name, name, Decoding((3, 32, 32), "stretch")).astype(int) for name in ("0.jpg", "0.png"))
    assert abs(jpeg - png).max() <= 6


@pytest.mark.parametrize("channels", [1, 3])
def test_a_palette_with_an_opacity_for_each_colour_is_read_without_a_warning(channels: int, tmp_path: Path) -> None:
    colours = COLOURS[0]
    palette = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    palette.putpalette(colours.tobytes())
    palette.save(tmp_path / "0.png", transparency=bytes([0, 50, 100, 150, 200, 255]))
    palette.convert("RGB").save(tmp_path / "plain.png")
    with Image.open(tmp_path / "0.png") as image:
        assert isinstance(image.info["transparency"], bytes)
    found, plain = (decode(tmp_path / name, name, Decoding((channels, 2, 3), None)) for name in ("0.png", "plain.png"))
    assert np.array_equal(found, plain)  # a warning would be an error here


@pytest.mark.parametrize("white", [65535, 4095, 1000])
def test_a_pgm_of_more_than_8_bits_is_scaled_by_what_it_calls_white(white: int, tmp_path: Path) -> None:
    pixels = np.linspace(0, white, 48).round().reshape(8, 6)
    path = tmp_path / "0.pgm"
    path.write_bytes(f"P5\n6 8\n{white}\n".encode() + pixels.astype(">u2").tobytes())
    decoding = decoding_like(path, "0", Layout())
    assert decoding.image_shape == (1, 8, 6)
    assert abs(decode(path, "0", decoding)[0] - pixels / white * 255).max() <= 1


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused_as_nobody_says_where_white_is(kind: type, tmp_path: Path) -> None:
    for label in ("a", "b"):
        for number in (0, 1):
            save(tmp_path / label / f"{number}.tif", COLOURS[:, :, 0].astype(kind))
    with pytest.raises(DataError, match="32-bit pixels"):
        open_folder(tmp_path, Layout(), 0.5, 0).train.decode()


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_viewers_turn_them(orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    blobs = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3)).astype(np.uint8)).resize((320, 240))
    path = tmp_path / f"0.{kind}"
    blobs.save(path, exif=exif, quality=100)
    wanted = ImageOps.exif_transpose(blobs_with(blobs, exif))
    first = decoding_like(path, "0", Layout())
    assert first.image_shape == (3, wanted.height, wanted.width) == (3, *((320, 240) if orientation > 4 else (240, 320)))
    assert abs(decode(path, "0", first).astype(int) - np.asarray(wanted).transpose(2, 0, 1)).max() <= 12
    # A JPEG is decoded at an eighth here, for a box that lies as the stored pixels do.
    small = decode(path, "0", Decoding((3, 8, 16), "crop")).astype(int)
    save(tmp_path / "wanted.png", np.asarray(wanted))
    assert abs(small - decode(tmp_path / "wanted.png", "wanted", Decoding((3, 8, 16), "crop"))).max() <= 12


@pytest.mark.parametrize("kind", ["L", "I;16", "RGBA", "RGB"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_uncompressed_tiff_is_turned_whatever_its_pixels_are(orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    colours = COLOURS[..., :1].repeat(4, axis=2) if kind == "RGBA" else COLOURS
    pixels = {"L": COLOURS[..., 0], "I;16": COLOURS[..., 0].astype(np.uint16) * 257}.get(kind, colours)
    Image.fromarray(pixels).save(tmp_path / "0.tif", exif=exif)
    shown = pixels >> 8 if kind == "I;16" else pixels
    flipped = shown.swapaxes(0, 1)
    wanted = [
        *(shown, shown[:, ::-1], np.rot90(shown, 2), shown[::-1]),
        *(flipped, np.rot90(shown, -1), np.rot90(flipped, 2), np.rot90(shown)),
    ][orientation - 1]
    first = decoding_like(tmp_path / "0.tif", "0", Layout())
    decoded = decode(tmp_path / "0.tif", "0", first)
    assert np.array_equal(decoded, wanted[None] if wanted.ndim == 2 else wanted[..., :3].transpose(2, 0, 1))


def blobs_with(image: Image.Image, exif: Image.Exif) -> Image.Image:
    turned = image.copy()
    turned.getexif().update(exif)
    return turned


def test_a_photograph_with_broken_exif_is_read_as_it_lies(tmp_path: Path) -> None:
    path = save(tmp_path / "0.png", COLOURS)
    for tags in (b"Exif\0\0no tags", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"):
        Image.fromarray(COLOURS).save(path, exif=tags)
        assert np.array_equal(decode(path, "0", decoding_like(path, "0", Layout())), COLOURS.transpose(2, 0, 1))


def test_an_image_in_colour_after_a_grey_first_one_is_refused_unless_it_was_said_that_colours_go(tmp_path: Path) -> None:
    for name, pixels in (("0", COLOURS[:, :, 0]), ("1", np.repeat(COLOURS[:, :, :1], 3, 2)), ("2", COLOURS * [1, 0, 1])):
        save(tmp_path / f"{name}.png", pixels.astype(np.uint8))
    grey = decoding_like(tmp_path / "0.png", "0", Layout())
    assert decode(tmp_path / "1.png", "1", grey).shape == (1, 8, 6)  # grey stored as colour loses nothing
    with pytest.raises(DataError, match=r"'2' is in colour and the first image is grey: give --data_options.channels 3"):
        decode(tmp_path / "2.png", "2", grey)
    for channels in (1, 3):
        said = decoding_like(tmp_path / "0.png", "0", Layout(channels=channels))
        assert decode(tmp_path / "2.png", "2", said).shape == (channels, 8, 6)
