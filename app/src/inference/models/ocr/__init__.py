"""The built-in OCR model: PP-OCRv6 in PyTorch.

``convert`` turns the ONNX files of the ``rapidocr`` wheel into safetensors and JSON, ``network`` builds
torch modules from those, ``pipeline`` puts the modules into rapidocr's own pre- and post-processing,
and ``model`` is the :class:`OcrModel` that a service hosts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import OcrModel

__all__ = ["OcrModel"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: `python -m inference.models.ocr.convert` imports this package too, and runs
    # where releases are made, which needs neither torch nor OpenCV.
    if name == "OcrModel":
        from .model import OcrModel

        return OcrModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
