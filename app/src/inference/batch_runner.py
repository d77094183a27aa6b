"""The web worker's side of mode batch: decode, hand over to the model process, wait, encode."""

from __future__ import annotations

import logging
import math
import select
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from inference import channel, loader, logs, server
from inference.channel import (
    CANCEL,
    DONE,
    ERROR,
    EXPIRE,
    FAILED,
    HEALTH,
    HEALTHY,
    LOADING,
    READY,
    WORK,
    Link,
    LinkClosed,
)
from inference.config import Config
from inference.deadline import refuse_late
from inference.errors import Busy, ConfigError, ModelProcessError, NotReady
from inference.model import Model
from inference.runner import STUCK_FACTOR, Answer, Health
from inference.watchdog import Watchdog

#: Seconds that a starting web worker waits for the model process to bind its socket.
BIND_SECONDS = 60.0
#: Seconds between two attempts meanwhile.
CONNECT_TICK_SECONDS = 0.05
#: Seconds beyond the watchdog's limit after which a reply is not waited for any more.
GRACE_SECONDS = 5.0
#: The client has closed its connection, or at least the half of it on which nothing more comes, as nginx sees it too.
_LEFT = select.POLLRDHUP | select.POLLHUP | select.POLLERR

_log = logging.getLogger(__name__)


class BatchRunner:
    """Do for requests what needs no device, and let the model process do the rest.

    Each thread that works on a request has a connection to the model process for as long as that takes.

    Args:
        config: the settings.
        model: a model that is not set up, and will not be.
        watchdog: ends this process when the model's ``decode`` hangs; made from the settings when not given.
        client: gives the descriptor of the client's connection, if there is one.
    """

    def __init__(
        self,
        config: Config,
        model: Model[Any, Any],
        *,
        watchdog: Watchdog | None = None,
        client: Callable[[], int | None] = server.connection_fd,
    ) -> None:
        if config.channel is None:
            raise ConfigError("INFERENCE_CHANNEL is not set: it is the path of the model process's socket")
        self._config = config
        self._path = config.channel
        self._model = model
        self._client = client
        self._limit = STUCK_FACTOR * config.timeout_seconds
        self._watchdog = watchdog or Watchdog(self._limit)
        # Connections that nobody uses just now; the one used last is taken first.
        self._links: deque[Link] = deque()
        self._numbers = count(1)
        self._load_seconds = 1.0
        self._room_at = self._full_until = 0.0
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
        """Prepare decoding and encoding, and wait until the model process is ready.

        Raises:
            ConfigError: the settings do not fit the model.
            ArtifactError: a file of the release is missing or damaged.
            ModelProcessError: the model process did not start.
        """
        self._model.prepare(loader.web_context(self._config))
        end = time.monotonic() + BIND_SECONDS
        while True:
            try:
                link = channel.connect(self._path)
                break
            except LinkClosed as error:
                if time.monotonic() >= end:
                    raise ModelProcessError(
                        f"no model process listens after {BIND_SECONDS:g} s ({error}); uWSGI starts it by "
                        "'attach-daemon2 = cmd=exec python -m inference.model_process,stopsignal=15'"
                    ) from error
                time.sleep(CONNECT_TICK_SECONDS)
        try:
            while (message := link.receive())[0] == LOADING:
                pass
            if message[0] == FAILED:
                raise ModelProcessError(f"the model process did not start: {message[1]}")
        except LinkClosed as error:
            link.close()
            raise ModelProcessError("the model process ended while it loaded the model; its log says why") from error
        except ModelProcessError:
            link.close()
            raise
        self._learn(message)
        self._links.append(link)

    def answer(self, body: bytes, content_type: str, deadline: float) -> Answer:
        """Answer one request.

        Args:
            body: the input.
            content_type: its media type, empty when unknown.
            deadline: :func:`time.monotonic` instant after which compute does not start any more.

        Raises:
            Problem: the client's fault, or the request is over its time, or there is no capacity or no model process.
            ModelFailed: the model's fault.
        """
        refuse_late(deadline)
        began = time.monotonic()
        if began < self._full_until:
            # Decoding is work too, and on a busy device's own cores.
            raise Busy("The queue of this device is full.", retry_after=max(1, math.ceil(self._room_at - began)))
        with self._watchdog.watching():
            item = self._model.decode(body, content_type)
        decoded = time.monotonic()
        refuse_late(deadline)
        number = next(self._numbers)
        link = self._sent((WORK, number, deadline, self._model.cost(item), logs.request_id.get(), item))
        # Not kept while it waits: with many waiting, their inputs would be in memory twice.
        del item
        message = self._wait(link, number, deadline)
        _, _, output, started, ended, batch = message
        members = self._model.encode(output)
        return Answer(members, waited=started - decoded, decode=decoded - began, compute=ended - started, batch=batch)

    def health(self) -> Health:
        """Ask the model process when the sample last worked; it runs it again when that is too long ago.

        Raises:
            NotReady: the sample does not work, or there is no model process.
        """
        number = next(self._numbers)
        link = self._sent((HEALTH, number))
        message = self._wait(link, number, math.inf)
        return Health(message[2], message[3])

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._links:
            self._links.pop().close()

    def _sent(self, message: channel.Message) -> Link:
        """Send a message on a connection that nobody uses, or on a new one."""
        while True:
            try:
                link, is_new = self._links.pop(), False
            except IndexError:
                link, is_new = self._connect(), True
            try:
                link.send(message)
            except LinkClosed:
                link.close()
                if is_new:
                    raise self._gone() from None
                # It was of a model process that has gone since; there may be a new one.
            except BaseException:
                # What cannot be pickled was not sent.
                self._links.append(link)
                raise
            else:
                return link

    def _connect(self) -> Link:
        try:
            link = channel.connect(self._path)
        except LinkClosed:
            raise self._gone() from None
        try:
            message = link.receive()
        except LinkClosed:
            message = (FAILED,)
        if message[0] != READY:
            link.close()
            raise self._gone()
        self._learn(message)
        return link

    def _wait(self, link: Link, number: int, deadline: float) -> channel.Message:
        """Wait for the reply, and tell the model process when nobody is interested in it any more.

        Raises:
            Exception: the reply is this, or there is none.
        """
        try:
            message = self._receive(link, number, deadline)
        except LinkClosed:
            link.close()
            raise self._gone() from None
        except BaseException:
            # Whatever comes on it later would be taken for the reply to something else.
            link.close()
            raise
        self._links.append(link)
        if message[0] == ERROR:
            error: Exception = message[2]
            if isinstance(error, Busy):
                self._room_at, self._full_until = error.room_at, error.full_until
            raise error
        if message[0] not in (DONE, HEALTHY):
            raise RuntimeError(f"the model process sent {message[0]!r}, which nobody knows")
        return message

    def _receive(self, link: Link, number: int, deadline: float) -> channel.Message:
        poll = select.poll()
        poll.register(link.fileno(), select.POLLIN)
        client = self._client()
        if client is not None and client >= 0:
            poll.register(client, _LEFT)
        give_up = max(deadline, time.monotonic()) if deadline < math.inf else time.monotonic()
        give_up += self._limit + GRACE_SECONDS
        expired = False
        while True:
            now = time.monotonic()
            if now >= give_up:
                raise NotReady("The model process does not reply.", retry_after=self._retry_after())
            if not expired and now >= deadline:
                # If it is not being computed yet, it will not be; else the answer is on its way.
                link.send((EXPIRE, number))
                expired = True
            until = give_up if expired else min(deadline, give_up)
            ready = dict(poll.poll(max(1.0, (until - now) * 1000.0)))
            if link.fileno() in ready:
                return link.receive()
            if client in ready:
                poll.unregister(client)
                link.send((CANCEL, number))

    def _learn(self, message: channel.Message) -> None:
        facts = message[1]
        self.torch_device = facts["torch_device"]
        self.torch_version = facts["torch"]
        self._load_seconds = facts["load_seconds"]

    def _retry_after(self) -> int:
        return max(1, math.ceil(self._load_seconds))

    def _gone(self) -> NotReady:
        return NotReady("The model process of this device is being started again.", retry_after=self._retry_after())
