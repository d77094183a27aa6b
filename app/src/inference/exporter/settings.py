"""Where the exporter finds what it tells of."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from inference.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the exporter: a JSON object with these members.

    Attributes:
        host: the host's name in the inventory.
        socket: path of the Unix socket to serve on; its folder is there.
        socket_group: group that may connect, nginx's.
        devices: each with ``name``, ``kind``, ``uuid`` and ``model``.
        routes: route of each service, by its name.
        nginx_status: URL of nginx's own numbers (stub_status).
        nginx_dir: folder of nginx's configuration.
        devices_dir: folder of the devices' vassals.
        drained_file: devices that are out, with who took them out and why.
        deployed_file: which deployment is in force.
        watch_file: what the watch has seen of the GPUs' driver.
        disks: folders whose file systems are told of.
    """

    host: str
    socket: Path
    socket_group: str
    devices: list[dict[str, str]]
    routes: dict[str, str]
    nginx_status: str
    nginx_dir: Path = Path("/etc/nginx")
    devices_dir: Path = Path("/etc/fleet/devices")
    drained_file: Path = Path("/var/lib/fleet/drained.json")
    deployed_file: Path = Path("/etc/fleet/deployed.json")
    watch_file: Path = Path("/run/fleet-watch/state.json")
    disks: tuple[Path, ...] = (Path("/"), Path("/opt/fleet"), Path("/var/log"))

    @classmethod
    def read(cls, file: Path) -> Settings:
        """Read them.

        Raises:
            ConfigError: the file is no JSON object, or has other members.
        """
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file}: not readable as JSON: {error}") from error
        known = {field.name: str(field.type) for field in fields(cls)}
        if not isinstance(found, dict) or set(found) - set(known):
            raise ConfigError(
                f"{file}: must hold a JSON object with members out of {', '.join(known)}, not {found!r:.200}"
            )
        values: dict[str, Any] = {
            name: Path(value) if known[name] == "Path" else tuple(map(Path, value)) if name == "disks" else value
            for name, value in found.items()
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"{file}: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty when there is none that can be read, as before the first deploy."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
