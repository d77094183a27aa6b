#!/usr/bin/python
"""Bring a host to the wanted release and settings without losing a request, or back to a former deployment."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_switch
short_description: Switch emperors, vassals and nginx of a host to what is wanted
description:
  - C(present) goes to what C(wanted) says, C(restored) to a deployment that was in force before.
  - New vassals start beside the old ones where memory allows it, else one device after the other is taken out of nginx's
    upstream first. When a new vassal does not serve, it is removed, and the module fails; the old ones serve on.
  - In check mode nothing is changed; C(steps) says what would be, C(stops) what of it would stop requests.
options:
  state: {description: What to go to., type: str, choices: [present, restored], default: present}
  record: {description: With C(restored), the deployment., type: str, default: ""}
  settle:
    description: Whether this is the end of it. Else the old vassals run on, asked by nobody, and no record is written, so that
      going back takes no more than a reload of nginx.
    type: bool
    default: true
  forget: {description: "With C(restored): the deployment in force failed; C(rollback) shall not go back to it.", type: bool, default: false}
  wanted:
    description: >-
      What is wanted, and all that a record of it holds. release (id, dir, environment, uwsgi_home); vassals (name, service,
      device, release, ini, workers, models, fit, stats, protocol, transport, ports, route, ready_path, load_seconds, sample, memory of a
      worker); services, as the checks want them; devices (name, kind, uuid, memory_mib); units (emperors, with name, device and
      the files that they read only when they start); files and folders of emperors, units and helpers (path, content, mode, if
      need be owner, group, secret); nginx (files with places for addresses, links, ports, wait_seconds); nginx_unit (name,
      files, and where it may be done in_place, those of them for which a new nginx takes the place of the running one); manager
      (systemd or supervisor); group of the emperors' user; stop_seconds, longest time a vassal may take to stop.
    type: dict
    default: {}
  nginx_test: {description: Whether nginx tests the configuration before anything is started., type: bool, default: true}
  may_stop: {description: Whether this host's requests go elsewhere or may be lost., type: bool, default: false}
  switch: {description: "How vassals change: auto measures the memory.", type: str, choices: [auto, beside, in_place], default: auto}
  run: {description: "Who does this, for the audit log.", type: dict, default: {}}
  devices_dir: {description: Folder of the devices., type: path, default: /etc/fleet/devices}
  run_dir: {description: Folder of the sockets., type: path, default: /run/fleet}
  log_dir: {description: Folder of log files where there is no journal., type: path, default: /var/log/fleet}
  upstreams_dir: {description: Folder with the upstream files that nginx has loaded., type: path, default: /etc/nginx/upstreams}
  nginx_root: {description: Folder of nginx's configuration., type: path, default: /etc/nginx}
  nginx_state_file: {description: What was placed there and is loaded., type: path, default: /var/lib/fleet/nginx.json}
  nginx_program: {description: The program., type: str, default: nginx}
  pid_file: {description: File with the process id of nginx., type: path, default: /run/nginx.pid}
  drained_file: {description: Devices that a person took out., type: path, default: /var/lib/fleet/drained.json}
  deployed_file: {description: Which deployment is in force., type: path, default: /etc/fleet/deployed.json}
  measured_file: {description: What workers of each release were measured to take., type: path, default: /var/lib/fleet/measured.json}
  deployments_dir: {description: Records of deployments., type: path, default: /etc/fleet/deployments}
"""

import shutil
from pathlib import Path

from ansible.module_utils.audit import note
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.deployments import Deployments
from ansible.module_utils.release_switch import RECORDED, Switch, SwitchError
from ansible.module_utils.upstreams import PLACES

TEXT = {"type": "str", "default": ""}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
            "record": TEXT,
            "settle": {"type": "bool", "default": True},
            "forget": {"type": "bool", "default": False},
            "wanted": {"type": "dict", "default": {}},
            "nginx_test": {"type": "bool", "default": True},
            "may_stop": {"type": "bool", "default": False},
            "switch": {"type": "str", "choices": ["auto", "beside", "in_place"], "default": "auto"},
            "run": {"type": "dict", "default": {}},
            "nginx_program": {"type": "str", "default": "nginx"},
            **{name: {"type": "path", "default": path} for name, path in PLACES.items()},
        },
        supports_check_mode=True,
    )
    options = {**dict.fromkeys(RECORDED), **module.params, **module.params["wanted"]}
    deployments = Deployments(Path(options["deployed_file"]), Path(options["deployments_dir"]))
    former = deployments.current().get("record", "")
    if options["state"] == "restored":
        try:
            options.update(deployments.read(options["record"]))
        except LookupError as error:
            module.fail_json(msg=f"{error}. Look: ls /etc/fleet/deployments")
    # A check on a bare host has no nginx that could be asked.
    options["nginx_test"] = options["nginx_test"] and shutil.which(options["nginx_program"]) is not None
    switch = Switch(options)
    # Without the texts of the vassals' files: nobody needs them, and they may hold secrets.
    vassals = [{name: value for name, value in one.items() if name != "ini"} for one in options["vassals"]]
    serving = {name: options[name] for name in ("release", "services", "manager")}
    serving["ports"] = options["nginx"]["ports"]
    units = [one["name"] for one in options["units"]]
    result = {"former": former, "serving": {**serving, "units": units, "vassals": vassals, "user": options["group"]}}
    try:
        if module.check_mode:
            module.exit_json(**switch.plan(), **result)
        switch.apply()
        if options["settle"] and options["release"]:
            switch.record(forget=options["forget"])
    except SwitchError as error:
        note(options["run"], "failed", switch.audit_log, why=str(error).splitlines()[0][:500])
        module.fail_json(msg=str(error), steps=switch.did, **result)
    except OSError as error:
        module.fail_json(
            msg=f"{error}. Is the disk full? (df -h /etc /var) A deploy that was cut off may be run again.", **result
        )
    module.exit_json(changed=bool(switch.did), steps=switch.did, started=switch.started, diff=switch.diff, **result)


if __name__ == "__main__":
    main()
