"""Prints the report that a playbook hands over, and nothing of the tasks that made it.

The playbook hands it over, once and as late as it likes, with a statistic:

    - name: Hand the report to whoever asked
      ansible.builtin.set_stats:
        data:
          fleet_report:
            lines: ["ok    host1 gpu0 answers", ...]    # for people
            data: {...}                                 # for programs: ./fleet verify --json; null: the lines are for both
            notes: ["host3: could not be asked"]        # may be left out; on standard error
            failures: ["host2: port 8100 is closed"]
            exit: 0                                     # 0 all well, 1 a check failed, 2 could not check
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ansible.executor.task_result import CallbackTaskResult
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: fleet_report
    type: stdout
    short_description: prints the report of a playbook instead of its tasks
    description:
      - Prints C(fleet_report), given by M(ansible.builtin.set_stats), on standard output, its notes on standard error.
      - E(FLEET_FORMAT) set to C(json) prints the data of the report instead of its lines, if it has any.
      - The report's exit code is written to the file named by E(FLEET_EXIT_FILE), from where C(./fleet) takes it.
"""

COULD_NOT_CHECK = 2


class CallbackModule(CallbackBase):
    """Keeps standard output for the report; what went wrong on the way goes to standard error."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "fleet_report"

    def __init__(self) -> None:
        super().__init__()
        self.report: dict[str, Any] | None = None
        self.errors: list[str] = []
        self.progress = sys.stderr.isatty()

    def _error(self, result: CallbackTaskResult, fallback: str) -> None:
        # A playbook may end with a `fail` after its report: the report has said it all.
        if self.report is None:
            # Of a loop, the items that failed: the task itself only says that some did.
            items = [
                str(one["msg"]) for one in result.result.get("results", []) if one.get("failed") and one.get("msg")
            ]
            message = "; ".join(items) or str(result.result.get("msg") or fallback)
            self.errors.append(f"{result.host.get_name()}: {result.task_name}: {message}")
            self._clear_progress()
            print(self.errors[-1], file=sys.stderr, flush=True)

    def _clear_progress(self) -> None:
        if self.progress:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        if self.progress:
            print(f"\r\033[K{task.get_name()[:78]}", end="", file=sys.stderr, flush=True)

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        # Told as a value of the task and not at the end, so that `_error` knows what comes after it.
        report = result.result.get("ansible_stats", {}).get("data", {}).get("fleet_report")
        if report is not None:
            self.report = report

    def v2_runner_on_failed(self, result: CallbackTaskResult, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            self._error(result, "failed")

    def v2_runner_on_unreachable(self, result: CallbackTaskResult) -> None:
        self._error(result, "unreachable")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._clear_progress()
        if self.report is None:
            print("nothing was checked: the playbook ended without a report", file=sys.stderr)
            self.report = {
                "lines": [],
                "data": {"failures": self.errors, "exit": COULD_NOT_CHECK},
                "exit": COULD_NOT_CHECK,
            }
        if os.environ.get("FLEET_FORMAT") == "json" and self.report["data"] is not None:
            print(json.dumps(self.report["data"], indent=2))
        else:
            for line in self.report["lines"]:
                print(line)
        sys.stdout.flush()
        for note in self.report.get("notes", []):
            print(note, file=sys.stderr)
        if exit_file := os.environ.get("FLEET_EXIT_FILE"):
            Path(exit_file).write_text(str(int(self.report["exit"])))
