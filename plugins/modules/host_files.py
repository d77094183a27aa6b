#!/usr/bin/python
"""Place many files and folders with one task: each task starts a Python on every host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_files
short_description: Place files and folders with owner and mode, each file in one step
options:
  files:
    description: "Files: path, content, mode (octal text); if need be owner, group, and secret, which keeps it out of diffs."
    type: list
    elements: dict
    default: []
  folders: {description: "Folders: path; if need be mode, owner, group.", type: list, elements: dict, default: []}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.placed_files import PlacedFiles


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "default": []},
            "folders": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    wanted = PlacedFiles(module.params["files"], module.params["folders"])
    try:
        folders, files = wanted.wrong_folders(), wanted.wrong_files()
        differences = [wanted.difference(one) for one in files]
        if not module.check_mode:
            wanted.apply()
    except OSError as error:
        module.fail_json(msg=f"Files of the host cannot be written: {error}. Is the disk full? (df -h /etc)")
    module.exit_json(
        changed=bool(folders or files), diff=differences, placed=[one["path"] for one in [*folders, *files]]
    )


if __name__ == "__main__":
    main()
