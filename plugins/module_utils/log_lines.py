"""Lines of the logs of a host or an edge, each as one record with the same members, whoever wrote it."""

from __future__ import annotations

import calendar
import functools
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]

LEVELS = ("debug", "info", "warning", "error", "critical")
#: Of syslog, from 0 (emergency) on.
PRIORITIES = ("critical", "critical", "critical", "error", "warning", "info", "info", "debug")
#: Of nginx, where they are not named as here.
NGINX_LEVELS = {"emerg": "critical", "alert": "critical", "crit": "critical", "warn": "warning", "notice": "info"}
#: More of one line is not handed on.
LINE_CHARACTERS = 16384
#: What probes and pages ask every second; a good answer to it is of no interest.
OPERATORS = re.compile(r"/(?:healthz|readyz|version|metrics|status\.json|\.fleet/.*)")

_ISO = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?")
_NGINX_ERROR = re.compile(r"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) \[([a-z]+)\] (\d+)#\d+: (?:\*(\d+) )?(.*)", re.DOTALL)
_SUPERVISOR = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) ([A-Z]{4}) (.*)", re.DOTALL)
SUPERVISOR_LEVELS = {
    "CRIT": "critical",
    "ERRO": "error",
    "WARN": "warning",
    "INFO": "info",
    "DEBG": "debug",
    "TRAC": "debug",
}
#: uWSGI writes a date before some of its lines.
_UWSGI_DATE = re.compile(r"[A-Z][a-z]{2} ([A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}) - (.*)", re.DOTALL)
#: The query in a request that nginx quotes, and in the page that led to it; both may hold private data.
_QUERY = re.compile(r'((?:request|referrer): "[^"?]*)\?[^" ]*')
_VASSAL_SOCKET = re.compile(r"/run/fleet/([a-z0-9]+)/([a-z][a-z0-9-]*?)--[\w.-]+\.sock")
_VASSAL_FILE = re.compile(r"\b([a-z][a-z0-9-]*?)--\d[\w.-]*\.(?:ini|sock|stats)\b")
#: Of a line that has no level, what makes it a warning. A guess, and better than to leave out why a worker died.
_WARNS = re.compile(
    r"\b(?:errors?|fail(?:ed|ure|s)?|fatal|died|killed|unable|cannot|denied|exception|traceback|segmentation|"
    r"out of memory|respawn\w*|throttl\w*|curse\w*|DAMN|warning|refused)\b",
    re.IGNORECASE,
)


@functools.lru_cache(maxsize=64)
def _seconds(text: str) -> int:
    return calendar.timegm(time.strptime(text.replace(" ", "T"), "%Y-%m-%dT%H:%M:%S"))


@functools.lru_cache(maxsize=64)
def _local_seconds(text: str, form: str) -> int:
    return int(time.mktime(time.strptime(text, form)))


def microseconds(text: object) -> int | None:
    """A time of RFC 3339 in microseconds since 1970; ``None`` for anything else. Without a zone it is the machine's own."""
    match = _ISO.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    whole, part, zone = match.groups()
    try:
        seconds = _seconds(whole) if zone else _local_seconds(whole.replace(" ", "T"), "%Y-%m-%dT%H:%M:%S")
    except (ValueError, OverflowError):
        return None
    if zone and zone != "Z":
        offset = int(zone[1:3]) * 3600 + int(zone[4:6]) * 60
        seconds -= offset if zone[0] == "+" else -offset
    return seconds * 1_000_000 + int((part or "0").ljust(6, "0")[:6])


def text_of(at: int) -> str:
    """Microseconds since 1970 as RFC 3339 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at // 1_000_000)) + f".{at % 1_000_000:06d}Z"


def local(text: str, form: str) -> int | None:
    """A time of the machine's own zone in microseconds since 1970; ``None`` when it is none."""
    try:
        return _local_seconds(text, form) * 1_000_000
    except (ValueError, OverflowError):
        return None


def json_object(text: str) -> dict[str, Any] | None:
    """The object that a line is; ``None`` when it is something else."""
    if not (text.startswith("{") and text.endswith("}")):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        try:
            # nginx writes the status with three digits, also one that it never sent.
            found = json.loads(re.sub(r'"status":0+(\d)', r'"status":\1', text))
        except ValueError:
            return None
    return found if isinstance(found, dict) else None


def level_of_status(path: str, status: int) -> str:
    """The level of a request, by the rule that the app has for its own line."""
    if status in (503, 504):
        return "warning"
    if status >= 500:
        return "error"
    return "debug" if status < 400 and OPERATORS.fullmatch(path) else "info"


class Parser:
    """Makes records of lines.

    Args:
        routes: the service of each route, by which nginx's lines are told to be a service's.
    """

    def __init__(self, routes: Mapping[str, str] | None = None) -> None:
        self._routes = dict(routes or {})

    def record(self, source: str, text: str, at: int, level: str = "") -> Record:
        """One line as a record.

        Args:
            source: who wrote it: ``nginx``, or the name of a unit.
            text: the line.
            at: when it came, in microseconds; what the line itself says counts more.
            level: what is known of its level; a line in JSON says it itself.
        """
        text = text.rstrip("\r\n")
        if len(text) > LINE_CHARACTERS:
            text = f"{text[:LINE_CHARACTERS]}… ({len(text)} characters)"
        members = json_object(text)
        if members is None:
            forms = {"nginx": self._error, "supervisord": self._supervisor}
            found = forms.get(source, self._plain)(text, at, level)
        elif source == "nginx":
            found = self._access(members)
        else:
            found = members
            if "level" not in members and "event" in members:
                found["level"] = "error" if members["event"] == "failed" else "info"
        when = microseconds(found.pop("time", None))
        kind, _, device = source.partition("@")
        if kind == "uwsgi-emperor":
            found.setdefault("device", device)
        first: Record = {"time": at if when is None else when, "source": source}
        for name in ("device", "service"):
            if isinstance(found.get(name), str) and found[name]:
                first[name] = found[name]
        said = str(found.get("level", "")).lower()
        first["level"] = said if said in LEVELS else level or "info"
        first["event"] = str(found.get("event", ""))
        if isinstance(found.get("request_id"), str) and found["request_id"]:
            first["request_id"] = found["request_id"]
        # Which machine it was says whoever gathers; in the audit log of an edge the name is that of a member.
        if "host" in found:
            first["member"] = found.pop("host")
        return first | {name: value for name, value in found.items() if name not in first}

    def _access(self, members: dict[str, Any]) -> dict[str, Any]:
        """nginx's own line for a request."""
        path = str(members.get("uri", ""))
        status = members.get("status")
        found = {
            **members,
            "event": "request",
            "level": level_of_status(path, status if isinstance(status, int) else 0),
        }
        # The device that was asked last gave the answer.
        if asked := _VASSAL_SOCKET.findall(str(members.get("upstream", ""))):
            found["device"], found["service"] = asked[-1]
        if path in self._routes:
            found["service"] = self._routes[path]
        return found

    def _supervisor(self, text: str, at: int, level: str) -> dict[str, Any]:
        """A line that supervisor writes about the programs."""
        match = _SUPERVISOR.fullmatch(text)
        written = local(match[1], "%Y-%m-%d %H:%M:%S") if match else None
        if match is None or written is None:
            return self._plain(text, at, level)
        when = text_of(written + int(match[2]) * 1000)
        return {"event": match[4], "level": SUPERVISOR_LEVELS.get(match[3], "info"), "time": when}

    def _error(self, text: str, at: int, level: str) -> dict[str, Any]:
        """A line of nginx's error log."""
        match = _NGINX_ERROR.fullmatch(text)
        if match is None:
            return self._plain(text, at, level)
        when, level, pid, connection, said = match.groups()
        found: dict[str, Any] = {
            "event": _QUERY.sub(r"\1", said),
            "level": NGINX_LEVELS.get(level, level),
            "pid": int(pid),
        }
        if connection:
            found["connection"] = int(connection)
        if asked := _VASSAL_SOCKET.search(said):
            found["device"], found["service"] = asked.groups()
        elif request := re.search(r'request: "[A-Z]+ ([^" ?]+)', said):
            found["service"] = self._routes.get(request[1], "")
        written = local(when, "%Y/%m/%d %H:%M:%S")
        found["time"] = text_of(at if written is None else written)
        return found

    def _plain(self, text: str, at: int, level: str) -> dict[str, Any]:
        """A line without any form: of uWSGI, of keepalived, of whatever crashed."""
        found: dict[str, Any] = {"event": text, "level": level}
        if match := _UWSGI_DATE.fullmatch(text):
            written = local(match[1], "%b %d %H:%M:%S %Y")
            found["event"] = match[2]
            # Whole seconds: what is known better counts.
            if written is not None and abs(written - at) > 2_000_000:
                found["time"] = text_of(written)
        if level in ("", "info"):
            found["level"] = "warning" if _WARNS.search(text) else "info"
        if named := _VASSAL_FILE.search(text):
            found["service"] = named[1]
        return found


@dataclass(frozen=True)
class Query:
    """Which lines are wanted; times in microseconds, 0 for none."""

    since: int = 0
    before: int = 0
    request_id: str = ""
    level: str = "info"
    service: str = ""
    device: str = ""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Query:
        """From the options of the module."""
        return cls(**{name: options[name] for name in cls.__dataclass_fields__ if options.get(name) is not None})

    def may_match(self, text: str) -> bool:
        """A quick look at a line: without the id it is no line of that request."""
        return not self.request_id or self.request_id in text

    def wants(self, record: Record) -> bool:
        """Whether a record is wanted, apart from its request and its time."""
        if LEVELS.index(record["level"]) < LEVELS.index(self.level):
            return False
        if self.service and record.get("service") != self.service:
            return False
        return not self.device or record.get("device") == self.device

    def in_time(self, at: int) -> bool:
        """Whether a time is within the bounds."""
        return self.since <= at and (not self.before or at <= self.before)

    def is_of_request(self, record: Record) -> bool:
        """Whether a record is of the wanted request; lines without form name it somewhere in their text."""
        if not self.request_id:
            return True
        several = record.get("request_ids")
        if isinstance(several, list) and self.request_id in several:
            return True
        if "request_id" in record:
            return bool(record["request_id"] == self.request_id)
        return self.request_id in record["event"]


class Connections:
    """Which request was on which connection of nginx: its error log has the connection only."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._known: dict[tuple[int, int], list[tuple[int, int, str]]] = {}
        for one in records:
            if one["source"] == "nginx" and "seconds" in one and one.get("connection") and "request_id" in one:
                # nginx's clock goes by the turns of its loop, and the error log by whole seconds.
                began = one["time"] - int(float(one["seconds"]) * 1_000_000) - 1_000_000
                key = (one.get("pid", 0), one["connection"])
                self._known.setdefault(key, []).append((began, one["time"] + 100_000, one["request_id"]))

    def name(self, record: Record) -> bool:
        """Give an error of nginx the id of its request; tells whether it is known."""
        if record["source"] != "nginx" or "request_id" in record or not record.get("connection"):
            return False
        for began, ended, request in self._known.get((record.get("pid", 0), record["connection"]), ()):
            if began <= record["time"] <= ended:
                record["request_id"] = request
                return True
        return False


def line_of(record: Record) -> str:
    """A record as a line of JSON; lines begin with the time, so that they sort as text."""
    return json.dumps({**record, "time": text_of(record["time"])}, default=str)
