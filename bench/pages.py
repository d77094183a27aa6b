"""The pages of the OCR benchmarks: some of the app's test images, and seeded ones of further sizes.

`pages()` gives them to other programs; run as a program, this writes them into a folder::

    .cache/venvs/app/bin/python bench/pages.py FOLDER

Needs Pillow and numpy alone. The font is the one that Pillow carries, so that no font has to be installed.
"""

import argparse
import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

IMAGES = Path(__file__).resolve().parent.parent / "app" / "tests" / "images"
#: Of the test images those that look like what people send; all of them hold text.
TAKEN = ("invoice.png", "receipt.png", "two_columns.png", "table.png", "photo.jpg", "phone.jpg")
SEED = 20

_TEXT = (
    "river harbour paper delivery invoice number street market garden window bridge station morning winter copper "
    "engine library museum village station letter account balance payment order customer transport machine valley "
    "mountain weather forecast report section chapter figure measure quantity price total amount discount received "
    "signed printed returned closed open Monday Tuesday Friday March October between under above before after with "
    "from into every other second third large small brown green white north south east west and the of for not"
)
WORDS = tuple(_TEXT.split())


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise SystemExit("bench: this Pillow was built without FreeType; install one of PyPI's wheels")
    return font


def _sentence(draw: random.Random, words: int) -> str:
    chosen = [draw.choice(WORDS) for _ in range(words)]
    if draw.random() < 0.4:
        chosen[-1] = f"{draw.randint(1, 9999)}.{draw.randint(0, 99):02d}"
    text = " ".join(chosen)
    return text[0].upper() + text[1:]


def _sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (width, height), "white")
    return image, ImageDraw.Draw(image)


def _png(image: Image.Image) -> bytes:
    into = io.BytesIO()
    image.save(into, "PNG")
    return into.getvalue()


def _jpeg(image: Image.Image, quality: int) -> bytes:
    into = io.BytesIO()
    image.save(into, "JPEG", quality=quality)
    return into.getvalue()


def letter(draw: random.Random) -> bytes:
    """A4 at 120 dots per inch with 30 lines: the heaviest page."""
    image, pen = _sheet(1000, 1414)
    pen.text((100, 70), _sentence(draw, 3), fill="black", font=_font(44))
    for row in range(29):
        pen.text((100, 150 + 42 * row), _sentence(draw, draw.randint(4, 7)), fill="black", font=_font(26))
    return _png(image)


def scan(draw: random.Random) -> bytes:
    """A scanned A5 page: slightly turned, grey, noisy, JPEG."""
    image, pen = _sheet(874, 1240)
    for row in range(22):
        pen.text((90, 100 + 48 * row), _sentence(draw, draw.randint(3, 6)), fill="#202020", font=_font(26))
    turned = image.rotate(0.7, Image.Resampling.BICUBIC, fillcolor="white").filter(ImageFilter.GaussianBlur(0.6))
    noise = np.random.default_rng(draw.randint(0, 2**32)).normal(0, 6, (1240, 874, 1))
    pixels = np.asarray(turned) * 0.9 + noise
    return _jpeg(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), 80)


def price_list(draw: random.Random) -> bytes:
    """A table of many short lines: more lines than any other for its size."""
    image, pen = _sheet(1000, 760)
    for row in range(14):
        pen.text((40, 30 + 51 * row), _sentence(draw, 2), fill="black", font=_font(26))
        pen.text((560, 30 + 51 * row), str(draw.randint(1, 999)), fill="black", font=_font(26))
        amount = f"{draw.randint(1, 999)}.{draw.randint(0, 99):02d}"
        pen.text((760, 30 + 51 * row), amount, fill="black", font=_font(26))
    return _png(image)


def ticket(draw: random.Random) -> bytes:
    """A long receipt."""
    image, pen = _sheet(480, 1500)
    for row in range(24):
        pen.text((30, 40 + 60 * row), _sentence(draw, 2), fill="black", font=_font(28))
    return _png(image)


def label(draw: random.Random) -> bytes:
    """A small picture with two lines: the lightest page."""
    image, pen = _sheet(420, 260)
    pen.text((30, 60), _sentence(draw, 2), fill="black", font=_font(34))
    pen.text((30, 150), f"No. {draw.randint(1000, 99999)}", fill="black", font=_font(34))
    return _png(image)


def slide(draw: random.Random) -> bytes:
    """A wide picture with large letters, white on dark."""
    image = Image.new("RGB", (1600, 900), "#181818")
    pen = ImageDraw.Draw(image)
    for row in range(7):
        pen.text((100, 80 + 110 * row), _sentence(draw, 4), fill="#e8e8e8", font=_font(52))
    return _jpeg(image, 90)


DRAWN: dict[str, Callable[[random.Random], bytes]] = {
    "letter.png": letter,
    "scan.jpg": scan,
    "price_list.png": price_list,
    "ticket.png": ticket,
    "label.png": label,
    "slide.jpg": slide,
}


def pages() -> dict[str, bytes]:
    """Twelve pages of mixed sizes as files, by name, in the order in which a client sends them."""
    # Each page has a generator of its own, so that a change to one leaves the others as they are.
    drawn = {name: make(random.Random(f"{SEED} {name}")) for name, make in DRAWN.items()}  # noqa: S311 - pictures
    taken = {name: (IMAGES / name).read_bytes() for name in TAKEN}
    mixed: dict[str, bytes] = {}
    for one, other in zip(taken.items(), drawn.items(), strict=True):
        mixed |= dict([one, other])
    return mixed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pages().items():
        (folder / name).write_bytes(content)
        print(folder / name, len(content))


if __name__ == "__main__":
    main()
