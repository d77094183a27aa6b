#!/usr/bin/python
"""Tell what runs on a host, device by device."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_status
short_description: Devices and vassals of a host with their workers
options:
  devices: {description: Devices, as in C(fleet_devices)., type: list, elements: dict, required: true}
  devices_dir: {description: Folder of the devices., type: path, default: /etc/fleet/devices}
  run_dir: {description: Folder of the sockets., type: path, default: /run/fleet}
  drained_file: {description: Devices that a person took out., type: path, default: /var/lib/fleet/drained.json}
  deployed_file: {description: Which deployment is in force., type: path, default: /etc/fleet/deployed.json}
  watch_file: {description: What the watch of the host says., type: path, default: /run/fleet-watch/state.json}
"""

import datetime
import json
import re
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet_socket import SocketError, stats, stats_path
from ansible.module_utils.vassal_files import workers_of

#: The watch says something every few seconds; it may wait for a deploy meanwhile.
SILENT_SECONDS = 120


def vassal_status(path: Path, device: str, run_dir: str) -> dict:
    """What a vassal's file and its stats say."""
    text = path.read_text()
    release = re.search(r"^chdir = .*/([^/\n]+)$", text, re.MULTILINE)
    wanted_workers = workers_of(path)
    found: dict = {
        "name": path.stem,
        "service": path.stem.split("--")[0],
        "release": release[1] if release else "?",
        "workers": wanted_workers,
        "accepting": 0,
        "busy": 0,
        "requests": 0,
        "since": datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.timezone.utc).isoformat(
            timespec="seconds"
        ),
        "state": "ok",
    }
    if not re.search(r"^stats = ", text, re.MULTILINE):
        return {**found, "state": "NO STATS"}
    try:
        state = stats(stats_path(run_dir, device, path.stem))
    except SocketError as error:
        return {**found, "state": "DOWN", "error": str(error)}
    workers = state.get("workers", [])
    found["accepting"] = sum(1 for one in workers if one["accepting"] and one["pid"])
    found["busy"] = sum(1 for one in workers if one["status"] == "busy")
    found["requests"] = sum(one["requests"] for one in workers)
    if found["accepting"] < wanted_workers:
        found["state"] = "STARTING" if found["accepting"] == 0 else "PARTLY"
    return found


def read_json(path: str) -> dict:
    """A JSON object from a file; empty when there is none that can be read."""
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def watch_status(path: str) -> dict | None:
    """What the watch says, with what is amiss of itself; ``None`` where there is none."""
    found = read_json(path)
    if not found:
        return None
    age = time.time() - Path(path).stat().st_mtime
    if age > SILENT_SECONDS:
        silent = f"fleet-watch has said nothing for {age:.0f} s. Look: journalctl -u fleet-watch -n 50"
        found["amiss"] = [silent, *found.get("amiss", [])]
    return found


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "devices": {"type": "list", "elements": "dict", "required": True},
            "devices_dir": {"type": "path", "default": "/etc/fleet/devices"},
            "run_dir": {"type": "path", "default": "/run/fleet"},
            "drained_file": {"type": "path", "default": "/var/lib/fleet/drained.json"},
            "deployed_file": {"type": "path", "default": "/etc/fleet/deployed.json"},
            "watch_file": {"type": "path", "default": "/run/fleet-watch/state.json"},
        },
        supports_check_mode=True,
    )
    devices = []
    drained = read_json(module.params["drained_file"])
    deployed = read_json(module.params["deployed_file"])
    for device in module.params["devices"]:
        files = sorted((Path(module.params["devices_dir"]) / device["name"] / "vassals").glob("*.ini"))
        vassals = [vassal_status(path, device["name"], module.params["run_dir"]) for path in files]
        devices.append({**device, "vassals": vassals, "drained": drained.get(device["name"])})
    kept = {name: deployed[name] for name in ("id", "at", "by") if name in deployed}
    watch = watch_status(module.params["watch_file"])
    module.exit_json(changed=False, status={"devices": devices, "deployed": kept or None, "watch": watch})


if __name__ == "__main__":
    main()
