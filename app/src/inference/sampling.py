"""Run a model on its own sample: the proof that it works here and now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inference.compare import difference
from inference.errors import ConfigError, SampleError
from inference.model import Model

#: Members of an answer that belong to the service; a model may not give them.
RESERVED_MEMBERS = frozenset({"request_id", "model", "device", "timing_ms"})

#: Failed samples in a row after which only a new process can help: the first may be bad luck, a broken CUDA context
#: stays broken for the life of its process.
FAILURES_TO_END = 2
#: Shortest time in seconds between two runs of a failing sample, so that probes cannot keep the device busy.
RETRY_SECONDS = 1.0
#: Seconds that a question for health waits for the busy device before the last result is trusted.
PATIENCE_SECONDS = 1.0


def predict_one(model: Model[Any, Any], item: Any) -> Any:
    """Compute one input.

    Raises:
        Exception: what the model raises, or gives in place of the output.
    """
    outputs = model.predict([item])
    check_count(model, outputs, 1)
    if isinstance(outputs[0], Exception):
        raise outputs[0]
    return outputs[0]


def check_count(model: Model[Any, Any], outputs: Sequence[Any], count: int) -> None:
    """Refuse a wrong number of outputs.

    Raises:
        RuntimeError: there are more or fewer outputs than inputs.
    """
    if len(outputs) != count:
        raise RuntimeError(f"model {model.name!r} gave {len(outputs)} outputs for {count} input{'s' * (count != 1)}")


def run_sample(model: Model[Any, Any], device: str) -> dict[str, Any]:
    """Give the model's answer to its sample.

    Raises:
        SampleError: it is not the known one.
        Exception: what the model raises.
    """
    sample = model.sample()
    item = model.decode(sample.body, sample.content_type)
    answer = model.encode(predict_one(model, item))
    if text := difference(sample.expected, answer, sample.tolerance):
        raise SampleError(f"model {model.name!r} on {device}: {text}")
    return answer


def check_members(model: Model[Any, Any], answer: dict[str, Any]) -> None:
    """Refuse a model whose answers have members of the service.

    Raises:
        ConfigError: they do; the message names them.
    """
    if clash := RESERVED_MEMBERS & set(answer):
        raise ConfigError(f"model {model.name!r} answers with reserved members: {', '.join(sorted(clash))}")
