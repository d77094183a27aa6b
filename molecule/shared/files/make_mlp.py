#!/usr/bin/env python3
"""Makes mlp.pt2, the program that the tests deploy as a service: `make_mlp.py FILE`, with a Python that has torch."""

import sys

import torch


class Mlp(torch.nn.Module):
    """Two layers with weights that anyone can work out: sums, doubled and cut off at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(4, 3)
        self.out = torch.nn.Linear(3, 2)
        with torch.no_grad():
            for layer in (self.hidden, self.out):
                layer.weight.copy_(torch.arange(layer.weight.numel(), dtype=torch.float32).reshape(layer.weight.shape))
                layer.bias.fill_(0.5)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """float32 [batch, 4] to float32 [batch, 2]."""
        return self.out(torch.relu(self.hidden(values)))


if __name__ == "__main__":
    model = Mlp().eval()
    example = torch.ones(2, 4)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        # Paths of the machine that made the file.
        node.meta.pop("stack_trace", None)
    torch.export.save(program, sys.argv[1])
    print(model(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist())
