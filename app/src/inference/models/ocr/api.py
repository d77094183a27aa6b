"""What the OCR model reads and answers, as types."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from inference.description import Body, Description
from inference.errors import TooManyPixels, UnsupportedInput

Coordinate = Annotated[float, Meta(description="In pixels of the upright image.")]
Corner = tuple[Coordinate, Coordinate]


class Line(Struct, frozen=True):
    """A line of text."""

    text: Annotated[str, Meta(description="What it says.")]
    score: Annotated[float, Meta(ge=0, le=1, description="How sure the model is.")]
    box: Annotated[
        tuple[Corner, Corner, Corner, Corner],
        Meta(description="Its corners [x, y], clockwise from the top left of the text."),
    ]


class Page(Struct, frozen=True):
    """The text of an image."""

    width: Annotated[int, Meta(ge=1, description="Of the upright image, as viewers show it, in pixels.")]
    height: Annotated[int, Meta(ge=1, description="Of the upright image, in pixels.")]
    text: Annotated[str, Meta(description="The lines, joined by newlines; empty when there is no text.")]
    lines: Annotated[list[Line], Meta(description="In reading order.")]


DESCRIPTION = Description(
    summary="Read the text in an image",
    text="The bytes decide what kind of image it is, not the media type. "
    "Of a file with several pages the first is read.",
    bodies=[Body(f"image/{kind}") for kind in ("png", "jpeg", "tiff", "webp", "bmp")]
    + [Body("application/octet-stream")],
    answer=Page,
    # What the sample gives.
    example={
        "width": 330,
        "height": 240,
        "text": "Inference Fleet\nInvoice No. 2047\nTotal: 128.50 EUR",
        "lines": [
            {
                "text": "Inference Fleet",
                "score": 0.99946,
                "box": [[21.0, 24.0], [303.0, 23.0], [303.0, 59.0], [21.0, 60.0]],
            },
            {
                "text": "Invoice No. 2047",
                "score": 0.9995,
                "box": [[22.0, 101.0], [244.0, 100.0], [244.0, 129.0], [22.0, 130.0]],
            },
            {
                "text": "Total: 128.50 EUR",
                "score": 0.98514,
                "box": [[22.0, 170.0], [256.0, 170.0], [256.0, 199.0], [22.0, 199.0]],
            },
        ],
    },
    problems=[UnsupportedInput, TooManyPixels],
)
