"""What runs on the devices: vassals by their files, uWSGI's stats of them, and the counts that they keep."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector

#: Seconds to wait for uWSGI's stats, which its master gives at once when it lives.
STATS_SECONDS = 1.0

_RELEASE = re.compile(r"^chdir = .*/([^/\n]+)$", re.MULTILINE)
_ADDRESS = re.compile(r"^(?:http-)?socket = (\S+)$", re.MULTILINE)
_METRICS = re.compile(r"^env = INFERENCE_METRICS=(\S+)$", re.MULTILINE)
_STATS = re.compile(r"^stats = (\S+)$", re.MULTILINE)
_SERVER = re.compile(r"^\s*server (?:unix:)?(\S+?)(?: [^;\n]*?)?( down)?;$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Vassal:
    """One release of one service on one device.

    Attributes:
        service: its name.
        device: the device's name.
        release: id of the release.
        address: where it listens.
        stats: what uWSGI says of it; None when it does not answer.
        counts: metrics of all its processes, added up.
    """

    service: str
    device: str
    release: str
    address: str
    stats: dict[str, Any] | None
    counts: list[Metric] = field(default_factory=list)

    @property
    def labels(self) -> dict[str, str]:
        """Labels of its series."""
        return {"service": self.service, "device": self.device, "release": self.release}

    def workers(self) -> dict[str, int]:
        """Number of workers in each state."""
        found = {"idle": 0, "busy": 0, "other": 0}
        for worker in (self.stats or {}).get("workers", []):
            # With threads, a worker's status is that of the request which came last.
            busy = worker["status"] == "busy" or any(core.get("in_request") for core in worker.get("cores", []))
            found["busy" if busy else "idle" if worker["status"] == "idle" else "other"] += 1
        return found

    def total(self, name: str, **labels: str) -> float:
        """Sum of its samples of a name that have these labels."""
        samples = (sample for metric in self.counts for sample in metric.samples)
        return sum(
            sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()
        )


def vassals(devices_dir: Path, devices: Iterable[str]) -> list[Vassal]:
    """All vassals on some devices, as they are now."""
    found = []
    for device in devices:
        for file in sorted((devices_dir / device / "vassals").glob("*.ini")):
            try:
                text = file.read_text(encoding="utf-8")
            except OSError:
                # It was removed since, by a switch.
                continue
            release, address = _RELEASE.search(text), _ADDRESS.search(text)
            metrics, stats = _METRICS.search(text), _STATS.search(text)
            found.append(
                Vassal(
                    file.stem.split("--")[0],
                    device,
                    release[1] if release else "?",
                    address[1] if address else "",
                    _stats(stats[1]) if stats else None,
                    _counts(Path(metrics[1])) if metrics else [],
                )
            )
    return found


def led_to(nginx_dir: Path) -> set[str]:
    """Addresses that nginx leads requests to."""
    found = set()
    for file in sorted((nginx_dir / "upstreams").glob("*.conf")):
        for address, down in _SERVER.findall(file.read_text(encoding="utf-8")):
            if not down:
                found.add(address)
    return found


def _stats(address: str) -> dict[str, Any] | None:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with link:
            link.settimeout(STATS_SECONDS)
            link.connect(address)
            parts = []
            while part := link.recv(65536):
                parts.append(part)
        found: dict[str, Any] = json.loads(b"".join(parts))
    except (OSError, ValueError):
        return None
    return found


def _counts(folder: Path) -> list[Metric]:
    files = [str(file) for file in sorted(folder.glob("*.db"))]
    return list(MultiProcessCollector.merge(files, accumulate=True))  # type: ignore[no-untyped-call]
