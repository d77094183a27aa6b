"""The model reads what rapidocr reads with onnxruntime from the same files, and its networks compute the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference.models.ocr import OcrModel
from inference.models.ocr.model import Page
from inference.models.ocr.sessions import Array, Indices, Session
from rapidocr import RapidOCR

pytest_plugins = ["ocr_fixtures"]

IMAGES = Path(__file__).with_name("images")
DRAWN: dict[str, list[str]] = json.loads((IMAGES / "expected.json").read_text(encoding="utf-8"))

#: Largest difference of a network's output, which is a probability. Measured with torch: 6e-4 for the detection of
#: strip.png, 2e-4 elsewhere. Against the same networks in float64 ours are off by 2e-5 at most, so nearly
#: all of this is onnxruntime's own rounding.
TOLERANCE = 1e-3
#: Largest difference of the score of a line, for which the network has another width here than in rapidocr.
SCORE_TOLERANCE = 0.05


class Recorder(Session):
    """Passes calls on to a session, and keeps what went in and came out."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.calls: list[tuple[Array, Array]] = []

    def __call__(self, batch: Array) -> Array:
        self.calls.append((batch.copy(), self.session(batch)))
        return self.calls[-1][1]

    def best(self, batch: Array) -> tuple[Indices, Array]:
        found = super().best(batch)
        indices, probabilities = self.session.best(batch)
        np.testing.assert_array_equal(indices, found[0])
        np.testing.assert_allclose(probabilities, found[1], atol=1e-6)
        return found


@pytest.fixture(scope="module")
def reference() -> Any:
    """Rapidocr as it comes, with onnxruntime."""
    return RapidOCR(params={"Global.log_level": "error"})


@pytest.mark.parametrize("name", DRAWN)
def test_reads_as_rapidocr_does(
    name: str, ocr_engine_model: OcrModel, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ocr_engine_model
    path = IMAGES / name
    expected = reference(str(path))
    recorders = {part: Recorder(session) for part, session in model._pipeline._sessions.items()}
    monkeypatch.setattr(model._pipeline, "_sessions", recorders)

    (page,) = model.predict([model.decode(path.read_bytes(), "")])
    assert isinstance(page, Page)
    answer = model.encode(page)

    lines = [line["text"] for line in answer["lines"]]
    # Each character that was drawn; what counts as one line, where spaces are seen, and the order of the lines
    # of a turned page are the library's.
    assert sorted("".join(lines).replace(" ", "")) == sorted("".join(DRAWN[name]).replace(" ", ""))
    assert lines == list(expected.txts or ())
    scores = [line["score"] for line in answer["lines"]]
    assert scores == pytest.approx(list(expected.scores or ()), abs=SCORE_TOLERANCE)
    boxes = np.array([line["box"] for line in answer["lines"]]).reshape(-1, 4, 2)
    # One pixel: corners are rounded, so the smallest difference of the map may move one.
    np.testing.assert_allclose(boxes, np.reshape(() if expected.boxes is None else expected.boxes, (-1, 4, 2)), atol=1)

    used = {part for part, recorder in recorders.items() if recorder.calls}
    assert used == ({"det", "cls", "rec"} if DRAWN[name] else {"det"})
    for part, recorder in recorders.items():
        for batch, output in recorder.calls:
            wanted = getattr(reference, f"text_{part}").session(batch)
            assert output.shape == wanted.shape
            assert np.abs(output - wanted).max() < TOLERANCE
