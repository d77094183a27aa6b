"""A line of text cut out of a picture, and the inputs that it gives to the networks.

Scaling and padding are those of rapidocr's ``TextClassifier`` and ``TextRecognizer``, with one difference: there
a line gets the width of the widest of six neighbours, and never less than 320; here it gets a width of its own.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

from inference.images import Picture

from .sessions import Array

#: Height in pixels of a line for both networks.
HEIGHT = 48
#: Width of a line for the network that tells its direction.
DIRECTION_WIDTH = 192

#: Widths for recognition are multiples of this up to `_FINE_WIDTH`, and of `_COARSE_STEP` beyond: few enough that
#: lines share one, with little padding.
_FINE_STEP = 32
_FINE_WIDTH = 640
_COARSE_STEP = 64
#: Shorter lines are padded to this.
_MIN_WIDTH = 320

_NORMAL_LINE: Array = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def normalize(image: Any, table: Array, into: Array) -> None:
    """Write ``image``, uint8 [H, W, 3], into float32 [3, H, W], each byte as ``table`` [256] says."""
    for channel, plane in zip(cv2.split(image), into, strict=True):
        plane[:] = cv2.LUT(channel, table)


class Crop:
    """One line.

    Args:
        image: uint8 [H, W, 3].

    Attributes:
        text: what was read.
        score: 0..1.
    """

    __slots__ = ("_image", "network_width", "score", "text")

    def __init__(self, image: Picture) -> None:
        self._image = image
        self.text = ""
        self.score = 0.0
        self.network_width = network_width(self._width())

    def turn(self) -> None:
        """Turn by 180 degrees."""
        self._image = np.asarray(cv2.rotate(self._image, cv2.ROTATE_180), np.uint8)

    def for_direction(self) -> Array:
        """Give float32 [3, HEIGHT, DIRECTION_WIDTH]."""
        return self._padded(min(self._width(), DIRECTION_WIDTH), DIRECTION_WIDTH)

    def for_recognition(self) -> Array:
        """Give float32 [3, HEIGHT, network_width]."""
        return self._padded(self._width(), self.network_width)

    def _width(self) -> int:
        """Width of the line at HEIGHT."""
        height, width = self._image.shape[:2]
        return math.ceil(HEIGHT * (width / float(height)))

    def _padded(self, width: int, padded: int) -> Array:
        result = np.zeros((3, HEIGHT, padded), np.float32)
        normalize(cv2.resize(self._image, (width, HEIGHT)), _NORMAL_LINE, result[:, :, :width])
        return result


def network_width(width: int) -> int:
    """Give the width at which a line of ``width`` pixels is recognized."""
    step = _FINE_STEP if width <= _FINE_WIDTH else _COARSE_STEP
    return max(-(-width // step) * step, _MIN_WIDTH)
