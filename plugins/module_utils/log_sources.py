"""Where the logs of a machine are: files with those that rotation has put away, and the journal. Read from either end."""

from __future__ import annotations

import collections
import gzip
import json
import os
import re
import subprocess
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.log_lines import PRIORITIES, Parser, Query, Record

BLOCK = 65536
#: Of one file, read at once.
MOST_BYTES = 64 * 2**20
#: Lines of several processes do not stand in the very order of their times.
DISORDER = 60_000_000
#: What of an entry of the journal is needed.
FIELDS = "MESSAGE,PRIORITY,UNIT,_SYSTEMD_UNIT,SYSLOG_IDENTIFIER,_CMDLINE"
#: What systemd says around each run of what a timer starts, or beside that something has started.
_ROUTINE = re.compile(r"Starting |Finished |.*: (?:Deactivated successfully\.|Consumed )")
#: Processes of a vassal carry the name of its service.
_PROCESS = re.compile(r"([a-z][a-z0-9-]*)@[a-z0-9]+ ")


class LogError(Exception):
    """A log could not be read; the text says which, and what mends it."""


# ---- files -----------------------------------------------------------------------------------------------------------


def rotated(path: Path) -> list[Path]:
    """A log and what rotation has put away of it, the newest first."""
    found = []
    # `.log.1`, `.log.2.gz`; with `dateext` there is a date instead.
    pattern = re.compile(re.escape(path.name) + r"(?:[.-]\d+)+(?:\.gz)?")
    for one in path.parent.iterdir() if path.parent.is_dir() else ():
        if pattern.fullmatch(one.name):
            try:
                found.append((one.stat().st_mtime_ns, one))
            except FileNotFoundError:
                continue
    return [*([path] if path.exists() else []), *(one for _, one in sorted(found, reverse=True))]


def backwards(path: Path) -> Iterator[str]:
    """The lines of a file, the last one first."""
    with path.open("rb") as stream:
        position = stream.seek(0, os.SEEK_END)
        rest = b""
        while position:
            size = min(BLOCK, position)
            position -= size
            stream.seek(position)
            first, *lines = (stream.read(size) + rest).split(b"\n")
            for line in reversed(lines):
                if line:
                    yield line.decode(errors="replace")
            rest = first
        if rest:
            yield rest.decode(errors="replace")


class Files:
    """One log with all that rotation has put away.

    Args:
        path: the file that is written to.
        source: who writes it.
        has_ids: whether a line about a request holds its id.
    """

    def __init__(self, path: Path, source: str, parser: Parser, query: Query, *, has_ids: bool = True) -> None:
        self.path = path
        self.source = source
        self.parser = parser
        self.query = query
        self.has_ids = has_ids

    def newest_first(self, limit: int) -> Iterator[Record]:
        """The wanted records from the newest on; ``limit`` bounds what is kept of a packed file, which has no other end."""
        for path in rotated(self.path):
            try:
                changed = path.stat().st_mtime_ns // 1000
                if changed < self.query.since:
                    return
                if path.suffix == ".gz":
                    kept = collections.deque(self._packed(path), maxlen=limit + 1)
                    yield from reversed(kept)
                    continue
                yield from self._plain(path, changed)
            except (FileNotFoundError, EOFError):
                # Rotation renames and packs meanwhile.
                continue
            except (OSError, zlib.error) as error:
                raise LogError(f"{path} cannot be read: {error}") from error

    def _plain(self, path: Path, at: int) -> Iterator[Record]:
        # A line without a time came before the one behind it, and the last one when the file was last written to.
        for text in backwards(path):
            if self._may_match(text):
                record = self.parser.record(self.source, text, at)
                at = record["time"]
                if at < self.query.since - DISORDER:
                    return
                if self._wants(record):
                    yield record

    def _packed(self, path: Path) -> Iterator[Record]:
        at = self.query.since
        with gzip.open(path, "rt", errors="replace") as stream:
            for text in stream:
                if self._may_match(text):
                    record = self.parser.record(self.source, text, at)
                    at = record["time"]
                    if self._wants(record):
                        yield record

    def _may_match(self, text: str) -> bool:
        return not self.has_ids or self.query.may_match(text)

    def _wants(self, record: Record) -> bool:
        if not (self.query.in_time(record["time"]) and self.query.wants(record)):
            return False
        return not self.has_ids or self.query.is_of_request(record)

    # ---- what comes

    def end(self) -> dict[str, int]:
        """Where the file ends now."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return {"inode": 0, "offset": 0}
        return {"inode": found.st_ino, "offset": found.st_size}

    def since(self, mark: Mapping[str, int]) -> tuple[list[Record], dict[str, int]]:
        """The wanted records behind a mark, and the mark behind them; also over a rotation."""
        records: list[Record] = []
        now = self.end()
        offset = mark["offset"]
        if mark["inode"] and now["inode"] != mark["inode"]:
            records += self._put_away(mark, rotated(self.path)[1 if now["inode"] else 0 :])
            offset = 0
        elif now["offset"] < offset or not mark["inode"]:
            # Emptied, or new.
            offset = 0
        if now["inode"]:
            more, offset = self._from(self.path, offset)
            records += more
        return records, {"inode": now["inode"], "offset": offset}

    def _put_away(self, mark: Mapping[str, int], files: list[Path]) -> list[Record]:
        """The wanted records behind a mark in files that were put away since, the newest of which comes first."""
        records: list[Record] = []
        younger: list[Path] = []
        for path in files:
            if path.suffix == ".gz":
                # The marked one is packed by now; what is younger and not packed nobody has read yet.
                break
            if path.stat().st_ino == mark["inode"]:
                records += self._from(path, mark["offset"])[0]
                break
            younger.append(path)
        else:
            # It is gone, and of those that are left only the youngest is surely new.
            del younger[1:]
        for path in reversed(younger):
            records += self._from(path, 0)[0]
        return records

    def _from(self, path: Path, offset: int) -> tuple[list[Record], int]:
        """The wanted records from a place on, and the place behind the last whole line."""
        try:
            with path.open("rb") as stream:
                behind = stream.seek(0, os.SEEK_END) - MOST_BYTES
                stream.seek(max(offset, behind))
                if behind > offset:
                    # Somebody who was away for long gets the end of it, from a whole line on.
                    stream.readline()
                offset = stream.tell()
                text = stream.read(MOST_BYTES)
        except FileNotFoundError:
            return [], offset
        whole, newline, _ = text.rpartition(b"\n")
        records = []
        at = time.time_ns() // 1000
        for line in whole.decode(errors="replace").split("\n") if newline else ():
            if line and self._may_match(line):
                record = self.parser.record(self.source, line, at)
                if self._wants(record):
                    records.append(record)
        return records, offset + len(whole) + len(newline)


# ---- the journal -----------------------------------------------------------------------------------------------------


class Journal:
    """The entries of some units in the journal of systemd.

    Args:
        program: how ``journalctl`` is called.
        units: names or patterns of units.
    """

    def __init__(self, program: str, units: list[str], parser: Parser, query: Query) -> None:
        self.program = program
        self.units = units
        self.parser = parser
        self.query = query

    def command(self, *options: str) -> list[str]:
        """``journalctl`` for these units."""
        units = [f"--unit={unit}" for unit in self.units]
        return [
            self.program,
            "--quiet",
            "--no-pager",
            "--output=json",
            "--all",
            f"--output-fields={FIELDS}",
            *units,
            *options,
        ]

    def record(self, entry: Mapping[str, Any]) -> Record:
        """An entry as a record."""
        message = entry.get("MESSAGE")
        # What is no text is given as its bytes.
        text = bytes(message).decode(errors="replace") if isinstance(message, list) else str(message or "")
        # What systemd says of a unit is told by another field than what the unit says.
        unit = str(entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or entry.get("SYSLOG_IDENTIFIER") or "journal")
        priority = str(entry.get("PRIORITY", "6"))
        level = PRIORITIES[int(priority)] if priority in "01234567" else "info"
        if level == "info" and "UNIT" in entry and _ROUTINE.match(text):
            level = "debug"
        source = unit.removesuffix(".service")
        # The unit of nginx says what nginx does not write to its own files.
        record = self.parser.record(
            "nginx.service" if source == "nginx" else source, text, int(entry["__REALTIME_TIMESTAMP"]), level
        )
        if source == "nginx":
            record["source"] = source
        if "service" not in record and (match := _PROCESS.match(str(entry.get("_CMDLINE", "")))):
            record["service"] = match[1]
        return record

    def wanted(self, lines: Iterable[bytes]) -> Iterator[Record]:
        """The wanted records of entries as ``journalctl`` writes them."""
        request = self.query.request_id.encode()
        for line in lines:
            if request in line:
                record = self.record(json.loads(line))
                if self.query.wants(record) and self.query.is_of_request(record):
                    yield record

    def newest_first(self) -> Iterator[Record]:
        """The wanted records from the newest on."""
        bounds = [f"--since=@{self.query.since / 1_000_000:.6f}"] if self.query.since else []
        if self.query.before:
            bounds.append(f"--until=@{self.query.before / 1_000_000:.6f}")
        with self._run(*bounds, "--reverse") as process:
            try:
                yield from self.wanted(process.stdout or ())
            finally:
                # The reader has had enough, or there is no more.
                process.kill()

    def _run(self, *options: str) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                self.command(*options),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "LC_ALL": "C"},
            )
        except OSError as error:
            raise LogError(f"{self.program} cannot be run: {error}") from error

    # ---- what comes

    def end(self) -> str:
        """Where the journal ends now: the cursor of the last entry of these units, or the time."""
        done = subprocess.run(self.command("--lines=1"), capture_output=True, check=False)
        line = done.stdout.splitlines()[-1:]
        return str(json.loads(line[0])["__CURSOR"]) if line else f"@{time.time():.6f}"

    def since(self, mark: str) -> tuple[list[Record], str]:
        """The wanted records behind a mark, and the mark behind them."""
        place = f"--since={mark}" if mark.startswith("@") else f"--after-cursor={mark}"
        done = subprocess.run(self.command(place), capture_output=True, check=False)
        lines = done.stdout.splitlines()
        if done.returncode and not lines:
            # What was marked is not in the journal any more.
            return [], self.end()
        return list(self.wanted(lines)), str(json.loads(lines[-1])["__CURSOR"]) if lines else mark
