"""What the watch of a host makes of what it sees: no sockets, no processes, no clock of its own."""

from __future__ import annotations

import configparser
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: Time in which faults and outs are counted together.
TOGETHER_SECONDS = 600.0
LONGEST_HOLD_SECONDS = 600.0
SEVERITIES = ("none", "soft", "fatal")
#: What brings a device back, the least first; with several faults the last of them counts.
BACK = ("answers", "restarted", "reset", "reboot", "person")
#: Xid of "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)".
XID_ACTION = 154
XID = re.compile(r"NVRM: Xid \((?:PCI:)?(?P<card>[0-9a-fA-F:.]+)\): (?P<xid>\d+)(?:, (?P<text>.*))?")
CHANGED_TO = re.compile(r" to 0x[0-9a-f]+ \((?P<action>[^)]+)\)")
CARD = re.compile(r"(?P<domain>[0-9a-fA-F]+):(?P<bus>[0-9a-fA-F]+):(?P<slot>[0-9a-fA-F]+)")


class TableError(Exception):
    """The table of classes cannot be used; the text says what is wrong with it."""


@dataclass(frozen=True)
class FaultClass:
    """A row of the table, as described at its top."""

    name: str
    what: str
    severity: str
    after: int
    back: str
    command: str
    xids: frozenset[int] = frozenset()
    actions: frozenset[str] = frozenset()
    nvml: frozenset[str] = frozenset()
    answer: str = ""
    good: float | None = None


class Table:
    """The classes of faults.

    Raises:
        TableError: the file is not there, or says something that is not known.
    """

    def __init__(self, file: Path) -> None:
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(file.read_text())
            self.classes = {name: self.read(name, parser[name]) for name in parser.sections()}
        except (OSError, ValueError, KeyError, configparser.Error) as error:
            raise TableError(f"{file}: {error}") from error
        self.unknown = self.classes.get("unknown")
        if self.unknown is None:
            raise TableError(f"{file}: there is no class `unknown`")

    def read(self, name: str, row: configparser.SectionProxy) -> FaultClass:
        """One class."""
        known = {"what", "xid", "action", "nvml", "answer", "severity", "after", "back", "command", "good"}
        if strange := set(row) - known:
            raise ValueError(f"[{name}]: {', '.join(sorted(strange))}: known are {', '.join(sorted(known))}")
        for key, choices in (("severity", SEVERITIES), ("back", BACK)):
            if row[key] not in choices:
                raise ValueError(f"[{name}]: {key} is {row[key]!r}; it takes {', '.join(choices)}")
        good = row.get("good")
        words = {key: row.get(key, "").split() for key in ("xid", "action", "nvml")}
        return FaultClass(
            name, row["what"], row["severity"], int(row["after"]), row["back"], row["command"],
            frozenset(map(int, words["xid"])), frozenset(words["action"]), frozenset(words["nvml"]),
            row.get("answer", ""), None if good is None else float(good),
        )  # fmt: skip

    def of_xid(self, number: int) -> FaultClass:
        """The class of a message of the driver."""
        assert self.unknown  # noqa: S101 - checked when the table was read
        return next((one for one in self.classes.values() if number in one.xids), self.unknown)

    def of_action(self, action: str) -> FaultClass | None:
        """The class of what the driver says must be done."""
        return next((one for one in self.classes.values() if action in one.actions), None)

    def of_nvml(self, seen: str) -> FaultClass | None:
        """The class of what NVML shows."""
        return next((one for one in self.classes.values() if seen in one.nvml), None)

    def of_answer(self, kind: str) -> FaultClass | None:
        """The class of an answer that is ``wrong``, or that ``nobody`` gives."""
        return next((one for one in self.classes.values() if one.answer == kind), None)


def card_of(text: str) -> tuple[int, ...] | None:
    """Domain, bus and slot of a card: the driver and nvidia-smi write them with different numbers of digits."""
    match = CARD.search(text)
    return tuple(int(part, 16) for part in match.groups()) if match else None


def action_of(text: str) -> str | None:
    """What must be done by the words of Xid 154; ``none`` when nothing must, ``None`` when they say nothing of it."""
    match = CHANGED_TO.search(text)
    if not match:
        return None
    words = match["action"].lower()
    return next((word for word in ("reboot", "reset") if word in words), "none" if words == "none" else "peers")


@dataclass(frozen=True)
class Seen:
    """A fault of a device, as it was seen."""

    device: str
    fault: FaultClass
    text: str
    at: float
    xid: int = 0

    def why(self) -> str:
        """In one line, for people."""
        return f"{self.fault.name}: {self.fault.what} ({self.text})"


def in_kernel_log(line: str, cards: dict[str, tuple[int, ...]], table: Table, at: float) -> list[Seen]:
    """What a line of the kernel's log says of devices, whose cards are given by domain, bus and slot."""
    match = XID.search(line)
    if not match:
        return []
    number, text = int(match["xid"]), (match["text"] or "").strip()
    fault: FaultClass | None = table.of_xid(number)
    if number == XID_ACTION:
        fault = table.of_action(action_of(text) or "none")
    if fault is None:
        return []
    card = card_of(match["card"])
    said = f"Xid {number}" + (f": {text[:200]}" if text else "")
    return [Seen(device, fault, said, at, number) for device, own in cards.items() if own == card]


@dataclass
class Case:
    """A fault that is not over yet."""

    fault: str
    text: str
    why: str
    at: float
    boot: str
    out: bool = False

    def as_json(self) -> dict[str, Any]:
        """For the files in which it outlives the watch."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Case:
        """What :meth:`as_json` gave."""
        return cls(**{name: found[name] for name in cls.__dataclass_fields__})


@dataclass
class Evidence:
    """What is known of a device now.

    Args:
        good_seconds: since when the known answer is good without a bad one between.
        boot: the kernel's id of this boot.
        oldest: when the oldest of its processes was started, in seconds since 1970; ``None`` when nobody knows.
        lost: whether NVML does not get at its card.
        action: what the driver says must be done; ``None`` when it does not tell.
    """

    good_seconds: float
    boot: str
    oldest: float | None = None
    lost: bool = False
    action: str | None = None


def is_back(case: Case, fault: FaultClass, now: Evidence, good_seconds: float) -> bool:
    """Whether a device may serve again, by its class's rule."""
    if now.good_seconds < good_seconds or now.lost or now.action in {"reset", "reboot"} or fault.back == "person":
        return False
    booted = now.boot != case.boot
    restarted = booted or (now.oldest is not None and now.oldest > case.at)
    if fault.back == "restarted":
        return restarted
    if fault.back == "reset":
        # Who resets a card has to end its processes first.
        return booted or (restarted and now.action in {"none", "peers"})
    return booted or fault.back != "reboot"


@dataclass
class Counts:
    """How often something happened to a device lately."""

    times: dict[str, deque[float]] = field(default_factory=dict)

    def add(self, name: str, at: float) -> int:
        """Count one more; gives how many there were within :data:`TOGETHER_SECONDS`."""
        kept = self.times.setdefault(name, deque())
        kept.append(at)
        return self.lately(name, at)

    def lately(self, name: str, at: float) -> int:
        """How many there were."""
        kept = self.times.get(name, deque())
        while kept and at - kept[0] > TOGETHER_SECONDS:
            kept.popleft()
        return len(kept)


def hold_seconds(good_seconds: float, outs: int) -> float:
    """How long the known answer has to be good: doubles with each out of late, so that flapping is bounded."""
    return min(max(LONGEST_HOLD_SECONDS, good_seconds), good_seconds * 2.0 ** max(0, outs - 1))


def worse(one: FaultClass, other: FaultClass) -> bool:
    """Whether a device with one fault is worse off with another: it goes out for that, or needs more to come back."""
    more_severe = SEVERITIES.index(other.severity) - SEVERITIES.index(one.severity)
    return more_severe > 0 or (more_severe == 0 and BACK.index(other.back) > BACK.index(one.back))


def transitions(device: str, former: dict[str, Any], now: dict[str, Any], table: Table, at: float) -> Iterable[Seen]:
    """What is new in what NVML shows of a device; ``former`` is empty at the first look."""
    found: list[tuple[FaultClass | None, str]] = []
    if now["lost"] and not former.get("lost"):
        found.append((table.of_nvml("lost"), now["lost"]))
    if now["action"] not in {None, "none", former.get("action")}:
        found.append((table.of_action(now["action"]), f"recovery action {now['action']}"))
    errors, known = now["uncorrected"], former.get("uncorrected")
    if errors is not None and known is not None and errors > known:
        found.append((table.of_nvml("uncorrected"), f"{errors} uncorrectable ECC errors since the last reset"))
    # What was there before the first look has been served with, and only a person can mend it.
    if now["unmapped"] and former.get("unmapped") is False:
        found.append((table.of_nvml("unmapped"), "row remapping has failed"))
    return [Seen(device, fault, text, at) for fault, text in found if fault is not None]
