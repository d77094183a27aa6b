"""Read an image out of a request body.

The bytes come from anybody, so this module is strict about what it lets decoders see: the format is told
by its signature, only the decoder of that one format is reachable, and the size in the header is checked
before a pixel is decoded.

For the images that both can read, the result equals what the ``rapidocr`` library's ``LoadImage`` makes of
the same file, channel by channel. Where that library takes colours for something else (palette indices as
grey values, CMYK as RGBA) or fails (more than 8 bits), this module gives the picture a viewer would show.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from inference.errors import TooManyPixels, UnreadableInput, UnsupportedInput

#: A picture: uint8 [height, width, 3], channels in the order blue, green, red, as OpenCV has them.
Picture = np.ndarray[Any, np.dtype[np.uint8]]

#: What a client may send.
FORMATS = ("PNG", "JPEG", "TIFF", "WebP", "BMP")

# Pillow's own guard warns at a number that is global to the process. Here the limit is an argument, and
# `decode_image` checks it before anything is decoded; no other code of the service opens images.
Image.MAX_IMAGE_PIXELS = None

#: Rows that are blended at once: bounds the memory for the float32 copies of a large picture.
_BLEND_ROWS = 256


def decode_image(body: bytes, *, max_pixels: int) -> Picture:
    """Decode ``body`` into a picture, upright according to its EXIF orientation.

    Of a file with several pages or frames the first is read. Transparent parts get the background that
    contrasts with the opaque ones, black or white.

    Args:
        body: PNG, JPEG, TIFF, WebP or BMP.
        max_pixels: largest accepted width times height.

    Returns:
        uint8 [height, width, 3], channels blue, green, red.

    Raises:
        UnreadableInput: the body is empty, truncated or damaged.
        UnsupportedInput: the body is none of the formats, or its colours are of a kind nobody sends text in.
        TooManyPixels: the header announces more than ``max_pixels``.
    """
    if not body:
        raise UnreadableInput("The body is empty; an image is expected.")
    kind = _signature(body)
    if kind is None:
        raise UnsupportedInput(f"The body is not an image of a supported format: {', '.join(FORMATS)}.")
    try:
        # Each of these plugins reads the header only; pixels are decoded by the first access to them.
        with Image.open(io.BytesIO(body), formats=[kind]) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise TooManyPixels(
                    f"The image has {width} x {height} = {width * height} pixels; the limit is {max_pixels}."
                )
            image.load()
            return _picture(_upright(image))
    except (TooManyPixels, UnsupportedInput, MemoryError):
        raise
    except Exception as error:
        # What a decoder raises on damaged bytes is not a closed set: OSError, SyntaxError, ValueError,
        # struct.error, EOFError, IndexError, zlib.error and others have been seen from Pillow.
        raise UnreadableInput(f"The {kind} image is truncated or damaged: {error}") from error


def _signature(body: bytes) -> str | None:
    """Name the format as Pillow does, by the first bytes."""
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if body.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if body.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        return "WEBP"
    # "BM" alone starts many a text; the size of the header that follows has only these values.
    if body.startswith(b"BM") and int.from_bytes(body[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124):
        return "BMP"
    return None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - Pillow raises errors of many kinds here
        # Damaged EXIF data says nothing about the pixels, which are decoded by now: like rapidocr, take
        # the picture as it lies.
        return image


def _picture(image: Image.Image) -> Picture:
    """Convert any of Pillow's modes to blue, green, red."""
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return _grey(_eight_bits(np.asarray(image), deep=mode.startswith("I;16")))
    if mode == "P":
        # rapidocr would read the numbers of the palette's entries as grey values.
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif mode in ("PA", "RGBa", "La"):
        image = image.convert("LA" if mode == "La" else "RGBA")
    elif mode in ("1", "CMYK", "YCbCr"):
        # rapidocr would read CMYK as RGBA, and YCbCr as RGB.
        image = image.convert("L" if mode == "1" else "RGB")
    if image.mode not in ("L", "LA", "RGB", "RGBX", "RGBA"):
        raise UnsupportedInput(f"An image in the colour mode {mode} is not supported; send RGB or greyscale.")
    pixels: Picture = np.asarray(image)
    if pixels.size == 0:
        raise ValueError("it has no pixels")
    if image.mode == "L":
        return _grey(pixels)
    if image.mode == "LA":
        return _grey(_blend_grey(pixels[..., 0], pixels[..., 1]))
    if image.mode == "RGBA":
        pixels = _blend(pixels)
    return np.ascontiguousarray(pixels[..., 2::-1])


def _grey(pixels: Picture) -> Picture:
    """Repeat a grey channel [height, width] three times."""
    return np.repeat(pixels[..., None], 3, axis=2)


def _eight_bits(values: np.ndarray[Any, Any], *, deep: bool) -> Picture:
    """Bring grey values [height, width] of more than 8 bits down to 8.

    rapidocr passes such values on as if 255 were white, or fails. 16 bits keep their upper half, as Pillow
    does for 16-bit colour. 32-bit integers and floats have no agreed white: the largest value becomes
    white, the smallest black.
    """
    if deep:
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    low, high = np.nanmin(values), np.nanmax(values)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it has infinite values")
    scale = 255.0 / (float(high) - float(low)) if high > low else 0.0
    stretched: Picture = np.nan_to_num((values.astype(np.float64) - float(low)) * scale).round().astype(np.uint8)
    return stretched


def _blend_grey(grey: Picture, alpha: Picture) -> Picture:
    """Blend grey on white, as rapidocr does: opaque parts stay, transparency is added as brightness."""
    shown: Picture = np.where(alpha > 0, grey, np.uint8(0))
    blended: Picture = shown + np.minimum(255 - alpha, 255 - shown)
    return blended


def _blend(pixels: Picture) -> Picture:
    """Blend RGBA on black or on white, as rapidocr does: whichever differs more from what can be seen."""
    rgb, alpha = pixels[..., :3], pixels[..., 3]
    seen = alpha > 0
    background = 255.0
    if seen.any():
        # Luminance of ITU-R BT.601; the mean is taken before the weights because both are linear.
        red, green, blue = (float(np.mean(rgb[..., channel], where=seen)) for channel in range(3))
        background = 255.0 if 0.299 * red + 0.587 * green + 0.114 * blue < 128 else 0.0
    result = np.empty_like(rgb)
    for top in range(0, len(rgb), _BLEND_ROWS):
        rows = slice(top, top + _BLEND_ROWS)
        opacity = (alpha[rows].astype(np.float32) / 255.0)[..., None]
        # Cut, not rounded, and in float32: so does rapidocr.
        result[rows] = rgb[rows].astype(np.float32) * opacity + np.float32(background) * (1.0 - opacity)
    return result
