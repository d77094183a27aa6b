"""Turn the ONNX networks of the ``rapidocr`` wheel into the files that :mod:`.sessions` opens.

Run where a release is made; needs onnx, numpy and safetensors, but neither torch nor rapidocr installed::

    python -m inference.models.ocr.convert --wheel rapidocr-3.10.0-py3-none-any.whl --out MODELS

writes ``MODELS/ocr/{det,cls,rec}.{json,safetensors,onnx}`` and the licences that go with the weights. The same
input gives the same bytes.

Weights that are nothing but in name become zero on the way: half of the weights of some layers of the detection
network are denormal numbers, left over from training, with which processors compute many times slower.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .graph import NETWORKS, Array, Network, Node, Value, save

#: Files in rapidocr's ``models`` folder with their SHA-256. Another version of the library brings other
#: networks; they must be looked at (operators, accuracy) before they are named here.
SOURCES = {
    "det": ("PP-OCRv6_det_small.onnx", "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f"),
    "cls": (
        "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
    "rec": ("PP-OCRv6_rec_small.onnx", "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884"),
}

#: Apache-2.0 asks that whoever passes the weights on passes these on as well.
LICENSES = ("LICENSE", "MODEL_LICENSES.md")

#: Weights nearer to zero than this become zero. Far above the denormal numbers (below 1.2e-38), so that products
#: with small activations are not denormal either; far below what changes the rounding of a sum in float32.
NEGLIGIBLE = 1e-20

_DEFAULT_DOMAINS = ("", "ai.onnx")


class ConvertError(Exception):
    """The wheel is not the one expected, or holds something this program cannot carry over."""


class Package:
    """Files of the rapidocr package, out of a wheel or out of a folder where one was unpacked or installed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.is_dir():
            base = path if (path / "rapidocr").is_dir() else path.parent
            files = [*(base / "rapidocr/models").glob("*"), *base.glob("rapidocr-*.dist-info/licenses/*")]
            self._members = {file.relative_to(base).as_posix(): file for file in files}
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                self._members = dict.fromkeys(archive.namelist(), path)
        else:
            raise ConvertError(f"{path} is neither a wheel nor the folder of the rapidocr package")

    def read(self, parent: str, name: str) -> bytes:
        """Read the file ``name`` whose folder ends with ``parent``."""
        for member, file in self._members.items():
            folder, _, base = member.rpartition("/")
            if base == name and folder.endswith(parent):
                if file != self._path:
                    return file.read_bytes()
                with zipfile.ZipFile(file) as archive:
                    return archive.read(member)
        raise ConvertError(f"{self._path} has no file {parent}/{name}; rapidocr 3.10.0 is expected")


def convert(package: Path, out: Path) -> list[Path]:
    """Convert the networks of ``package`` into ``out / "ocr"``.

    Args:
        package: the wheel, or the folder ``rapidocr`` of an installed or unpacked one, or its parent.
        out: the ``models`` folder of a release.

    Returns:
        The files written.

    Raises:
        ConvertError: ``package`` is not rapidocr 3.10.0.
    """
    source, folder, written = Package(package), out / "ocr", list[Path]()
    for name in NETWORKS:
        file, expected = SOURCES[name]
        content = source.read("rapidocr/models", file)
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise ConvertError(f"{file} in {package} has the SHA-256 {found}, expected is {expected}")
        content = without_negligible_weights(content)
        network = network_from_onnx(name, content, {"file": file, "sha256": found})
        written.extend(save(network, content, folder))
    for name in LICENSES:
        (folder / name).write_bytes(source.read(".dist-info/licenses", name))
        written.append(folder / name)
    return written


def without_negligible_weights(content: bytes) -> bytes:
    """Give the ONNX file ``content`` with zeros in place of all weights under :data:`NEGLIGIBLE`."""
    model = onnx.load_model_from_string(content)
    tensors = list(model.graph.initializer)
    for proto in model.graph.node:
        if proto.op_type == "Constant":
            tensors += [attribute.t for attribute in proto.attribute if attribute.HasField("t")]
    for tensor in tensors:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32:
            continue
        negligible = (values != 0) & (np.abs(values) < NEGLIGIBLE)
        if negligible.any():
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.where(negligible, np.float32(0), values), tensor.name))
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def network_from_onnx(name: str, content: bytes, source: dict[str, str]) -> Network:
    """Carry an ONNX file over: nodes, attributes, inputs, outputs, metadata, and all constants.

    ``Constant`` nodes become weights: they are the same thing as initializers, and some exporters
    write one, some the other.

    Raises:
        ConvertError: the file uses custom operators, functions, control flow or another kind of constant.
    """
    model = onnx.load_model_from_string(content)
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    opset = next((opsets[domain] for domain in _DEFAULT_DOMAINS if domain in opsets), None)
    if opset is None or model.functions or model.graph.sparse_initializer:
        raise ConvertError(f"{source['file']}: functions, sparse weights and custom operators are not supported")
    weights = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
    nodes = list[Node]()
    for proto in model.graph.node:
        node = _node(proto, source["file"])
        if node.op == "Constant":
            weights[node.outputs[0]] = _constant(node, source["file"])
            continue
        if any(isinstance(value, np.ndarray) for value in node.attributes.values()):
            raise ConvertError(f"{source['file']}: node {node.name!r} has a tensor among its attributes")
        nodes.append(node)
    return Network(
        name=name,
        source=source,
        opset=opset,
        # Old ONNX files list the initializers among the inputs.
        inputs=[_value(value) for value in model.graph.input if value.name not in weights],
        outputs=[_value(value) for value in model.graph.output],
        nodes=nodes,
        metadata={entry.key: entry.value for entry in model.metadata_props},
        weights=weights,
    )


def _array(tensor: Any) -> Array:
    # Contiguous, because safetensors writes the buffer of the array as it lies in memory; a copy, because the
    # buffer of the file cannot be written to, which PyTorch warns about.
    return np.array(onnx.numpy_helper.to_array(tensor), order="C")


def _node(proto: Any, file: str) -> Node:
    if proto.domain not in _DEFAULT_DOMAINS:
        raise ConvertError(f"{file}: node {proto.name!r} uses the custom operator {proto.domain}.{proto.op_type}")
    attributes = {attribute.name: _attribute(attribute, file) for attribute in proto.attribute}
    return Node(proto.name, proto.op_type, list(proto.input), list(proto.output), attributes)


def _attribute(attribute: Any, file: str) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
    if kind in ("FLOAT", "INT"):
        return value
    if kind in ("FLOATS", "INTS"):
        return list(value)
    if kind == "STRING":
        return value.decode()
    if kind == "TENSOR":
        return _array(value)
    raise ConvertError(f"{file}: attribute {attribute.name!r} is of the kind {kind}, which is not supported")


def _constant(node: Node, file: str) -> Array:
    value = node.attributes.get("value")
    if not isinstance(value, np.ndarray):
        raise ConvertError(f"{file}: the constant {node.outputs[0]!r} is not a tensor")
    return value


def _value(proto: Any) -> Value:
    tensor = proto.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = [dim.dim_value if dim.dim_value > 0 else (dim.dim_param or "?") for dim in tensor.shape.dim]
    return Value(proto.name, str(dtype), shape)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m inference.models.ocr.convert",
        description="Convert the OCR networks of the rapidocr 3.10.0 wheel into safetensors, JSON and ONNX.",
    )
    parser.add_argument(
        "--wheel",
        type=Path,
        required=True,
        metavar="PATH",
        help="the wheel, or the folder 'rapidocr' of an installed or unpacked one",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="writes DIR/ocr/*")
    options = parser.parse_args(arguments)
    try:
        written = convert(options.wheel, options.out)
    except (ConvertError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
