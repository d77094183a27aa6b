"""Operators and networks compute what onnxruntime computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from inference.models.ocr import convert, network
from inference.models.ocr.operators import UnsupportedOperatorError
from onnx import TensorProto, helper

pytest_plugins = ["ocr_fixtures"]

Array = np.ndarray[Any, Any]

#: name: (rank of the input, operator, constant inputs, attributes)
FORMS: dict[str, tuple[int, str, list[Array], dict[str, Any]]] = {
    "convolution": (4, "Conv", [np.ones((6, 4, 3, 3), np.float32)], {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    "convolution with bias": (4, "Conv", [np.ones((6, 4, 1, 1), np.float32), np.arange(6, dtype=np.float32)], {}),
    "depth-wise": (4, "Conv", [np.ones((4, 1, 3, 3), np.float32)], {"group": 4, "dilations": [2, 2]}),
    "same, even kernel": (4, "Conv", [np.ones((6, 4, 2, 2), np.float32)], {"auto_pad": "SAME_UPPER"}),
    "same, stride": (4, "Conv", [np.ones((6, 4, 3, 2), np.float32)], {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    "transposed": (4, "ConvTranspose", [np.ones((4, 5, 2, 2), np.float32)], {"strides": [2, 2]}),
    "maximum": (4, "MaxPool", [], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]}),
    "maximum, same": (4, "MaxPool", [], {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
    "average": (4, "AveragePool", [], {"kernel_shape": [3, 2], "strides": [3, 2]}),
    "average, padded": (4, "AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "average, all": (4, "GlobalAveragePool", [], {}),
    "enlarged": (
        4,
        "Resize",
        [np.zeros(0, np.float32), np.array([1, 1, 2, 3], np.float32)],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "normalized": (4, "BatchNormalization", [np.arange(1, 5, dtype=np.float32)] * 4, {"epsilon": 1e-3}),
    "softmax of the rest": (4, "Softmax", [], {"axis": 2}),
    "softmax of the last": (3, "Softmax", [], {"axis": 2}),
    "hard sigmoid": (3, "HardSigmoid", [], {"alpha": 0.7, "beta": 0.4}),
    "cut": (3, "Clip", [np.float32(-0.5), np.float32(0.25)], {}),
    "cut below": (3, "Clip", [np.float32(-0.5)], {}),
    "mean of one": (3, "ReduceMean", [], {"axes": [-1]}),
    "mean of two": (4, "ReduceMean", [], {"axes": [2, 3], "keepdims": 0}),
    "power": (3, "Pow", [np.float32(2)], {}),
    "broadcast": (4, "Div", [np.arange(1, 5, dtype=np.float32).reshape(1, 4, 1, 1)], {}),
    "reshape": (4, "Reshape", [np.array([0, -1, 2])], {}),
    "slice": (3, "Slice", [np.array([1, -2]), np.array([99, -1]), np.array([0, 2])], {}),
    "slice, default axes": (3, "Slice", [np.array([0, 1]), np.array([1, 3])], {}),
    "transpose": (3, "Transpose", [], {"perm": [2, 0, 1]}),
}

REFUSED: dict[str, tuple[int, str, list[Array], dict[str, Any]]] = {
    "unknown operator": (3, "Tanh", [], {}),
    "one-sided padding": (4, "MaxPool", [], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    "padding at the start": (4, "MaxPool", [], {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}),
    "size rounded up": (4, "MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "linear": (4, "Resize", [np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}),
    "half size": (
        4,
        "Resize",
        [np.zeros(0, np.float32), np.array([1, 1, 0.5, 0.5], np.float32)],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "backwards": (3, "Slice", [np.array([-1]), np.array([-99]), np.array([0]), np.array([-1])], {}),
    "other data type": (3, "Cast", [], {"to": TensorProto.DOUBLE}),
}


def onnx_file(rank: int, op: str, constants: list[Array], attributes: dict[str, Any], opset: int = 11) -> bytes:
    """Make an ONNX file with one operator; constants are initializers and ``Constant`` nodes in turn."""
    names = [f"constant{i}" for i in range(len(constants))]
    tensors = [onnx.numpy_helper.from_array(np.asarray(c), name) for c, name in zip(constants, names, strict=True)]
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors[1::2]]
    nodes.append(helper.make_node(op, ["x", *names], ["y"], name="tested", **attributes))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [f"d{i}" for i in range(rank)])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "test", [x], [y], tensors[::2])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)
    content: bytes = model.SerializeToString()
    return content


def converted(content: bytes) -> torch.fx.GraphModule:
    return network.build(convert.network_from_onnx("test", content, {"file": "test.onnx"}))


def difference(module: torch.nn.Module, session: onnxruntime.InferenceSession, x: Array) -> float:
    wanted = session.run(None, {session.get_inputs()[0].name: x})[0]
    with torch.inference_mode():
        found = module(torch.from_numpy(x)).numpy()
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    return float(np.abs(found - wanted).max())


@pytest.mark.parametrize("form", FORMS)
def test_operator(form: str) -> None:
    content = onnx_file(*FORMS[form])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    rank = FORMS[form][0]
    for shape in ((2, 4, 12, 10), (3, 4, 7, 8)):
        x = np.random.default_rng(1).standard_normal(shape[:rank], np.float32)
        assert difference(converted(content), session, x) < 1e-5


@pytest.mark.parametrize("form", REFUSED)
def test_form_that_is_not_written_is_refused(form: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match="tested"):
        converted(onnx_file(*REFUSED[form]))


def test_other_operator_set_is_refused() -> None:
    with pytest.raises(UnsupportedOperatorError, match="operator set 13"):
        converted(onnx_file(3, "Softmax", [], {"axis": 1}, opset=13))


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("det", [(1, 3, 128, 224), (2, 3, 96, 64)]),
        ("cls", [(1, 3, 48, 192), (6, 3, 48, 192)]),
        ("rec", [(1, 3, 48, 320), (3, 3, 48, 155)]),
    ],
)
def test_network_on_noise(
    name: str, shapes: list[tuple[int, ...]], ocr_artifacts: Path, rapidocr_onnx: dict[str, bytes]
) -> None:
    module, _ = network.load(ocr_artifacts / "ocr", name)
    session = onnxruntime.InferenceSession(rapidocr_onnx[name], providers=["CPUExecutionProvider"])
    for shape in shapes:
        x = np.random.default_rng(2).uniform(-1, 1, shape).astype(np.float32)
        assert difference(module, session, x) < 1e-4


def test_alphabet_fits_the_network(ocr_artifacts: Path) -> None:
    module, metadata = network.load(ocr_artifacts / "ocr", "rec")
    with torch.inference_mode():
        classes = module(torch.zeros(1, 3, 48, 64)).shape[2]
    # rapidocr adds the blank and the space.
    assert len(metadata["character"].splitlines()) + 2 == classes


def test_nothing_to_train(ocr_artifacts: Path) -> None:
    module, _ = network.load(ocr_artifacts / "ocr", "cls")
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
