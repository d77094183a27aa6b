"""The WSGI entry: importing this module loads the model, or fails and says why.

Use ``module = inference.wsgi:app`` with uWSGI, or ``flask --app inference.wsgi run --port 8100``.
"""

from __future__ import annotations

import logging
import os
import time
from functools import partial

from inference import logs, memory, server
from inference.app import InferenceApp, create_app
from inference.config import Config

_log = logging.getLogger(__name__)


def load() -> InferenceApp:
    """Build the app from the environment; log how long it took, or why it could not be built.

    Raises:
        ConfigError: the settings are wrong, or uWSGI's are.
        ArtifactError: a file of the release is missing or damaged.
        SampleError: the model does not give the known answer.
    """
    began = time.monotonic()
    logs.configure("info", {})
    try:
        server.refresh_environ()
        config = Config.from_environ(os.environ)
        logs.configure(
            config.log_level, {"service": config.service, "device": config.device, "release": config.release}
        )
        server.check()
        if config.mode == "batch":
            # Each request that waits has a thread.
            memory.share_pools()
        application = create_app(config)
    except Exception as error:
        _log.critical("not_started", extra={"facts": {"error": type(error).__name__, "reason": str(error)}})
        raise
    server.at_exit(partial(stop, application))
    _log.info("started", extra={"facts": {"pid": os.getpid(), "seconds": round(time.monotonic() - began, 3)}})
    return application


def stop(application: InferenceApp) -> None:
    """Free the device before this process ends."""
    application.runner.close()
    _log.info("stopped", extra={"facts": {"pid": os.getpid()}})


app = load()
