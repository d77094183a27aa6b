"""Takes, releases and breaks the lock of the fleet; the part that only the controller can do: is the holder alive?"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import action_loader
from ansible.utils.display import Display

#: The name the module gives to a lock that cannot be read.
UNREADABLE = "unreadable"
display = Display()


def ended(holder: Mapping[str, Any], here: str | None, started: int) -> bool:
    """Whether the run that holds a lock is known to have ended.

    Args:
        holder: what stands in the lock.
        here: the processes that can be seen from here, as ``fleet_run`` names them.
        started: when the process with the holder's id was started, 0 when there is none.
    """
    return bool(here) and holder.get("processes_of") == here and holder.get("pid_started") != started


def describe(holder: Mapping[str, Any], now: datetime.datetime) -> str:
    """Who holds the lock, since when, for what and why."""
    if holder["id"] == UNREADABLE:
        return "a lock that cannot be read"
    since = str(holder.get("time", "?"))
    try:
        minutes = int((now - datetime.datetime.fromisoformat(since)).total_seconds() // 60)
        since += f" ({minutes} min ago)"
    except (TypeError, ValueError):
        pass
    why = f", because: {holder['why']}" if holder.get("why") else ""
    return f"`{holder.get('verb')}` of {holder.get('by')} since {since}{why} (process {holder.get('pid')} there)"


class ActionModule(ActionBase):
    """The module's own action; a lock whose holder has ended on this controller is taken over with a warning.

    A host that cannot be reached is no failure; the result then has ``reached: false``.
    """

    TRANSFERS_FILES = False

    def _ask(self, task_vars: dict[str, Any] | None, **changes: str) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module(module_args={**self._task.args, **changes}, task_vars=task_vars)
        return result

    def _take(self, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        result = self._ask(task_vars)
        holder = result.get("holder")
        if not holder or result.get("failed"):
            return result
        who = describe(holder, datetime.datetime.now(datetime.UTC))
        if self._ended(holder):
            if self._task.check_mode:
                return result
            result = self._ask(
                task_vars,
                replace=holder["id"],
                reason=f"took over the lock of {who}: that run has ended without releasing it",
            )
            holder = result.get("holder")
        if holder:
            host = str((task_vars or {}).get("inventory_hostname"))
            alive = holder.get("processes_of") == self._here
            message = (
                f"The fleet is locked by {who}. Wait for it"
                + (f", or stop it: kill {holder.get('pid')}." if alive else ". If that run is dead: ./fleet unlock")
                + f" (the lock lies on {self._task.delegate_to or host})"
            )
            if self._task.check_mode:
                display.warning(message)
            else:
                result.update(failed=True, msg=message)
        return result

    def _ended(self, holder: Mapping[str, Any]) -> bool:
        # Found as Ansible finds it, since the plugins of a project are no package.
        runs = action_loader.get("fleet_run", class_only=True)
        return ended(holder, self._here, runs.started(int(holder.get("pid") or 0)))

    def _break(self, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        result = self._ask(task_vars, state="shown")
        holder = result.get("holder")
        if not holder or result.get("failed"):
            return result
        who = describe(holder, datetime.datetime.now(datetime.UTC))
        if holder.get("processes_of") == self._here and not self._ended(holder):
            result.update(
                failed=True,
                msg=f"The fleet is locked by {who}, which still runs on this controller. Stop it first: kill {holder['pid']}",
            )
            return result
        result = self._ask(task_vars, replace=holder["id"])
        result["msg"] = (
            f"Removed the lock of {who}" if result.get("changed") else "The lock went before it could be removed"
        )
        return result

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module, twice when a lock is to be taken over."""
        super().run(tmp, task_vars)
        self._here = (self._task.args.get("run") or {}).get("processes_of")
        do = {"taken": self._take, "broken": self._break}.get(str(self._task.args.get("state")), self._ask)
        try:
            return {"reached": True, **do(task_vars)}
        except AnsibleConnectionFailure as error:
            # Not handed on: Ansible would end the run, as it does for a task that runs once for all hosts.
            display.warning(f"the lock of the fleet is not asked for on {self._task.delegate_to}: {error}")
            return {"reached": False, "changed": False}
