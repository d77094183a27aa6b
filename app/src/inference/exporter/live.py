"""The state of the host as the page ``/status`` shows it."""

from __future__ import annotations

import time
from typing import Any

from inference import logs
from inference.exporter.settings import Settings
from inference.exporter.state import Device, State
from inference.exporter.vassals import Vassal


def status(settings: Settings, state: State) -> dict[str, Any]:
    """Give it as JSON: the host with its release, and devices with their services."""
    return {
        "host": settings.host,
        "release": state.deployed.get("id"),
        "since": None if state.since is None else logs.timestamp(state.since),
        "time": logs.timestamp(time.time()),
        "devices": [_device(device, settings.routes) for device in state.devices],
    }


#: Members of the view by those of drained.json.
_OUT = {"by": "by", "why": "why", "at": "since"}


def _device(device: Device, routes: dict[str, str]) -> dict[str, Any]:
    gpu = device.gpu
    return {
        "name": device.name,
        "kind": device.kind,
        "model": device.model,
        "in_rotation": device.in_rotation,
        "out": device.out and {name: device.out.get(of, "") for name, of in _OUT.items()},
        "memory": gpu and {"used_bytes": gpu.memory_used, "total_bytes": gpu.memory_total},
        "utilization": gpu and gpu.utilization,
        "temperature": gpu and gpu.temperature,
        "services": [_service(vassal, routes) for vassal in device.vassals],
    }


def _service(vassal: Vassal, routes: dict[str, str]) -> dict[str, Any]:
    workers = vassal.workers()
    most = int(vassal.total("fleet_queue_items_max"))
    waiting = vassal.total("fleet_queue_items") if most else (vassal.stats or {}).get("listen_queue", 0)
    return {
        "name": vassal.service,
        "route": routes.get(vassal.service),
        "release": vassal.release,
        "workers": sum(workers.values()),
        "busy": workers["busy"],
        "queue": int(waiting),
        "queue_max": most or None,
        "in_flight": int(vassal.total("fleet_requests_in_flight")),
        # Without those for health, of which edges and the watch send many.
        "requests": int(vassal.total("fleet_requests_total", route=routes.get(vassal.service, ""))),
        "rejected": int(vassal.total("fleet_requests_rejected_total")),
    }
