"""A WSGI app of one's own, with nothing of this project in it: any framework will do, this one is Flask."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flask import Flask, request
from PIL import Image, UnidentifiedImageError
from shapes import LABELS, SIZE, network

app = Flask(__name__)
# What `files` of the service brought. Which GPU is ours was decided by the emperor: this process sees no other.
weights = Path(os.environ["INFERENCE_ARTIFACTS"]) / "shapes.pt"
device = "cuda" if torch.cuda.is_available() else "cpu"
# At import, so that a worker takes requests only once it can answer them.
model = network.load(weights, device)


def tell(body: bytes) -> dict[str, Any]:
    """From an encoded picture to the answer."""
    grey = Image.open(io.BytesIO(body)).convert("L").resize((SIZE, SIZE))
    with torch.inference_mode():
        score, label = model(torch.from_numpy(np.array(grey))[None].to(device))[0].max(dim=0)
    return {"label": LABELS[int(label)], "score": round(float(score), 4)}


@app.post("/v1/shapes")
def shapes() -> dict[str, Any] | tuple[dict[str, str], int]:
    """Answer the route of the service."""
    try:
        return tell(request.get_data())
    except UnidentifiedImageError:
        return {"error": "the body is no picture"}, 415


@app.get("/readyz")
def ready() -> dict[str, str]:
    """Asked before a new release gets requests, and by edges: answer 200 only when the model really works."""
    tell(Path(network.__file__).with_name("sample.png").read_bytes())
    return {"status": "ready"}
