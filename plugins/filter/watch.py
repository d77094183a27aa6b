"""Filters of the role watch."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

ROOT = Path(__file__).resolve().parent.parent.parent
#: What the watch shares with the modules: the code by which devices go out and in. The tests hold it complete.
SHARED = (
    "audit", "deployments", "fleet_socket", "in_force", "listeners", "measured", "memory", "nginx_configuration",
    "placed_files", "units", "upstreams", "vassal_files",
)  # fmt: skip


@functools.cache
def contents() -> dict[str, str]:
    """Text of each file below the folder of the watch on a host; the same for all hosts, so read once."""
    own = sorted((ROOT / "roles" / "watch" / "files").iterdir())
    found = {path.name: path.read_text() for path in own if path.is_file()}
    # A package and no namespace: the Ansible of a host's own system would win over that.
    for folder in ("ansible", "ansible/module_utils"):
        found[f"{folder}/__init__.py"] = "# Made by the role watch; not Ansible's.\n"
    shared = ROOT / "plugins" / "module_utils"
    return {**found, **{f"ansible/module_utils/{name}.py": (shared / f"{name}.py").read_text() for name in SHARED}}


def watch_program(folder: str) -> list[dict[str, Any]]:
    """The files of the watch in a folder of a host, as the module host_switch places them."""
    return [{"path": f"{folder}/{name}", "mode": "0644", "content": text} for name, text in contents().items()]


#: The least that each setting of the watch may be.
LEAST = {"interval_seconds": 0.2, "failures": 1, "good_seconds": 0, "nvml_seconds": 1.0}


def watch_settings(settings: Mapping[str, Any]) -> str:
    """What the watch goes by, as the text of its file.

    Raises:
        AnsibleFilterError: one makes no sense.
    """
    found: dict[str, float] = {}
    for name, least in LEAST.items():
        try:
            found[name] = type(least)(settings[name])
        except ValueError:
            found[name] = least - 1
        if found[name] < least:
            raise AnsibleFilterError(f"watch_{name}: {settings[name]} is no number from {least} on")
    return json.dumps(found, indent=1) + "\n"


class FilterModule:
    """Filters of the role watch."""

    def filters(self) -> dict[str, Any]:
        """Names that templates use."""
        return {"watch_program": watch_program, "watch_settings": watch_settings}
