"""Decoding of request bodies: formats, colours, orientation, damage and bombs."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inference.errors import TooManyPixels, UnreadableInput, UnsupportedInput
from inference.images import decode_image
from PIL import Image
from rapidocr.utils.load_image import LoadImage

load_image: Any = LoadImage

LIMIT = 1_000_000
RED, GREEN, BLUE = (200, 30, 20), (10, 180, 40), (20, 50, 220)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    body = io.BytesIO()
    image.save(body, kind, **options)
    return body.getvalue()


def noise(mode: str, width: int = 37, height: int = 23) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(3).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(values.squeeze() if channels == 1 else values).convert(mode)


def page(mode: str = "RGB") -> Image.Image:
    """Four blocks of colour: red, green / blue, white."""
    image = Image.new("RGB", (32, 16), "white")
    image.paste(RED, (0, 0, 16, 8))
    image.paste(GREEN, (16, 0, 32, 8))
    image.paste(BLUE, (0, 8, 16, 16))
    return image.convert(mode)


def blocks(picture: np.ndarray[Any, Any]) -> list[tuple[int, ...]]:
    """Red, green and blue at the middle of the four blocks."""
    height, width = picture.shape[:2]
    points = [(x, y) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return [tuple(picture[y, x, ::-1].tolist()) for x, y in points]


COLOURS = [RED, GREEN, BLUE, (255, 255, 255)]


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "tiff_deflate"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 90}, 40),
        ("JPEG", {"quality": 95, "subsampling": 0}, 12),
        ("JPEG", {"quality": 95, "progressive": True, "subsampling": 0}, 12),
    ],
)
def test_formats(kind: str, options: dict[str, Any], tolerance: int) -> None:
    picture = decode_image(encoded(page(), kind, **options), max_pixels=LIMIT)
    assert picture.shape == (16, 32, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    np.testing.assert_allclose(blocks(picture), COLOURS, atol=tolerance)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[(mode, "PNG") for mode in ("1", "L", "LA", "RGB", "RGBA")],
        *[(mode, "TIFF") for mode in ("1", "L", "RGB", "RGBA")],
        *[(mode, "BMP") for mode in ("1", "L", "RGB", "RGBA")],
        *[("L", "JPEG"), ("RGB", "JPEG"), ("RGB", "WEBP"), ("RGBA", "WEBP")],
    ],
)
def test_equals_rapidocr(mode: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    for brightness in (1.0, 0.3, 0.0):
        image = noise(mode).point(lambda value, factor=brightness: value * factor)
        path.write_bytes(encoded(image, kind))
        np.testing.assert_array_equal(
            decode_image(path.read_bytes(), max_pixels=LIMIT), load_image()(path), strict=True
        )


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_equals_rapidocr(orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image"
    path.write_bytes(encoded(page(), kind, exif=exif))
    picture = decode_image(path.read_bytes(), max_pixels=LIMIT)
    assert picture.shape == ((32, 16, 3) if orientation in (5, 6, 7, 8) else (16, 32, 3))
    np.testing.assert_array_equal(picture, load_image()(path), strict=True)


def test_damaged_exif_is_ignored() -> None:
    picture = decode_image(encoded(page(), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01"), max_pixels=LIMIT)
    assert blocks(picture) == COLOURS


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_palette_is_looked_up(kind: str) -> None:
    image = page().quantize(4)
    assert image.mode == "P"
    assert blocks(decode_image(encoded(image, kind), max_pixels=LIMIT)) == COLOURS


def test_transparent_entry_of_a_palette() -> None:
    image = page().quantize(4)
    body = encoded(image, transparency=image.getpixel((20, 2)))
    # What can be seen is bright on average, so the background is black.
    assert blocks(decode_image(body, max_pixels=LIMIT)) == [RED, (0, 0, 0), BLUE, (255, 255, 255)]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted(kind: str) -> None:
    body = encoded(page("CMYK"), kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    np.testing.assert_allclose(blocks(decode_image(body, max_pixels=LIMIT)), COLOURS, atol=12)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_upper_half(kind: str) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    picture = decode_image(encoded(Image.fromarray(values), kind), max_pixels=LIMIT)
    assert picture[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_sixteen_bits_of_colour() -> None:
    values = struct.pack(">6H", 65535, 32768, 256, 0, 1, 2)
    body = png((2, 1), b"\0" + values, depth=16, colour=2)
    assert decode_image(body, max_pixels=LIMIT).tolist() == [[[1, 128, 255], [0, 0, 0]]]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_open_ranges_are_stretched(dtype: type) -> None:
    image = Image.fromarray(np.array([[-100, 0, 150]], dtype))
    assert decode_image(encoded(image, "TIFF"), max_pixels=LIMIT)[0, :, 0].tolist() == [0, 102, 255]
    flat = Image.fromarray(np.full((1, 3), 7, dtype))
    assert decode_image(encoded(flat, "TIFF"), max_pixels=LIMIT)[0, :, 0].tolist() == [0, 0, 0]


def test_first_of_several_pages_is_read() -> None:
    body = encoded(page(), "TIFF", save_all=True, append_images=[Image.new("RGB", (5, 5))])
    assert blocks(decode_image(body, max_pixels=LIMIT)) == COLOURS


def test_colours_nobody_sends_are_refused() -> None:
    with pytest.raises(UnsupportedInput, match="LAB"):
        decode_image(encoded(Image.new("LAB", (4, 4)), "TIFF"), max_pixels=LIMIT)


def test_empty_body() -> None:
    with pytest.raises(UnreadableInput, match="empty"):
        decode_image(b"", max_pixels=LIMIT)


@pytest.mark.parametrize(
    "body",
    [
        b"hello",
        b"\0" * 1000,
        b"%PDF-1.7\n1 0 obj",
        b"BM is also how a sentence may begin, and no picture.",
        b"RIFF\x10\0\0\0WAVEfmt ",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(page("L"), "GIF"),
        encoded(page(), "PPM"),
        encoded(page(), "ICO"),
        encoded(page("L"), "EPS"),
    ],
    ids=["text", "zeros", "pdf", "text with BM", "sound", "svg", "gif", "ppm", "ico", "eps"],
)
def test_not_a_supported_image(body: bytes) -> None:
    """Some of these Pillow could read: their decoders must stay out of reach."""
    with pytest.raises(UnsupportedInput, match="PNG, JPEG, TIFF, WebP, BMP"):
        decode_image(body, max_pixels=LIMIT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95])
def test_truncated(kind: str, share: float) -> None:
    body = encoded(noise("RGB"), kind)
    with pytest.raises(UnreadableInput, match=kind):
        decode_image(body[: max(int(len(body) * share), 18)], max_pixels=LIMIT)


def test_no_pixels() -> None:
    with pytest.raises(UnreadableInput):
        decode_image(png((0, 0), b""), max_pixels=LIMIT)


def png(size: tuple[int, int], rows: bytes, *, depth: int = 8, colour: int = 0) -> bytes:
    """Write a PNG by hand: its header may announce anything."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def webp(width: int, height: int) -> bytes:
    """A lossless WebP that ends after its header."""
    size = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8L" + struct.pack("<I", 10) + b"\x2f" + size + bytes(5)


@pytest.mark.parametrize(
    "body",
    [
        png((50_000, 50_000), bytes(1000)),
        png((2_000_000_000, 2_000_000_000), bytes(10)),
        bmp(40_000, 40_000),
        webp(16_000, 16_000),
        encoded(Image.new("L", (1001, 1000)), "TIFF", compression="tiff_deflate"),
        encoded(Image.new("L", (1001, 1000)), "JPEG"),
        encoded(Image.new("L", (1001, 1000))),
    ],
    ids=["png", "png, largest", "bmp", "webp", "tiff", "jpeg", "one row too many"],
)
def test_bomb_is_refused_by_its_header(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TooManyPixels, match="the limit is 1000000"):
            decode_image(body, max_pixels=LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_limit_itself_is_allowed() -> None:
    body = encoded(Image.new("L", (1000, 1000)))
    assert decode_image(body, max_pixels=LIMIT).shape == (1000, 1000, 3)


SEEDS = [encoded(noise("RGB"), kind) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP")]
SEEDS += [encoded(noise("RGB"), "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "packbits")]
SEEDS += [encoded(page().quantize(4)), encoded(page("LA")), encoded(noise("1"), "TIFF", compression="group4")]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    length=st.floats(0.05, 1),
)
def test_damage_never_escapes(seed: bytes, changes: list[tuple[float, int]], length: float) -> None:
    """Whatever the bytes, the answer is a picture or an error of the client."""
    body = bytearray(seed)
    for position, value in changes:
        body[int(position * len(body))] = value
    body = body[: int(length * len(body))]
    try:
        picture = decode_image(bytes(body), max_pixels=LIMIT)
    except (UnreadableInput, UnsupportedInput, TooManyPixels):
        return
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
