"""The OCR model as a service hosts it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from inference.description import Description
from inference.errors import ConfigError
from inference.images import Picture, decode_image
from inference.model import Model, ModelContext, Sample
from inference.models.reading import check_names

from .api import DESCRIPTION
from .sizes import sizes

if TYPE_CHECKING:
    from .pipeline import Line

#: A small page, and what its answer must contain; files, so that checks outside Python can send it too.
_SAMPLE = Path(__file__).with_name("sample.png")
_SAMPLE_ANSWER = Path(__file__).with_name("sample.json")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Page:
    """What was read: size of the upright image in pixels, and the lines in reading order."""

    width: int
    height: int
    lines: list[Line]


class OcrModel(Model[Picture, Page]):
    """PP-OCRv6: finds the lines of text in an image, and reads them.

    Artifacts, made by :mod:`.convert`: ``ocr/{det,cls,rec}.{json,safetensors,onnx}``.

    Option ``engine``: what computes the networks. ``auto``, the default, is onnxruntime on a CPU device and
    torch on a GPU; ``torch`` and ``onnxruntime`` name one.
    """

    name: ClassVar[str] = "pp-ocrv6"

    def prepare(self, context: ModelContext) -> None:
        """Read the options.

        Raises:
            ConfigError: an option is unknown or has a bad value.
        """
        from .sessions import ENGINES

        check_names(context.options, ["engine"])
        self._engine = context.options.get("engine", "auto")
        if self._engine not in ENGINES:
            raise ConfigError(f"option engine={self._engine!r}: must be one of {', '.join(ENGINES)}")
        self._max_pixels = context.max_pixels

    def setup(self, context: ModelContext) -> None:
        """Load the three networks on ``context.device``.

        Sets the number of threads of OpenCV, and of PyTorch where it computes, for the whole process.

        Raises:
            ArtifactError: a file is missing or damaged.
            ConfigError: the engine is not installed, or cannot use the device.
        """
        # Not at the top: web workers of mode batch import this module, and need none of it.
        import cv2

        from .pipeline import CPU_LIMITS, GPU_LIMITS, Pipeline
        from .sessions import choose, open_sessions

        folder = context.artifacts / "ocr"
        engine = choose(self._engine, context.device, folder)
        sessions, metadata = open_sessions(engine, context, folder)
        cv2.setNumThreads(context.threads)
        limits = CPU_LIMITS if context.device == "cpu" else GPU_LIMITS
        self._pipeline = Pipeline(sessions, metadata["character"], limits)
        _log.info("engine_chosen", extra={"facts": {"engine": engine, "option": self._engine}})

    def decode(self, body: bytes, content_type: str) -> Picture:
        """Decode an image; see :func:`inference.images.decode_image`. The bytes decide, not ``content_type``.

        Returns:
            uint8 [H, W, 3], blue, green, red, upright.
        """
        return decode_image(body, max_pixels=self._max_pixels)

    def cost(self, item: Picture) -> int:
        """Give the pixels that the detection network sees of a picture."""
        height, width = sizes(*item.shape[:2]).network
        return height * width

    def predict(self, inputs: Sequence[Picture]) -> list[Page | Exception]:
        """Read all pictures, each stage for all of them at once; see :mod:`.pipeline`."""
        return [
            found if isinstance(found, Exception) else Page(picture.shape[1], picture.shape[0], found)
            for picture, found in zip(inputs, self._pipeline(inputs), strict=True)
        ]

    def encode(self, output: Page) -> dict[str, Any]:
        """Give ``width``, ``height``, ``text`` (the lines, joined by newlines) and ``lines``.

        A line has ``text``, ``score`` in 0..1, and ``box``: its four corners [x, y], clockwise from the top
        left of the text. Sizes and boxes are in pixels of the sent image *after* it was turned upright
        according to its EXIF orientation, that is, of the image as viewers show it. An image without text
        has the text ``""`` and no lines.
        """
        return {
            "width": output.width,
            "height": output.height,
            "text": "\n".join(text for text, _, _ in output.lines),
            "lines": [{"text": text, "score": score, "box": box} for text, score, box in output.lines],
        }

    def sample(self) -> Sample:
        """Give a page of three lines."""
        expected = json.loads(_SAMPLE_ANSWER.read_text(encoding="utf-8"))
        return Sample(_SAMPLE.read_bytes(), "image/png", expected)

    def describe(self) -> Description:
        """Give the types of :mod:`.api`."""
        return DESCRIPTION
