"""Doubles for mode batch: a clock that only the test moves, and a model whose every input says what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from inference.batching import Limits, Work
from inference.computing import Computer
from inference.config import Config
from inference.engine import Engine
from inference.errors import UnreadableInput
from inference.model import Model, ModelContext, Sample
from inference.watchdog import Watchdog

#: Shared, as each watchdog has a thread; far from any limit.
WATCHDOG = Watchdog(1e6)


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Item:
    """An input: its number, and what the model does about it.

    Kinds: ``ok``; ``poison`` fails the whole call; ``blame`` fails the whole call as the client's fault; ``placed`` and
    ``placed-blame`` are failures in the place of one output; ``lost`` loses the CUDA context.
    """

    number: int
    kind: str = "ok"
    cost: int = 1


class ScriptedModel(Model[Item, Any]):
    """Give ``answer <number>`` for each item, or fail as it says."""

    name: ClassVar[str] = "scripted"
    uses_torch: ClassVar[bool] = False

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        #: Largest sum of costs for which there is memory.
        self.capacity = 10**9
        self.out_of_memory: Callable[[], Exception] = MemoryError
        #: What the sample raises; None when it works.
        self.sample_failure: Exception | None = None
        #: Called at the beginning of each call with requests in it.
        self.during: Callable[[list[Item]], None] = lambda items: None

    def setup(self, context: ModelContext) -> None:
        """Nothing to load."""

    def decode(self, body: bytes, content_type: str) -> Item:
        return Item(int(body))

    def cost(self, item: Item) -> int:
        return item.cost

    def predict(self, inputs: Sequence[Item]) -> list[Any]:
        if inputs[0].number < 0:
            if self.sample_failure is not None:
                raise self.sample_failure
            return ["answer -1"]
        self.calls.append([item.number for item in inputs])
        self.during(list(inputs))
        if sum(item.cost for item in inputs) > self.capacity:
            raise self.out_of_memory()
        kinds = {item.kind for item in inputs}
        if "lost" in kinds:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if "poison" in kinds:
            raise ValueError("poisoned")
        if "blame" in kinds:
            raise UnreadableInput("This one cannot be read.")
        placed = {"placed": ValueError("placed"), "placed-blame": UnreadableInput("Placed.")}
        return [placed.get(item.kind, f"answer {item.number}") for item in inputs]

    def encode(self, output: Any) -> dict[str, Any]:
        return {"said": output}

    def sample(self) -> Sample:
        return Sample(b"-1", "", {"said": "answer -1"})


def work(number: int, kind: str = "ok", cost: int = 1, deadline: float = float("inf")) -> Work:
    """Make a request whose key is its number."""
    return Work(number, Item(number, kind, cost), cost, deadline, f"request-{number}")


def loaded(model: ScriptedModel, clock: Callable[[], float]) -> Computer:
    """Give a computer around the model, loaded."""
    computer = Computer(Config(accelerator="cpu"), model, WATCHDOG, clock)
    computer.load()
    return computer


def engine(model: ScriptedModel, clock: Callable[[], float], **limits: Any) -> Engine:
    """Give an engine around the model, loaded."""
    return Engine(loaded(model, clock), Limits(**limits), 30.0, clock=clock)
