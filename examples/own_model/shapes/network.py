"""The network, and how its weights are loaded. All that needs torch is here."""

from pathlib import Path

import torch
from torch import nn

from shapes import LABELS, SIZE


class Network(nn.Module):
    """A small convolutional network: uint8 [batch, SIZE, SIZE] grey values to float32 [batch, 3] probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (SIZE // 4) ** 2, len(LABELS)),
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Compute the probability of each label."""
        return torch.softmax(self.layers(pictures.unsqueeze(1) / 255), dim=1)


def load(path: Path, device: str) -> Network:
    """Load trained weights on a torch device, ready to predict."""
    network = Network()
    # weights_only: a file of weights that somebody gave us must not run code.
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().to(device)
