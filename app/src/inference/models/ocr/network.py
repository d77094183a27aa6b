"""Build a torch module out of a network file.

The result is a :class:`torch.fx.GraphModule`: ordinary PyTorch with its weights as parameters, which can
be moved to a device, profiled, compiled and exported like any module written by hand. Batch and image
size stay free.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from inference.errors import ArtifactError

from . import graph
from .operators import OPERATORS, Argument, UnsupportedOperatorError


def load(folder: Path, name: str) -> tuple[fx.GraphModule, dict[str, str]]:
    """Load network ``name`` from ``folder``.

    Returns:
        The module, on the CPU, and the metadata of the network.

    Raises:
        ArtifactError: a file is missing or damaged, or the network needs an operator that is not written.
    """
    network = graph.load(folder, name)
    try:
        return build(network), network.metadata
    except (UnsupportedOperatorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        path, _ = graph.paths(folder, name)
        raise ArtifactError(f"{path} cannot be built: {error!r}") from error


def build(network: graph.Network) -> fx.GraphModule:
    """Build a module that takes the inputs of ``network`` in order and returns its one output.

    Nodes that depend on weights alone are computed here, once.

    Raises:
        UnsupportedOperatorError: see :mod:`.operators`.
    """
    builder = _Builder(network)
    for node in network.nodes:
        builder.add(node)
    return builder.finish()


class _Builder:
    """Adds ONNX nodes to an fx graph; see :class:`.operators.Builder` for the public part."""

    def __init__(self, network: graph.Network) -> None:
        self._network = network
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._values: dict[str, Argument] = {"": None}
        # Keyed by identity: several names may stand for one constant.
        self._attributes: dict[int, fx.Node] = {}
        for name, weight in network.weights.items():
            self._values[name] = _sizes(weight) if weight.dtype.kind == "i" else torch.from_numpy(weight)
        for value in network.inputs:
            self._values[value.name] = self._graph.placeholder(_identifier(value.name))

    def add(self, node: graph.Node) -> None:
        handler = OPERATORS.get(node.op)
        if handler is None or self._network.opset != 11 or len(node.outputs) != 1:
            raise UnsupportedOperatorError(
                f"{node.op} {node.name!r} of operator set {self._network.opset} is not written"
            )
        self._values[node.outputs[0]] = handler(self, node, [self._values[name] for name in node.inputs])

    def finish(self) -> fx.GraphModule:
        (output,) = self._network.outputs
        self._graph.output(self._values[output.name])
        module = fx.GraphModule(self._root, self._graph, class_name=f"Network_{_identifier(self._network.name)}")
        return module.eval().requires_grad_(False)

    def call(self, function: Callable[..., Any], *arguments: Any, sizes: bool = False, **options: Any) -> Argument:
        if not _depends_on_input(arguments):
            result: Argument = function(*arguments, **options)
            return result
        node = self._graph.call_function(function, fx.node.map_aggregate(arguments, self._lift), options)
        node.meta["sizes"] = sizes
        return node

    def module(self, name: str, module: nn.Module, argument: Argument) -> Argument:
        target = _identifier(name)
        if hasattr(self._root, target):
            raise UnsupportedOperatorError(f"two nodes are named {name!r}")
        self._root.add_module(target, module)
        return self._graph.call_module(target, (argument,))

    def is_sizes(self, argument: Argument) -> bool:
        if isinstance(argument, fx.Node):
            return bool(argument.meta.get("sizes"))
        return isinstance(argument, (int, list))

    def _lift(self, argument: Any) -> Any:
        """Make a constant tensor a buffer, so that it moves to the device with the module."""
        if not isinstance(argument, Tensor):
            return argument
        if argument.ndim == 0:
            # A number needs no memory on the device, and no launch to broadcast it.
            return argument.item()
        if id(argument) not in self._attributes:
            name = f"constant_{len(self._attributes)}"
            self._root.register_buffer(name, argument)
            with self._graph.inserting_after(self._last_placeholder()):
                self._attributes[id(argument)] = self._graph.get_attr(name)
        return self._attributes[id(argument)]

    def _last_placeholder(self) -> fx.Node:
        last: fx.Node = self._graph.find_nodes(op="placeholder")[-1]
        return last


def _depends_on_input(arguments: tuple[Any, ...]) -> bool:
    found = False

    def visit(node: fx.Node) -> fx.Node:
        nonlocal found
        found = True
        return node

    fx.node.map_arg(arguments, visit)
    return found


def _sizes(weight: np.ndarray[Any, Any]) -> int | list[int]:
    sizes: int | list[int] = weight.tolist()
    return sizes


def _identifier(name: str) -> str:
    """Turn a name of ONNX into one that PyTorch takes for a module."""
    return re.sub(r"\W", "_", f"_{name}" if name[:1].isdigit() else name)
