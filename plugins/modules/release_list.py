#!/usr/bin/python
"""Tell which releases lie on a host, and which of them was in force when."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_list
short_description: Releases on a host, the newest deployment first
options:
  root: {description: Folder of all releases., type: path, default: /opt/fleet}
  deployed_file: {description: Which deployment is in force., type: path, default: /etc/fleet/deployed.json}
  deployments_dir: {description: Records of deployments., type: path, default: /etc/fleet/deployments}
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.deployments import Deployments

#: How the name of a record begins: the time, without separators.
RECORDED = re.compile(r"^(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})Z")


def size_of(folder: Path) -> int:
    """Bytes that a folder takes, as ``du`` counts them: links are not followed, and a file with two names counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for path in [folder, *folder.rglob("*")]:
        # A release may be deleted by another run at this moment.
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            total += found.st_blocks * 512
    return total


def recorded_at(name: str) -> str:
    """When a deployment was recorded, from the name of its record; empty when the name does not say."""
    match = RECORDED.match(name)
    return "{}-{}-{}T{}:{}:{}+00:00".format(*match.groups()) if match else ""


def records(deployments: Deployments) -> Iterator[tuple[str, dict]]:
    """Names and contents of all records that can be read, the newest first."""
    for name in deployments.names():
        yield name, deployments.read(name)


def listing(root: Path, deployments: Deployments) -> list[dict]:
    """The releases of a host."""
    current = deployments.current()
    former = deployments.former()
    times: dict[str, str] = {}
    services: dict[str, list[str]] = {}
    states: dict[str, list[str]] = {}
    for name, record in records(deployments):
        release = record["release"]["id"]
        in_force = name == current.get("record")
        times.setdefault(release, str(current.get("at")) if in_force else recorded_at(name))
        services.setdefault(release, sorted({one["service"] for one in record.get("vassals", [])}))
        if in_force:
            states.setdefault(release, []).append("current")
        elif name == former:
            states.setdefault(release, []).append("former")
    if current.get("id") and current["id"] not in times:
        # Deployed before there were records.
        times[current["id"]], states[current["id"]] = str(current.get("at", "")), ["current"]
    found = []
    for path in sorted((root / "releases").glob("[!.]*")):
        try:
            revision = json.loads((path / "REVISION.json").read_text())
        except (OSError, ValueError):
            revision = {}
        found.append(
            {
                "id": path.name,
                "created": revision.get("created", ""),
                "deployed": times.get(path.name, ""),
                "state": states.get(path.name, []),
                "size_mib": round(size_of(path) / 2**20, 1),
                "services": services.get(path.name, []),
                "whole": bool(revision),
            }
        )
    return sorted(found, key=lambda one: (str(one["deployed"]), str(one["created"])), reverse=True)


def environments_mib(root: Path) -> float:
    """What releases share takes: environments, and uWSGI for the emperors."""
    folders = [root / name for name in ("environments", "uwsgi") if (root / name).is_dir()]
    return round(sum(size_of(folder) for folder in folders) / 2**20, 1)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/fleet"},
            "deployed_file": {"type": "path", "default": "/etc/fleet/deployed.json"},
            "deployments_dir": {"type": "path", "default": "/etc/fleet/deployments"},
        },
        supports_check_mode=True,
    )
    options = module.params
    deployments = Deployments(Path(options["deployed_file"]), Path(options["deployments_dir"]))
    try:
        found = listing(Path(options["root"]), deployments)
    except OSError as error:
        module.fail_json(msg=f"The releases cannot be read: {error}. Look: ls -l {options['root']}/releases")
    module.exit_json(changed=False, releases=found, environments_mib=environments_mib(Path(options["root"])))


if __name__ == "__main__":
    main()
