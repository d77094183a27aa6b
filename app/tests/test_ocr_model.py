"""The model as a service uses it."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference.errors import ArtifactError, TooManyPixels
from inference.model import ModelContext
from inference.models.ocr import OcrModel
from PIL import Image, ImageDraw, ImageFont

pytest_plugins = ["ocr_fixtures"]

IMAGES = Path(__file__).with_name("images")


def answer(model: OcrModel, body: bytes) -> dict[str, Any]:
    return model.encode(model.predict([model.decode(body, "image/png")])[0])


def test_sample_gives_the_expected_answer(ocr_model: OcrModel) -> None:
    sample = ocr_model.sample()
    assert len(sample.body) < 40_000
    found = answer(ocr_model, sample.body)
    assert {key: found[key] for key in sample.expected} == sample.expected
    assert (found["width"], found["height"]) == (330, 240)


def test_answer_is_plain_json(ocr_model: OcrModel) -> None:
    found = answer(ocr_model, ocr_model.sample().body)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["text"] == "\n".join(line["text"] for line in found["lines"])
    for line in found["lines"]:
        assert line.keys() == {"text", "score", "box"}
        assert 0.5 <= line["score"] <= 1
        (left, top), (right, _), (_, bottom), _ = line["box"]
        assert 0 <= left < right <= 330
        assert 0 <= top < bottom <= 240


def test_blank_image_has_no_lines(ocr_model: OcrModel) -> None:
    found = answer(ocr_model, (IMAGES / "blank.png").read_bytes())
    assert found == {"width": 320, "height": 320, "text": "", "lines": []}


def test_boxes_are_in_pixels_of_the_upright_image(ocr_model: OcrModel) -> None:
    found = answer(ocr_model, (IMAGES / "phone.jpg").read_bytes())
    assert (found["width"], found["height"]) == (820, 560)
    # The first line is drawn at (90, 70).
    np.testing.assert_allclose(found["lines"][0]["box"][0], [90, 73], atol=6)


def test_outputs_are_in_the_order_of_inputs(ocr_model: OcrModel) -> None:
    names = ("tiny.png", "blank.png", "low_contrast.png")
    pages = ocr_model.predict([ocr_model.decode((IMAGES / name).read_bytes(), "") for name in names])
    assert [ocr_model.encode(page)["text"].split("\n")[0] for page in pages] == ["No.17", "", "Faded carbon copy"]
    assert ocr_model.predict([]) == []


@pytest.mark.parametrize("size", [(1, 1), (2000, 1), (20_000, 20), (1, 3_000_000)])
def test_strips_do_not_fail(size: tuple[int, int], ocr_model: OcrModel) -> None:
    """rapidocr would ask for gigabytes, or fail, for all but the first."""
    width, height = size
    (page,) = ocr_model.predict([np.zeros((height, width, 3), np.uint8)])
    assert (page.width, page.height, page.lines) == (width, height, [])


def test_text_in_a_strip_is_found_where_it_is(ocr_model: OcrModel) -> None:
    """Higher than the pipeline takes: padded, made smaller, and the boxes brought back."""
    image = Image.new("RGB", (120, 2600), "white")
    tops = range(80, 2600, 200)
    for top in tops:
        ImageDraw.Draw(image).text((10, top), "2047", fill="black", font=ImageFont.load_default(44), anchor="lt")
    (page,) = ocr_model.predict([np.asarray(image)])
    assert (page.width, page.height) == (120, 2600)
    assert [text for text, _, _ in page.lines] == ["2047"] * len(tops)
    for top, (_, _, box) in zip(tops, page.lines, strict=True):
        np.testing.assert_allclose(box[0], [10, top], atol=12)
        np.testing.assert_allclose(box[2], [110, top + 32], atol=12)


def test_limit_in_pixels_is_that_of_the_context(ocr_artifacts: Path) -> None:
    model = OcrModel()
    model.setup(ModelContext(device="cpu", artifacts=ocr_artifacts, max_pixels=99))
    body = io.BytesIO()
    Image.new("L", (10, 10)).save(body, "PNG")
    with pytest.raises(TooManyPixels, match="10 x 10 = 100 pixels; the limit is 99"):
        model.decode(body.getvalue(), "")


def test_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"ocr/det\.json cannot be read"):
        OcrModel().setup(ModelContext(device="cpu", artifacts=tmp_path))


def test_options_are_refused(ocr_artifacts: Path) -> None:
    with pytest.raises(ValueError, match="'sped'"):
        OcrModel().setup(ModelContext(device="cpu", artifacts=ocr_artifacts, options={"sped": 2}))


def test_log_is_quiet(ocr_model: OcrModel, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    answer(ocr_model, (IMAGES / "blank.png").read_bytes())
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    # What the library does have to say goes to the log of the service.
    logging.getLogger("RapidOCR").error("heard")
    assert caplog.messages == ["heard"]


def test_host_needs_no_onnxruntime_no_network_and_no_writing(ocr_artifacts: Path, tmp_path: Path) -> None:
    """In a process of its own, as a service starts: set up, read the sample, and look at what it touched."""
    program = """
import json, sys
touched = []
def audit(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "os.mkdir", "os.rename", "os.remove", "pickle.find_class"):
        touched.append((event, str(arguments)))
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        touched.append((event, str(arguments)))
for name in ("onnx", "onnxruntime"):
    sys.modules[name] = None
sys.addaudithook(audit)
from pathlib import Path
from inference.model import ModelContext
from inference.models.ocr import OcrModel
model = OcrModel()
model.setup(ModelContext(device="cpu", artifacts=Path(sys.argv[1])))
sample = model.sample()
answer = model.encode(model.predict([model.decode(sample.body, sample.content_type)])[0])
print(json.dumps({"text": answer["text"], "expected": sample.expected["text"], "touched": touched}))
"""
    command = [sys.executable, "-W", "error", "-c", program, str(ocr_artifacts)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["text"] == found["expected"]
    assert found["touched"] == []
    assert list(tmp_path.iterdir()) == []
