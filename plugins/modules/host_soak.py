#!/usr/bin/python
"""Watch a host for a while after a release took over: a release may answer once and die under load."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_soak
short_description: Check again and again that the vassals of a host live and answer
description:
  - Fails as soon as a worker or a master has died, or as a vassal fails its checks twice in a row.
options:
  vassals: {description: "Vassals, as for the module C(host_switch), without their texts.", type: list, elements: dict, required: true}
  started: {description: "Those that were started a moment ago, as DEVICE/NAME: no worker of theirs may have died yet.", type: list, elements: str, default: []}
  seconds: {description: How long to watch., type: int, required: true}
  devices_dir: {description: Folder of the devices., type: path, default: /etc/fleet/devices}
  run_dir: {description: Folder of the sockets., type: path, default: /run/fleet}
"""

import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet_socket import SocketError, stats, stats_path
from ansible.module_utils.vassal_files import NotReady, Vassal

POLL_SECONDS = 1.0
#: One failed check may be a worker that is busy to the limit; two are none.
FAILURES = 2


def deaths(vassal: Vassal, run_dir: str, former: dict[str, tuple[int, int]], fresh: bool) -> str:
    """What died of a vassal since it was looked at first; of a fresh one, since it was started. Empty when nothing did."""
    state = stats(stats_path(run_dir, vassal.device, vassal.name))
    starts = sum(one.get("respawn_count", 1) for one in state["workers"])
    seen = (int(state["pid"]), len(state["workers"]) if fresh else starts)
    master, workers = former.setdefault(vassal.full_name, seen)
    if int(state["pid"]) != master:
        return f"its master {master} died and was started again as {state['pid']}"
    return f"{starts - workers} times a worker died and was started again" if starts > workers else ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "vassals": {"type": "list", "elements": "dict", "required": True},
            "started": {"type": "list", "elements": "str", "default": []},
            "seconds": {"type": "int", "required": True},
            "devices_dir": {"type": "path", "default": "/etc/fleet/devices"},
            "run_dir": {"type": "path", "default": "/run/fleet"},
        },
        supports_check_mode=True,
    )
    run_dir = module.params["run_dir"]
    vassals = [
        Vassal({"ini": "", **one}, Path(module.params["devices_dir"]), Path(run_dir), "root")
        for one in module.params["vassals"]
    ]
    former: dict[str, tuple[int, int]] = {}
    fresh = set(module.params["started"])
    failures: dict[str, int] = {}
    began, rounds = time.monotonic(), 0
    while not module.check_mode and time.monotonic() - began < module.params["seconds"]:
        for vassal in vassals:
            try:
                fine = not vassal.wanted["stats"]
                died = "" if fine else deaths(vassal, run_dir, former, vassal.full_name in fresh)
                vassal.check()
                failures[vassal.full_name] = 0
            except (NotReady, SocketError) as error:
                died = ""
                failures[vassal.full_name] = failures.get(vassal.full_name, 0) + 1
                if failures[vassal.full_name] >= FAILURES:
                    died = str(error)
            if died:
                seconds = time.monotonic() - began
                module.fail_json(
                    msg=f"Vassal {vassal.full_name} was ready, and {seconds:.0f} s later it is not fit to serve: {died}. "
                    f"Look: journalctl -u uwsgi-emperor@{vassal.device} -n 100"
                )
        rounds += 1
        time.sleep(POLL_SECONDS)
    module.exit_json(changed=False, rounds=rounds)


if __name__ == "__main__":
    main()
