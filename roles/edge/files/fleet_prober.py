#!/usr/bin/python3
"""Asks the hosts of an edge whether they are well, and writes down which are: the active checks that nginx lacks.

Installed as /usr/local/lib/fleet/fleet-prober by the role edge. Needs Python's standard library only, and no rights.
Two questions, because a host that is only busy must stay: were its load to go to the others, they would follow.
- Is it alive? Its nginx answers that without a device, so it may not take long.
- Is it ready? A device answers that, after the requests that came before. So it may take as long as any request, and
  one question at a time is on its way; only a clear no counts, or none at all after longer than a request may take.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SETTINGS = Path("/etc/fleet/edge.json")
#: Time in which ejections count towards how long a host has to be good before it comes back.
FLAPPING_SECONDS = 600.0
LONGEST_HOLD_SECONDS = 60.0
#: Verdicts that have not been heeded after this time are written again.
HEEDED_SECONDS = 3.0
#: Two seconds of silence are asked after, and three questions without an answer end a connection.
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


@dataclass(frozen=True)
class Settings:
    """What the role edge wrote to /etc/fleet/edge.json."""

    probe_seconds: float = 0.5
    alive_seconds: float = 1.0
    ready_seconds: float = 65.0
    fall: int = 2
    rise: int = 2
    state_dir: str = "/var/lib/fleet/edge"
    probes_file: str = "/run/fleet-edge/probes.json"

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Those of a file; names that are not known are for fleet-edge."""
        found = json.loads(path.read_text()) if path.is_file() else {}
        return cls(**{name: value for name, value in found.items() if name in cls.__dataclass_fields__})


# ---- policy: no sockets, no clock of its own -------------------------------------------------------------------------


@dataclass
class Answers:
    """Answers to one of the questions."""

    good: int = 0
    bad: int = 0

    def count(self, good: bool) -> None:
        """Take one more into account."""
        self.good, self.bad = (self.good + 1, 0) if good else (0, self.bad + 1)


@dataclass
class Policy:
    """Whether one host is healthy, by the answers to both questions."""

    settings: Settings
    healthy: bool = True
    reason: str = "not asked yet"
    alive: Answers = field(default_factory=Answers)
    ready: Answers = field(default_factory=Answers)
    #: When it began to be good without a bad answer in between.
    good_since: float | None = None
    ejections: deque[float] = field(default_factory=deque)
    #: When the youngest question began whose answer was counted: an older one has nothing to add.
    counted: float = float("-inf")
    drained: bool = False

    def hold_seconds(self, now: float) -> float:
        """How long it must be good before it comes back: doubles with each ejection, so that flapping is bounded."""
        while self.ejections and now - self.ejections[0] > FLAPPING_SECONDS:
            self.ejections.popleft()
        return min(LONGEST_HOLD_SECONDS, float(2 ** max(0, len(self.ejections) - 1)))

    def alive_answer(self, good: bool, reason: str, now: float, began: float | None = None) -> bool:
        """Take an answer of the host's nginx into account; gives whether the verdict has changed."""
        # Questions do not wait for each other: a late answer says less than that to a later question.
        if began is not None:
            if began < self.counted:
                return False
            self.counted = began
        self.alive.count(good)
        return self.judge(good, self.alive.bad >= self.settings.fall, reason, now)

    def ready_answer(self, good: bool, reason: str, now: float, late: bool = False) -> bool:
        """Take an answer of a device into account; ``late`` when none came in longer than a request may take."""
        self.ready.count(good)
        return self.judge(good, late or self.ready.bad >= self.settings.fall, reason, now)

    def judge(self, good: bool, out: bool, reason: str, now: float) -> bool:
        """Bring the verdict up to date; gives whether it has changed."""
        if not good:
            self.good_since = None
        elif self.good_since is None:
            self.good_since = now
        former = self.healthy
        if out and former:
            self.healthy, self.reason = False, reason
            # What happens to a drained host is meant to happen.
            if not self.drained:
                self.ejections.append(now)
        elif not former and not out and self.may_return(now):
            self.healthy, self.reason = True, "answers again"
        elif former and good and self.reason == "not asked yet":
            self.reason = "answers"
        return self.healthy != former

    def may_return(self, now: float) -> bool:
        """Whether a host that is out has been good for long enough."""
        rise = self.settings.rise
        return (
            self.good_since is not None
            and min(self.alive.good, self.ready.good) >= rise
            and now - self.good_since >= self.hold_seconds(now)
        )


# ---- sockets ---------------------------------------------------------------------------------------------------------


async def ask(address: str, port: int, path: str, connect_seconds: float, answer_seconds: float) -> int:
    """HTTP status that a host answers, on a connection of its own.

    Raises:
        OSError: it cannot be reached, or answers with something else.
        asyncio.TimeoutError: it takes longer than that.
    """
    # The kernel of a host takes a connection, however busy the programs are.
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), connect_seconds)
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise ConnectionError(f"does not take a connection within {connect_seconds:g} s") from error
    try:
        # A host that was switched off while it was asked would else be waited for in vain.
        link = writer.get_extra_info("socket")
        for level, name, value in KEEPALIVE:
            link.setsockopt(level, name, value)
        host = f"[{address}]" if ":" in address else address
        lines = [
            f"GET {path} HTTP/1.0",
            f"Host: {host}:{port}",
            "User-Agent: fleet-prober",
            "Connection: close",
            "",
            "",
        ]
        writer.write("\r\n".join(lines).encode())
        words = (await asyncio.wait_for(reader.readline(), answer_seconds)).split()
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
            raise ConnectionError("closed the connection without an answer")
        return int(words[1])
    except ValueError as error:
        raise ConnectionError("answers with something else than HTTP") from error
    finally:
        # Aborted and not closed: there is nothing left to say, and nobody to wait for.
        writer.transport.abort()


@dataclass
class Target:
    """A host with its policy and the questions on their way to it."""

    member: dict[str, Any]
    policy: Policy
    since: str
    ready_task: asyncio.Task[None] | None = None

    def ports(self) -> list[int]:
        """One for each site of the host."""
        return sorted(set(self.member["services"].values()))


class Prober:
    """Asks all members over and over."""

    def __init__(self, settings_file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings_file = settings_file
        self.clock = clock
        self.settings = Settings.read(settings_file)
        self.targets: dict[str, Target] = {}
        self.read: dict[Path, tuple[int, int]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        # Answers to questions from before this moment do not count: this program itself could not run.
        self.stalled_until = float("-inf")
        self.written = ""
        self.written_at = float("-inf")

    @property
    def probes_file(self) -> Path:
        """Where the verdicts are written."""
        return Path(self.settings.probes_file)

    def changed(self, path: Path) -> bool:
        """Whether a file is another one than when it was last read."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return self.read.pop(path, None) is not None
        stamp = (found.st_mtime_ns, found.st_ino)
        former, self.read[path] = self.read.get(path), stamp
        return stamp != former

    def refresh(self) -> None:
        """Take over what the role and fleet-edge have written since."""
        if self.changed(self.settings_file):
            self.settings = Settings.read(self.settings_file)
            for target in self.targets.values():
                target.policy.settings = self.settings
        members_file = Path(self.settings.state_dir) / "members.json"
        if not self.changed(members_file):
            return
        members = json.loads(members_file.read_text())["members"] if members_file.is_file() else {}
        former = self.former_verdicts() if not self.targets else {}
        for name in self.targets.keys() - members.keys():
            self.forget(self.targets.pop(name))
        for name, member in members.items():
            if name in self.targets:
                self.targets[name].member = member
            else:
                known = former.get(name, {})
                policy = Policy(self.settings, healthy=bool(known.get("healthy", True)))
                policy.reason = str(known.get("reason", policy.reason))
                self.targets[name] = Target(member, policy, str(known.get("since", now_text())))
            self.targets[name].policy.drained = bool(member["drained"])

    def former_verdicts(self) -> dict[str, dict[str, Any]]:
        """Those from before this program was restarted: a host that was out is not let in by that."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self.probes_file.read_text())["members"]
            return dict(found) if isinstance(found, dict) else {}
        return {}

    def forget(self, target: Target) -> None:
        """Stop waiting for the answer of a host."""
        if target.ready_task:
            target.ready_task.cancel()
            target.ready_task = None

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a question beside all others."""
        task = asyncio.get_running_loop().create_task(work)
        # Somebody has to hold it, or it may be collected before its end.
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def ask_alive(self, name: str, target: Target) -> None:
        """Ask the host's nginx."""
        began, port = self.clock(), target.ports()[0]
        try:
            seconds = self.settings.alive_seconds
            status = await ask(target.member["address"], port, "/.fleet/alive", seconds, seconds)
            good, reason = status < 500, f"port {port} answers {status}"
        except (asyncio.TimeoutError, TimeoutError):
            good, reason = False, f"port {port} does not answer within {self.settings.alive_seconds:g} s"
        except OSError as error:
            good, reason = False, f"port {port}: {error.strerror or error}"
        if not good and began < self.stalled_until:
            return
        if target.policy.alive_answer(good, reason, self.clock(), began):
            # The device's answer would be that of the host that was there before.
            if not target.policy.healthy:
                self.forget(target)
            self.verdict(name, target)

    async def ask_ready(self, name: str, target: Target) -> None:
        """Ask the devices, through each site of the host."""
        began, late = self.clock(), False
        good, reason = True, "answers"
        for port in target.ports():
            try:
                seconds = self.settings.ready_seconds
                status = await ask(target.member["address"], port, "/readyz", self.settings.alive_seconds, seconds)
                good, reason = status < 500, f"/readyz on port {port} answers {status}"
            except (asyncio.TimeoutError, TimeoutError):
                good, late = False, True
                reason = f"/readyz on port {port} is not answered within {self.settings.ready_seconds:g} s"
            except OSError as error:
                good, reason = False, f"/readyz on port {port}: {error.strerror or error}"
            if not good:
                break
        target.ready_task = None
        if not good and began < self.stalled_until:
            return
        if target.policy.ready_answer(good, reason, self.clock(), late):
            self.verdict(name, target)

    def verdict(self, name: str, target: Target) -> None:
        """Tell about a verdict that has changed."""
        target.since = now_text()
        word = "in" if target.policy.healthy else "out"
        hold = (
            "" if target.policy.healthy else f"; back after {target.policy.hold_seconds(self.clock()):g} good seconds"
        )
        sys.stderr.write(f"{name} is {word}: {target.policy.reason}{hold}\n")
        sys.stderr.flush()
        self.publish()

    def verdicts(self) -> dict[str, dict[str, Any]]:
        """What there is to say of each host."""
        return {
            name: {"healthy": one.policy.healthy, "since": one.since, "reason": one.policy.reason}
            for name, one in sorted(self.targets.items())
        }

    def publish(self, again: bool = False) -> None:
        """Write the verdicts, if they are others than before."""
        text = json.dumps({"members": self.verdicts()}, indent=1) + "\n"
        if text == self.written and not again:
            return
        partial = self.probes_file.with_name(f".{self.probes_file.name}.partial")
        partial.write_text(text)
        partial.rename(self.probes_file)
        self.written, self.written_at = text, self.clock()

    def heeded(self) -> bool:
        """Whether nginx goes by the verdicts."""
        try:
            applied = json.loads((Path(self.settings.state_dir) / "applied.json").read_text())["healthy"]
        except (OSError, ValueError, KeyError):
            applied = {}
        return bool(applied == {name: one.policy.healthy for name, one in self.targets.items()})

    def tick(self) -> None:
        """Ask all that is to be asked now."""
        self.refresh()
        for name, target in self.targets.items():
            self.start(self.ask_alive(name, target))
            # One that is not even alive is not asked for more.
            if target.ready_task is None and not target.policy.alive.bad:
                target.ready_task = self.start(self.ask_ready(name, target))
        self.publish()
        # A change while it was being applied, or an nginx that refused its configuration for a while.
        if self.clock() - self.written_at > HEEDED_SECONDS and not self.heeded():
            self.publish(again=True)

    async def run(self) -> None:
        """Ask for ever, in even steps."""
        next_tick = self.clock()
        while True:
            now = self.clock()
            # A machine that was paused or starved would blame its hosts for it.
            if now - next_tick > self.settings.probe_seconds:
                self.stalled_until, next_tick = now, now
            self.tick()
            next_tick += self.settings.probe_seconds
            await asyncio.sleep(max(0.0, next_tick - self.clock()))


def now_text() -> str:
    """The time as it stands in records: UTC, whole seconds."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


if __name__ == "__main__":
    asyncio.run(Prober(Path(sys.argv[1]) if len(sys.argv) > 1 else SETTINGS).run())
