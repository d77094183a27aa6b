"""Many pictures at once give what each gives alone, in order, and one that fails leaves the others alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference.images import Picture
from inference.models.ocr import OcrModel, pipeline
from inference.models.ocr.lines import network_width
from inference.models.ocr.model import Page
from inference.models.ocr.sizes import sizes

pytest_plugins = ["ocr_fixtures"]

IMAGES = sorted(path for path in Path(__file__).with_name("images").iterdir() if path.suffix in (".png", ".jpg"))


def pictures(model: OcrModel) -> list[Picture]:
    return [model.decode(path.read_bytes(), "") for path in IMAGES]


def texts(found: list[Page | Exception]) -> list[list[str] | str]:
    return [repr(page) if isinstance(page, Exception) else [text for text, _, _ in page.lines] for page in found]


@pytest.mark.parametrize("limits", [pipeline.CPU_LIMITS, pipeline.GPU_LIMITS])
def test_together_as_alone(
    limits: pipeline.Limits, ocr_engine_model: OcrModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ocr_engine_model
    given_pictures = pictures(model)
    alone = [model.predict([picture])[0] for picture in given_pictures]
    monkeypatch.setattr(model._pipeline, "_limits", limits)
    together = model.predict(given_pictures)
    assert texts(together) == texts(alone)
    for one, other in zip(together, alone, strict=True):
        assert isinstance(one, Page)
        assert isinstance(other, Page)
        assert (one.width, one.height) == (other.width, other.height)
        np.testing.assert_allclose([s for _, s, _ in one.lines], [s for _, s, _ in other.lines], atol=1e-3)
        # One pixel of the map; a corner is where a sum was rounded.
        np.testing.assert_allclose([b for _, _, b in one.lines], [b for _, _, b in other.lines], atol=1)


def test_stages_compute_across_pictures(ocr_model: OcrModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures of one size: detection once, and lines of different pictures in one call."""
    picture = ocr_model.decode((Path(__file__).with_name("images") / "low_contrast.png").read_bytes(), "")
    calls: dict[str, list[int]] = {"det": [], "cls": [], "rec": []}
    sessions = ocr_model._pipeline._sessions

    def count(part: str) -> Any:
        class Counting(type(sessions[part])):  # type: ignore[misc]
            def __init__(self) -> None:
                self.__dict__.update(sessions[part].__dict__)

            def __call__(self, batch: Any) -> Any:
                calls[part].append(len(batch))
                return super().__call__(batch)

        return Counting()

    monkeypatch.setattr(ocr_model._pipeline, "_sessions", {part: count(part) for part in sessions})
    monkeypatch.setattr(ocr_model._pipeline, "_limits", pipeline.GPU_LIMITS)
    found = ocr_model.predict([picture] * 4)
    assert texts(found) == texts(ocr_model.predict([picture])) * 4
    assert calls["det"] == [4, 1]
    assert calls["cls"] == [12, 3]
    # Three lines of at most three widths, each once for all four pictures.
    assert sum(calls["rec"]) == 15
    assert sorted(calls["rec"])[-1] >= 4


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_failure_of_one_picture_is_its_own(bad: int, ocr_model: OcrModel) -> None:
    given_pictures = pictures(ocr_model)[:3]
    wanted = texts(ocr_model.predict(given_pictures))
    # Nothing that `decode` gives looks so.
    given_pictures[bad] = np.zeros((50, 50, 7), np.uint8)
    found = ocr_model.predict(given_pictures)
    assert isinstance(found[bad], Exception)
    del found[bad], wanted[bad]
    assert texts(found) == wanted


def test_failure_in_cutting_is_its_own(ocr_model: OcrModel, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = pipeline.get_rotate_crop_image, [0]

    def fail_once(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise ValueError("a box of no size")
        return original(*arguments)

    given_pictures = [picture for picture in pictures(ocr_model) if picture.shape[0] > 300][:3]
    wanted = texts(ocr_model.predict(given_pictures))
    monkeypatch.setattr(pipeline, "get_rotate_crop_image", fail_once)
    found = texts(ocr_model.predict(given_pictures))
    assert "ValueError('a box of no size')" in found
    assert [text for text, good in zip(found, wanted, strict=True) if text == good] == [
        good for text, good in zip(found, wanted, strict=True) if not isinstance(text, str)
    ]
    assert sum(isinstance(text, str) for text in found) == 1


@pytest.mark.parametrize("failure", [RuntimeError("CUDA error: an illegal memory access"), MemoryError()])
def test_failure_of_the_device_is_everybodys(
    failure: Exception, ocr_model: OcrModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller decides what to do: it may be the device, or a batch that is too large for it."""

    def fail(*_: Any) -> Any:
        raise failure

    monkeypatch.setattr(ocr_model._pipeline, "_sessions", {"det": fail})
    with pytest.raises(type(failure)):
        ocr_model.predict(pictures(ocr_model)[:2])


def test_lack_of_memory_is_everybodys(ocr_model: OcrModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(pipeline, "_prepare", fail)
    with pytest.raises(MemoryError):
        ocr_model.predict(pictures(ocr_model)[:2])


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_cost_is_what_the_network_sees(path: Path, ocr_model: OcrModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def see(batch: Any) -> Any:
        seen.append(batch.shape)
        return np.zeros((len(batch), 1, *batch.shape[2:]), np.float32)

    monkeypatch.setattr(ocr_model._pipeline, "_sessions", {"det": see})
    picture = ocr_model.decode(path.read_bytes(), "")
    ocr_model.predict([picture])
    assert ocr_model.cost(picture) == seen[0][2] * seen[0][3]


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_any_size_fits_the_network(height: int, width: int) -> None:
    found = sizes(height, width)
    assert all(side % 32 == 0 and side >= 32 for side in found.network)
    assert 32 * 32 <= found.network[0] * found.network[1] < 12_000_000
    assert max(found.shown) <= 2 * 2000
    assert min(found.strip) >= 1


@given(st.integers(1, 10_000))
def test_width_holds_the_line(width: int) -> None:
    found = network_width(width)
    assert found >= max(width, 320)
    assert found - width < 64 or found == 320
    assert found % 32 == 0
