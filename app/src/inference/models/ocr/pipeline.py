"""rapidocr's pipeline around our networks.

Everything that is not a network comes from the ``rapidocr`` library as it is: resizing, the boxes of the
detection map (differentiable binarization, https://arxiv.org/abs/1911.08947), cropping, turning of lines
that stand on their head, and the decoding of characters (CTC). The library normally opens an inference
engine for each network by itself, from files it may download; here each gets a :class:`Session` instead.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import rapidocr.ch_ppocr_cls.main
import rapidocr.ch_ppocr_det.main
import rapidocr.ch_ppocr_rec.main
import torch
from rapidocr import RapidOCR
from rapidocr.utils.output import RapidOCROutput
from torch import nn
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format

from inference.images import Picture

#: One line of text: the text, its score in 0..1, its corners clockwise from the top left of the text as
#: [[x, y], ...] in pixels of the picture.
Line = tuple[str, float, list[list[float]]]

# Pictures longer than this are strips, which :func:`_pad_strip` makes wider. rapidocr scales the *short* side
# up (to 30 pixels, and for detection to 736), so that a picture of 1 x 2000 pixels would become one of
# 15000 x 60000, and one of 20 x 20000 makes it fail. Wide pictures may be more extreme than high ones because
# rapidocr pads those itself. Both limits keep detection under 11 million pixels.
_MAX_WIDTH_PER_HEIGHT = 100
_MAX_HEIGHT_PER_WIDTH = 20
#: Long side of a strip by its short side after padding.
_PADDED_RATIO = 8
#: Longest side of a strip; rapidocr makes everything this small (``max_side_len``).
_MAX_SIDE = 2000

_construction = threading.Lock()


class Session:
    """What rapidocr takes for an inference engine: numbers in, numbers out.

    Args:
        network: the module; it is moved to ``device``.
        device: where to compute.
        metadata: of the network; ``character`` is the alphabet, one character a line.
    """

    def __init__(self, network: nn.Module, device: torch.device, metadata: Mapping[str, str]) -> None:
        # On the CPU, depth-wise convolutions are faster with the channels last: detection of 736 x 736 pixels
        # takes 90 ms instead of 135 ms on two cores.
        self._layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self._network = convert_conv2d_weight_memory_format(network.to(device), self._layout)
        self._device = device
        self._metadata = metadata

    def __call__(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Run the network on float32 [N, 3, H, W]; blocks until the result is on the CPU."""
        with torch.inference_mode():
            tensor = torch.from_numpy(batch).to(self._device, memory_format=self._layout)
            result: np.ndarray[Any, Any] = self._network(tensor).cpu().numpy()
            return result

    def have_key(self, key: str = "character") -> bool:
        """Tell whether the metadata has ``key``."""
        return key in self._metadata

    def get_character_list(self, key: str = "character") -> list[str]:
        """Give the alphabet, as a new list: rapidocr adds the blank and the space to it."""
        return self._metadata[key].splitlines()


class Pipeline:
    """Finds and reads text in one picture at a time.

    Args:
        sessions: for ``det``, ``cls`` and ``rec``.
    """

    def __init__(self, sessions: Mapping[str, Callable[..., Any]]) -> None:
        # rapidocr writes to stderr in colours and in its own form. What it has to say goes through the
        # service's log; that a page has no text is no warning.
        logger = logging.getLogger("RapidOCR")
        logger.handlers.clear()
        logger.propagate = True
        self._engine = RapidOCR(params={"Global.log_level": "error"})
        config = self._engine.cfg
        config.Rec.font_path = config.Global.font_path
        parts = (
            ("det", rapidocr.ch_ppocr_det.main, "TextDetector", config.Det),
            ("cls", rapidocr.ch_ppocr_cls.main, "TextClassifier", config.Cls),
            ("rec", rapidocr.ch_ppocr_rec.main, "TextRecognizer", config.Rec),
        )
        for name, module, part, settings in parts:
            setattr(self._engine, f"text_{name}", _with_session(module, part, settings, sessions[name]))

    def __call__(self, picture: Picture) -> list[Line]:
        """Read a picture.

        Args:
            picture: uint8 [H, W, 3], blue, green, red.

        Returns:
            The lines from top to bottom, from left to right.
        """
        height, width = picture.shape[:2]
        shown, factors = _pad_strip(picture)
        result = self._engine(shown)
        # Where the library finds no text, it answers with an empty result of one of several classes.
        if not isinstance(result, RapidOCROutput) or not result.txts or result.boxes is None or result.scores is None:
            return []
        # Boxes may reach into the padding of a strip.
        boxes = np.clip(np.asarray(result.boxes, dtype=np.float64) * factors, 0, [width, height]).round(2).tolist()
        return [
            (str(text), float(score), box) for text, score, box in zip(result.txts, result.scores, boxes, strict=True)
        ]


def _with_session(module: Any, part: str, settings: Any, session: Callable[..., Any]) -> Any:
    """Construct a part of rapidocr with ``session`` as its engine.

    The constructor asks ``get_engine`` of its module for a class and calls that with the settings. There is
    no argument for an engine of one's own, so the function is replaced for the length of the call.
    """
    with _construction:
        original = module.get_engine
        module.get_engine = lambda _engine_type: lambda _settings: session
        try:
            return getattr(module, part)(settings)
        finally:
            module.get_engine = original


def _pad_strip(picture: Picture) -> tuple[Picture, tuple[float, float]]:
    """Make a strip wide or high enough for rapidocr; give any other picture back as it is.

    Its last row or column is repeated, after it was made smaller if it is long.

    Returns:
        The picture, and the factors by which x and y in it become those of ``picture``.
    """
    height, width = picture.shape[:2]
    if width <= _MAX_WIDTH_PER_HEIGHT * height and height <= _MAX_HEIGHT_PER_WIDTH * width:
        return picture, (1.0, 1.0)
    scale = min(_MAX_SIDE / max(height, width), 1.0)
    short_height, short_width = (max(round(side * scale), 1) for side in (height, width))
    # Scaled first: padding comes to a share of the long side squared.
    small: Any = cv2.resize(picture, (short_width, short_height), interpolation=cv2.INTER_AREA)
    bottom = max(-(-short_width // _PADDED_RATIO) - short_height, 0)
    right = max(-(-short_height // _PADDED_RATIO) - short_width, 0)
    padded: Picture = np.pad(small, ((0, bottom), (0, right), (0, 0)), mode="edge")
    return padded, (width / short_width, height / short_height)
