"""One process a host that tells Prometheus, and the page ``/status``, how the host's devices and vassals are.

``python -m inference.exporter SETTINGS`` serves ``/metrics`` and ``/status.json`` on a Unix socket. It only reads: the
files of the deployment, the counts that vassals keep (:mod:`inference.metrics`), uWSGI's stats, nginx's, and the GPUs'
driver.
"""
