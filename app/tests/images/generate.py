"""Draw the pictures of the OCR tests, and the sample that the model carries.

The results are committed, so the tests need no fonts. To draw them again, on Debian::

    apt-get install fonts-dejavu-core fonts-wqy-zenhei
    python app/tests/images/generate.py

Writes the pictures, ``expected.json`` (name of the picture: lines drawn, in reading order), and
``sample.png`` and ``sample.json`` (what the answer must contain) in ``src/inference/models/ocr``.
Everything is drawn here; the texts name nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HERE = Path(__file__).parent
SAMPLE = HERE.parents[1] / "src/inference/models/ocr/sample"

SANS = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"
BOLD = "/usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf"
MONO = "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf"
SERIF = "/usr/share/fonts/truetype/dejavu/DejaVuSerif.ttf"
CHINESE = "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc"

Lines = list[str]
Drawing = tuple[Image.Image, Lines]
DRAWINGS: dict[str, Callable[[], Drawing]] = {}


def drawing(name: str) -> Callable[[Callable[[], Drawing]], Callable[[], Drawing]]:
    def add(draw: Callable[[], Drawing]) -> Callable[[], Drawing]:
        DRAWINGS[name] = draw
        return draw

    return add


class Sheet:
    """A page to write on, which remembers what was written."""

    def __init__(self, width: int, height: int, paper: str = "white", ink: str = "black", mode: str = "L") -> None:
        self.image = Image.new(mode, (width, height), paper)
        self.draw = ImageDraw.Draw(self.image)
        self.ink = ink
        self.lines: Lines = []

    def write(self, x: int, y: int, text: str, size: int, font: str = SANS, ink: str | None = None) -> None:
        self.draw.text((x, y), text, fill=ink or self.ink, font=ImageFont.truetype(font, size))
        self.lines.append(text)

    def rule(self, *box: int) -> None:
        self.draw.line(box, fill=self.ink, width=2)

    def result(self) -> Drawing:
        return self.image, self.lines


def sample() -> Drawing:
    sheet = Sheet(330, 240)
    sheet.write(24, 24, "Inference Fleet", 32, BOLD)
    sheet.write(24, 100, "Invoice No. 2047", 26)
    sheet.write(24, 170, "Total: 128.50 EUR", 26)
    return sheet.result()


@drawing("invoice.png")
def invoice() -> Drawing:
    sheet = Sheet(900, 1100)
    sheet.write(60, 50, "Northwind Paper Mill", 40, BOLD)
    sheet.write(60, 120, "14 Harbour Street, Aldport", 22)
    sheet.write(60, 200, "INVOICE 2024-0193", 32, BOLD)
    sheet.write(60, 260, "Date: 12 March 2024", 22)
    sheet.write(60, 300, "Customer number: 778812", 22)
    sheet.rule(60, 350, 840, 350)
    for row, (what, amount) in enumerate(
        [("Copy paper A4, 500 sheets", "48.00"), ("Cardboard, brown, 2 mm", "112.75"), ("Delivery", "9.90")]
    ):
        sheet.write(60, 380 + 55 * row, what, 24)
        sheet.write(720, 380 + 55 * row, amount, 24)
    sheet.rule(60, 550, 840, 550)
    sheet.write(60, 575, "Total due", 28, BOLD)
    sheet.write(700, 575, "170.65", 28, BOLD)
    sheet.write(60, 1000, "Please pay within 30 days. Thank you for your order.", 22)
    return sheet.result()


@drawing("receipt.png")
def receipt() -> Drawing:
    sheet = Sheet(360, 640)
    sheet.write(70, 30, "CORNER BAKERY", 28, MONO)
    for row, text in enumerate(
        ["Rye bread      3.40", "Butter roll x4 2.80", "Apple cake     5.25", "Coffee         1.90"]
    ):
        sheet.write(20, 110 + 50 * row, text, 26, MONO)
    sheet.rule(20, 330, 340, 330)
    sheet.write(20, 350, "TOTAL         13.35", 26, MONO)
    sheet.write(20, 420, "CASH          20.00", 26, MONO)
    sheet.write(20, 470, "CHANGE         6.65", 26, MONO)
    sheet.write(60, 560, "2024-05-17 08:42", 24, MONO)
    return sheet.result()


@drawing("table.png")
def table() -> Drawing:
    sheet = Sheet(760, 420)
    rows = [
        ("City", "Population", "Area"),
        ("Aldport", "482000", "214 km"),
        ("Brimford", "91350", "78 km"),
        ("Calder", "1204500", "605 km"),
        ("Dunmere", "33780", "51 km"),
    ]
    for y in range(30, 391, 72):
        sheet.rule(30, y, 730, y)
    for x in (30, 260, 500, 730):
        sheet.rule(x, 30, x, 390)
    for row, cells in enumerate(rows):
        for column, text in enumerate(cells):
            sheet.write((50, 280, 520)[column], 50 + 72 * row, text, 26, BOLD if row == 0 else SANS)
    return sheet.result()


def notice() -> Drawing:
    sheet = Sheet(820, 560)
    sheet.write(90, 70, "The library closes at six o'clock", 30, SERIF)
    sheet.write(90, 190, "Return books to the desk", 30, SERIF)
    sheet.write(90, 310, "Room 12 is open until 9 pm", 30, SERIF)
    sheet.write(90, 430, "Telephone 555 0142", 30, SERIF)
    return sheet.result()


@drawing("tilted.png")
def tilted() -> Drawing:
    image, lines = notice()
    return image.rotate(4, resample=Image.Resampling.BICUBIC, expand=True, fillcolor="white"), lines


@drawing("quarter_turn.png")
def quarter_turn() -> Drawing:
    image, lines = notice()
    return image.transpose(Image.Transpose.ROTATE_90), lines


@drawing("upside_down.png")
def upside_down() -> Drawing:
    image, lines = notice()
    return image.transpose(Image.Transpose.ROTATE_180), lines


@drawing("dark.png")
def dark() -> Drawing:
    sheet = Sheet(700, 500, "#101418", "#e8e8e8", "RGB")
    sheet.write(40, 40, "$ systemctl status nginx", 26, MONO)
    sheet.write(40, 160, "active (running) since Monday", 26, MONO, "#7fd962")
    sheet.write(40, 280, "Main PID: 41822", 26, MONO)
    sheet.write(40, 400, "error: disk quota exceeded", 26, MONO, "#ff6b5e")
    return sheet.result()


@drawing("chinese.png")
def chinese() -> Drawing:
    sheet = Sheet(720, 440)
    sheet.write(60, 40, "图书馆开放时间", 44, CHINESE)
    sheet.write(60, 130, "星期一至星期五", 34, CHINESE)
    sheet.write(60, 200, "上午九点到下午六点", 34, CHINESE)
    sheet.write(60, 280, "请保持安静", 34, CHINESE)
    sheet.write(60, 360, "电话 8826-1047", 34, CHINESE)
    return sheet.result()


@drawing("two_columns.png")
def two_columns() -> Drawing:
    sheet = Sheet(1000, 560)
    left = ["Rivers carry sand and", "gravel to the sea. On", "the way they slow and", "drop what they hold."]
    right = ["Glaciers are rivers of", "ice. They move a few", "metres in a year and", "carve deep valleys."]
    sheet.write(60, 40, "Water that shapes the land", 36, BOLD)
    for row, pair in enumerate(zip(left, right, strict=True)):
        for x, text in zip((60, 540), pair, strict=True):
            sheet.write(x, 150 + 80 * row, text, 30, SERIF)
    return sheet.result()


@drawing("tiny.png")
def tiny() -> Drawing:
    sheet = Sheet(70, 30)
    sheet.write(8, 6, "No. 17", 16)
    return sheet.result()


@drawing("strip.png")
def strip() -> Drawing:
    sheet = Sheet(1400, 44)
    sheet.write(20, 6, "Warning: high voltage. Switch off the mains before you open the housing of this unit.", 26)
    return sheet.result()


@drawing("blank.png")
def blank() -> Drawing:
    return Sheet(320, 320).result()


@drawing("low_contrast.png")
def low_contrast() -> Drawing:
    sheet = Sheet(460, 340, "#c4c4c4", "#989898")
    sheet.write(50, 40, "Faded carbon copy", 36)
    sheet.write(50, 140, "Signed on 3 June 1987", 30)
    sheet.write(50, 240, "Register volume 22", 30)
    return sheet.result()


@drawing("transparent.png")
def transparent() -> Drawing:
    sheet = Sheet(540, 360, "#00000000", "#204080ff", "RGBA")
    sheet.write(40, 40, "Logo without a ground", 36, BOLD)
    sheet.write(40, 220, "Version 4.2", 32)
    return sheet.result()


@drawing("photo.jpg")
def photo() -> Drawing:
    """A sign seen from the side: uneven light, noise, blur and JPEG."""
    sheet = Sheet(800, 600, "#d9cfb8", "#2a2320", "RGB")
    sheet.write(110, 120, "FERRY TERMINAL", 56, BOLD)
    sheet.write(110, 230, "Next departure 14:35", 44)
    sheet.write(110, 320, "Platform B, gate 7", 44)
    sheet.write(110, 410, "Tickets on board", 44)
    corners = (1.05, 0.12, -50, -0.06, 1.1, 0, 0.00012, 0.00018)
    image = sheet.image.transform((800, 600), Image.Transform.PERSPECTIVE, corners, Image.Resampling.BICUBIC, 0, 1)
    light = np.linspace(1.1, 0.55, 800, dtype=np.float32)[None, :, None]
    noise = np.random.default_rng(7).normal(0, 14, (600, 800, 3))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1.1))) * light + noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), sheet.lines


@drawing("phone.jpg")
def phone() -> Drawing:
    """A picture whose pixels lie on their side; its EXIF orientation says how to turn them."""
    image, lines = notice()
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = image.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    sideways.info["exif"] = exif.tobytes()
    return sideways, lines


def main() -> None:
    expected = {}
    for name, draw in DRAWINGS.items():
        image, expected[name] = draw()
        if name.endswith(".jpg"):
            image.save(HERE / name, quality=70, exif=image.info.get("exif", b""))
        else:
            image.save(HERE / name, optimize=True)
    text = json.dumps(expected, ensure_ascii=False, indent=2)
    (HERE / "expected.json").write_text(text + "\n", encoding="utf-8")
    image, lines = sample()
    image.save(SAMPLE.with_suffix(".png"), optimize=True)
    SAMPLE.with_suffix(".json").write_text(json.dumps({"text": "\n".join(lines)}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
