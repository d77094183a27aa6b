"""Serve a program made by ``torch.export``: a model without any code of its own on the host.

**A ``.pt2`` file is code. Load only files you made or trust.** ``torch.export.load`` (read in torch
2.13) unpickles without restriction: weights marked as pickled and constants of custom classes by
choice of the *file*, and example inputs as soon as the restricted reading of them fails. Symbolic
shapes go through sympy's ``sympify``, which evaluates text. There is no ``weights_only`` switch.
A release therefore carries the file under a hash, and nothing here takes one from a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json import dumps, loads
from math import inf
from pathlib import PurePosixPath
from typing import Any, ClassVar

import torch
from torch.export.passes import move_to_device_pass
from werkzeug.http import parse_options_header

from inference.description import Body, Description
from inference.errors import ArtifactError, ConfigError, UnreadableInput, UnsupportedInput
from inference.model import Model, ModelContext, Sample
from inference.models.reading import check_names, parse_json

Item = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What one input of the program must look like.

    Attributes:
        name: the input's name in the program.
        dtype: element type.
        shape: for each dimension the smallest and the largest allowed size.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[tuple[int, float], ...]

    def describe(self) -> str:
        """Write the input as ``name: dtype[2, 1..16, any]``."""
        sizes = ", ".join(_describe_size(low, high) for low, high in self.shape)
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')}[{sizes}]"

    def schema(self) -> dict[str, Any]:
        """Describe the nested lists as a JSON Schema."""
        found = _number_schema(self.dtype)
        for low, high in reversed(self.shape):
            found = {"type": "array", "items": found, "minItems": low, **({} if high == inf else {"maxItems": high})}
        return {**found, "description": self.describe()}

    def read(self, value: Any) -> torch.Tensor:
        """Turn nested lists into a tensor of this dtype and an allowed shape, on the CPU.

        Raises:
            UnreadableInput: the lists are ragged, or have another shape or another kind of number.
        """
        try:
            # Without a dtype torch infers the kind of number; with one it would cut 1.5 to 1 in silence.
            kind = torch.tensor(value)
            tensor = torch.tensor(value, dtype=self.dtype)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise UnreadableInput(f"Input {self.describe()} cannot be made of what was sent: {error}.") from error
        # An empty list has no kind of number; torch calls it float.
        if kind.numel() and not _same_kind(kind.dtype, self.dtype):
            seen = str(kind.dtype).removeprefix("torch.")
            raise UnreadableInput(f"Input {self.describe()} was sent with elements of type {seen}.")
        fits = len(tensor.shape) == len(self.shape) and all(
            low <= size <= high for size, (low, high) in zip(tensor.shape, self.shape, strict=True)
        )
        if not fits:
            raise UnreadableInput(f"Input {self.describe()} was sent with shape {list(tensor.shape)}.")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UnreadableInput(f"Input {self.describe()} was sent with a number over the range of its type.")
        return tensor


class ProgramModel(Model[Item, Any]):
    """Run an exported program on ``{"inputs": [...]}``, one nested list for each input of the program.

    Options:
        program: name of the ``.pt2`` file among the artifacts.
        sample: ``{"inputs": [...], "outputs": [...], "tolerance": 1e-3}``, a request with its known answer
            and the largest absolute difference allowed; the tolerance may be left out.
        batched: true when dimension 0 of every input and output is the batch. Requests then leave
            that dimension out, and requests of the same shapes are computed together. Default false.

    The answer is ``{"outputs": [...]}``: the program's output tensors in order as nested lists, with null
    in place of numbers that are not finite, which JSON does not have.
    """

    name: ClassVar[str] = "program"
    field: ClassVar[str] = "inputs"

    def prepare(self, context: ModelContext) -> None:
        """Read the options, and from the program what its inputs must look like.

        Raises:
            ConfigError: an option is unknown, missing or does not fit the program.
            ArtifactError: the program is missing or damaged.
        """
        options = context.options
        check_names(options, ("program", "sample", "batched"))
        self._sample = _read_sample(options.get("sample"))
        batched = options.get("batched", False)
        if not isinstance(batched, bool):
            raise ConfigError(f"option batched={batched!r}: must be true or false")
        program = _load(context, options.get("program"))
        specs = _input_specs(program)
        self._batch_limit: float = 1
        self._batched = batched
        if batched:
            self._batch_limit = _batch_limit(specs)
            specs = tuple(InputSpec(spec.name, spec.dtype, spec.shape[1:]) for spec in specs)
        self._specs = specs
        # A process that does not compute has no use for the weights.
        self._program = program if context.computes else None

    def setup(self, context: ModelContext) -> None:
        """Move the program to the device."""
        program, self._program = self._program, None
        if program is None:
            raise RuntimeError("setup needs what prepare has loaded")
        self._device = torch.device(context.device)
        if self._device.type != "cpu":
            program = move_to_device_pass(program, context.device)
        self._module = program.module()

    def decode(self, body: bytes, content_type: str) -> Item:
        """Read one request into tensors on the CPU, checked against the program's inputs.

        Raises:
            UnsupportedInput: the body is not announced as JSON.
            UnreadableInput: the body is not JSON, or does not fit the program.
        """
        mimetype = parse_options_header(content_type)[0].lower()
        if mimetype != "application/json" and not mimetype.endswith("+json"):
            raise UnsupportedInput(f"The input must be application/json, not {mimetype[:80] or 'of unknown type'!r}.")
        found = parse_json(body)
        if not isinstance(found, dict) or set(found) != {"inputs"} or not isinstance(found["inputs"], list):
            raise UnreadableInput(f'The body must be {{"inputs": [...]}} with {self._describe()}.')
        values = found["inputs"]
        if len(values) != len(self._specs):
            raise UnreadableInput(f"{len(values)} inputs were sent; the program takes {self._describe()}.")
        return tuple(spec.read(value) for spec, value in zip(self._specs, values, strict=True))

    def predict(self, inputs: Sequence[Item]) -> list[Any]:
        """Compute one list of CPU tensors for each input; same shapes go through the program together.

        Raises:
            UnreadableInput: the sizes do not go together as the program needs it.
        """
        results: list[Any] = [None] * len(inputs)
        with torch.inference_mode():
            for group in self._groups(inputs):
                if not self._batched:
                    outputs = self._run(inputs[group[0]])
                    results[group[0]] = [tensor.cpu() for tensor in _leaves(outputs)]
                    continue
                columns = zip(*(inputs[index] for index in group), strict=True)
                outputs = self._run(torch.stack(column) for column in columns)
                leaves = [tensor.cpu() for tensor in _leaves(outputs)]
                for row, index in enumerate(group):
                    results[index] = [tensor[row] for tensor in leaves]
        return results

    def encode(self, output: Any) -> dict[str, Any]:
        """Write the output tensors as nested lists."""
        return {"outputs": [_as_json(tensor) for tensor in output]}

    def sample(self) -> Sample:
        """Give the sample of the options."""
        return self._sample

    def describe(self) -> Description:
        """Give the program's inputs; of its outputs only their number is known, from the sample."""
        inputs = {
            "type": "array",
            "prefixItems": [spec.schema() for spec in self._specs],
            "minItems": len(self._specs),
            "maxItems": len(self._specs),
        }
        body = {
            "type": "object",
            "properties": {"inputs": inputs},
            "required": ["inputs"],
            "additionalProperties": False,
        }
        count = len(self._sample.expected["outputs"])
        outputs = {
            "type": "array",
            "items": {"description": "Nested lists of numbers; null in place of one that is not finite."},
            "minItems": count,
            "maxItems": count,
        }
        return Description(
            summary="Run the program",
            text=f"It takes {self._describe()}.",
            bodies=[Body("application/json", body, loads(self._sample.body))],
            answer={"type": "object", "properties": {"outputs": outputs}, "required": ["outputs"]},
            problems=[UnsupportedInput],
        )

    def _describe(self) -> str:
        return f"{len(self._specs)} inputs ({'; '.join(spec.describe() for spec in self._specs)})"

    def _run(self, tensors: Iterable[torch.Tensor]) -> Any:
        try:
            return self._module(*(tensor.to(self._device) for tensor in tensors))
        except AssertionError as error:
            # Relations between sizes, such as two that must be equal, are checked by the program alone.
            if not str(error).startswith("Guard failed"):
                raise
            raise UnreadableInput(f"The sizes of the inputs do not fit the program: {error}.") from error

    def _groups(self, inputs: Sequence[Item]) -> Iterator[list[int]]:
        """Split into runs of the program: indices of the inputs that go together."""
        by_shape: dict[tuple[torch.Size, ...], list[int]] = {}
        for index, item in enumerate(inputs):
            by_shape.setdefault(tuple(tensor.shape for tensor in item), []).append(index)
        for indices in by_shape.values():
            size = int(min(self._batch_limit, len(indices)))
            for start in range(0, len(indices), size):
                yield indices[start : start + size]


def _read_sample(sample: Any) -> Sample:
    if not isinstance(sample, Mapping):
        raise ConfigError(f'option sample={sample!r:.80}: must be {{"inputs": [...], "outputs": [...]}}')
    check_names(sample, ("inputs", "outputs", "tolerance"), "option sample:")
    for name in ("inputs", "outputs"):
        if not isinstance(sample.get(name), list) or not sample[name]:
            raise ConfigError(f"option sample: {name}={sample.get(name)!r:.80}: must be a list with at least one item")
    tolerance = sample.get("tolerance", 1e-3)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < inf:
        raise ConfigError(f"option sample: tolerance={tolerance!r}: must be a number from 0 up")
    body = dumps({"inputs": sample["inputs"]}).encode()
    return Sample(body, "application/json", {"outputs": sample["outputs"]}, float(tolerance))


def _load(context: ModelContext, name: Any) -> torch.export.ExportedProgram:
    if not isinstance(name, str) or not name.endswith(".pt2"):
        raise ConfigError(f"option program={name!r}: must be the name of a .pt2 file among the artifacts")
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise ConfigError(f"option program={name!r}: must lie inside the artifacts")
    path = context.artifacts / relative
    if not path.is_file():
        raise ArtifactError(f"{path}: there is no such file")
    try:
        return torch.export.load(path)
    except Exception as error:
        # What torch raises on a damaged file depends on where in the file the damage is.
        raise ArtifactError(f"{path}: torch {torch.__version__} cannot load this program: {error}") from error


def _input_specs(program: torch.export.ExportedProgram) -> tuple[InputSpec, ...]:
    names = program.graph_signature.user_inputs
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    specs = []
    for name in names:
        value = values.get(name) if isinstance(name, str) else None
        if not isinstance(value, torch.Tensor):
            raise ConfigError(f"the program's input {name!r} is not a tensor; only tensors can be sent")
        sizes = tuple(_size(program, size) for size in value.shape)
        specs.append(InputSpec(str(name), value.dtype, sizes))
    arguments, keywords = program.call_spec.in_spec.children()
    if keywords.num_leaves or not specs or arguments.num_children != len(specs):
        raise ConfigError("the program must take one or more tensors, by position and not inside lists or dicts")
    return tuple(specs)


def _size(program: torch.export.ExportedProgram, size: Any) -> tuple[int, float]:
    if isinstance(size, int):
        return size, size
    bounds = program.range_constraints.get(size.node.expr)
    if bounds is None:
        # A size computed from others, such as 2*n; the program's own guards check it.
        return 0, inf
    return int(bounds.lower), _finite_or_inf(bounds.upper)


def _finite_or_inf(bound: Any) -> float:
    # Bounds are sympy numbers; their infinity has no int(), and a bound near 2**63 means "none" as well.
    try:
        value = int(bound)
    except (TypeError, ValueError, OverflowError, AttributeError):
        return inf
    return value if value < 2**62 else inf


def _batch_limit(specs: tuple[InputSpec, ...]) -> float:
    limit = inf
    for spec in specs:
        if not spec.shape or spec.shape[0][0] > 1 or spec.shape[0][1] <= 1:
            raise ConfigError(
                f"option batched=true: the program's input {spec.describe()} must have a dynamic dimension 0 "
                "that allows 1 (torch.export.Dim('batch', min=1, max=...)); export it so, or set batched to false"
            )
        limit = min(limit, spec.shape[0][1])
    return limit


def _describe_size(low: int, high: float) -> str:
    if low == high:
        return str(low)
    return "any" if high == inf else f"{low}..{high}"


def _number_schema(dtype: torch.dtype) -> dict[str, Any]:
    if dtype is torch.bool:
        return {"type": "boolean"}
    if dtype.is_floating_point:
        limits = torch.finfo(dtype)
        return {"type": "number", "minimum": limits.min, "maximum": limits.max}
    if dtype.is_complex:
        # Cannot be sent.
        return {"not": {}}
    integers = torch.iinfo(dtype)
    return {"type": "integer", "minimum": integers.min, "maximum": integers.max}


def _same_kind(sent: torch.dtype, wanted: torch.dtype) -> bool:
    if wanted.is_complex:
        return False
    if wanted.is_floating_point:
        # Whole numbers are numbers too: JSON writes 1.0 as 1.
        return sent is not torch.bool
    return (sent is torch.bool) == (wanted is torch.bool) and not sent.is_floating_point


def _leaves(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key in value:
            yield from _leaves(value[key])
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _leaves(item)
    else:
        raise TypeError(f"the program gave {type(value).__name__}, which is no tensor")


def _as_json(tensor: torch.Tensor) -> Any:
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        return _without_nan(tensor.tolist())
    return tensor.tolist()


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return value if -inf < value < inf else None
