#!/usr/bin/python
"""Remember which Debian packages were not there before, so that they can be taken away again."""

from __future__ import annotations

DOCUMENTATION = r"""
module: package_record
short_description: Note the packages that apt-get newly installed
options:
  output: {description: What apt-get said., type: str, required: true}
  path: {description: The record., type: path, default: /var/lib/fleet/packages.json}
"""

import json
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.deployments import write_json

#: The list that apt-get prints before it begins; its lines are indented, and no other line of it is.
NEW = re.compile(r"^The following NEW packages will be installed:\n((?:  .*\n)+)", re.MULTILINE)


def newly_installed(output: str) -> list[str]:
    """Names of the packages that apt-get installs, dependencies included; not those that it upgrades."""
    found = [name for match in NEW.finditer(output + "\n") for name in match[1].split()]
    # A star marks one that is purged; another architecture stands behind a colon and belongs to the name.
    return [name.rstrip("*") for name in found]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "output": {"type": "str", "required": True},
            "path": {"type": "path", "default": "/var/lib/fleet/packages.json"},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    try:
        former = json.loads(path.read_text())["installed"]
    except (OSError, ValueError, KeyError, TypeError):
        former = []
    installed = sorted({*former, *newly_installed(module.params["output"])})
    changed = installed != former
    if changed and not module.check_mode:
        try:
            write_json(path, {"installed": installed})
        except OSError as error:
            module.fail_json(msg=f"{path}: {error}. Is the disk full? (df -h {path.parent})")
    module.exit_json(changed=changed, installed=installed)


if __name__ == "__main__":
    main()
