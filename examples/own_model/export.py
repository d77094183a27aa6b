"""Makes of the trained network a program that runs without its code, and a request to it with the known answer."""

import argparse
import json
from pathlib import Path

import torch
from shapes import LABELS, SIZE
from shapes.network import load
from train import draw

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Write the program, and a request with its answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=HERE / "models", help="folder of shapes.pt")
    folder = parser.parse_args().models
    network = load(folder / "shapes.pt", "cpu")

    # The batch is dimension 0, from 1 to 64; two pictures are an example, as 1 would be taken for a constant.
    sizes = {0: torch.export.Dim("batch", min=1, max=64)}
    example = torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
    program = torch.export.export(network, (example,), dynamic_shapes=(sizes,))
    torch.export.save(program, folder / "shapes.pt2")

    pictures, labels = draw(1, torch.Generator().manual_seed(1))
    with torch.inference_mode():
        scores = network(pictures)
    # With `batched: true` requests leave the batch out: one picture, one row of scores.
    request = {"inputs": [pictures[0].tolist()]}
    (folder / "request.json").write_text(json.dumps(request))
    (folder / "sample.json").write_text(json.dumps({**request, "outputs": [scores[0].tolist()], "tolerance": 0.01}))
    print(f"{folder / 'shapes.pt2'}; request.json is a {LABELS[int(labels[0])]}: {scores[0].tolist()}")


if __name__ == "__main__":
    main()
