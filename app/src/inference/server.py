"""What the app needs to know of the server that runs it: uWSGI, or any other.

Everything here works without uWSGI too, so that ``flask run`` serves the same app.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import signal
from collections.abc import Callable
from types import ModuleType

from inference.errors import ConfigError

_log = logging.getLogger(__name__)


def uwsgi() -> ModuleType | None:
    """Give uWSGI's own module, which exists only inside uWSGI."""
    try:
        import uwsgi as module
    except ImportError:
        return None
    return module


def refresh_environ() -> None:
    """Copy variables set in the C environment after Python's start into ``os.environ``.

    The ``pyuwsgi`` wheel starts Python before it reads the ini, so ``env = NAME=value`` lines reach
    the process's environment, but not ``os.environ``, which is a copy made at Python's start.
    """
    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    index = 0
    while (entry := environ[index]) is not None:
        name, separator, value = os.fsdecode(entry).partition("=")
        if separator and name and os.environ.get(name) != value:
            os.environ[name] = value
        index += 1


def check() -> None:
    """Refuse uWSGI settings that this app cannot work under.

    Raises:
        ConfigError: a setting is missing; the message names it.
    """
    module = uwsgi()
    if module is None:
        return
    if module.worker_id() == 0:
        raise ConfigError(
            "uWSGI loads the app in its master: set 'lazy-apps = true', as CUDA and threads do not survive a fork"
        )
    if not {"enable-threads", "threads"} & set(module.opt):
        raise ConfigError("uWSGI runs no Python threads: set 'enable-threads = true', which the watchdog needs")


def at_exit(hook: Callable[[], None]) -> None:
    """Run ``hook`` when this process ends in order, before the interpreter is torn down."""
    module = uwsgi()
    if module is None:
        atexit.register(hook)
    else:
        module.atexit = hook  # type: ignore[attr-defined]


def connection_fd() -> int | None:
    """Give the descriptor of the connection on which this thread's request came; None outside of uWSGI."""
    module = uwsgi()
    return None if module is None else module.connection_fd()


def retire() -> None:
    """Ask uWSGI to replace this worker once the requests it holds are answered.

    Other servers have nobody who would start a new worker: there the process stays, not ready.
    """
    module = uwsgi()
    if module is None:
        _log.error("worker_not_replaced", extra={"facts": {"reason": "this server does not restart workers"}})
        return
    _log.error("worker_retires", extra={"facts": {"worker": module.worker_id(), "pid": os.getpid()}})
    os.kill(os.getpid(), signal.SIGHUP)
