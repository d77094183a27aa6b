#!/usr/bin/python
"""Take one device of a host out of its own nginx, or back in."""

from __future__ import annotations

DOCUMENTATION = r"""
module: device_drain
short_description: Take a device out of its host's upstreams, or put it back
description:
  - A device that is out stays out over deploys and reboots, until it is put back. The module returns when no request is on
    its way to the device any more.
  - A device is put back only when its vassals serve as the deployment in force wants them to.
options:
  device: {description: Name of the device., type: str, required: true}
  state: {description: Where to., type: str, choices: [drained, undrained], required: true}
  why: {description: "Why, for whoever looks next.", type: str, default: ""}
  allow_outage: {description: Whether the last device that serves may be taken out., type: bool, default: false}
  run: {description: "Who does this, for the audit log.", type: dict, default: {}}
  wait_seconds: {description: "Longest time for requests to finish; without it, that of the deployment in force.", type: int}
  devices_dir: {description: Folder of the devices., type: path, default: /etc/fleet/devices}
  upstreams_dir: {description: Folder with the upstream files that nginx has loaded., type: path, default: /etc/nginx/upstreams}
  nginx_root: {description: Folder of nginx's configuration., type: path, default: /etc/nginx}
  nginx_state_file: {description: What was placed there and is loaded., type: path, default: /var/lib/fleet/nginx.json}
  nginx_program: {description: The program., type: str, default: nginx}
  pid_file: {description: File with the process id of nginx., type: path, default: /run/nginx.pid}
  drained_file: {description: Devices that a person took out., type: path, default: /var/lib/fleet/drained.json}
  run_dir: {description: Folder of the sockets., type: path, default: /run/fleet}
  log_dir: {description: Folder of log files where there is no journal., type: path, default: /var/log/fleet}
  measured_file: {description: What workers of each release were measured to take., type: path, default: /var/lib/fleet/measured.json}
  deployed_file: {description: Which deployment is in force., type: path, default: /etc/fleet/deployed.json}
  deployments_dir: {description: Records of deployments., type: path, default: /etc/fleet/deployments}
"""

from pathlib import Path

from ansible.module_utils.audit import AUDIT_LOG, note, now
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.in_force import InForce
from ansible.module_utils.nginx_configuration import NginxError, StillBusy
from ansible.module_utils.upstreams import PLACES, WATCH, Drained, Upstreams


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "device": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["drained", "undrained"], "required": True},
            "why": {"type": "str", "default": ""},
            "allow_outage": {"type": "bool", "default": False},
            "run": {"type": "dict", "default": {}},
            "wait_seconds": {"type": "int"},
            "nginx_program": {"type": "str", "default": "nginx"},
            **{name: {"type": "path", "default": path} for name, path in PLACES.items()},
        },
        supports_check_mode=True,
    )
    options = module.params
    device, run = options["device"], options["run"]
    in_force = InForce(options)
    host = Upstreams(options, options["wait_seconds"] or in_force.wait_seconds())
    if device not in host.known_devices():
        module.fail_json(
            msg=f"This host has no device {device!r}; it has: {', '.join(host.known_devices()) or 'none yet'}. "
            "Look: ./fleet status"
        )
    drained = Drained(Path(options["drained_file"]))
    former = drained.read()
    audit_log = Path(options["log_dir"]) / AUDIT_LOG
    entry = None
    if options["state"] == "drained":
        if not host.others(device) and not options["allow_outage"] and device not in former:
            module.fail_json(
                msg=f"{device} is the only device of this host that takes requests. Where an edge leads them to "
                "another host, drain the host instead (./fleet drain HOST); else, to lose them: -e allow_outage=true"
            )
        entry = former.get(device)
        # What the watch took out, it would take back; what a person took out, only a person does.
        if entry is None or entry.get("by") == WATCH:
            entry = {"by": run.get("by", ""), "since": now(), "why": options["why"]}
    elif device in former and (wrong := in_force.what_is_wrong(device)):
        module.fail_json(msg=f"{device} stays out: {wrong}. When it serves: ./fleet undrain HOST/{device}")
    changed = entry != former.get(device)
    if module.check_mode:
        wanted = {**former, device: entry}
        module.exit_json(changed=changed, drained={name: one for name, one in wanted.items() if one})
    try:
        configuration, change = host.turn(drained, device, entry)
        result = configuration.finish(change)
    except StillBusy as error:
        # nginx leads there no more, or again; what is noted is so.
        if changed:
            note(run, options["state"], audit_log, device=device, why=options["why"])
        if options["state"] == "drained":
            module.fail_json(
                msg=f"{device} is out, but requests are on their way to it still: {error}", drained=drained.read()
            )
        module.exit_json(changed=True, drained=drained.read())
    except NginxError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error}. Is the disk full? (df -h /var /etc)")
    if changed:
        note(run, options["state"], audit_log, device=device, why=options["why"])
    module.exit_json(changed=changed or result["changed"], drained=drained.read(), diff=result["diff"])


if __name__ == "__main__":
    main()
