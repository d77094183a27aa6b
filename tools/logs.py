#!/usr/bin/env python3
"""Turns the options of `./fleet logs` into those of ansible-playbook, on one line for a shell.

logs.py [OPTION...]     exit 2 with the reason on standard error when one of them makes no sense; no host was asked then
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NoReturn

LEVELS = ("debug", "info", "warning", "error", "critical")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
#: As nginx and the app take them from a client; what is no such id is replaced by one, and stands in no log.
REQUEST_ID = re.compile(r"[A-Za-z0-9._~:+=/-]{1,128}")
SERVICE = re.compile(r"[a-z][a-z0-9-]{0,30}")
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
#: Where it begins when nobody says so. A request that somebody has the id of may be of yesterday.
SINCE, SINCE_OF_REQUEST = "1h", "1d"
LINES, LINES_BEFORE_FOLLOWING = 2000, 10
MOST_LINES = 100_000


class Refused(Exception):
    """What was asked makes no sense; the text says why."""


class Parser(argparse.ArgumentParser):
    """One that says what is wrong as `./fleet` does."""

    def error(self, message: str) -> NoReturn:
        """Refuse.

        Raises:
            Refused: always.
        """
        raise Refused(f"{message}. See ./fleet logs --help")


def moment(option: str, text: str, now: datetime) -> datetime:
    """A time as it was given: how long ago, or of RFC 3339.

    Raises:
        Refused: it is neither.
    """
    if match := re.fullmatch(r"(\d{1,6})([smhdw])", text):
        return now - timedelta(**{UNITS[match[2]]: int(match[1])})
    if RFC_3339.fullmatch(text):
        try:
            return datetime.fromisoformat(text.upper())
        except ValueError as error:
            raise Refused(f"{option} {text}: {error}") from None
    example = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    raise Refused(
        f"{option} takes how long ago, such as 30s, 10m, 2h or 3d, or a time with its zone, such as {example}; "
        f"not '{text}'"
    )


def parser() -> Parser:
    """The options that are no options of ansible-playbook."""
    found = Parser(
        prog="./fleet logs",
        usage="./fleet logs [HOST[/DEVICE] ...] [options] [ansible-playbook options]",
        description="Lines of the logs of hosts and edges, in the order of their times (UTC).",
        epilog="Times are RFC 3339 with a zone, or how long ago: 30s, 10m, 2h, 3d, 1w.",
        allow_abbrev=False,
        # The short options are those of ansible-playbook.
        add_help=False,
    )
    found.add_argument(
        "--request-id", metavar="ID", help="the way of one request: nginx of edge and host, app, model process"
    )
    found.add_argument(
        "--since", metavar="TIME", help=f"10m, 2h, 3d or RFC 3339; {SINCE}, with --request-id {SINCE_OF_REQUEST}"
    )
    found.add_argument("--until", metavar="TIME", help="the same; until now when it is not given")
    found.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    found.add_argument("--level", choices=LEVELS, help="lowest level; info, with --request-id debug")
    found.add_argument("--service", metavar="NAME", help="only lines of one service")
    found.add_argument(
        "--lines",
        metavar="N",
        help=f"most lines of each host, the newest; {LINES}, before --follow {LINES_BEFORE_FOLLOWING}",
    )
    found.add_argument("--json", action="store_true", help="one JSON object a line")
    return found


def lines(text: str | None, follow: bool) -> int:
    """How many lines each host gives.

    Raises:
        Refused: it is no such number.
    """
    if text is None:
        return LINES_BEFORE_FOLLOWING if follow else LINES
    if not re.fullmatch(r"\d{1,6}", text) or not 1 <= int(text) <= MOST_LINES:
        raise Refused(f"--lines takes a number from 1 to {MOST_LINES}; not '{text}'")
    return int(text)


def options(given: Sequence[str], now: datetime) -> list[str]:
    """What is handed to ansible-playbook in the place of the options.

    Raises:
        Refused: they make no sense.
    """
    mine, others = parser().parse_known_args(given)
    if mine.request_id is not None and not REQUEST_ID.fullmatch(mine.request_id):
        raise Refused(
            f"--request-id '{mine.request_id}': no request has such an id; "
            "it takes up to 128 letters, digits and . _ ~ : + = / -"
        )
    if mine.service is not None and not SERVICE.fullmatch(mine.service):
        raise Refused(f"--service '{mine.service}': it takes the name of a service, such as ocr")
    if mine.follow and mine.until is not None:
        raise Refused("--follow goes on until Ctrl-C; leave --until out")
    default = SINCE_OF_REQUEST if mine.request_id else SINCE
    since_text = default if mine.since is None else mine.since
    since = moment("--since", since_text, now)
    until = moment("--until", mine.until, now) if mine.until is not None else None
    if since > now:
        raise Refused(f"--since {since_text} is in the future; it is {now:%Y-%m-%dT%H:%M:%SZ} now")
    if until is not None and until <= since:
        raise Refused(f"--until {mine.until} is not after --since {since_text}")
    asked = [f"since {since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"]
    asked += [f"until {until.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"] if until else []
    asked += [
        f"{name} {value}"
        for name in ("request-id", "service", "level")
        if (value := getattr(mine, name.replace("-", "_")))
    ]
    query = {
        "since": int(since.timestamp() * 1_000_000),
        "until": int(until.timestamp() * 1_000_000) if until else 0,
        "request_id": mine.request_id or "",
        "level": mine.level or ("debug" if mine.request_id else "info"),
        "service": mine.service or "",
        "lines": lines(mine.lines, mine.follow and mine.since is None),
        "follow": mine.follow,
        "asked": ", ".join(asked),
    }
    return [*others, *(["--json"] if mine.json else []), "-e", json.dumps({"fleet_logs_query": query})]


def main(arguments: Sequence[str]) -> int:
    """Print the options; gives the exit status."""
    if list(arguments) == ["--help"]:
        parser().print_help()
        return 0
    try:
        print(shlex.join(options(arguments, datetime.now(UTC))))
    except Refused as refused:
        print(f"fleet: {refused}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
