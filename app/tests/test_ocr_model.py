"""The model as a service uses it."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference.compare import difference
from inference.errors import ArtifactError, ConfigError, TooManyPixels
from inference.images import Picture
from inference.model import ModelContext
from inference.models.ocr import OcrModel, sessions
from inference.models.ocr.model import Page
from ocr_fixtures import load_model
from PIL import Image, ImageDraw, ImageFont

pytest_plugins = ["ocr_fixtures"]

IMAGES = Path(__file__).with_name("images")


def read(model: OcrModel, pictures: Sequence[Picture]) -> list[Page]:
    """Read pictures of which none fails."""
    pages = list[Page]()
    for found in model.predict(pictures):
        assert isinstance(found, Page)
        pages.append(found)
    return pages


def answer(model: OcrModel, body: bytes) -> dict[str, Any]:
    return model.encode(read(model, [model.decode(body, "image/png")])[0])


def test_sample_gives_the_expected_answer(ocr_model: OcrModel) -> None:
    sample = ocr_model.sample()
    assert len(sample.body) < 40_000
    found = answer(ocr_model, sample.body)
    assert {key: found[key] for key in sample.expected} == sample.expected
    assert (found["width"], found["height"]) == (330, 240)


def test_example_of_the_description_is_what_the_sample_gives(ocr_engine_model: OcrModel) -> None:
    found = answer(ocr_engine_model, ocr_engine_model.sample().body)
    # Devices and engines round differently.
    assert difference(ocr_engine_model.describe().example, found, tolerance=2.0) is None
    assert found["text"] == (ocr_engine_model.describe().example or {})["text"]


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
    pages = read(ocr_model, [ocr_model.decode((IMAGES / name).read_bytes(), "") for name in names])
    assert [ocr_model.encode(page)["text"].split("\n")[0] for page in pages] == ["No.17", "", "Faded carbon copy"]
    assert ocr_model.predict([]) == []


@pytest.mark.parametrize("size", [(1, 1), (2000, 1), (20_000, 20), (1, 3_000_000)])
def test_strips_do_not_fail(size: tuple[int, int], ocr_model: OcrModel) -> None:
    """rapidocr would ask for gigabytes, or fail, for all but the first."""
    width, height = size
    (page,) = read(ocr_model, [np.zeros((height, width, 3), np.uint8)])
    assert (page.width, page.height, page.lines) == (width, height, [])


def test_text_in_a_strip_is_found_where_it_is(ocr_model: OcrModel) -> None:
    """Higher than the pipeline takes: padded, made smaller, and the boxes brought back."""
    image = Image.new("RGB", (120, 2600), "white")
    tops = range(80, 2600, 200)
    for top in tops:
        ImageDraw.Draw(image).text((10, top), "2047", fill="black", font=ImageFont.load_default(44), anchor="lt")
    (page,) = read(ocr_model, [np.asarray(image)])
    assert (page.width, page.height) == (120, 2600)
    assert [text for text, _, _ in page.lines] == ["2047"] * len(tops)
    for top, (_, _, box) in zip(tops, page.lines, strict=True):
        np.testing.assert_allclose(box[0], [10, top], atol=12)
        np.testing.assert_allclose(box[2], [110, top + 32], atol=12)


def test_limit_in_pixels_is_that_of_the_context(ocr_artifacts: Path) -> None:
    model = OcrModel()
    model.prepare(ModelContext(device="cpu", artifacts=ocr_artifacts, max_pixels=99))
    body = io.BytesIO()
    Image.new("L", (10, 10)).save(body, "PNG")
    with pytest.raises(TooManyPixels, match="10 x 10 = 100 pixels; the limit is 99"):
        model.decode(body.getvalue(), "")


@pytest.mark.parametrize("engine", ["auto", "torch", "onnxruntime"])
def test_missing_artifact_is_named(engine: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"ocr/det\.json cannot be read"):
        load_model(tmp_path, engine)


def test_unknown_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'engin': no such name; did you mean engine\?"):
        OcrModel().prepare(ModelContext(device="cpu", artifacts=tmp_path, options={"engin": "torch"}))


def test_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="engine='onnx': must be one of auto, torch, onnxruntime"):
        OcrModel().prepare(ModelContext(device="cpu", artifacts=tmp_path, options={"engine": "onnx"}))


@pytest.mark.parametrize(
    ("engine", "device", "chosen"),
    [
        ("auto", "cpu", "onnxruntime"),
        ("auto", "cuda:0", "torch"),
        ("torch", "cpu", "torch"),
        ("onnxruntime", "cpu", "onnxruntime"),
    ],
)
def test_engine_fits_the_device(engine: str, device: str, chosen: str, ocr_artifacts: Path) -> None:
    assert sessions.choose(engine, device, ocr_artifacts / "ocr") == chosen


def test_engine_that_cannot_use_the_device_is_refused(ocr_artifacts: Path) -> None:
    with pytest.raises(ConfigError, match="computes on CPUs only, the device is 'cuda:0'; set auto or torch"):
        sessions.choose("onnxruntime", "cuda:0", ocr_artifacts / "ocr")


def test_auto_is_torch_where_onnxruntime_or_its_files_are_missing(
    ocr_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sessions.choose("auto", "cpu", tmp_path) == "torch"
    monkeypatch.setattr(sessions.importlib.util, "find_spec", lambda name: None)
    assert sessions.choose("auto", "cpu", ocr_artifacts / "ocr") == "torch"
    with pytest.raises(ConfigError, match="it is not installed; install the extra 'ocr', or set auto or torch"):
        sessions.choose("onnxruntime", "cpu", ocr_artifacts / "ocr")


def test_file_that_onnxruntime_does_not_take_is_named(ocr_artifacts: Path, tmp_path: Path) -> None:
    """Whole, but no network."""
    shutil.copytree(ocr_artifacts / "ocr", tmp_path / "ocr")
    (tmp_path / "ocr/det.onnx").write_bytes(b"no network")
    path = tmp_path / "ocr/det.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["onnx_sha256"] = hashlib.sha256(b"no network").hexdigest()
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"ocr/det\.onnx cannot be opened"):
        load_model(tmp_path, "onnxruntime")


def test_log_is_quiet(ocr_model: OcrModel, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    answer(ocr_model, (IMAGES / "blank.png").read_bytes())
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    # What the library does have to say goes to the log of the service.
    logging.getLogger("RapidOCR").error("heard")
    assert caplog.messages == ["heard"]


@pytest.mark.parametrize(("engine", "other"), [("torch", "onnxruntime"), ("onnxruntime", "torch")])
def test_host_needs_one_engine_no_network_and_no_writing(
    engine: str, other: str, ocr_artifacts: Path, tmp_path: Path
) -> None:
    """In a process of its own, as a service starts: set up, read the sample, and look at what it touched."""
    program = """
import json, sys
touched = []
def audit(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "os.mkdir", "os.rename", "os.remove", "pickle.find_class"):
        touched.append((event, str(arguments)))
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        touched.append((event, str(arguments)))
for name in ("onnx", sys.argv[3]):
    sys.modules[name] = None
sys.addaudithook(audit)
from pathlib import Path
from inference.model import ModelContext
from inference.models.ocr import OcrModel
model = OcrModel()
context = ModelContext(device="cpu", artifacts=Path(sys.argv[1]), options={"engine": sys.argv[2]})
model.prepare(context)
model.setup(context)
sample = model.sample()
answer = model.encode(model.predict([model.decode(sample.body, sample.content_type)])[0])
print(json.dumps({"text": answer["text"], "expected": sample.expected["text"], "touched": touched}))
"""
    command = [sys.executable, "-W", "error", "-c", program, str(ocr_artifacts), engine, other]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["text"] == found["expected"]
    assert found["touched"] == []
    assert list(tmp_path.iterdir()) == []


def test_web_worker_loads_no_engine(ocr_artifacts: Path) -> None:
    """In mode batch it only decodes and encodes, and there are several of them."""
    program = """
import sys
from pathlib import Path
from inference.model import ModelContext
from inference.models.ocr import OcrModel
model = OcrModel()
model.prepare(ModelContext(device="cpu", artifacts=Path("nowhere"), computes=False))
sample = model.sample()
print(model.cost(model.decode(sample.body, sample.content_type)))
print([name for name in ("torch", "onnxruntime", "cv2", "rapidocr", "onnx") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == f"{736 * 1024}\n[]\n"


def number_printed(ocr_artifacts: Path, program: str) -> int:
    """What a program prints that finds ``model`` loaded and has a page that is often seen, in a process of its own."""
    start = """
import resource, sys
from pathlib import Path
import numpy as np
from inference.model import ModelContext
from inference.models.ocr import OcrModel
model = OcrModel()
context = ModelContext(device="cpu", artifacts=Path(sys.argv[1]), options={"engine": "onnxruntime"})
model.prepare(context)
model.setup(context)
page = np.full((240, 330, 3), 255, np.uint8)
model.predict([page])
"""
    command = [sys.executable, "-c", start + program, str(ocr_artifacts)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_memory_of_a_large_picture_is_given_back(ocr_artifacts: Path) -> None:
    """A picture of the worst size takes a gigabyte or more; what stays in the worker is little."""
    program = """
def resident():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) // 1024
before = resident()
model.predict([np.full((2000, 1500, 3), 255, np.uint8)])
model.predict([page])
print(resident() - before)
"""
    assert number_printed(ocr_artifacts, program) < 200


def test_memory_of_common_pages_is_kept(ocr_artifacts: Path) -> None:
    """New memory for each page would be tens of thousands of page faults, a sixth of the time."""
    program = """
model.predict([page])
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
model.predict([page])
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    assert number_printed(ocr_artifacts, program) < 6000


def test_nothing_is_written_at_home(ocr_artifacts: Path, tmp_path: Path) -> None:
    """Later versions of onnxruntime keep an id of the machine there, and report to their maker."""
    program = """
import sys
from pathlib import Path
import onnxruntime
from inference.models.ocr import graph, sessions
content, _ = graph.load_onnx(Path(sys.argv[1]) / "ocr", "cls")
sessions.OnnxSession(content, 1)
"""
    command = [sys.executable, "-c", program, str(ocr_artifacts)]
    subprocess.run(command, check=True, env={"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert list(tmp_path.iterdir()) == []
