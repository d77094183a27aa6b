#!/usr/bin/python
"""Note an event in the audit log of a host, for what no module of this project does itself."""

from __future__ import annotations

DOCUMENTATION = r"""
module: audit_note
short_description: Append a line to the audit log
options:
  event: {description: "What was done, in one word.", type: str, required: true}
  run: {description: The run that did it., type: dict, default: {}}
  fields: {description: What else is worth knowing., type: dict, default: {}}
  audit_log: {description: The host's audit log., type: path, default: /var/log/fleet/audit.log}
"""

from pathlib import Path

from ansible.module_utils.audit import note
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "event": {"type": "str", "required": True},
            "run": {"type": "dict", "default": {}},
            "fields": {"type": "dict", "default": {}},
            "audit_log": {"type": "path", "default": "/var/log/fleet/audit.log"},
        },
        supports_check_mode=True,
    )
    options = module.params
    if not module.check_mode:
        failed = note(options["run"], options["event"], Path(options["audit_log"]), **options["fields"])
        if failed:
            module.warn(failed)
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
