"""The network file format: one JSON file with the graph, one safetensors file with the weights, and the ONNX file.

PyTorch computes what the first two say, onnxruntime takes the third; both hold the same numbers. All are
plain data, so that loading a release never runs code from it. The JSON file carries the SHA-256 of the
others: they belong together, and a damaged copy is found at start instead of as wrong text.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from inference.errors import ArtifactError

FORMAT = "inference-network/2"

#: The networks of the pipeline: text detection, direction of a text line, text recognition.
NETWORKS = ("det", "cls", "rec")

#: An array of any shape and data type, as ONNX initializers are.
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Node:
    """One ONNX operator.

    Attributes:
        name: name in the ONNX file, for messages.
        op: ONNX operator, of the default domain.
        inputs: names of values; ``""`` is an optional input left out.
        outputs: names of values.
        attributes: numbers, strings, and lists of these.
    """

    name: str
    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Value:
    """An input or output of a network: its NumPy data type and its shape; a string is a dynamic size."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True)
class Network:
    """A graph with its weights.

    Attributes:
        name: one of :data:`NETWORKS`.
        source: where it comes from: ``file`` and ``sha256`` of the ONNX file.
        opset: version of the ONNX operator set, which decides what some operators mean.
        metadata: metadata of the ONNX file; ``character`` holds the alphabet of the recognition network.
        nodes: in an order in which they can run.
        weights: every initializer and constant, by name.
    """

    name: str
    source: dict[str, str]
    opset: int
    inputs: list[Value]
    outputs: list[Value]
    nodes: list[Node]
    metadata: dict[str, str] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict, repr=False)


def paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Give the paths of the JSON and of the safetensors file of network ``name`` in ``folder``."""
    return folder / f"{name}.json", folder / f"{name}.safetensors"


def onnx_path(folder: Path, name: str) -> Path:
    """Give the path of the ONNX file of network ``name`` in ``folder``."""
    return folder / f"{name}.onnx"


def save(network: Network, onnx: bytes, folder: Path) -> tuple[Path, Path, Path]:
    """Write ``network``, and the ONNX file that it was read from, into ``folder``.

    Byte for byte the same for the same network.
    """
    graph_path, weights_path = paths(folder, network.name)
    weights = safetensors.numpy.save(network.weights)
    document = asdict(network)
    del document["weights"]
    document["format"] = FORMAT
    document["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    document["onnx_sha256"] = hashlib.sha256(onnx).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    onnx_path(folder, network.name).write_bytes(onnx)
    weights_path.write_bytes(weights)
    text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    graph_path.write_text(text + "\n", encoding="utf-8", newline="\n")
    return graph_path, weights_path, onnx_path(folder, network.name)


def load(folder: Path, name: str) -> Network:
    """Read network ``name`` from ``folder``.

    Raises:
        ArtifactError: a file is missing, damaged, of another format, or the two do not belong together.
    """
    graph_path, weights_path = paths(folder, name)
    document = _document(graph_path)
    try:
        expected = document["weights_sha256"]
        network = Network(
            name=document["name"],
            source=document["source"],
            opset=document["opset"],
            inputs=[Value(**value) for value in document["inputs"]],
            outputs=[Value(**value) for value in document["outputs"]],
            nodes=[Node(**node) for node in document["nodes"]],
            metadata=document["metadata"],
        )
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{graph_path} is not a network description: {error!r}") from error
    network.weights.update(safetensors.numpy.load(_checked(weights_path, expected, graph_path)))
    return network


def load_onnx(folder: Path, name: str) -> tuple[bytes, dict[str, str]]:
    """Read the ONNX file of network ``name`` from ``folder``.

    Returns:
        The file, and the metadata of the network.

    Raises:
        ArtifactError: as :func:`load`.
    """
    graph_path, _ = paths(folder, name)
    document = _document(graph_path)
    try:
        expected, metadata = document["onnx_sha256"], dict[str, str](document["metadata"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{graph_path} is not a network description: {error!r}") from error
    return _checked(onnx_path(folder, name), expected, graph_path), metadata


def _document(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(_read(path))
        if document["format"] != FORMAT:
            raise ValueError(f"the format is not {FORMAT!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is not a network description: {error!r}") from error
    return document


def _checked(path: Path, expected: str, graph_path: Path) -> bytes:
    content = _read(path)
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ArtifactError(f"{path} is damaged: its SHA-256 is {found}, {graph_path.name} says {expected}")
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
