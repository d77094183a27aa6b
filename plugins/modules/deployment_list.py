#!/usr/bin/python
"""Name the deployments that a host can go back to."""

from __future__ import annotations

DOCUMENTATION = r"""
module: deployment_list
short_description: Deployments of a host whose releases are still there, the newest first
options:
  deployed_file: {description: Which deployment is in force., type: path, default: /etc/fleet/deployed.json}
  deployments_dir: {description: Records of deployments., type: path, default: /etc/fleet/deployments}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.deployments import Deployments


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "deployed_file": {"type": "path", "default": "/etc/fleet/deployed.json"},
            "deployments_dir": {"type": "path", "default": "/etc/fleet/deployments"},
        },
        supports_check_mode=True,
    )
    deployments = Deployments(Path(module.params["deployed_file"]), Path(module.params["deployments_dir"]))
    found = []
    for name in deployments.names():
        record = deployments.read(name)
        devices = {one["name"]: one["uuid"] for one in record["devices"]}
        found.append({"record": name, "release": record["release"]["id"], "devices": devices})
    module.exit_json(changed=False, deployments=found, current=deployments.current(), former=deployments.former() or "")


if __name__ == "__main__":
    main()
