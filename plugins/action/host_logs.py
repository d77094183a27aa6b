"""Asks a machine for lines of its logs, once, or again and again for whoever follows them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

#: Seconds that the machine waits for a line before it says that there is none.
WAIT_SECONDS = 20
#: Seconds between two tries to reach a machine that does not answer.
RETRY_SECONDS = 3
#: A clock that is off by more than that is told about; the way to the machine and back takes its time too.
CLOCK_SECONDS = 1.0


def clock_note(before: float, there: float, after: float) -> str:
    """What is wrong with a machine's clock, which was read between two moments here; empty when nothing is."""
    off = there - after if there > after else there - before if there < before else 0.0
    if abs(off) < CLOCK_SECONDS:
        return ""
    return f"its clock is {abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} this machine's: its lines stand in the wrong places"


def has_gone(reader: socket.socket) -> bool:
    """Whether the other end of a connection has closed it; it never sends anything."""
    try:
        return not reader.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


class ActionModule(ActionBase):
    """``host_logs:`` as the module of that name; adds ``clock``, a note about the machine's clock.

    With ``follow`` it does not end: new lines go to the socket that E(FLEET_FOLLOW_SOCKET) names, as ``{"host", "lines"}`` or
    ``{"host", "note"}``, one JSON object a line. A machine that cannot be reached is tried again.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask, also in check mode, since it only reads."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        self._task.check_mode = False
        options = dict(self._task.args)
        if options.get("follow"):
            self._follow(options, variables)
            return {**result, "changed": False}
        result.update(self._ask(options, variables))
        return result

    def _ask(self, options: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        before = time.time()
        answer: dict[str, Any] = self._execute_module("host_logs", options, task_vars=variables)
        if "now" in answer:
            answer["clock"] = clock_note(before, float(answer["now"]), time.time())
        return answer

    def _follow(self, options: dict[str, Any], variables: dict[str, Any]) -> None:
        """Send what comes, until whoever reads it has gone."""
        host = str(variables.get("inventory_hostname"))
        # Whoever reads may stop at any moment.
        with socket.socket(socket.AF_UNIX) as reader, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            reader.connect(os.environ["FLEET_FOLLOW_SOCKET"])

            def send(**members: Any) -> None:
                reader.sendall(json.dumps({"host": host, **members}).encode() + b"\n")

            lost = False
            told = ""
            while not has_gone(reader):
                try:
                    answer = self._ask(options, variables)
                    failed = " ".join(str(answer.get("msg", "")).split()) if "lines" not in answer else ""
                except AnsibleConnectionFailure as error:
                    answer, failed = {}, " ".join(str(error).split())
                if failed:
                    if not lost:
                        send(note=f"does not answer, and is asked again: {failed}")
                    lost = True
                    time.sleep(RETRY_SECONDS)
                    continue
                if lost:
                    send(note="answers again")
                lost = False
                if answer["clock"] and not told:
                    told = answer["clock"]
                    send(note=told)
                first = "cursor" not in options
                if answer["cut"] and not first:
                    send(note=f"more lines than {options['lines']} at once: the older ones are left out")
                if answer["lines"]:
                    send(lines=answer["lines"])
                options = {**options, "cursor": answer["cursor"], "wait_seconds": WAIT_SECONDS, "since": 0}
