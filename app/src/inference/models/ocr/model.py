"""The OCR model as a service hosts it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import torch

from inference.images import Picture, decode_image
from inference.model import Model, ModelContext, Sample

from . import network
from .graph import NETWORKS
from .pipeline import Line, Pipeline, Session

#: A small page, and what its answer must contain; files, so that checks outside Python can send it too.
_SAMPLE = Path(__file__).with_name("sample.png")
_SAMPLE_ANSWER = Path(__file__).with_name("sample.json")


@dataclass(frozen=True, slots=True)
class Page:
    """What was read: size of the upright image in pixels, and the lines in reading order."""

    width: int
    height: int
    lines: list[Line]


class OcrModel(Model[Picture, Page]):
    """PP-OCRv6: finds the lines of text in an image, and reads them.

    Artifacts, made by :mod:`.convert`: ``ocr/{det,cls,rec}.{json,safetensors}``. No options.
    """

    name: ClassVar[str] = "pp-ocrv6"

    def setup(self, context: ModelContext) -> None:
        """Load the three networks on ``context.device``.

        Sets the number of threads of PyTorch and OpenCV for the whole process.

        Raises:
            ArtifactError: a file is missing or damaged.
            ValueError: there is an option; the model has none.
        """
        if context.options:
            raise ValueError(f"The OCR model has no options, but {', '.join(map(repr, context.options))} is given.")
        torch.set_num_threads(context.threads)
        cv2.setNumThreads(context.threads)
        device = torch.device(context.device)
        self._max_pixels = context.max_pixels
        self._pipeline = Pipeline({name: _session(context.artifacts / "ocr", name, device) for name in NETWORKS})

    def decode(self, body: bytes, content_type: str) -> Picture:
        """Decode an image; see :func:`inference.images.decode_image`. The bytes decide, not ``content_type``.

        Returns:
            uint8 [H, W, 3], blue, green, red, upright.
        """
        return decode_image(body, max_pixels=self._max_pixels)

    def predict(self, inputs: Sequence[Picture]) -> list[Page]:
        """Read each picture, one after the other."""
        return [Page(picture.shape[1], picture.shape[0], self._pipeline(picture)) for picture in inputs]

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


def _session(folder: Path, name: str, device: torch.device) -> Session:
    module, metadata = network.load(folder, name)
    return Session(module, device, metadata)
