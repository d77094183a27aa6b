"""Find and read the text of many pictures at once, one stage after the other.

The stages and their parameters are those of the ``rapidocr`` library with its default settings: detection with
the boxes of the detection map (differentiable binarization, https://arxiv.org/abs/1911.08947), cropping, turning
of lines that stand on their head, recognition, and the decoding of characters (CTC). Boxes, crops and characters
come from functions of the library. What differs is what is computed together: a stage takes the work of all
pictures, whatever picture it belongs to.

A result does not depend on what else is in the batch, other than by the rounding of float32: the networks see each
picture and each line at a size that is its own. Both look at all of their input (the detection network takes means
over it, the recognition network relates all columns), so padding to the size of a neighbour would change results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import cv2
import numpy as np
from rapidocr import RapidOCR
from rapidocr.ch_ppocr_det.main import TextDetector
from rapidocr.ch_ppocr_det.utils import DBPostProcess
from rapidocr.ch_ppocr_rec.utils import CTCLabelDecode
from rapidocr.utils.process_img import get_rotate_crop_image

from inference.images import Picture

from . import lines
from .sessions import Array, Session
from .sizes import Size, Sizes, sizes

#: One line of text: the text, its score in 0..1, its corners clockwise from the top left of the text as
#: [[x, y], ...] in pixels of the picture.
Line = tuple[str, float, list[list[float]]]

Item = TypeVar("Item")

#: Values of a channel as the networks want them, -1..1, for each byte; computed as the library does, so that the
#: last bit is the same.
_NORMAL_PICTURE: Array = ((np.arange(256, dtype=np.float32) * (1 / 255.0) - np.array(0.5)) / np.array(0.5)).astype(
    np.float32
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many pixels of input one call of a network gets, unless a single input has more.

    Attributes:
        detection: pixels of pictures.
        lines: pixels of lines of text, both for their direction and for recognition.
    """

    detection: int
    lines: int


#: On a CPU large batches gain nothing, and small ones stay in its cache.
CPU_LIMITS = Limits(detection=1, lines=6 * lines.HEIGHT * 320)
#: A GPU is busy with some millions of pixels. Recognition of a batch takes about 1.5 GB.
GPU_LIMITS = Limits(detection=8_000_000, lines=128 * lines.HEIGHT * 320)


@dataclass(slots=True)
class _Page:
    """What is known of a picture so far.

    Attributes:
        sizes: the sizes it goes through.
        seen: what lines are cut out of, with its border.
        scaled: what the detection network sees, not yet as numbers.
        boxes: [N, 4, 2], the corners of its lines in ``seen``.
        crops: its lines.
    """

    sizes: Sizes
    seen: Picture
    scaled: Picture
    boxes: np.ndarray[Any, Any] = field(default_factory=lambda: np.empty((0, 4, 2), np.float32))
    crops: list[lines.Crop] = field(default_factory=list)


class Pipeline:
    """Finds and reads text.

    Args:
        sessions: for ``det``, ``cls`` and ``rec``.
        alphabet: the characters of the recognition network, one a line.
        limits: how much to compute at once.
    """

    def __init__(self, sessions: Mapping[str, Session], alphabet: str, limits: Limits) -> None:
        # rapidocr writes to stderr in colours and in its own form. What it has to say goes through the
        # service's log.
        logger = logging.getLogger("RapidOCR")
        logger.handlers.clear()
        logger.propagate = True
        settings = RapidOCR(params={"Global.log_level": "error"}).cfg
        names = ("thresh", "box_thresh", "max_candidates", "unclip_ratio", "use_dilation", "score_mode")
        self._boxes = DBPostProcess(**{name: settings.Det[name] for name in names})
        self._min_score: float = settings.Global.text_score
        self._turned_score: float = settings.Cls.cls_thresh
        # The library adds the blank and the space to the list.
        self._characters = CTCLabelDecode(character=alphabet.splitlines())
        self._sessions = sessions
        self._limits = limits

    def __call__(self, pictures: Sequence[Picture]) -> list[list[Line] | Exception]:
        """Read pictures.

        Args:
            pictures: each uint8 [H, W, 3], blue, green, red.

        Returns:
            For each picture its lines from top to bottom, from left to right, or what went wrong with it alone.
        """
        outcomes: list[list[Line] | Exception] = [[] for _ in pictures]
        pages = dict(_apart(enumerate(pictures), _prepare, outcomes))
        for batch in _batches(pages.items(), lambda page: page.sizes.network, self._limits.detection):
            maps = self._detect([page for _, page in batch])
            found = [(index, (page, score)) for (index, page), score in zip(batch, maps, strict=True)]
            dict(_apart(found, self._cut, outcomes))
        crops = [
            crop for index, page in pages.items() if not isinstance(outcomes[index], Exception) for crop in page.crops
        ]
        self._turn(crops)
        self._read(crops)
        kept = [(index, page) for index, page in pages.items() if not isinstance(outcomes[index], Exception)]
        for index, found_lines in _apart(kept, self._lines, outcomes):
            outcomes[index] = found_lines
        return outcomes

    def _detect(self, pages: Sequence[_Page]) -> Array:
        """Give the probabilities of text, float32 [N, 1, H, W], for pages of one size for the network."""
        height, width = pages[0].sizes.network
        batch = np.empty((len(pages), 3, height, width), np.float32)
        for image, page in zip(batch, pages, strict=True):
            lines.normalize(page.scaled, _NORMAL_PICTURE, image)
        return self._sessions["det"](batch)

    def _cut(self, found: tuple[_Page, Array]) -> None:
        """Find the boxes in the map [1, H, W] of a page, and cut the lines out."""
        page, score = found
        boxes, _ = self._boxes(score[None], page.seen.shape[:2])
        if len(boxes) == 0:
            return
        page.boxes = TextDetector.sorted_boxes(boxes)
        page.crops = [lines.Crop(get_rotate_crop_image(page.seen, box.copy())) for box in page.boxes]

    def _turn(self, crops: Sequence[lines.Crop]) -> None:
        """Turn the lines that stand on their head."""
        together = max(self._limits.lines // (lines.HEIGHT * lines.DIRECTION_WIDTH), 1)
        for start in range(0, len(crops), together):
            batch = crops[start : start + together]
            scores = self._sessions["cls"](np.stack([crop.for_direction() for crop in batch]))
            for crop, (upright, turned) in zip(batch, scores.tolist(), strict=True):
                if turned > upright and turned > self._turned_score:
                    crop.turn()

    def _read(self, crops: Sequence[lines.Crop]) -> None:
        """Read the lines; each is computed beside others for which the network has the same width."""
        ordered = sorted(enumerate(crops), key=lambda pair: pair[1].network_width)
        for batch in _batches(ordered, lambda crop: (lines.HEIGHT, crop.network_width), self._limits.lines):
            images = np.stack([crop.for_recognition() for _, crop in batch])
            indices, probabilities = self._sessions["rec"].best(images)
            texts, _ = self._characters.decode(indices, probabilities, remove_duplicate=True)
            for (_, crop), (text, score) in zip(batch, texts, strict=True):
                crop.text, crop.score = text, score

    def _lines(self, page: _Page) -> list[Line]:
        """Bring the boxes back to the picture, and leave out what is no text."""
        boxes = _to_picture(page.boxes, page.sizes)
        return [
            (crop.text, float(crop.score), box)
            for crop, box in zip(page.crops, boxes, strict=True)
            if crop.text.strip() and crop.score >= self._min_score
        ]


def _prepare(picture: Picture) -> _Page:
    """Bring a picture to the sizes in which lines are found and cut out.

    Raises:
        ValueError: it is none.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"a picture is uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}")
    plan = sizes(*picture.shape[:2])
    shown: Any = picture
    if plan.strip != plan.picture:
        shown = cv2.resize(shown, plan.strip[::-1], interpolation=cv2.INTER_AREA)
    if plan.padded != plan.strip:
        bottom, right = plan.padded[0] - plan.strip[0], plan.padded[1] - plan.strip[1]
        shown = np.pad(shown, ((0, bottom), (0, right), (0, 0)), mode="edge")
    for height, width in plan.resizes:
        shown = cv2.resize(shown, (width, height))
    if plan.border:
        shown = cv2.copyMakeBorder(shown, plan.border, plan.border, 0, 0, cv2.BORDER_CONSTANT)
    height, width = plan.network
    return _Page(plan, seen=shown, scaled=np.asarray(cv2.resize(shown, (width, height)), np.uint8))


def _to_picture(boxes: np.ndarray[Any, Any], plan: Sizes) -> list[list[list[float]]]:
    """Turn boxes [N, 4, 2] in what the lines were cut from into pixels of the picture."""
    height, width = plan.picture
    shown_height, shown_width = plan.shown
    # float32 up to here: so does the library, whose numbers clients may compare with.
    scaled = (boxes - np.array([0, plan.border], np.float32)).astype(np.float32)
    scaled *= np.array([plan.padded[1] / shown_width, plan.padded[0] / shown_height], np.float32)
    factors = (width / plan.strip[1], height / plan.strip[0])
    # Boxes may reach into the padding of a strip.
    corners: list[list[list[float]]] = (
        np.clip(scaled.astype(np.float64) * factors, 0, [width, height]).round(2).tolist()
    )
    return corners


Result = TypeVar("Result")


def _apart(
    items: Iterable[tuple[int, Item]], step: Callable[[Item], Result], outcomes: list[Any]
) -> Iterator[tuple[int, Result]]:
    """Do ``step`` for each item; what one fails with becomes its outcome, and it is left out."""
    for index, item in items:
        try:
            yield index, step(item)
        except MemoryError:
            # The whole batch is too large for this machine, not this one picture.
            raise
        except Exception as error:  # noqa: BLE001 - the fault of one picture must not fail its neighbours
            outcomes[index] = error


def _batches(
    items: Iterable[tuple[int, Item]], size_of: Callable[[Item], Size], limit: int
) -> Iterator[list[tuple[int, Item]]]:
    """Group items of the same size, in the order in which sizes first come, into batches of ``limit`` pixels."""
    groups: dict[Size, list[tuple[int, Item]]] = {}
    for index, item in items:
        groups.setdefault(size_of(item), []).append((index, item))
    for (height, width), group in groups.items():
        together = max(limit // (height * width), 1)
        for start in range(0, len(group), together):
            yield group[start : start + together]
