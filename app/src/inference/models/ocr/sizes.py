"""The sizes a picture goes through on its way to the detection network.

The steps and their numbers are those of the ``rapidocr`` library with its default settings
(``RapidOCR.preprocess_img``, ``apply_vertical_padding``, ``DetPreProcess.resize``); the padding of strips comes
on top. They stand here as plain arithmetic so that a picture's cost is known without touching a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Height and width in pixels.
Size = tuple[int, int]

# Pictures longer than this are strips, which are made wider. rapidocr scales the *short* side up (to 30 pixels,
# and for detection to 736), so that a picture of 1 x 2000 pixels would become one of 15000 x 60000, and one of
# 20 x 20000 makes it fail. Wide pictures may be more extreme than high ones because rapidocr pads those itself.
# Both limits keep detection under 12 million pixels.
_MAX_WIDTH_PER_HEIGHT = 100
_MAX_HEIGHT_PER_WIDTH = 20
#: Long side of a strip by its short side after padding.
_PADDED_RATIO = 8

#: A picture is brought between these first (``min_side_len``, ``max_side_len``).
_MIN_SIDE = 30
_MAX_SIDE = 2000
#: Wider pictures than this get a border above and below (``width_height_ratio``), and all this low (``min_height``).
_PADDING_RATIO = 8
_PADDING_HEIGHT = 30
#: The short side for detection (``limit_side_len``, ``limit_type: min``).
_DETECTION_SIDE = 736
#: The networks halve a side five times.
_MULTIPLE = 32


@dataclass(frozen=True, slots=True)
class Sizes:
    """What becomes of a picture.

    Attributes:
        picture: its size.
        strip: what a strip is made smaller to; the picture's size for any other.
        padded: the size after the last row or column of a strip was repeated.
        resizes: sizes it is then brought to, one after the other.
        border: rows of black above and below.
        network: what the detection network sees.
    """

    picture: Size
    strip: Size
    padded: Size
    resizes: tuple[Size, ...]
    border: int
    network: Size

    @property
    def shown(self) -> Size:
        """Size after ``resizes``, without the border: lines are cut out of this."""
        return self.resizes[-1] if self.resizes else self.padded


def sizes(height: int, width: int) -> Sizes:
    """Work out the sizes for a picture of ``height`` x ``width`` pixels, both at least 1."""
    strip = padded = (height, width)
    if width > _MAX_WIDTH_PER_HEIGHT * height or height > _MAX_HEIGHT_PER_WIDTH * width:
        scale = min(_MAX_SIDE / max(height, width), 1.0)
        # Scaled first: padding comes to a share of the long side squared.
        strip = (max(round(height * scale), 1), max(round(width * scale), 1))
        padded = (max(strip[0], -(-strip[1] // _PADDED_RATIO)), max(strip[1], -(-strip[0] // _PADDED_RATIO)))
    resizes = list[Size]()
    now = padded
    if max(now) > _MAX_SIDE:
        now = _scaled(now, _MAX_SIDE / max(now))
        resizes.append(now)
    if min(now) < _MIN_SIDE:
        now = _scaled(now, _MIN_SIDE / min(now))
        resizes.append(now)
    border = 0
    if now[0] <= _PADDING_HEIGHT or now[1] / now[0] > _PADDING_RATIO:
        border = abs(max(int(now[1] / _PADDING_RATIO), _PADDING_HEIGHT) * 2 - now[0]) // 2
    bordered = (now[0] + 2 * border, now[1])
    network = _scaled(bordered, max(_DETECTION_SIDE / min(bordered), 1.0))
    return Sizes((height, width), strip, padded, tuple(resizes), border, network)


def _scaled(size: Size, ratio: float) -> Size:
    height, width = (round(int(side * ratio) / _MULTIPLE) * _MULTIPLE for side in size)
    # The long side is at most 100 times the short one, which is at least 30: no side comes to nothing but in a
    # picture that was made smaller to 2000, and that keeps at least one multiple.
    return max(height, _MULTIPLE), max(width, _MULTIPLE)
