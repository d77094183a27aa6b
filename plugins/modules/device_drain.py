#!/usr/bin/python
"""Take one device of a host out of its own nginx, or back in."""

from __future__ import annotations

DOCUMENTATION = r"""
module: device_drain
short_description: Take a device out of its host's upstreams, or put it back
description:
  - A device that is out stays out over deploys and reboots, until it is put back. The module returns when no request is on
    its way to the device any more.
options:
  device: {description: Name of the device., type: str, required: true}
  state: {description: Where to., type: str, choices: [drained, undrained], required: true}
  why: {description: "Why, for whoever looks next.", type: str, default: ""}
  allow_outage: {description: Whether the last device that serves may be taken out., type: bool, default: false}
  run: {description: "Who does this, for the audit log.", type: dict, default: {}}
  wait_seconds: {description: Longest time for requests to finish., type: int, default: 120}
  devices_dir: {description: Folder of the devices., type: path, default: /etc/fleet/devices}
  upstreams_dir: {description: Folder with the upstream files that nginx has loaded., type: path, default: /etc/nginx/upstreams}
  nginx_root: {description: Folder of nginx's configuration., type: path, default: /etc/nginx}
  nginx_state_file: {description: What was placed there and is loaded., type: path, default: /var/lib/fleet/nginx.json}
  nginx_program: {description: The program., type: str, default: nginx}
  pid_file: {description: File with the process id of nginx., type: path, default: /run/nginx.pid}
  drained_file: {description: Devices that a person took out., type: path, default: /var/lib/fleet/drained.json}
"""

from pathlib import Path

from ansible.module_utils.audit import note, now
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.nginx_configuration import NginxError
from ansible.module_utils.upstreams import PLACES, Drained, Upstreams


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "device": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["drained", "undrained"], "required": True},
            "why": {"type": "str", "default": ""},
            "allow_outage": {"type": "bool", "default": False},
            "run": {"type": "dict", "default": {}},
            "wait_seconds": {"type": "int", "default": 120},
            "nginx_program": {"type": "str", "default": "nginx"},
            **{name: {"type": "path", "default": path} for name, path in PLACES.items()},
        },
        supports_check_mode=True,
    )
    options = module.params
    device, run = options["device"], options["run"]
    host = Upstreams(options, options["wait_seconds"])
    if device not in host.known_devices():
        module.fail_json(
            msg=f"This host has no device {device!r}; it has: {', '.join(host.known_devices()) or 'none yet'}. "
            "Look: ./fleet status"
        )
    drained = Drained(Path(options["drained_file"]))
    former = drained.read()
    wanted = dict(former)
    if options["state"] == "drained":
        if not host.others(device) and not options["allow_outage"] and device not in former:
            module.fail_json(
                msg=f"{device} is the only device of this host that takes requests. Drain the host instead "
                "(./fleet drain HOST), or lose its requests: -e allow_outage=true"
            )
        wanted.setdefault(device, {"by": run.get("by", ""), "since": now(), "why": options["why"]})
    else:
        wanted.pop(device, None)
    changed = wanted != former
    if module.check_mode:
        module.exit_json(changed=changed, drained=wanted)
    try:
        # Noted first: a run that is cut off here leaves a device out rather than half in.
        drained.write(wanted)
        result = host.configuration(wanted).apply()
    except NginxError as error:
        drained.write(former)
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error}. Is the disk full? (df -h /var /etc)")
    if changed:
        note(run, options["state"], device=device, why=options["why"])
    module.exit_json(changed=changed or result["changed"], drained=wanted, diff=result["diff"])


if __name__ == "__main__":
    main()
