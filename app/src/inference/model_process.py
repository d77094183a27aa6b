"""The model process of mode batch: it owns the device, and computes what the web workers of its vassal send.

Run as ``python -m inference.model_process`` with the vassal's environment. uWSGI starts it, beside the web workers:
``attach-daemon2 = cmd=exec python -m inference.model_process,stopsignal=15``, and starts it again when it ends.

The main thread talks (it accepts, unpickles, queues, pickles and replies), the other one computes, so that
neither waits for the other. Exit statuses: 0 stopped by SIGTERM, after all requests it held were answered; 1 not
started; 86 the model hung (:data:`inference.watchdog.EXIT_STUCK`); 87 the device is broken and only a new process can
help.
"""

from __future__ import annotations

import logging
import os
import resource
import select
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any

from inference import channel, loader, logs
from inference.batching import Limits, Work
from inference.channel import CANCEL, DONE, ERROR, EXPIRE, FAILED, HEALTH, HEALTHY, LOADING, READY, WORK, Link
from inference.computing import Computer
from inference.config import Config
from inference.engine import Done, Engine, Healthy, Reply
from inference.errors import ConfigError, ModelFailed, NotReady
from inference.metrics import of_model_process
from inference.model import Model
from inference.runner import STUCK_FACTOR
from inference.watchdog import Watchdog, end_process

#: Exit status of a process whose device is broken.
EXIT_BROKEN = 87
#: Exit status of a process that could not be started, or met an error of its own.
EXIT_FAILED = 1
#: Seconds between two log lines about what was computed.
REPORT_SECONDS = 60.0
#: Seconds to wait after a connection could not be taken, which would be reported again at once.
ACCEPT_PAUSE_SECONDS = 0.1
#: Seconds between two looks at questions for health that wait.
HEALTH_TICK_SECONDS = 0.1

# Not __name__, which is __main__ here, and would not be heard.
_log = logging.getLogger("inference.model_process")


class ModelProcess:
    """Everything of the process but its signals.

    Args:
        config: the settings; ``channel`` is set.
        model: a model that is not set up yet.
    """

    def __init__(self, config: Config, model: Model[Any, Any]) -> None:
        if config.channel is None:
            raise ConfigError("INFERENCE_CHANNEL is not set: the model process has no socket to listen on")
        self._listening: socket.socket = channel.listen(config.channel)
        self._path = config.channel
        self._computer = Computer(config, model, Watchdog(STUCK_FACTOR * config.timeout_seconds))
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        limits = Limits(
            config.batch_max_items, config.batch_max_cost, config.batch_delay_ms / 1000.0, config.queue_max_items
        )
        self._metrics = of_model_process(config)
        self._engine = Engine(
            self._computer,
            limits,
            config.ready_seconds,
            on_reply=self.wake,
            on_batch=self._metrics.computed if self._metrics is not None else lambda items: None,
        )
        self._links: dict[int, Link] = {}
        self._epoll = select.epoll()
        self._stopping = False
        # Set by the computing thread, read by the main one after it was woken.
        self._loaded = False
        self._said_ready = False
        self._failure: Exception | None = None
        self._finished = False
        self._reported = time.monotonic()

    def run(self) -> int:
        """Load the model and serve until the end; give the exit status."""
        for file in (self._listening.fileno(), self._wake):
            self._epoll.register(file, select.EPOLLIN)
        thread = threading.Thread(target=self._compute, name="compute", daemon=True)
        thread.start()
        while not self._finished:
            self._turn()
        # What the computing thread had left to say.
        self._send_replies()
        if self._failure is not None:
            if not self._loaded:
                self._say_to_all((FAILED, f"{type(self._failure).__name__}: {self._failure}"))
            return EXIT_FAILED
        self._report()
        if self._computer.broken:
            _log.critical("device_broken", extra={"facts": {"exit_status": EXIT_BROKEN}})
            return EXIT_BROKEN
        self._path.unlink(missing_ok=True)
        if self._loaded:
            self._computer.close()
        return 0

    def stop(self) -> None:
        """Take no more requests, and end when those that were taken are answered. May be called in a signal handler."""
        self._stopping = True
        self.wake()

    def wake(self) -> None:
        """Make the main thread look around."""
        os.eventfd_write(self._wake, 1)

    # ---- the computing thread --------------------------------------------------------------------------------------

    def _compute(self) -> None:
        try:
            self._computer.load()
            self._loaded = True
            self.wake()
            self._engine.run()
        except Exception as error:  # noqa: BLE001 - whatever a model can raise while it is loaded
            self._failure = error
            facts = {"error": type(error).__name__, "reason": str(error)}
            event = "compute_failed" if self._loaded else "not_started"
            _log.critical(event, exc_info=self._loaded, extra={"facts": facts})
        finally:
            # Also when the model has raised SystemExit: without this thread nothing would ever be answered.
            self._finished = True
            self.wake()

    # ---- the main thread -------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        timeout = HEALTH_TICK_SECONDS if self._engine.asking() else REPORT_SECONDS
        for file, _ in self._epoll.poll(timeout):
            if file == self._wake:
                os.eventfd_read(self._wake)
                self._look_around()
            elif file == self._listening.fileno():
                self._accept()
            else:
                self._read(self._links[file])
        self._send_replies()
        for key, reply in self._engine.impatient():
            self._reply(key, reply)
        if self._metrics is not None:
            self._metrics.waiting(self._engine.waiting())
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            self._report()

    def _look_around(self) -> None:
        if self._stopping and not self._loaded:
            # Nobody has been promised anything yet, and loading cannot be interrupted.
            self._finished = True
        elif self._stopping:
            self._engine.stop()
        if self._loaded and not self._said_ready:
            self._said_ready = True
            self._say_to_all((READY, self._computer.facts))

    def _accept(self) -> None:
        try:
            link = channel.accept(self._listening)
        except BlockingIOError:
            # It has gone again.
            return
        except OSError as error:
            # No descriptors are left, most likely. Those who are connected are served all the same.
            _log.error("connection_not_taken", extra={"facts": {"reason": str(error), "links": len(self._links)}})
            time.sleep(ACCEPT_PAUSE_SECONDS)
            return
        self._links[link.fileno()] = link
        self._epoll.register(link.fileno(), select.EPOLLIN)
        self._send(link, (READY, self._computer.facts) if self._said_ready else (LOADING,))

    def _read(self, link: Link) -> None:
        try:
            message = link.receive()
        except channel.LinkClosed:
            self._forget(link)
            return
        except Exception:  # noqa: BLE001 - unpickling can raise anything
            # What cannot be read has no number that could be answered; the web worker sees the end of the link.
            _log.exception("message_unreadable")
            self._forget(link)
            return
        kind, number = message[0], message[1]
        key = (link, number)
        reply: Reply | None
        if not self._said_ready:
            reply = NotReady("The model is being loaded.", retry_after=1)
        elif kind == WORK:
            _, _, deadline, cost, request_id, item = message
            reply = self._engine.offer(Work(key, item, cost, deadline, request_id))
            link.number = number
        elif kind == CANCEL:
            reply = self._engine.cancel(key)
        elif kind == EXPIRE:
            reply = self._engine.expire(key)
        elif kind == HEALTH:
            reply = self._engine.ask_health(key)
        else:
            raise RuntimeError(f"a web worker sent {kind!r}, which nobody knows")
        if reply is not None:
            self._reply(key, reply)

    def _send_replies(self) -> None:
        for key, reply in self._engine.replies():
            self._reply(key, reply)

    def _reply(self, key: Any, reply: Reply) -> None:
        link, number = key
        if isinstance(reply, Done):
            try:
                self._send(link, (DONE, number, reply.output, reply.started, reply.ended, reply.batch))
            except Exception as error:  # noqa: BLE001 - pickling can raise anything
                _log.exception("output_not_sent")
                self._send(link, (ERROR, number, ModelFailed(f"{type(error).__name__}: {error}")))
        elif isinstance(reply, Healthy):
            self._send(link, (HEALTHY, number, reply.last_success, reply.age))
        else:
            self._send(link, (ERROR, number, reply))

    def _say_to_all(self, message: channel.Message) -> None:
        for link in list(self._links.values()):
            self._send(link, message)

    def _send(self, link: Link, message: channel.Message) -> None:
        try:
            link.send(message)
        except channel.LinkClosed:
            self._forget(link)

    def _forget(self, link: Link) -> None:
        """Let go of a web worker's connection, and of what it waited for."""
        if self._links.pop(link.fileno(), None) is None:
            return
        self._epoll.unregister(link.fileno())
        self._engine.cancel((link, link.number))
        link.close()

    def _report(self) -> None:
        self._reported = time.monotonic()
        facts = self._engine.counts()
        if any(facts[name] for name in ("batches", "refused", "late", "left")):
            _log.info("batches", extra={"facts": facts})


def main() -> int:
    """Run the model process with the settings of the environment; give the exit status."""
    logs.configure("info", {})
    try:
        config = Config.from_environ(os.environ)
        logs.configure(
            config.log_level, {"service": config.service, "device": config.device, "release": config.release}
        )
        process = ModelProcess(config, loader.model_class(config.model)())
    except Exception as error:  # noqa: BLE001 - whatever it is, the log says it in one line, as for a web worker
        _log.critical("not_started", extra={"facts": {"error": type(error).__name__, "reason": str(error)}})
        return EXIT_FAILED

    def stop(_signal: int, _frame: FrameType | None) -> None:
        process.stop()

    # Each thread of each web worker has a connection.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signal.signal(signal.SIGTERM, stop)
    # A Ctrl-C in the terminal of a vassal run by hand reaches every process of it; uWSGI stops this one in its turn.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = process.run()
    _log.info("stopped", extra={"facts": {"pid": os.getpid(), "exit_status": status}})
    return status


if __name__ == "__main__":
    # Not through the interpreter's teardown: the computing thread may be in the middle of something.
    end_process(main())
