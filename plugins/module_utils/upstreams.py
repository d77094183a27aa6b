"""Which devices nginx leads requests to at this moment, and how to take one out and put it back in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from ansible.module_utils.deployments import write_json
from ansible.module_utils.fleet_socket import SocketError, connect
from ansible.module_utils.nginx_configuration import Change, Configuration, NginxError, alone
from ansible.module_utils.vassal_files import ADDRESS

CONNECT_SECONDS = 2
#: Who takes devices out that are ill; what a person took out it leaves alone.
WATCH = "fleet-watch"
#: Where things are on a host, as options of the modules that speak with nginx about devices.
PLACES = {
    "devices_dir": "/etc/fleet/devices",
    "upstreams_dir": "/etc/nginx/upstreams",
    "nginx_root": "/etc/nginx",
    "nginx_state_file": "/var/lib/fleet/nginx.json",
    "pid_file": "/run/nginx.pid",
    "drained_file": "/var/lib/fleet/drained.json",
    "run_dir": "/run/fleet",
    "log_dir": "/var/log/fleet",
    "measured_file": "/var/lib/fleet/measured.json",
    "deployed_file": "/etc/fleet/deployed.json",
    "deployments_dir": "/etc/fleet/deployments",
}


def mark(text: str, addresses: Iterable[str], out: bool) -> str:
    """Put ``down`` on the servers of some addresses in an upstream file, or take it away."""
    for address in addresses:
        line = re.compile(rf"^\s*server (?:unix:)?{re.escape(address)}(?: [^;\n]*)?;$", re.MULTILINE)
        text = line.sub(lambda found: found[0][:-1].removesuffix(" down") + (" down;" if out else ";"), text)
    return text


class Drained:
    """Devices that a person or the watch took out, with who, when and why; they stay out over deploys and reboots."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> dict[str, dict]:
        """By device."""
        try:
            found: dict[str, dict] = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return {}
        return found

    def write(self, devices: Mapping[str, dict]) -> None:
        """Replace all."""
        write_json(self.file, dict(devices))


class Upstreams:
    """The upstreams that nginx of a host has loaded.

    Args:
        options: ``devices_dir``, ``upstreams_dir``, ``nginx_root``, ``nginx_state_file``, ``nginx_program``, ``pid_file``,
            as in the module ``host_switch``.
        wait_seconds: longest time for requests to finish when nginx reloads.
    """

    def __init__(self, options: Mapping, wait_seconds: int) -> None:
        self.options = options
        self.wait_seconds = wait_seconds
        self.devices_dir = Path(options["devices_dir"])
        self.upstreams_dir = Path(options["upstreams_dir"])
        self.state_file = Path(options["nginx_state_file"])

    def folder(self, files: list[dict], links: list[dict], ports: Collection[int] = ()) -> Configuration:
        """nginx's folder with wanted files."""
        names = {
            "root": "nginx_root",
            "state_file": "nginx_state_file",
            "nginx": "nginx_program",
            "pid_file": "pid_file",
        }
        places = {name: self.options[given] for name, given in names.items()}
        wanted = {"files": files, "links": links, "ports": list(ports), "wait_seconds": self.wait_seconds}
        return Configuration({**places, **wanted})

    def configuration(self, out: Collection[str], devices: Collection[str] | None = None) -> Configuration:
        """What nginx is configured with now, with just the devices of ``out`` out; others than ``devices`` stay as they are."""
        root = Path(self.options["nginx_root"])
        files, links = [], []
        for name in self.folder([], []).state.get("placed", []):
            path = root / name
            if path.is_symlink():
                links.append({"path": name, "target": str(path.readlink())})
            elif path.is_file():
                files.append({"path": name, "content": path.read_text()})
        for one in files:
            if one["path"].startswith("upstreams/"):
                for device in self.known_devices() if devices is None else devices:
                    one["content"] = mark(one["content"], self.addresses_on(device), device in out)
        return self.folder(files, links)

    def load(self, wanted: Callable[[], Configuration]) -> dict:
        """Bring nginx to a configuration that is worked out while nobody else changes it; gives what ``apply`` gives.

        Raises:
            NginxError: nothing was changed, or requests of the former configuration go on.
        """
        with alone(self.state_file):
            configuration = wanted()
            change = configuration.begin()
        return configuration.finish(change)

    def turn(
        self, drained: Drained, device: str, entry: dict | None, *, only_of: str = ""
    ) -> tuple[Configuration, Change]:
        """Have nginx lead no new request to a device, or lead there again; others stay as they are.

        Args:
            drained: where it is noted.
            device: its name.
            entry: ``by``, ``since``, ``why``, and what else is to be known of it; ``None`` takes it back in.
            only_of: whose entry may be replaced, if there is one; anybody's when empty.

        Returns:
            What was begun; its ``finish`` waits until nothing is on its way there any more.

        Raises:
            NginxError: nothing was changed.
        """
        with alone(self.state_file):
            former = drained.read()
            if only_of and (whose := former.get(device, {}).get("by", only_of)) != only_of:
                raise NginxError(f"{device} was taken out by {whose} meanwhile; nothing was changed.")
            wanted = {name: value for name, value in former.items() if name != device}
            if entry is not None:
                wanted[device] = entry
            # Noted first: a run that is cut off here leaves a device out rather than half in.
            drained.write(wanted)
            try:
                configuration = self.configuration(wanted, [device])
                return configuration, configuration.begin()
            except NginxError:
                drained.write(former)
                raise

    def known_devices(self) -> list[str]:
        """Devices that have a folder on this host, whether they are wanted or not."""
        return (
            sorted(path.name for path in self.devices_dir.iterdir() if path.is_dir())
            if self.devices_dir.is_dir()
            else []
        )

    def vassals_on(self, device: str) -> list[Path]:
        """Files of all vassals of a device."""
        return sorted((self.devices_dir / device / "vassals").glob("*.ini"))

    def addresses_on(self, device: str) -> list[str]:
        """Where the vassals of a device listen."""
        matches = [ADDRESS.search(path.read_text()) for path in self.vassals_on(device)]
        return [match[1] for match in matches if match]

    def leads_to(self, address: str) -> bool:
        """Whether an upstream file names an address, and not as one that is out."""
        line = re.compile(rf"^\s*server (?:unix:)?{re.escape(address)}(?: [^;\n]*)?;$", re.MULTILINE)
        found = [match[0] for file in self.upstreams_dir.glob("*.conf") for match in line.finditer(file.read_text())]
        return any(not text.endswith(" down;") for text in found)

    def serves(self, device: str) -> bool:
        """Whether nginx runs and leads to a vassal of a device that takes connections."""
        return bool(self.folder([], []).master()) and any(
            self.leads_to(address) and answers(address) for address in self.addresses_on(device)
        )

    def others(self, device: str) -> list[str]:
        """Other devices that take requests."""
        return [name for name in self.known_devices() if name != device and self.serves(name)]


def answers(address: str) -> bool:
    """Whether somebody takes connections at an address."""
    try:
        connect(address, CONNECT_SECONDS).close()
    except SocketError:
        return False
    return True
