"""The application factory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask
from flask.json.provider import DefaultJSONProvider

from inference import lifecycle, loader, problems
from inference.batch_runner import BatchRunner
from inference.blueprints import health, service
from inference.config import Config
from inference.metrics import of_worker
from inference.model import Model
from inference.runner import ModelRunner, Runner

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class StrictJSONProvider(DefaultJSONProvider):
    """JSON in the order the model gives it, as UTF-8, and without NaN, which is not JSON."""

    sort_keys = False
    ensure_ascii = False

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        """Serialize ``obj``.

        Raises:
            ValueError: a number is not finite.
        """
        return super().dumps(obj, **{"allow_nan": False, **kwargs})


class InferenceApp(Flask):
    """A Flask app around one loaded model.

    The service's own route is answered by :class:`~inference.blueprints.service.Service`; Flask has everything else.
    """

    json_provider_class = StrictJSONProvider

    def __init__(self, config: Config, runner: ModelRunner) -> None:
        super().__init__("inference", static_folder=None)
        #: The model and its health.
        self.runner = runner
        metrics = of_worker(config)
        self._service = service.Service(config, runner, metrics)
        lifecycle.register(self, config, metrics)

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        if self._service.is_for(environ):
            return self._service(environ, start_response)
        return super().wsgi_app(environ, start_response)


def create_app(config: Config | None = None, model: Model[Any, Any] | None = None) -> InferenceApp:
    """Load a model, try it on its sample and build the app around it; in mode batch, wait for the process that does.

    Args:
        config: the settings; read from the environment when not given.
        model: a model that is not set up yet; made from ``config.model`` when not given.

    Raises:
        ConfigError: the settings are wrong.
        ArtifactError: a file of the release is missing or damaged.
        SampleError: the model does not give the known answer.
        ModelProcessError: the model process did not start.
    """
    config = config or Config.from_environ(os.environ)
    model = model or loader.model_class(config.model)()
    runner: ModelRunner = BatchRunner(config, model) if config.mode == "batch" else Runner(config, model)
    app = InferenceApp(config, runner)
    problems.register(app)
    app.register_blueprint(service.create(config))
    app.register_blueprint(health.create(config, runner))
    runner.start()
    return app
