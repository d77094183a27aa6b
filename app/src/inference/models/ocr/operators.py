"""The ONNX operators of the three networks, in PyTorch.

The source of every definition is the ONNX operator specification
(https://onnx.ai/onnx/operators/), in the version of operator set 11, which all three files use. What the
networks do not need is refused when a network is built, never computed wrongly.

Values of a network are of two kinds:

- tensors, float32, on the device of the network;
- sizes, ``int`` or ``list[int]``: in these graphs 64-bit integers only ever describe shapes. They stay
  Python numbers, so that reading one never waits for the device.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from .graph import Node

#: What a name stands for while a network is built: a value of the graph, or a constant of either kind.
Argument = fx.Node | Tensor | int | list[int] | None

#: Height and width of something.
Pair = tuple[int, int]


class UnsupportedOperatorError(Exception):
    """A network needs an operator, or a form of one, that is not written here."""


class Builder(Protocol):
    """What an operator may ask for while its node is added to the graph."""

    def call(self, function: Callable[..., Any], *arguments: Any, sizes: bool = False, **options: Any) -> Argument:
        """Add a call, or evaluate it now if no argument depends on the input."""

    def module(self, name: str, module: nn.Module, argument: Argument) -> Argument:
        """Add ``module`` and a call of it."""

    def is_sizes(self, argument: Argument) -> bool:
        """Tell whether ``argument`` describes a shape, and is not a tensor."""


Handler = Callable[[Builder, Node, list[Any]], Argument]
OPERATORS: dict[str, Handler] = {}


def _register(*names: str) -> Callable[[Handler], Handler]:
    def add(handler: Handler) -> Handler:
        OPERATORS.update(dict.fromkeys(names, handler))
        return handler

    return add


def _unsupported(node: Node, what: str) -> UnsupportedOperatorError:
    return UnsupportedOperatorError(f"{node.op} {node.name!r}: {what} is not supported")


def _constant(node: Node, argument: Any, what: str) -> Any:
    if isinstance(argument, fx.Node):
        raise _unsupported(node, f"{what} that depends on the input")
    return argument


# Functions that the built networks call. -------------------------------------------------------------


def pad_same_upper(x: Tensor, kernel: Pair, stride: Pair, dilation: Pair, value: float) -> Tensor:
    """Pad ``x`` [N, C, H, W] as ``auto_pad=SAME_UPPER`` does: output ceil(size / stride), odd pixel at the end."""
    padding: list[int] = []
    for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        # functional.pad counts from the last dimension.
        padding = [total // 2, total - total // 2, *padding]
    return functional.pad(x, padding, value=value)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Divide with broadcasting."""
    return a / b


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Give max(0, min(1, alpha * x + beta))."""
    return (x * alpha + beta).clamp(0.0, 1.0)


def softmax(x: Tensor, axis: int) -> Tensor:
    """Softmax of operator sets before 13: over all dimensions from ``axis`` on, taken together."""
    return torch.softmax(x.flatten(axis), dim=-1).reshape(x.shape)


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Reshape; a 0 keeps the size of that dimension, one -1 takes what is left."""
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def slice_tensor(x: Tensor, starts: list[int], ends: list[int], axes: list[int]) -> Tensor:
    """Slice with step 1; negative numbers count from the end, numbers beyond it are cut, as in Python."""
    index = [slice(None)] * x.ndim
    for start, end, axis in zip(starts, ends, axes, strict=True):
        index[axis] = slice(start, end)
    return x[tuple(index)]


def squeeze(x: Tensor, axes: list[int]) -> Tensor:
    """Remove the dimensions ``axes``."""
    return x.squeeze(tuple(axes))


def concat(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Join along ``axis``."""
    return torch.cat(list(tensors), dim=axis)


def sizes_of(x: Tensor) -> list[int]:
    """Give the shape of ``x``."""
    return list(x.shape)


def slice_sizes(sizes: list[int], start: int, end: int) -> list[int]:
    """Slice a list of sizes."""
    return sizes[start:end]


def join_sizes(*lists: list[int]) -> list[int]:
    """Join lists of sizes."""
    return [size for sizes in lists for size in sizes]


def only(sizes: int | list[int]) -> int:
    """Turn a list of one size into that size."""
    if isinstance(sizes, int):
        return sizes
    (size,) = sizes
    return size


def listed(size: int) -> list[int]:
    """Turn a size into a list of one."""
    return [size]


# How each operator becomes calls of these. -----------------------------------------------------------

_BINARY: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": divide,
    "Pow": operator.pow,
    "MatMul": operator.matmul,
}

_UNARY: dict[str, Callable[..., Any]] = {
    "Relu": functional.relu,
    "Sigmoid": torch.sigmoid,
    "Sqrt": torch.sqrt,
    "Erf": torch.erf,
}


@_register(*_BINARY, *_UNARY)
def _elementwise(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    if any(build.is_sizes(argument) for argument in inputs):
        raise _unsupported(node, "arithmetic with sizes")
    return build.call((_BINARY | _UNARY)[node.op], *inputs)


@_register("Identity")
def _identity(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    argument: Argument = inputs[0]
    return argument


@_register("Cast")
def _cast(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    # Codes of TensorProto.DataType: 6 int32, 7 int64.
    if not build.is_sizes(inputs[0]) or node.attributes["to"] not in (6, 7):
        raise _unsupported(node, "a change of the data type of a tensor")
    argument: Argument = inputs[0]
    return argument


@_register("Clip")
def _clip(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    x, low, high = (*inputs, None, None)[:3]
    bounds = [None if b is None else float(_constant(node, b, "a bound")) for b in (low, high)]
    return build.call(torch.clamp, x, *bounds)


@_register("HardSigmoid")
def _hard_sigmoid(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    return build.call(hard_sigmoid, inputs[0], alpha, beta)


@_register("Softmax")
def _softmax(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    return build.call(softmax, inputs[0], node.attributes.get("axis", 1))


@_register("BatchNormalization")
def _batch_normalization(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    x, scale, bias, mean, variance = inputs
    module = nn.BatchNorm2d(len(scale), eps=node.attributes.get("epsilon", 1e-5))
    state = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": variance}
    module.load_state_dict(state | {"num_batches_tracked": torch.tensor(0)})
    return build.module(node.name, module, x)


def _pair(sizes: Sequence[int]) -> Pair:
    height, width = sizes
    return height, width


def _window(node: Node, kernel: Pair) -> tuple[Pair, Pair, Pair | None]:
    """Read stride, dilation and padding of a 2-D window; padding ``None`` stands for SAME_UPPER."""
    attributes = node.attributes
    if tuple(attributes.get("kernel_shape", kernel)) != kernel:
        raise _unsupported(node, f"a kernel other than its weights, {kernel},")
    stride, dilation = _pair(attributes.get("strides", (1, 1))), _pair(attributes.get("dilations", (1, 1)))
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right) or attributes.get("ceil_mode", 0):
        raise _unsupported(node, "one-sided padding or ceil_mode")
    automatic = attributes.get("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "SAME_UPPER"):
        raise _unsupported(node, f"auto_pad={automatic}")
    return stride, dilation, None if automatic == "SAME_UPPER" else (top, left)


@_register("Conv")
def _conv(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    x, weight = inputs[0], _constant(node, inputs[1], "a weight")
    bias = _constant(node, inputs[2], "a bias") if len(inputs) > 2 else None
    kernel, groups = _pair(weight.shape[2:]), node.attributes.get("group", 1)
    stride, dilation, padding = _window(node, kernel)
    if padding is None:
        x, padding = build.call(pad_same_upper, x, kernel, stride, dilation, 0.0), (0, 0)
    module = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
    )
    module.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return build.module(node.name, module, x)


@_register("ConvTranspose")
def _conv_transpose(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    x, weight = inputs[0], _constant(node, inputs[1], "a weight")
    kernel = _pair(weight.shape[2:])
    stride, dilation, padding = _window(node, kernel)
    if len(inputs) > 2 or padding is None or {"output_padding", "output_shape"} & node.attributes.keys():
        raise _unsupported(node, "a bias, auto_pad, output_padding or output_shape")
    groups = node.attributes.get("group", 1)
    module = nn.ConvTranspose2d(
        weight.shape[0],
        weight.shape[1] * groups,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    module.load_state_dict({"weight": weight})
    return build.module(node.name, module, x)


@_register("MaxPool")
def _max_pool(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    kernel = _pair(node.attributes["kernel_shape"])
    stride, dilation, padding = _window(node, kernel)
    x = inputs[0]
    if padding is None:
        # Padding never wins the maximum.
        x, padding = build.call(pad_same_upper, x, kernel, stride, dilation, float("-inf")), (0, 0)
    return build.call(functional.max_pool2d, x, kernel, stride, padding, dilation)


@_register("AveragePool")
def _average_pool(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    kernel = _pair(node.attributes["kernel_shape"])
    stride, dilation, padding = _window(node, kernel)
    if padding is None or dilation != (1, 1):
        raise _unsupported(node, "auto_pad or dilation")
    counted = bool(node.attributes.get("count_include_pad", 0))
    return build.call(functional.avg_pool2d, inputs[0], kernel, stride, padding, count_include_pad=counted)


@_register("GlobalAveragePool")
def _global_average_pool(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    return build.call(torch.mean, inputs[0], [2, 3], keepdim=True)


@_register("ReduceMean")
def _reduce_mean(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    keep = bool(node.attributes.get("keepdims", 1))
    return build.call(torch.mean, inputs[0], node.attributes["axes"], keepdim=keep)


@_register("Resize")
def _resize(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    attributes = node.attributes
    form = tuple(attributes.get(name) for name in ("mode", "coordinate_transformation_mode", "nearest_mode"))
    scales = _constant(node, inputs[2], "a scale").tolist()
    # For whole factors this form takes pixel floor(i / factor), which is what PyTorch's "nearest" does.
    if form != ("nearest", "asymmetric", "floor") or len(inputs) > 3 or len(scales) != 4 or scales[:2] != [1.0, 1.0]:
        raise _unsupported(node, f"the form {form} with the scales {scales}")
    if not all(scale.is_integer() for scale in scales):
        raise _unsupported(node, f"the scale {scales}")
    return build.call(functional.interpolate, inputs[0], scale_factor=scales[2:], mode="nearest")


@_register("Transpose")
def _transpose(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    return build.call(torch.permute, inputs[0], node.attributes["perm"])


@_register("Shape")
def _shape(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    return build.call(sizes_of, inputs[0], sizes=True)


@_register("Reshape")
def _reshape(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    x, shape = inputs
    if not build.is_sizes(x):
        return build.call(reshape, x, shape)
    if shape != []:
        raise _unsupported(node, f"sizes reshaped to {shape}")
    return build.call(only, x, sizes=True)


@_register("Concat")
def _concat(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    if not any(build.is_sizes(argument) for argument in inputs):
        return build.call(concat, inputs, node.attributes["axis"])
    return build.call(join_sizes, *inputs, sizes=True)


@_register("Slice")
def _slice(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    x, starts, ends, axes, steps = (*inputs, None, None)[:5]
    starts, ends, axes = (_constant(node, argument, "a bound") for argument in (starts, ends, axes))
    axes = list(range(len(starts))) if axes is None else axes
    if steps is not None and set(_constant(node, steps, "a step")) != {1}:
        raise _unsupported(node, f"the step {steps}")
    if not build.is_sizes(x):
        return build.call(slice_tensor, x, starts, ends, axes)
    if axes != [0]:
        raise _unsupported(node, f"sizes sliced along {axes}")
    return build.call(slice_sizes, x, only(starts), only(ends), sizes=True)


@_register("Squeeze")
def _squeeze(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    axes = node.attributes["axes"]
    if not build.is_sizes(inputs[0]):
        return build.call(squeeze, inputs[0], axes)
    return build.call(only, inputs[0], sizes=True)


@_register("Unsqueeze")
def _unsqueeze(build: Builder, node: Node, inputs: list[Any]) -> Argument:
    if not build.is_sizes(inputs[0]) or node.attributes["axes"] != [0]:
        raise _unsupported(node, "anything but one size")
    return build.call(listed, inputs[0], sizes=True)
