"""What schemathesis sends where the API's description says no more than that it is an image."""

from pathlib import Path

import schemathesis
from hypothesis import strategies

APP = Path(__file__).resolve().parents[1] / "app"
#: Small ones: the model reads each.
IMAGES = [
    (APP / "src" / "inference" / "models" / "ocr" / "sample.png").read_bytes(),
    (APP / "tests" / "images" / "tiny.png").read_bytes(),
]

for media_type in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, strategies.sampled_from(IMAGES))
