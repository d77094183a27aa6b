"""Filters that put the lines of several machines in one order, for people or for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

#: What stands in columns, or is of no use to people.
COLUMNS = {"time", "host", "source", "device", "service", "level", "event", "request_id", "logger"}
#: What a terminal would act on.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Text without what a terminal would act on."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def value_of(value: Any) -> str:
    """A value as people read it."""
    if not isinstance(value, str):
        return plain(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    return plain(value) if re.fullmatch(r"[^\s\"=]+", value) else json.dumps(plain(value), ensure_ascii=False)


def place_of(record: Mapping[str, Any]) -> str:
    """Where on a machine a line comes from: ``gpu0/ocr`` for a vassal, else who wrote it."""
    source = str(record.get("source", ""))
    kind, _, device = source.partition("@")
    if kind != "uwsgi-emperor":
        return source
    return "/".join([str(record.get("device") or device), *([str(record["service"])] if record.get("service") else [])])


class Writer:
    """Writes records as text, in columns that grow with what they have held."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._host = max(map(len, names), default=0)
        self._place = 0

    def lines(self, record: Mapping[str, Any]) -> list[str]:
        """A record; text of several lines, such as a traceback, stands below it."""
        host, place = plain(str(record["host"])), plain(place_of(record))
        self._host, self._place = max(self._host, len(host)), max(self._place, len(place))
        rest = {name: value for name, value in record.items() if name not in COLUMNS and value not in (None, "")}
        # nginx serves all; its line belongs to a service where the route tells.
        if place == record.get("source"):
            rest = {name: record[name] for name in ("service", "device") if name in record} | rest
        below: list[str] = []
        for name, value in list(rest.items()):
            if isinstance(value, str) and "\n" in value.strip():
                below += [f"    {plain(line)}" for line in value.strip().splitlines()]
                del rest[name]
        event, *more = str(record.get("event", "")).splitlines() or [""]
        words = [
            str(record["time"]),
            host.ljust(self._host),
            place.ljust(self._place),
            f"{record.get('level', ''):8}",
            plain(event),
            *([plain(str(record["request_id"]))] if record.get("request_id") else []),
            *(f"{plain(name)}={value_of(value)}" for name, value in rest.items()),
        ]
        return ["  ".join(words[:4]) + " " + " ".join(words[4:]), *(f"    {plain(line)}" for line in more), *below]


def record_of(host: str, line: str) -> dict[str, Any]:
    """A line as a machine gives it, with its name."""
    found = json.loads(line)
    return {"time": found.pop("time"), "host": host, **found}


def merged(lines: Mapping[str, Iterable[str]]) -> list[dict[str, Any]]:
    """The records of several machines by time; at the same time as they were given, hosts before edges."""
    records = [record_of(host, line) for host, found in lines.items() for line in found]
    return sorted(records, key=lambda one: str(one["time"]))


def unanswered(facts: Mapping[str, Any]) -> str:
    """Why a machine gave no answer, in one line."""
    reached = facts.get("__reached") or {}
    said = reached.get("msg") if not reached.get("reached") else (facts.get("__logs") or {}).get("msg")
    return " ".join(str(said or "the reason stands above").split())


def logs_report(
    hostvars: Mapping[str, Any],
    hosts: Iterable[str],
    edges: Iterable[str],
    query: Mapping[str, Any],
    form: str = "text",
) -> dict[str, Any]:
    """The lines of all machines; exit code 2 when one could not be asked.

    Args:
        hostvars: what they answered.
        hosts: machines of the run.
        edges: edges of the inventory.
        query: what was asked for.
        form: ``json`` for lines of JSON.
    """
    last = set(edges)
    names = sorted(hosts, key=lambda name: name in last)
    lines: dict[str, list[str]] = {}
    failures, notes = [], []
    for name in names:
        answer = hostvars[name].get("__logs") or {}
        if answer.get("lines") is None:
            failures.append(f"{name}: could not be asked: {unanswered(hostvars[name])}")
            continue
        lines[name] = answer["lines"]
        if answer.get("cut"):
            notes.append(
                f"{name}: these are the newest {len(lines[name])} lines, there are more: "
                "narrow it by --since, --until, --level or --service, or raise --lines"
            )
        if answer.get("clock"):
            notes.append(f"{name}: {answer['clock']}")
    records = merged(lines)
    if not records and not failures:
        notes.append(f"no line {query.get('asked', '')}".strip())
    writer = Writer(lines)
    text = [json.dumps(one, ensure_ascii=False) for one in records] if form == "json" else []
    for one in records if form != "json" else ():
        text += writer.lines(one)
    return {"lines": text, "data": None, "notes": notes + failures, "failures": failures, "exit": 2 if failures else 0}


class FilterModule:
    """Filters of the playbook logs."""

    def filters(self) -> dict[str, Any]:
        """Names that templates use."""
        return {"logs_report": logs_report}
