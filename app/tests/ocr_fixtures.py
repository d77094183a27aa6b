"""Fixtures of the OCR tests; a test module asks for them with ``pytest_plugins = ["ocr_fixtures"]``."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from inference.model import ModelContext
from inference.models.ocr import OcrModel
from inference.models.ocr.convert import SOURCES, Package, convert


@pytest.fixture(scope="session")
def rapidocr_package() -> Path:
    """The wheel that ``INFERENCE_TEST_WHEEL`` names, else the installed package: the same ONNX files."""
    wheel = os.environ.get("INFERENCE_TEST_WHEEL")
    if wheel:
        return Path(wheel)
    spec = importlib.util.find_spec("rapidocr")
    assert spec, "rapidocr is not installed: install the extra 'ocr'"
    assert spec.origin
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def rapidocr_onnx(rapidocr_package: Path) -> dict[str, bytes]:
    """The ONNX files, by name of the network."""
    return {name: Package(rapidocr_package).read("rapidocr/models", file) for name, (file, _) in SOURCES.items()}


@pytest.fixture(scope="session")
def ocr_artifacts(rapidocr_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``models`` folder as a release has it."""
    folder = tmp_path_factory.mktemp("models")
    convert(rapidocr_package, folder)
    return folder


def load_model(artifacts: Path, engine: str = "auto") -> OcrModel:
    """The model as a worker has it, on the CPU with all cores."""
    model = OcrModel()
    context = ModelContext(device="cpu", artifacts=artifacts, threads=os.cpu_count() or 1, options={"engine": engine})
    model.prepare(context)
    model.setup(context)
    return model


@pytest.fixture(scope="session")
def ocr_model(ocr_artifacts: Path) -> OcrModel:
    """The model as it comes on a CPU device."""
    return load_model(ocr_artifacts)


@pytest.fixture(scope="session", params=["torch", "onnxruntime"])
def ocr_engine_model(request: pytest.FixtureRequest, ocr_artifacts: Path) -> OcrModel:
    """The model with each of its engines."""
    return load_model(ocr_artifacts, request.param)
