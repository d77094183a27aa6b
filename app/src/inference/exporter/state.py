"""The host at one moment, as :mod:`inference.exporter.text` and :mod:`inference.exporter.live` tell of it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from inference.exporter.gpus import Gpu, Gpus
from inference.exporter.settings import Settings, read_json
from inference.exporter.vassals import Vassal, led_to, vassals

#: Seconds to wait for nginx's own numbers.
NGINX_SECONDS = 1.0

_CERTIFICATE = re.compile(r"^\s*ssl_certificate\s+([^\s;$]+);", re.MULTILINE)
_NGINX = re.compile(
    r"Active connections: (?P<active>\d+).*?requests\s+\d+ \d+ (?P<requests>\d+)"
    r"\s+Reading: (?P<reading>\d+) Writing: (?P<writing>\d+) Waiting: (?P<waiting>\d+)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Device:
    """One device of the host.

    Attributes:
        name: of the device.
        kind: ``gpu``, ``mig`` or ``cpu``.
        model: of the card or CPU.
        in_rotation: whether nginx leads requests to a vassal of it.
        out: ``by``, ``at`` and ``why`` when somebody took it out.
        gpu: what the driver says; None for a CPU, and where there is no driver.
        xids: number of errors that the driver reported, by their Xid.
        vassals: what runs on it.
    """

    name: str
    kind: str
    model: str
    in_rotation: bool
    out: dict[str, str] | None
    gpu: Gpu | None
    xids: dict[str, int]
    vassals: list[Vassal]


@dataclass(frozen=True, slots=True)
class State:
    """The host.

    Attributes:
        deployed: ``id`` of the release in force, ``at`` and ``by``; empty before the first deploy.
        devices: all of them.
        nginx: ``active``, ``reading``, ``writing``, ``waiting`` and ``requests``; empty when it does not answer.
        certificates: when they end, in seconds since the epoch, by their files.
        disks: free bytes and size of the file systems, by folder.
    """

    deployed: dict[str, Any]
    devices: list[Device]
    nginx: dict[str, int]
    certificates: dict[str, float]
    disks: dict[str, tuple[int, int]]

    @property
    def since(self) -> float | None:
        """When the deployment came into force, in seconds since the epoch."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return datetime.fromisoformat(self.deployed["at"].replace("Z", "+00:00")).timestamp()
        return None


def look(settings: Settings, gpus: Gpus) -> State:
    """Look at the host."""
    drained, watched = read_json(settings.drained_file), read_json(settings.watch_file).get("xids", {})
    running = vassals(settings.devices_dir, [device["name"] for device in settings.devices])
    asked = led_to(settings.nginx_dir)
    devices = []
    for device in settings.devices:
        own = [vassal for vassal in running if vassal.device == device["name"]]
        devices.append(
            Device(
                device["name"],
                device["kind"],
                device["model"],
                any(vassal.address in asked for vassal in own),
                drained.get(device["name"]),
                None if device["kind"] == "cpu" else gpus.ask(device["uuid"]),
                watched.get(device["name"], {}),
                own,
            )
        )
    return State(
        read_json(settings.deployed_file),
        devices,
        _nginx(settings.nginx_status),
        _certificates(settings.nginx_dir),
        _disks(settings.disks),
    )


def _nginx(url: str) -> dict[str, int]:
    try:
        # The address is the role's own, on the loopback.
        with urllib.request.urlopen(url, timeout=NGINX_SECONDS) as answer:  # noqa: S310
            match = _NGINX.search(answer.read(4096).decode())
    except OSError:
        return {}
    return {name: int(value) for name, value in match.groupdict().items()} if match else {}


def _certificates(nginx_dir: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for site in sorted((nginx_dir / "sites-enabled").glob("*.conf")):
        with contextlib.suppress(OSError):
            for name in _CERTIFICATE.findall(site.read_text(encoding="utf-8")):
                file = nginx_dir / name.strip("\"'")
                end = _end_of(file, file.stat().st_mtime)
                if end is not None:
                    found[str(file)] = end
    return found


@lru_cache(maxsize=64)
def _end_of(file: Path, changed: float) -> float | None:
    """When a certificate ends; asked once for each change of its file."""
    command = ["openssl", "x509", "-noout", "-enddate", "-in", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
        ends = datetime.strptime(done.stdout.strip().removeprefix("notAfter="), "%b %d %H:%M:%S %Y %Z")
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    # It is in GMT, of which strptime keeps the name only.
    return (ends - datetime(1970, 1, 1)).total_seconds()


def _disks(folders: Iterable[Path]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            facts = os.statvfs(folder)
            # What others than root may use.
            found[str(folder)] = facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize
    return found
