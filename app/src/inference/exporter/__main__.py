"""Serve metrics and live view of this host on a Unix socket."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from types import FrameType

from prometheus_client import CollectorRegistry, make_wsgi_app
from werkzeug import Request, Response
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from inference import logs
from inference.errors import ConfigError
from inference.exporter.gpus import Gpus
from inference.exporter.live import status
from inference.exporter.settings import Settings
from inference.exporter.state import look
from inference.exporter.text import Families

_log = logging.getLogger("inference.exporter")


class Handler(WSGIRequestHandler):
    """Without a line for each scrape; nginx has one."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Write nothing."""

    def address_string(self) -> str:
        """Who asks; on a Unix socket nobody has an address."""
        return "-"


def serve(settings: Settings) -> BaseWSGIServer:
    """Listen; the server that is given answers when its ``serve_forever`` runs.

    Raises:
        OSError: the socket cannot be made.
    """
    gpus = Gpus()
    registry = CollectorRegistry()
    registry.register(Families(partial(look, settings, gpus)))
    metrics = make_wsgi_app(registry)

    @Request.application
    def application(request: Request) -> Response:
        """Answer one request."""
        if request.path == "/metrics":
            return Response.from_app(metrics, request.environ)
        if request.path == "/status.json":
            text = json.dumps(status(settings, look(settings, gpus)), ensure_ascii=False)
            return Response(text, content_type="application/json", headers={"Cache-Control": "no-store"})
        return Response("There are /metrics and /status.json.\n", 404, content_type="text/plain")

    # Another process may have left it; two exporters of one host are not run by one service manager.
    settings.socket.unlink(missing_ok=True)
    before = os.umask(0o117)
    try:
        server = make_server(f"unix://{settings.socket}", 0, application, threaded=True, request_handler=Handler)
    finally:
        os.umask(before)
    shutil.chown(settings.socket, group=settings.socket_group)
    return server


def main() -> int:
    """Run until SIGTERM; give the exit status."""
    logs.configure("info", {"program": "exporter"})
    try:
        if len(sys.argv) != 2:
            raise ConfigError("usage: python -m inference.exporter SETTINGS.json")
        server = serve(Settings.read(Path(sys.argv[1])))
    except (ConfigError, OSError, LookupError) as error:
        _log.critical("not_started", extra={"facts": {"error": type(error).__name__, "reason": str(error)}})
        return 1

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    _log.info("started", extra={"facts": {"pid": os.getpid()}})
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
