"""Says who runs what, from where and since when: the fact ``fleet_run``, by which locks and audit logs name a run."""

from __future__ import annotations

import datetime
import getpass
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase


def started(pid: int) -> int:
    """When a process was started, in ticks since the boot; 0 when it does not run any more, a dead one included.

    Together with the process id it names a process: the kernel gives the id anew, but not at the same moment.
    """
    try:
        # The name in parentheses may hold spaces; state and start time are the first and the twentieth field behind it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in {"Z", "X"} else int(fields[19])


def processes_of() -> str:
    """Where process ids mean what they mean here: this boot of this machine, and this namespace in it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"


def user() -> str:
    """Who typed the command, also when it was typed behind sudo."""
    return os.environ.get("SUDO_USER") or getpass.getuser()


def describe(pid: int, verb: str, why: str) -> dict[str, Any]:
    """The run whose main process is ``pid``."""
    now = datetime.datetime.now(datetime.UTC)
    controller = socket.gethostname()
    return {
        "id": f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}",
        "by": f"{user()}@{controller}",
        "controller": controller,
        "pid": pid,
        "pid_started": started(pid),
        "processes_of": processes_of(),
        "verb": verb,
        "why": why,
    }


class ActionModule(ActionBase):
    """``fleet_run: {verb, why}``; runs on the controller and asks no host."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset({"verb", "why"})
    #: For fleet_lock, which asks about the run that holds a lock.
    started = staticmethod(started)

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Describe the run."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        playbook = Path((context.CLIARGS.get("args") or ["?"])[0])
        # Tasks run in children of the process that the command line started.
        run = describe(os.getppid(), self._task.args.get("verb") or playbook.stem, self._task.args.get("why") or "")
        result.update(changed=False, run=run)
        return result
