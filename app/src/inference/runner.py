"""Run one model: one request at a time, within its deadline, and know whether it still works. This is mode process."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from inference import loader, memory, server
from inference.config import Config
from inference.deadline import refuse_late
from inference.errors import NotReady, Problem
from inference.model import Model
from inference.sampling import (
    FAILURES_TO_END,
    PATIENCE_SECONDS,
    RETRY_SECONDS,
    check_members,
    predict_one,
    run_sample,
)
from inference.watchdog import Watchdog

#: A model that hangs for this many times the request's timeout ends the process.
STUCK_FACTOR = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """Members that the model gave, and where the time went, in seconds.

    Attributes:
        members: of the answer.
        waited: for the device.
        decode: of the input.
        compute: of the batch on the device.
        batch: number of requests that were computed together; None in mode process.
    """

    members: dict[str, Any]
    waited: float
    decode: float
    compute: float
    batch: int | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """When the sample last gave the known answer.

    Attributes:
        last_success: seconds since the epoch.
        age: seconds since then.
    """

    last_success: float
    age: float


class ModelRunner(Protocol):
    """What the routes need of a mode."""

    torch_device: str
    torch_version: str | None

    @property
    def field(self) -> str:
        """Name of the multipart field that holds the input."""

    @property
    def model_name(self) -> str:
        """Name of the model in answers."""

    def start(self) -> None:
        """Get ready for requests, or fail."""

    def answer(self, body: bytes, content_type: str, deadline: float) -> Answer:
        """Answer one request."""

    def health(self) -> Health:
        """Say when the sample last worked."""

    def close(self) -> None:
        """Let go of everything while Python still works."""


class Runner:
    """Own a model from load to exit.

    Args:
        config: the settings.
        model: a model that is not set up yet.
        retire: asks the server to replace this worker.
        watchdog: ends the process when the model hangs; made from the settings when not given.
    """

    def __init__(
        self,
        config: Config,
        model: Model[Any, Any],
        *,
        retire: Callable[[], None] = server.retire,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._config = config
        self._model: Model[Any, Any] = model
        self._retire = retire
        self._watchdog = watchdog or Watchdog(STUCK_FACTOR * config.timeout_seconds)
        # In process mode a worker has one device and computes one request at a time, whatever number of
        # threads the server gives it; the others still answer health checks and refuse what is over time.
        self._turn = threading.Lock()
        self._sound = False
        self._failures = 0
        self._attempt = -math.inf
        self._success = -math.inf
        self._success_wall = 0.0
        self._load_seconds = 0.0
        self.torch_device = "cpu"
        self.torch_version: str | None = None

    @property
    def field(self) -> str:
        """Name of the multipart field that holds the input."""
        return self._model.field

    @property
    def model_name(self) -> str:
        """Name of the model in answers."""
        return self._model.name

    def start(self) -> None:
        """Load the model and run its sample once.

        Raises:
            ConfigError: the settings do not fit the model or the machine.
            ArtifactError: a file of the release is missing or damaged.
            SampleError: the model works, but not as known.
        """
        began = time.monotonic()
        context = loader.context(self._config, self._model)
        self.torch_device = context.device
        self._model.prepare(context)
        self._model.setup(context)
        loaded = time.monotonic()
        check_members(self._model, self._run_sample())
        self.torch_version = loader.torch_version()
        self._load_seconds = time.monotonic() - began
        facts = {
            "model": self.model_name,
            "torch_device": context.device,
            "torch": self.torch_version,
            "load_seconds": round(loaded - began, 3),
            "sample_seconds": round(time.monotonic() - loaded, 3),
            **memory.measured(context.device),
        }
        _log.info("model_loaded", extra={"facts": facts})

    def answer(self, body: bytes, content_type: str, deadline: float) -> Answer:
        """Answer one request.

        Args:
            body: the input.
            content_type: its media type, empty when unknown.
            deadline: :func:`time.monotonic` instant after which compute does not start any more.

        Raises:
            Problem: the client's fault, or the request is over its time, or this worker is not ready.
            Exception: the model's fault; the sample then runs again before anything else does.
        """
        refuse_late(deadline)
        began = time.monotonic()
        with self._watchdog.watching():
            item = self._model.decode(body, content_type)
        decoded = time.monotonic()
        if not self._turn.acquire(timeout=max(0.0, deadline - decoded)):
            refuse_late(deadline)
        try:
            started = time.monotonic()
            refuse_late(deadline)
            if not self._sound:
                self._check()
                started = time.monotonic()
            with self._watching_model():
                output = predict_one(self._model, item)
                ended = time.monotonic()
                members = self._model.encode(output)
        finally:
            self._turn.release()
        return Answer(members, waited=started - decoded, decode=decoded - began, compute=ended - started)

    def health(self) -> Health:
        """Say when the sample last worked; run it again when that is too long ago or something failed since.

        Raises:
            NotReady: the sample does not work.
        """
        if not self._is_fresh():
            if self._turn.acquire(timeout=PATIENCE_SECONDS):
                try:
                    if not self._is_fresh():
                        self._check()
                finally:
                    self._turn.release()
            elif not self._sound:
                raise NotReady("The device is busy, and its last inference failed.", retry_after=self._retry_after())
            # A sound device that is busy with a long request stays ready; the watchdog bounds how long.
        return Health(self._success_wall, time.monotonic() - self._success)

    def close(self) -> None:
        """Let go of the model and of the GPU's memory while Python still works.

        Left to the interpreter's teardown, CUDA's own may run first, and the process ends in a crash.
        """
        del self._model
        memory.free(self.torch_device)

    def _is_fresh(self) -> bool:
        return self._sound and time.monotonic() - self._success <= self._config.ready_seconds

    def _retry_after(self) -> int:
        # A worker that is not ready is at best ready again after a new one has loaded.
        return max(1, math.ceil(self._load_seconds))

    @contextmanager
    def _watching_model(self) -> Iterator[None]:
        """Note that the model is at fault when the block fails, unless it blames the client by a Problem."""
        try:
            with self._watchdog.watching():
                yield
        except Problem:
            raise
        except Exception:
            self._sound = False
            raise

    def _check(self) -> None:
        """Run the sample again; the caller holds the turn."""
        now = time.monotonic()
        if now - self._attempt >= RETRY_SECONDS or self._sound:
            self._attempt = now
            try:
                with self._watchdog.watching():
                    self._run_sample()
                return
            except Exception:  # noqa: BLE001 - whatever a model can raise means that it is not ready
                self._sound = False
                self._failures += 1
                _log.exception("sample_failed", extra={"facts": {"failures": self._failures}})
                if self._failures == FAILURES_TO_END:
                    self._retire()
        raise NotReady(
            "The inference with a known answer failed on this device; the log says why.",
            retry_after=self._retry_after(),
        )

    def _run_sample(self) -> dict[str, Any]:
        answer = run_sample(self._model, self.torch_device)
        self._sound = True
        self._failures = 0
        self._success = time.monotonic()
        self._success_wall = time.time()
        return answer
