"""Asks an edge for its members; an edge that cannot be reached is an answer too, and no failure."""

from __future__ import annotations

import errno
import json
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

#: The program that the role edge places.
PROGRAM = "/usr/local/lib/fleet/fleet-edge"


class ActionModule(ActionBase):
    """``edge_status:``, delegated to an edge; gives ``edge``, its ``members`` (none when they are not known) and ``msg``."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset({"program"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask, also in check mode, since it only reads."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        edge = self._task.delegate_to or (task_vars or {}).get("inventory_hostname")
        command = [self._task.args.get("program", PROGRAM), "status"]
        self._task.check_mode = False
        try:
            said = self._execute_module("ansible.legacy.command", {"argv": command}, task_vars=task_vars)
            found = json.loads(said.get("stdout") or "{}")
            members = found.get("members")
            absent = said.get("rc") == errno.ENOENT and not said.get("stderr")
            reason = (
                "it is no edge yet: ./fleet deploy"
                if absent
                else found.get("error") or said.get("stderr") or said.get("msg") or "it gave no list of members"
            )
        except AnsibleConnectionFailure as error:
            members, reason = None, str(error)
        except ValueError as error:
            members, reason = None, f"its answer is no JSON: {error}"
        result.update(
            changed=False,
            edge=str(edge),
            members=members,
            msg="" if members is not None else " ".join(str(reason).split()),
        )
        return result
