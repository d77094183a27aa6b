"""gunicorn and Flask: two worker processes, one for each core, with threads that keep connections open.

gthread with keep-alive, because its sync worker closes each connection; the parser in C (extra `fast`) is installed,
and no access log is written. It has no batching, so that it serves `echo` only.
"""

import models
from flask import Flask, Response, request
from settings import PORT

wsgi_app = "serve_gunicorn:app"
bind = f"127.0.0.1:{PORT}"
workers = 2
worker_class = "gthread"
threads = 4
keepalive = 60
backlog = 2048

app = Flask(__name__, static_folder=None)


@app.post("/predict")  # type: ignore[untyped-decorator]
def predict() -> Response:
    return Response(models.dumps(models.echo(request.get_data())), content_type="application/json")
