"""The class that the service names as `shapes.model:ShapesModel`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from inference.errors import ArtifactError
from inference.images import decode_image
from inference.model import Model, ModelContext, Sample
from PIL import Image

from shapes import LABELS, SIZE

WEIGHTS = "shapes.pt"

Picture = np.ndarray[Any, np.dtype[np.uint8]]


class ShapesModel(Model[Picture, tuple[str, float]]):
    """Tell which shape a picture shows."""

    name: ClassVar[str] = "shapes"

    def prepare(self, context: ModelContext) -> None:
        """Runs in every process: what decode and encode need, and a look at the files, so that a lack is seen early."""
        self._max_pixels = context.max_pixels
        self._weights = context.artifacts / WEIGHTS
        if not self._weights.is_file():
            raise ArtifactError(f"{self._weights}: there is no such file; name it in `files` of the service")

    def setup(self, context: ModelContext) -> None:
        """Runs where predict will be, once: loads the weights on the device."""
        # Here and not at the top: web workers of mode batch only decode and encode, and need no torch.
        import torch

        from shapes import network

        self._torch, self._device = torch, context.device
        self._network = network.load(self._weights, context.device)

    def decode(self, body: bytes, content_type: str) -> Picture:
        """From the body of a request to the input of the network; the client's mistakes are found here."""
        # 400, 415 and 422 by itself: damaged, no picture, too large.
        picture = decode_image(body, max_pixels=self._max_pixels)
        # Its channels are blue, green, red.
        grey = Image.fromarray(picture[..., ::-1]).convert("L").resize((SIZE, SIZE))
        return np.asarray(grey)

    def predict(self, inputs: Sequence[Picture]) -> list[tuple[str, float]]:
        """Compute all inputs together; one in mode process, up to batch_max_items in mode batch."""
        with self._torch.inference_mode():
            pictures = self._torch.from_numpy(np.stack(inputs)).to(self._device)
            scores, labels = self._network(pictures).max(dim=1)
        return [(LABELS[label], score) for label, score in zip(labels.tolist(), scores.tolist(), strict=True)]

    def encode(self, output: tuple[str, float]) -> dict[str, Any]:
        """From an output to members of the JSON answer."""
        label, score = output
        return {"label": label, "score": round(score, 4)}

    def sample(self) -> Sample:
        """A request with a known answer, asked at the start and by /readyz: only what is sure on every device."""
        body = Path(__file__).with_name("sample.png").read_bytes()
        return Sample(body, "image/png", {"label": "circle"})
