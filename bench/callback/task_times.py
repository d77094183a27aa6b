"""Notes how long each task took, for bench/deploy; costs next to nothing itself, unlike a callback that prints."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: task_times
    type: aggregate
    short_description: writes the seconds of each task to a file
    description:
      - Writes a JSON object to the file named by E(BENCH_TASK_TIMES). Its members are the names of the tasks, longest
        first, with the seconds from the start of the task to the start of the next one; what runs again is added.
"""


class CallbackModule(CallbackBase):
    """Looks at the clock at the start of each task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_times"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self.before = "Read the playbook and the inventory"
        self.since = time.monotonic()

    def _next(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[self.before] = self.seconds.get(self.before, 0.0) + now - self.since
        self.before, self.since = name, now

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._next(task.get_name())

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self._next(task.get_name())

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._next("")
        longest = sorted(self.seconds.items(), key=lambda pair: -pair[1])
        text = json.dumps({name: round(seconds, 2) for name, seconds in longest})
        Path(os.environ["BENCH_TASK_TIMES"]).write_text(text)
