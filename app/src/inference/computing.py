"""Compute batches on the device, and find out what is at fault when one fails: an input, the memory or the device."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from inference import loader, memory
from inference.batching import Work
from inference.config import Config
from inference.errors import ModelFailed, NotReady, Problem
from inference.model import Model
from inference.sampling import FAILURES_TO_END, check_count, check_members, run_sample
from inference.watchdog import Watchdog

#: CUDA errors after which the context is lost, by the text that CUDA has for them
#: (https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html: "the process must be terminated and
#: relaunched"). Any other lasting fault shows by the sample, which then fails twice.
_CONTEXT_LOST = re.compile(
    r"CUDA error: (an illegal memory access was encountered|unspecified launch failure|device-side assert triggered"
    r"|uncorrectable ECC error encountered|hardware stack error|an illegal instruction was encountered"
    r"|misaligned address"
    r"|operation not supported on global/shared address space|invalid program counter|the launch timed out"
    r"|unknown error|context is destroyed)"
)
_OUT_OF_MEMORY = re.compile(
    r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    r"|DefaultCPUAllocator: (can't|not enough) "
)

_log = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether the device, or the host, had not enough memory for what it was asked to compute."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def is_context_lost(error: BaseException) -> bool:
    """Tell whether no call in this process will ever succeed on the device again."""
    return isinstance(error, RuntimeError) and _CONTEXT_LOST.search(str(error)) is not None


class Computer:
    """The model on its device. One thread at a time may call it.

    Args:
        config: the settings.
        model: a model that is not set up yet.
        watchdog: ends the process when a call of the model takes too long.
        clock: gives the time in seconds.
        meter: measures what a computation takes of the device.
    """

    def __init__(
        self,
        config: Config,
        model: Model[Any, Any],
        watchdog: Watchdog,
        clock: Callable[[], float] = time.monotonic,
        meter: Callable[[str], memory.DeviceMeter] = memory.DeviceMeter,
    ) -> None:
        self._meter = meter
        self._config = config
        self._model = model
        self._watchdog = watchdog
        self._clock = clock
        #: Called with the cost of a batch for which there was not enough memory.
        self.on_out_of_memory: Callable[[int], None] = lambda cost: None
        #: False after a failure that may be the model's or the device's, until the sample has worked.
        self.sound = False
        #: Samples that failed in a row; a lost context counts as one.
        self.failures = 0
        #: True when nothing but a new process can help.
        self.broken = False
        #: When the sample last worked: an instant of the clock, and seconds since the epoch.
        self.success = -float("inf")
        self.success_wall = 0.0
        #: What others may want to know of the loaded model.
        self.facts: dict[str, Any] = {}

    def load(self) -> None:
        """Load the model and run its sample once.

        Raises:
            ConfigError: the settings do not fit the model or the machine.
            ArtifactError: a file of the release is missing or damaged.
            SampleError: the model works, but not as known.
        """
        began = self._clock()
        context = loader.context(self._config, self._model)
        self._model.prepare(context)
        self._model.setup(context)
        loaded = self._clock()
        meter = self._meter(context.device)
        check_members(self._model, self._run_sample(context.device))
        taken = meter.taken_bytes()
        # Where nothing was measured, as on a CPU, the sample's cost is not needed.
        cost_bound = memory.cost_that_fits(taken, self._sample_cost(), meter.free_bytes()) if taken else None
        self.facts = {
            "pid": os.getpid(),
            "model": self._model.name,
            "torch_device": context.device,
            "torch": loader.torch_version(),
            "load_seconds": round(self._clock() - began, 3),
            "setup_seconds": round(loaded - began, 3),
            # Largest cost of a batch by the memory that the sample took.
            "cost_bound": cost_bound,
            **memory.measured(context.device),
        }
        _log.info("model_loaded", extra={"facts": self.facts})

    def compute(self, batch: Sequence[Work]) -> list[Any]:
        """Compute a batch: for each request, in order, the model's output or the exception that it failed with.

        A batch for which the memory does not suffice is halved until it does. When the model fails on several requests
        at once, the sample tells whether the model still works; if it does, one of the inputs is at fault,
        and halving the batch finds out which.
        """
        began = self._clock()
        outputs = self._compute(list(batch), retried=False)
        # Only when asked for: with a quick model and small batches the line costs a good part of what computing does.
        if _log.isEnabledFor(logging.DEBUG):
            seconds = round(self._clock() - began, 6)
            facts = {"request_ids": [work.request_id for work in batch], "cost": self._cost(batch), "seconds": seconds}
            _log.debug("batch_computed", extra={"facts": facts})
        return outputs

    def check(self) -> bool:
        """Run the sample; tell whether the model works."""
        try:
            with self._watchdog.watching():
                self._run_sample(self.facts.get("torch_device", ""))
        except Exception as error:  # noqa: BLE001 - whatever a model can raise means that it does not work
            self.sound = False
            self.failures += 1
            self.broken = self.broken or self.failures >= FAILURES_TO_END or is_context_lost(error)
            _log.exception("sample_failed", extra={"facts": {"failures": self.failures, "broken": self.broken}})
            return False
        return True

    def close(self) -> None:
        """Let go of the model and of the GPU's memory while Python still works."""
        del self._model
        memory.free(self.facts.get("torch_device", "cpu"))

    def _run_sample(self, device: str) -> dict[str, Any]:
        answer = run_sample(self._model, device)
        self.sound = True
        self.failures = 0
        self.success = self._clock()
        self.success_wall = time.time()
        return answer

    def _sample_cost(self) -> int:
        sample = self._model.sample()
        return self._model.cost(self._model.decode(sample.body, sample.content_type))

    @staticmethod
    def _cost(batch: Sequence[Work]) -> int:
        return sum(work.cost for work in batch)

    def _compute(self, batch: list[Work], retried: bool) -> list[Any]:
        if self.broken:
            return [_not_ready() for _ in batch]
        try:
            with self._watchdog.watching([work.request_id for work in batch]):
                outputs = self._model.predict([work.item for work in batch])
            check_count(self._model, outputs, len(batch))
        except Exception as error:  # noqa: BLE001 - what a model can raise is sorted here
            failure = error
        else:
            return [self._sorted(work, output) for work, output in zip(batch, outputs, strict=True)]
        # Outside of the handler: there, the traceback would keep what the failed call has put on the device.
        if not isinstance(failure, Problem):
            self._log(failure, batch)
        failure.__traceback__ = None
        if is_out_of_memory(failure):
            return self._with_less_memory(failure, batch, retried)
        if is_context_lost(failure):
            self.sound = False
            self.failures += 1
            self.broken = True
            return [_not_ready() for _ in batch]
        blames_client = isinstance(failure, Problem)
        if len(batch) == 1:
            return [failure if blames_client else self._failed(failure)]
        if not blames_client:
            self.sound = False
            if not self.check():
                return [_not_ready() for _ in batch]
        return self._halves(batch, retried)

    def _halves(self, batch: list[Work], retried: bool) -> list[Any]:
        middle = len(batch) // 2
        return self._compute(batch[:middle], retried) + self._compute(batch[middle:], retried)

    def _with_less_memory(self, failure: Exception, batch: list[Work], retried: bool) -> list[Any]:
        memory.free(self.facts.get("torch_device", "cpu"))
        if len(batch) > 1:
            self.on_out_of_memory(self._cost(batch))
            return self._halves(batch, retried)
        if not retried:
            return self._compute(batch, retried=True)
        return [self._failed(failure)]

    def _sorted(self, work: Work, output: Any) -> Any:
        if isinstance(output, Exception) and not isinstance(output, Problem):
            self._log(output, [work])
            return self._failed(output)
        return output

    def _failed(self, error: Exception) -> ModelFailed:
        self.sound = False
        return ModelFailed(f"{type(error).__name__}: {error}")

    def _log(self, failure: Exception, batch: list[Work]) -> None:
        facts = {
            "error": type(failure).__name__,
            "reason": str(failure),
            "batch": len(batch),
            "cost": self._cost(batch),
            "request_ids": [work.request_id for work in batch],
        }
        _log.error("batch_failed", exc_info=failure, extra={"facts": facts})


def _not_ready() -> NotReady:
    return NotReady("The inference with a known answer failed on this device; the log says why.")
