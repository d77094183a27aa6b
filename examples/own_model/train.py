"""Trains the network on pictures that it draws, and writes models/shapes.pt. Stands for a training of your own."""

import argparse
from pathlib import Path

import torch
from shapes import LABELS, SIZE
from shapes.network import Network, load

HERE = Path(__file__).resolve().parent


def draw(count: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw shapes of any size, place and brightness: uint8 [count, SIZE, SIZE] and the number of each one's label."""

    def between(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=random)

    labels = torch.randint(len(LABELS), (count,), generator=random)
    radius = between(6, 12)
    across = torch.arange(SIZE).view(1, 1, SIZE) - between(13, 18)
    down = torch.arange(SIZE).view(1, SIZE, 1) - between(13, 18)
    inside = torch.stack(
        [
            across**2 + down**2 <= radius**2,
            torch.maximum(across.abs().expand(-1, SIZE, -1), down.abs().expand(-1, -1, SIZE)) <= radius * 0.85,
            (down <= radius * 0.8) & (across.abs() <= (down + radius) * 0.6),
        ]
    )[labels, torch.arange(count)]
    picture = torch.where(inside, between(100, 255), between(0, 60))
    noise = 12 * torch.randn(count, SIZE, SIZE, generator=random)
    return (picture + noise).clamp(0, 255).to(torch.uint8), labels


def main() -> None:
    """Train, write the weights, and say how good they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "models", help="folder for shapes.pt")
    folder = parser.parse_args().out
    # So small a network is quicker on one thread.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    network = Network()
    weights = list(network.parameters())
    # Plain gradient descent: torch.optim would take longer to import than all of this takes to compute.
    for _ in range(400):
        pictures, labels = draw(64, random)
        loss = torch.nn.functional.nll_loss(network(pictures).clamp(min=1e-9).log(), labels)
        with torch.no_grad():
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.sub_(0.1 * gradient)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "shapes.pt")
    pictures, labels = draw(1000, random)
    right = (load(folder / "shapes.pt", "cpu")(pictures).argmax(dim=1) == labels).float().mean()
    print(f"{folder / 'shapes.pt'}: {right:.1%} of 1000 new pictures are told rightly")


if __name__ == "__main__":
    main()
