#!/usr/bin/python
"""Give the lines of a host's or an edge's logs: of nginx, of the emperors and of what runs beside them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_logs
short_description: Lines of the logs of a machine, in the order of their times
description:
  - Reads the journal where systemd is PID 1, the files of supervisor elsewhere, and on both nginx's files and the audit log, also
    what rotation has put away of them. It changes nothing.
  - nginx's error log names connections only; its lines get the id of the request by nginx's own line for that request.
options:
  since: {description: "Oldest time, in microseconds since 1970; 0 for none.", type: int, default: 0}
  before: {description: Newest time., type: int, default: 0}
  request_id: {description: Only lines of this request., type: str, default: ""}
  level: {description: Lowest level., type: str, choices: [debug, info, warning, error, critical], default: info}
  service: {description: Only lines of this service., type: str, default: ""}
  device: {description: Only lines of this device., type: str, default: ""}
  lines: {description: "Most lines, the newest of them.", type: int, default: 2000}
  follow: {description: "Whether to give C(cursor), behind which a next call goes on.", type: bool, default: false}
  cursor: {description: "With C(follow): what a former call has given.", type: dict}
  wait_seconds: {description: "With C(cursor): longest time to wait for a line.", type: float, default: 0}
  routes: {description: Service of each route., type: dict, default: {}}
  log_dir: {description: Folder of the fleet's log files., type: path, default: /var/log/fleet}
  nginx_dir: {description: Folder of nginx's log files., type: path, default: /var/log/nginx}
  supervisor_log: {description: What supervisor itself writes., type: path, default: /var/log/supervisor/supervisord.log}
  systemd_dir: {description: It is there where systemd is PID 1., type: path, default: /run/systemd/system}
  journalctl: {description: The program., type: str, default: journalctl}
"""

import dataclasses
import heapq
import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.log_lines import LEVELS, Connections, Parser, Query, Record, line_of
from ansible.module_utils.log_sources import Files, Journal, LogError

#: All that the roles start, and systemd's own words about it.
UNITS = ["uwsgi-emperor@*", "fleet-*", "nginx.service", "keepalived.service"]
#: Seconds between two looks for new lines, at files and at the journal, which costs a process.
LOOK_SECONDS = 0.25
JOURNAL_SECONDS = 1.0
#: Seconds in which lines are gathered when there is one.
GATHER_SECONDS = 0.5
#: An answer has no more, whatever the number of its lines.
MOST_CHARACTERS = 8 * 2**20
#: At the same time a request was logged by the app first, and by nginx after it was answered.
RANK = {"uwsgi-emperor": 0, "nginx": 1}


def order(record: Record) -> tuple[int, int]:
    """By time; at one time by the way that an answer takes."""
    return record["time"], RANK.get(record["source"].partition("@")[0], 2)


class Logs:
    """The logs of one machine.

    Args:
        options: those of the module.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.wanted = Query.of(options)
        # By nginx's own line its errors are found to be of a request, whatever level is wanted.
        everything = {"level": "debug", "service": "", "device": ""}
        self.query = dataclasses.replace(self.wanted, **everything) if self.wanted.request_id else self.wanted
        self.parser = Parser(options["routes"])
        self.limit: int = options["lines"]
        self.options = options
        systemd = Path(options["systemd_dir"]).is_dir()
        self.journal = Journal(options["journalctl"], UNITS, self.parser, self.query) if systemd else None

    def files(self) -> Iterator[Files]:
        """The logs that are files; others may come while somebody follows."""
        folder = Path(self.options["nginx_dir"])
        yield self.file(folder / "access.log", "nginx")
        yield self.errors()
        for path in sorted(Path(self.options["log_dir"]).glob("*.log")):
            yield self.file(path, path.stem)
        if not self.journal:
            yield self.file(folder / "supervisor.log", "nginx-output")
            yield self.file(Path(self.options["supervisor_log"]), "supervisord")

    def file(self, path: Path, source: str) -> Files:
        """A log whose lines hold ids."""
        return Files(path, source, self.parser, self.query)

    def errors(self) -> Files:
        """nginx's error log."""
        return Files(Path(self.options["nginx_dir"], "error.log"), "nginx", self.parser, self.query, has_ids=False)

    def newest(self) -> tuple[list[Record], bool]:
        """The newest wanted records in their order, and whether there are older ones."""
        sources = [one.newest_first(self.limit) for one in self.files() if one.has_ids]
        if self.journal:
            sources.append(self.journal.newest_first())
        if not self.query.request_id:
            sources.append(self.errors().newest_first(self.limit))
        records: list[Record] = []
        characters = 0
        cut = False
        try:
            for record in heapq.merge(*sources, key=lambda one: -int(one["time"])):
                characters += len(record["event"]) + 40 * len(record)
                if len(records) == self.limit or characters > MOST_CHARACTERS:
                    cut = True
                    break
                records.append(record)
        finally:
            for one in sources:
                one.close()
        known = Connections(records)
        if self.query.request_id:
            found = self.errors().newest_first(self.limit) if records else iter(())
            records += itertools.islice(filter(known.name, found), self.limit)
        else:
            for record in records:
                known.name(record)
        # From the oldest on, so that lines of one time stay as they were written.
        return sorted(filter(self.wanted.wants, reversed(records)), key=order), cut

    # ---- what comes

    def marks(self) -> dict[str, Any]:
        """Where everything ends now."""
        files = {str(one.path): one.end() for one in self.files()}
        return {"files": files, "journal": self.journal.end() if self.journal else ""}

    def since(self, marks: dict[str, Any], seconds: float) -> tuple[list[Record], bool]:
        """What comes behind marks, which are moved; waits for it for some time."""
        records: list[Record] = []
        end = time.monotonic() + seconds
        asked, gathers = 0.0, False
        while True:
            last = time.monotonic() >= end
            for one in self.files():
                name = str(one.path)
                found, marks["files"][name] = one.since(marks["files"].get(name, {"inode": 0, "offset": 0}))
                records += found
            if self.journal and (last or time.monotonic() - asked >= JOURNAL_SECONDS):
                asked = time.monotonic()
                found, marks["journal"] = self.journal.since(marks["journal"])
                records += found
            if last:
                return self.settle(records)
            if records and not gathers:
                # What belongs to it comes at once.
                gathers, end = True, min(end, time.monotonic() + GATHER_SECONDS)
            time.sleep(LOOK_SECONDS)

    def settle(self, records: list[Record]) -> tuple[list[Record], bool]:
        """New records in their order, as many as there may be, those of nginx's error log with their requests."""
        known = Connections(records)
        named = [one for one in records if known.name(one) or self.query.is_of_request(one)]
        kept = [one for one in named if self.wanted.wants(one) and self.wanted.is_of_request(one)]
        kept.sort(key=order)
        return kept[-self.limit :], len(kept) > self.limit


def main() -> None:
    """Run the module."""
    text = {"type": "str", "default": ""}
    module = AnsibleModule(
        argument_spec={
            "since": {"type": "int", "default": 0},
            "before": {"type": "int", "default": 0},
            "request_id": text,
            "level": {"type": "str", "choices": list(LEVELS), "default": "info"},
            "service": text,
            "device": text,
            "lines": {"type": "int", "default": 2000},
            "follow": {"type": "bool", "default": False},
            "cursor": {"type": "dict"},
            "wait_seconds": {"type": "float", "default": 0},
            "routes": {"type": "dict", "default": {}},
            "log_dir": {"type": "path", "default": "/var/log/fleet"},
            "nginx_dir": {"type": "path", "default": "/var/log/nginx"},
            "supervisor_log": {"type": "path", "default": "/var/log/supervisor/supervisord.log"},
            "systemd_dir": {"type": "path", "default": "/run/systemd/system"},
            "journalctl": {"type": "str", "default": "journalctl"},
        },
        supports_check_mode=True,
    )
    options = module.params
    cursor = options["cursor"]
    try:
        if cursor:
            records, cut = Logs(options).since(cursor, options["wait_seconds"])
        else:
            if options["follow"]:
                # What comes while the rest is read is for the next call.
                options["before"] = time.time_ns() // 1000
                cursor = Logs(options).marks()
            records, cut = Logs(options).newest()
    except LogError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, lines=[line_of(one) for one in records], cut=cut, cursor=cursor, now=time.time())


if __name__ == "__main__":
    main()
