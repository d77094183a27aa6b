"""The model reads what rapidocr reads with onnxruntime from the same files, and its networks compute the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference.models.ocr import OcrModel, pipeline
from rapidocr import RapidOCR

pytest_plugins = ["ocr_fixtures"]

IMAGES = Path(__file__).with_name("images")
DRAWN: dict[str, list[str]] = json.loads((IMAGES / "expected.json").read_text(encoding="utf-8"))

#: Largest difference of a network's output, which is a probability. Measured: 6e-4 for the detection of
#: strip.png, 2e-4 elsewhere. Against the same networks in float64 ours are off by 2e-5 at most, so nearly
#: all of this is onnxruntime's own rounding.
TOLERANCE = 1e-3

Call = tuple[pipeline.Session, np.ndarray[Any, Any], np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def reference() -> Any:
    """Rapidocr as it comes, with onnxruntime."""
    return RapidOCR(params={"Global.log_level": "error"})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """Input and output of each call of a network."""
    recorded = list[Call]()
    original = pipeline.Session.__call__

    def record(session: pipeline.Session, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        recorded.append((session, batch.copy(), original(session, batch)))
        return recorded[-1][-1]

    monkeypatch.setattr(pipeline.Session, "__call__", record)
    yield recorded
    recorded.clear()


@pytest.mark.parametrize("name", DRAWN)
def test_reads_as_rapidocr_does(name: str, ocr_model: OcrModel, reference: Any, calls: list[Call]) -> None:
    path = IMAGES / name
    expected = reference(str(path))

    picture = ocr_model.decode(path.read_bytes(), "")
    answer = ocr_model.encode(ocr_model.predict([picture])[0])

    lines = [line["text"] for line in answer["lines"]]
    # Each character that was drawn; what counts as one line, where spaces are seen, and the order of the lines
    # of a turned page are the library's.
    assert sorted("".join(lines).replace(" ", "")) == sorted("".join(DRAWN[name]).replace(" ", ""))
    assert lines == list(expected.txts or ())
    assert [line["score"] for line in answer["lines"]] == pytest.approx(list(expected.scores or ()), abs=TOLERANCE)
    boxes = np.array([line["box"] for line in answer["lines"]]).reshape(-1, 4, 2)
    # One pixel: corners are rounded, so the smallest difference of the map may move one.
    np.testing.assert_allclose(boxes, np.reshape(() if expected.boxes is None else expected.boxes, (-1, 4, 2)), atol=1)

    parts = {
        id(getattr(ocr_model._pipeline._engine, part).session): part for part in ("text_det", "text_cls", "text_rec")
    }
    assert {parts[id(session)] for session, _, _ in calls} == (set(parts.values()) if DRAWN[name] else {"text_det"})
    for session, batch, output in calls:
        wanted = getattr(reference, parts[id(session)]).session(batch)
        assert output.shape == wanted.shape
        assert np.abs(output - wanted).max() < TOLERANCE
