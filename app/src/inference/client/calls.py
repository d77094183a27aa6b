"""One call: an image goes out, again where that does no harm, and an answer or an error comes back."""

from __future__ import annotations

import json
import math
import random
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from inference.client.answers import Answer
from inference.client.attempts import Attempt, Broken, Form
from inference.client.connections import Address
from inference.client.errors import BadAnswer, ClientError, Problem
from inference.client.sources import Outcome, Source, read

REQUEST_ID = re.compile(r"[A-Za-z0-9._~:+=/-]{1,128}")
#: Statuses that say: not now, come again.
BUSY = (429, 503)
#: Statuses after which nobody knows whether it was computed.
UNCERTAIN = (502, 504)
#: Seconds of the first pause where the server names none; each further one is twice as long, up to the longest.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 8.0


class Client:
    """Asks one service; threads may share it.

    Args:
        url: of a host or an edge, such as ``http://localhost:8100``.
        route: the service's route.
        field: the field of the form in which the service expects the image.
        timeout: seconds that a call may take with all its attempts and pauses. The server is told
            (``X-Request-Deadline-Ms``), so that it does not compute what nobody waits for. None: no limit but the
            server's own.
        retry_seconds: seconds from the beginning of a call after which it is not sent again; 0 = send once.
        retry_sent: also send again what the server may have computed already: no whole answer came, 502, 504.
        connect_seconds: longest wait for a connection, and for the server to take the next piece of the image.
        headers: further headers, such as ``{"Authorization": "Bearer ..."}``.
        jobs: requests that :meth:`parse_all` has under way at the same time; so many connections are kept.

    Raises:
        ValueError: the URL, the route or a number is none.
    """

    def __init__(
        self,
        url: str = "http://localhost:8100",
        *,
        route: str = "/v1/parse",
        field: str = "image",
        timeout: float | None = None,
        retry_seconds: float = 60.0,
        retry_sent: bool = False,
        connect_seconds: float = 10.0,
        headers: Mapping[str, str] | None = None,
        jobs: int = 4,
    ) -> None:
        address = Address(url, route)
        for name, value in (("timeout", timeout), ("connect_seconds", connect_seconds)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r}: must be a number of seconds above 0")
        if not 0 <= retry_seconds < math.inf:
            raise ValueError(f"retry_seconds={retry_seconds!r}: must be a number of seconds, 0 or more")
        if jobs < 1:
            raise ValueError(f"jobs={jobs!r}: must be 1 or more")
        #: What is asked, without a password.
        self.url = address.shown
        self._field = field
        self._timeout = timeout
        self._retry_seconds = retry_seconds
        self._retry_sent = retry_sent
        self._jobs = jobs
        self._attempt = Attempt(address, connect_seconds, headers or {}, jobs)
        self._closed = threading.Event()

    def parse(self, source: Source, *, timeout: float | None = None, request_id: str | None = None) -> Answer:
        """Have an image read.

        Args:
            source: the path of a file, its bytes, or a file open for reading bytes.
            timeout: for this call, instead of the client's.
            request_id: 1 to 128 of ``A-Z a-z 0-9 . _ ~ : + = / -``; made when not given. All attempts have the same.

        Raises:
            Problem: the server refused or failed.
            NotReached: there was no connection.
            NotAnswered: no whole answer came.
            BadAnswer: an answer came that is not one of an OCR service.
            OSError: the file cannot be read.
            ValueError: the request id or the timeout is none, or the client is closed.
        """
        if request_id is None:
            request_id = uuid.uuid4().hex
        elif not REQUEST_ID.fullmatch(request_id):
            raise ValueError(f"request_id {request_id!r}: must be 1 to 128 of A-Z a-z 0-9 . _ ~ : + = / -")
        timeout = self._timeout if timeout is None else timeout
        if timeout is not None and not 0 < timeout < math.inf:
            raise ValueError(f"timeout={timeout!r}: must be a number of seconds above 0")
        return self._parse(source, timeout, request_id, self._closed)

    def parse_all(self, sources: Iterable[Source]) -> Iterator[Outcome]:
        """Have many images read, some at the same time; files are opened when their turn comes.

        Yields:
            What became of each, in the order of the sources. An error of one does not stop the others.
        """
        waiting: deque[Future[Outcome]] = deque()
        stop = threading.Event()
        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="inference-client")
        try:
            for source in sources:
                waiting.append(pool.submit(self._outcome, source, stop))
                # So many are begun ahead of the one that is waited for; the others stay where they come from.
                while len(waiting) > 2 * self._jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Where nobody wants the rest, only what is on its way is waited for.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Close the kept connections, and end the pauses before further attempts."""
        self._closed.set()
        self._attempt.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _outcome(self, source: Source, stop: threading.Event) -> Outcome:
        try:
            return Outcome(source, answer=self._parse(source, self._timeout, uuid.uuid4().hex, stop))
        except (ClientError, OSError) as error:
            return Outcome(source, error=error)

    def _parse(self, source: Source, timeout: float | None, request_id: str, stop: threading.Event) -> Answer:
        if self._closed.is_set():
            raise ValueError("the client is closed")
        name, data = read(source)
        payload, count = self._until_answered(Form.of(self._field, name, data), request_id, timeout, stop)
        return self._answer(payload, count, request_id)

    def _until_answered(
        self, form: Form, request_id: str, timeout: float | None, stop: threading.Event
    ) -> tuple[bytes, int]:
        """Send until an answer is there, or until a further attempt could do harm or would come too late."""
        began = time.monotonic()
        deadline = None if timeout is None else began + timeout
        last_start = began + self._retry_seconds if deadline is None else min(began + self._retry_seconds, deadline)
        count = 0
        stale = False
        while True:
            count += 1
            try:
                return self._attempt(form, request_id, deadline), count
            except Problem as problem:
                error: ClientError = problem
                again = problem.status in BUSY or (self._retry_sent and problem.status in UNCERTAIN)
                pause = _pause(count) if problem.retry_after is None else problem.retry_after
            except Broken as broken:
                error = broken.error
                error.__cause__ = broken.__cause__
                again = broken.again or self._retry_sent
                pause = _pause(count)
                if broken.stale and not stale:
                    # Once, and at once: a new connection is not closed while it is idle.
                    stale = again = True
                    pause = 0.0
            # Clients that were sent away together do not come back together.
            pause *= 1.0 + random.random() / 10.0  # noqa: S311 - no secret
            if not again or time.monotonic() + pause > last_start or stop.wait(pause):
                raise error

    def _answer(self, payload: bytes, count: int, request_id: str) -> Answer:
        try:
            members: Any = json.loads(payload)
        except ValueError:
            begin = payload[:60].decode(errors="replace")
            raise BadAnswer(f"{self.url} does not answer with JSON but with {begin!r}", request_id) from None
        try:
            return Answer.of(members, count)
        except (KeyError, TypeError, ValueError) as error:
            detail = (
                f"{self.url} does not answer as an OCR service does ({type(error).__name__}: {error}); check the route"
            )
            raise BadAnswer(detail, request_id) from error


def _pause(count: int) -> float:
    """Seconds before a further attempt where the server does not say."""
    return min(FIRST_PAUSE_SECONDS * 2.0 ** (count - 1), LONGEST_PAUSE_SECONDS)
