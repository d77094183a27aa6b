"""Runs the module release_build and shows what it is doing: the first release takes minutes, most of them for torch."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

POLL_SECONDS = 0.5
display = Display()


def follow(log: Path, stop: threading.Event) -> None:
    """Show the lines that are added to a log until told to stop."""
    position = log.stat().st_size if log.exists() else 0
    while True:
        last = stop.wait(POLL_SECONDS)
        if log.exists():
            with log.open() as stream:
                stream.seek(position)
                for line in stream:
                    display.display(f"  {line.rstrip()}")
                position = stream.tell()
        if last:
            return


class ActionModule(ActionBase):
    """The module's own action, with its log shown while it runs."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on the controller."""
        super().run(tmp, task_vars)
        stop = threading.Event()
        follower = threading.Thread(target=follow, args=(Path(self._task.args["cache_dir"]) / "build.log", stop))
        follower.start()
        try:
            result: dict[str, Any] = self._execute_module(task_vars=task_vars)
        finally:
            stop.set()
            follower.join()
        return result
