"""Units of a host's service manager: systemd, or supervisor where systemd is not PID 1."""

from __future__ import annotations

import abc
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

#: The kernel gives the start of the system in whole seconds only.
TOLERANCE_SECONDS = 2
START_SECONDS = 60


class UnitError(Exception):
    """A unit could not be started or stopped; the text says which, and where to look."""


def started_at(pid: int) -> float | None:
    """When a process was started, in seconds since 1970; ``None`` when there is none."""
    try:
        # The name in parentheses may hold spaces; the start time is the twentieth field behind it.
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except OSError:
        return None
    return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


def younger(started: float | None, files: Iterable[str]) -> list[str]:
    """Those files that were changed after a process had been started."""
    if started is None:
        return []
    changed = {path: Path(path).stat().st_mtime for path in files if Path(path).exists()}
    # A date in the future comes from a clock that was set back, and would be younger than every restart.
    return [path for path, when in changed.items() if started + TOLERANCE_SECONDS < when <= time.time()]


class Manager(abc.ABC):
    """What both service managers can do."""

    @abc.abstractmethod
    def ask(self, *arguments: str) -> tuple[int, str]:
        """Exit code and all output of the manager's command."""

    @abc.abstractmethod
    def pid(self, name: str) -> int:
        """Process id of a unit, or 0."""

    def follow(self, name: str, pid: int) -> None:
        """Wait until the manager has seen that another process has taken over a unit.

        Raises:
            UnitError: it has not.
        """
        deadline = time.monotonic() + START_SECONDS
        while self.pid(name) != pid:
            if time.monotonic() > deadline:
                raise UnitError(
                    f"{name}: process {pid} has taken over, and the service manager watches {self.pid(name)}."
                )
            time.sleep(0.2)

    @abc.abstractmethod
    def is_right(self, name: str) -> bool:
        """Whether a unit runs and starts with the host."""

    @abc.abstractmethod
    def start(self, name: str) -> None:
        """Have a unit run, now and when the host starts."""

    @abc.abstractmethod
    def restart(self, name: str) -> None:
        """Start a unit anew with what its files say now."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Stop a unit and forget it."""

    @abc.abstractmethod
    def reread(self) -> None:
        """Have the manager read its files anew; nothing is started or stopped by it."""

    def stale(self, name: str, files: Iterable[str], pending: Iterable[str] = ()) -> list[str]:
        """Files that a running unit has not read: younger than it, or about to be changed."""
        pid = self.pid(name)
        if not pid:
            return []
        wanted = list(files)
        return sorted({*younger(started_at(pid), wanted), *(set(pending) & set(wanted))})


class Systemd(Manager):
    """systemd, by systemctl."""

    def ask(self, *arguments: str) -> tuple[int, str]:
        """Exit code and all output of ``systemctl ARGUMENTS``."""
        done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
        return done.returncode, (done.stdout + done.stderr).strip()

    def call(self, *arguments: str) -> None:
        """Run ``systemctl ARGUMENTS``.

        Raises:
            UnitError: it failed; carries the unit's last lines.
        """
        code, said = self.ask(*arguments)
        if code:
            name = arguments[-1]
            log = ["journalctl", "--unit", name, "--lines", "20", "--no-pager", "--output", "cat"]
            tail = subprocess.run(log, capture_output=True, text=True, check=False).stdout
            raise UnitError(
                f"systemctl {' '.join(arguments)} failed: {said} Look: journalctl -u {name} -n 50\nIts last lines:\n{tail}"
            )

    def pid(self, name: str) -> int:
        """Process id of a unit, or 0."""
        said = self.ask("show", "--property=MainPID", "--value", name)[1]
        return int(said) if said.isdigit() else 0

    def is_right(self, name: str) -> bool:
        """Whether a unit runs and starts with the host, and systemd knows its files as they are."""
        wanted = "ActiveState=active", "UnitFileState=enabled", "NeedDaemonReload=no"
        said = self.ask("show", *(f"--property={one.partition('=')[0]}" for one in wanted), name)[1].splitlines()
        return set(said) == set(wanted)

    def start(self, name: str) -> None:
        """Have a unit run, now and when the host starts."""
        self.call("daemon-reload")
        self.call("enable", "--quiet", name)
        self.call("start", name)

    def restart(self, name: str) -> None:
        """Start a unit anew with what its files say now."""
        self.call("daemon-reload")
        self.call("restart", name)

    def remove(self, name: str) -> None:
        """Stop a unit and have it not start with the host."""
        if self.ask("cat", name)[0] == 0:
            self.call("disable", "--now", "--quiet", name)

    def reread(self) -> None:
        """Have systemd read its files anew."""
        self.call("daemon-reload")


class Supervisor(Manager):
    """supervisor, by supervisorctl; started when it does not run."""

    def ask(self, *arguments: str) -> tuple[int, str]:
        """Exit code and all output of ``supervisorctl ARGUMENTS``; code 127 where it is not installed."""
        if not shutil.which("supervisorctl"):
            return 127, ""
        done = subprocess.run(["supervisorctl", *arguments], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def alive(self) -> bool:
        """Whether supervisord answers."""
        return self.ask("pid")[1].strip().isdigit()

    def wake(self) -> None:
        """Start supervisord when it does not answer.

        Raises:
            UnitError: it does not start.
        """
        if self.alive():
            return
        done = subprocess.run(["service", "supervisor", "start"], capture_output=True, text=True, check=False)
        deadline = time.monotonic() + 15
        while not self.alive():
            if time.monotonic() > deadline:
                raise UnitError(
                    f"supervisor did not start (exit code {done.returncode}): {done.stdout}{done.stderr} "
                    "Try: service supervisor start"
                )
            time.sleep(0.2)

    def state(self, name: str) -> str:
        """State of a program in supervisor's words, or ``ABSENT``."""
        match = re.search(rf"^{re.escape(name)}\s+([A-Z]+)", self.ask("status", name)[1], re.MULTILINE)
        return match[1] if match else "ABSENT"

    def wait(self, name: str) -> None:
        """Wait until a program runs.

        Raises:
            UnitError: it does not; carries its last output.
        """
        deadline = time.monotonic() + START_SECONDS
        while (state := self.state(name)) != "RUNNING":
            if time.monotonic() > deadline:
                raise UnitError(
                    f"{name} is {state}, not RUNNING, after {START_SECONDS} s. Look: supervisorctl tail {name}. "
                    f"Its last output:\n{self.ask('tail', name)[1][-2000:]}"
                )
            time.sleep(0.2)

    def pid(self, name: str) -> int:
        """Process id of a program, or 0."""
        said = self.ask("pid", name)[1].strip()
        return int(said) if said.isdigit() else 0

    def is_right(self, name: str) -> bool:
        """Whether a program runs; supervisor starts with the host what it runs."""
        return self.state(name) == "RUNNING"

    def start(self, name: str) -> None:
        """Have a program run, as its configuration on disk says."""
        self.wake()
        self.ask("reread")
        # For one name it loads the changed file and restarts the program; without a change it does nothing.
        self.ask("update", name)
        if self.state(name) not in {"RUNNING", "STARTING"}:
            self.ask("start", name)
        self.wait(name)

    def restart(self, name: str) -> None:
        """Start a program anew with what its files say now."""
        self.wake()
        former = self.pid(name)
        self.ask("reread")
        self.ask("update", name)
        if self.pid(name) == former:
            self.ask("restart", name)
        self.wait(name)

    def remove(self, name: str) -> None:
        """Stop a program and forget it."""
        if self.alive():
            self.ask("stop", name)
            self.ask("remove", name)

    def reread(self) -> None:
        """Have supervisor read its files; changed programs go on as they are until they are restarted."""
        if self.alive():
            self.ask("reread")


def manager(kind: str) -> Manager:
    """The service manager ``systemd`` or ``supervisor``."""
    return Systemd() if kind == "systemd" else Supervisor()
