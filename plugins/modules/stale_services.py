#!/usr/bin/python
"""Find services that were started before their files were last changed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: stale_services
short_description: Services that run with older settings than those on disk
description:
  - Compares when a service's main process was started with when its files were last changed.
  - Unlike a handler this also finds what a run that was cut off between the two has left.
options:
  services: {description: "Services, each with name and files.", type: list, elements: dict, required: true}
  manager: {description: Service manager., type: str, choices: [systemd, supervisor], required: true}
"""

import os
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

#: The kernel gives the start of the system in whole seconds only.
TOLERANCE_SECONDS = 2


def started_at(pid: int) -> float | None:
    """When a process was started, in seconds since 1970; ``None`` when there is none."""
    try:
        # The name in parentheses may hold spaces; the start time is the twentieth field behind it.
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except OSError:
        return None
    return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


def main_pid(module: AnsibleModule, manager: str, name: str) -> int:
    """Process id of a service, or 0."""
    if manager == "systemd":
        _, out, _ = module.run_command(["systemctl", "show", "--property=MainPID", "--value", name])
    else:
        program = module.get_bin_path("supervisorctl")
        out = module.run_command([program, "pid", name])[1] if program else ""
    return int(out.strip()) if out.strip().isdigit() else 0


def is_stale(started: float | None, files: list[str]) -> bool:
    """Whether one of the files is younger than the process."""
    if started is None:
        return False
    changed = [Path(path).stat().st_mtime for path in files if Path(path).exists()]
    # A date in the future comes from a clock that was set back, and would be younger than every restart.
    return any(started + TOLERANCE_SECONDS < one <= time.time() for one in changed)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "list", "elements": "dict", "required": True},
            "manager": {"type": "str", "choices": ["systemd", "supervisor"], "required": True},
        },
        supports_check_mode=True,
    )
    manager = module.params["manager"]
    stale = [
        one["name"]
        for one in module.params["services"]
        if is_stale(started_at(main_pid(module, manager, one["name"])), one["files"])
    ]
    module.exit_json(changed=False, stale=stale)


if __name__ == "__main__":
    main()
