"""The vassals of a host: their files, and what their emperors and they themselves say about them."""

from __future__ import annotations

import base64
import grp
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from ansible.module_utils import memory
from ansible.module_utils.fleet_socket import (
    SocketError,
    connect,
    mismatch,
    request,
    stats,
    stats_path,
)
from ansible.module_utils.measured import Measured, workers_that_fit
from ansible.module_utils.placed_files import place

#: A vassal whose master was started this often while it was waited for is crashing, not loading.
CRASHES = 3
POLL_SECONDS = 0.3
#: Where a vassal listens, as its file says.
ADDRESS = re.compile(r"^(?:http-)?socket = (\S+)$", re.MULTILINE)
#: uWSGI writes some thirty lines for each start, so that those of several services have room.
LOG_LINES = 100
#: Lines that say why a vassal did not start.
REASONS = re.compile(r'"event": "not_started"|failed to open python file|no python application found|^\[strict-mode\]')


def workers_of(path: Path) -> int:
    """Workers that a vassal's file asks for; 0 when there is no such file."""
    match = re.search(r"^workers = (\d+)$", path.read_text(), re.MULTILINE) if path.is_file() else None
    return int(match[1]) if match else 0


def has_model_process(path: Path) -> bool:
    """Whether one process of a vassal holds the model for all its workers (mode batch)."""
    return re.search(r"^attach-daemon2 = .*inference\.model_process", path.read_text(), re.MULTILINE) is not None


class NotReady(Exception):
    """A vassal does not serve; the text says what is missing."""


class Vassal:
    """A wanted vassal and its place on the host.

    Args:
        wanted: as in the module ``host_switch``.
        devices_dir: folder of the devices.
        run_dir: folder of the sockets.
        group: of the emperors' user.
        measured: what workers take; not needed for a vassal that has its file.
    """

    def __init__(
        self, wanted: dict, devices_dir: Path, run_dir: Path, group: str, measured: Measured | None = None
    ) -> None:
        self.wanted = wanted
        self.measured = measured
        self.group = group
        self.device = wanted["device"]
        self.template = wanted["ini"]
        self.name = wanted["name"]
        self.folder = devices_dir / self.device / "vassals"
        self.path = self.folder / f"{self.name}.ini"
        self.run_dir = run_dir
        self.masters: set[int] = set()
        self.deaths_before = 0

    @property
    def full_name(self) -> str:
        """``DEVICE/NAME``."""
        return f"{self.device}/{self.name}"

    def address(self) -> str:
        """Where it listens: its socket, or its loopback port as written in its file."""
        if self.wanted["transport"] == "unix":
            return str(self.run_dir / self.device / f"{self.name}.sock")
        match = ADDRESS.search(self.path.read_text())
        if match is None:
            raise NotReady(f"{self.path} names no socket")
        return match[1]

    def free_port(self) -> int:
        """The port of this service on this device that no other vassal's file names."""
        taken = {
            int(match[1])
            for other in self.folder.glob("*.ini")
            for match in re.finditer(r"socket = \S+:(\d+)$", other.read_text(), re.MULTILINE)
        }
        for port in self.wanted["ports"]:
            if port not in taken:
                return int(port)
        raise NotReady(
            f"ports {self.wanted['ports']} are both taken by vassals in {self.folder}; retire one: ./fleet deploy"
        )

    def text(self) -> str:
        """The file's text."""
        if self.wanted["transport"] == "unix":
            address = str(self.run_dir / self.device / f"{self.name}.sock")
        else:
            address = f"127.0.0.1:{self.free_port()}"
        workers = self.workers_by_memory()
        threads = max(1, self.fit["cores"] // (workers * self.fit["threads"])) if self.fit else 0
        places = {"@NAME@": self.name, "@ADDRESS@": address, "@WORKERS@": str(workers), "@THREADS@": str(threads)}
        text = self.template
        for place_of, value in places.items():
            text = text.replace(place_of, value)
        return text

    @property
    def fit(self) -> dict:
        """What there is to settle the number of workers by memory; empty when the number is given."""
        return dict(self.wanted.get("fit") or {})

    def workers_by_memory(self) -> int:
        """Workers that the file of this vassal gets: the given number, or as many as fit by what was measured."""
        numbers = self.measured.get(self.wanted["release"], self.fit["key"]) if self.fit and self.measured else None
        if numbers is None:
            return int(self.wanted["workers"])
        return workers_that_fit(self.fit, numbers["device_mib"], numbers["host_mib"])

    def workers(self) -> int:
        """Workers that this vassal must have, or would have."""
        # Once settled it stays, whatever is measured later.
        return (workers_of(self.path) if self.fit else 0) or self.workers_by_memory()

    def write(self) -> None:
        """Place the file in one step: the emperor reads whatever has the right ending."""
        # The service's environment stands in it, which may hold secrets.
        place(self.path, self.text(), 0o640, group=grp.getgrnam(self.group).gr_gid)

    def check_workers(self) -> None:
        """Check that all workers accept.

        Raises:
            NotReady: some do not.
            SocketError: there are no stats.
        """
        state = stats(stats_path(str(self.run_dir), self.device, self.name))
        accepting = sum(1 for one in state.get("workers", []) if one.get("accepting") and one.get("pid"))
        if state.get("pid"):
            self.masters.add(int(state["pid"]))
        if accepting != (workers := self.workers()):
            raise NotReady(f"{accepting} of {workers} workers accept requests")

    def check(self) -> None:
        """Check that all workers accept, ``/readyz`` is content and the sample gives the known answer.

        Raises:
            NotReady: with the first thing that is missing.
        """
        try:
            if self.wanted["stats"]:
                self.check_workers()
            else:
                # Nobody counts the workers; at least somebody must listen.
                connect(self.address(), self.wanted["load_seconds"]).close()
            if self.wanted.get("ready_path"):
                answer = request(
                    self.address(),
                    self.wanted["protocol"],
                    self.wanted["ready_path"],
                    timeout=self.wanted["load_seconds"],
                )
                if answer.status != 200:
                    raise NotReady(
                        f"{self.wanted['ready_path']} answers {answer.status}: {answer.body[:300].decode(errors='replace')}"
                    )
            if sample := self.wanted.get("sample"):
                answer = request(
                    self.address(), self.wanted["protocol"], self.wanted["route"], method="POST",
                    body=base64.b64decode(sample["body_b64"]), headers={"Content-Type": sample["content_type"]},
                    timeout=self.wanted["load_seconds"],
                )  # fmt: skip
                if answer.status != 200:
                    raise NotReady(
                        f"the sample is answered with {answer.status}: {answer.body[:300].decode(errors='replace')}"
                    )
                if difference := mismatch(answer.json(), sample["expect"]):
                    raise NotReady(f"the sample has a wrong answer: {difference}")
        except SocketError as error:
            raise NotReady(str(error)) from error


class VassalError(Exception):
    """Vassals could not be brought up or stopped; the text says which, why, and where to look."""


class Vassals:
    """The vassals of one host.

    Args:
        options: ``vassals``, ``group``, ``devices_dir``, ``run_dir``, ``log_dir``, ``upstreams_dir``, ``stop_seconds``,
            ``measured_file``, as in the module ``host_switch``.
    """

    def __init__(self, options: Mapping) -> None:
        self.devices_dir = Path(options["devices_dir"])
        self.run_dir = Path(options["run_dir"])
        self.log_dir = Path(options["log_dir"])
        self.upstreams_dir = Path(options["upstreams_dir"])
        self.stop_seconds: int = options["stop_seconds"]
        self.measured = Measured(Path(options["measured_file"]))
        self.vassals = [
            Vassal(one, self.devices_dir, self.run_dir, options["group"], self.measured) for one in options["vassals"]
        ]

    def unwanted(self) -> list[Path]:
        """Files of vassals that the inventory does not ask for."""
        wanted = {vassal.path for vassal in self.vassals}
        return [path for path in sorted(self.devices_dir.glob("*/vassals/*.ini")) if path not in wanted]

    def asked(self, path: Path) -> bool | None:
        """Whether nginx leads requests to a vassal; ``None`` before it has any upstream file to tell by."""
        files = [file.read_text() for file in self.upstreams_dir.glob("*.conf")]
        if not files:
            return None
        match = ADDRESS.search(path.read_text()) if path.is_file() else None
        return match is not None and any(re.search(rf"\s(unix:)?{re.escape(match[1])}\s", text) for text in files)

    def log_of(self, device: str) -> str:
        """What a device's vassals said of why they did not start, and the last lines of the log."""
        files = self.log_dir / f"uwsgi-emperor@{device}.log"
        if files.is_file():
            text = files.read_text(errors="replace")
        else:
            journal = ["journalctl", "-u", f"uwsgi-emperor@{device}", "-n", "400", "--no-pager", "-o", "cat"]
            text = subprocess.run(journal, capture_output=True, text=True, check=False).stdout
        lines = text.splitlines()
        # The reason may stand far above: a vassal that crashes is started again and again.
        reasons = [line for line in lines[:-LOG_LINES] if REASONS.search(line)][-2:]
        return "\n".join([*reasons, *lines[-LOG_LINES:]])

    def look(self, device: str) -> str:
        """The command that shows a person the log."""
        files = self.log_dir / f"uwsgi-emperor@{device}.log"
        return f"tail -n 100 {files}" if files.is_file() else f"journalctl -u uwsgi-emperor@{device} -n 100"

    def wait_ready(self, vassal: Vassal) -> None:
        """Wait until a vassal serves.

        Raises:
            NotReady: it did not within its ``load_seconds``, or its master was started again and again.
        """
        deadline = time.monotonic() + vassal.wanted["load_seconds"]
        while True:
            try:
                vassal.check()
                return
            except NotReady as error:
                if self.crashing(vassal):
                    raise NotReady(f"it crashes while starting; last seen: {error}") from error
                if time.monotonic() > deadline:
                    raise NotReady(f"after {vassal.wanted['load_seconds']} s: {error}") from error
            time.sleep(POLL_SECONDS)

    def crashing(self, vassal: Vassal) -> bool:
        """Whether the vassal had to be started again and again, as its own stats and its emperor's say."""
        state = self.emperor(vassal.device)
        for one in state.get("vassals", []):
            if one.get("id") == vassal.path.name and one.get("pid", 0) > 0:
                # The wrapper becomes the master, so this is the id that the vassal's own stats give too.
                vassal.masters.add(int(one["pid"]))
        # One that dies at once is seldom seen alive.
        return max(len(vassal.masters), self.deaths(state, vassal) - vassal.deaths_before) >= CRASHES

    def deaths(self, state: dict, vassal: Vassal) -> int:
        """How often an emperor has seen a vassal die early; it counts on when the same vassal is tried again."""
        return sum(int(one["attempt"]) + 1 for one in state.get("blacklist", []) if one["id"] == vassal.path.name)

    def emperor(self, device: str) -> dict:
        """The stats of a device's emperor; empty while it does not answer."""
        try:
            return dict(stats(str(self.run_dir / device / "emperor.stats")))
        except SocketError:
            return {}

    def missing(self) -> list[Vassal]:
        """Wanted vassals that have no file yet."""
        return [vassal for vassal in self.vassals if not vassal.path.is_file()]

    def forgotten(self) -> list[Path]:
        """What a run that was cut off left behind: nothing asks them, and they hold memory and ports."""
        return [path for path in self.unwanted() if self.asked(path) is False]

    def start(self, vassals: list[Vassal]) -> list[Vassal]:
        """Bring up those that have no file, and wait until all of them serve.

        Returns:
            Those that were brought up.

        Raises:
            VassalError: one does not serve. Those that were brought up, and those that nginx does not lead to, were removed.
        """
        missing = [vassal for vassal in vassals if not vassal.path.is_file()]
        vassal = None
        try:
            for vassal in missing:
                vassal.deaths_before = self.deaths(self.emperor(vassal.device), vassal)
                vassal.write()
            for vassal in vassals:
                self.wait_ready(vassal)
            for vassal in missing:
                self.settle_workers(vassal)
        except (NotReady, OSError) as error:
            broken = vassal.full_name if vassal else "?"
            device = vassal.device if vassal else ""
            log = self.log_of(device)
            self.remove([one.path for one in vassals if one in missing or self.asked(one.path) is False])
            raise VassalError(
                f"Vassal {broken} does not serve: {error}. "
                + ("The new vassals were removed; the former ones serve on. " if missing else "")
                + f"Look: {self.look(device)}\nLast lines of its log:\n{log}"
            ) from error
        return missing

    def settle_workers(self, vassal: Vassal) -> None:
        """Measure what a worker takes at the first load of a release; start the vassal anew when another number fits.

        Raises:
            NotReady: the vassal with the other number does not serve.
        """
        release = vassal.wanted["release"]
        if not vassal.fit or not vassal.wanted["stats"] or self.measured.get(release, vassal.fit["key"]):
            return
        pid = int(stats(stats_path(str(self.run_dir), vassal.device, vassal.name))["pid"])
        models = vassal.workers()
        device_mib = memory.device_mib_of(pid) or 0
        self.measured.put(release, vassal.fit["key"], memory.host_mib_of(pid) // models, device_mib // models)
        if vassal.workers_by_memory() != models:
            # nginx does not lead to it yet.
            self.remove([vassal.path])
            vassal.write()
            self.wait_ready(vassal)

    def addresses(self) -> dict[str, str]:
        """Where the wanted vassals listen or would, by ``SERVICE/DEVICE``."""
        return {f"{one.wanted['service']}/{one.device}": self.planned(one) for one in self.vassals}

    def planned(self, vassal: Vassal) -> str:
        """The address that a vassal has or would get."""
        if vassal.path.is_file() or vassal.wanted["transport"] == "unix":
            return vassal.address()
        try:
            return f"127.0.0.1:{vassal.free_port()}"
        except NotReady:
            # A real run makes room first, or says that it cannot.
            return f"127.0.0.1:{vassal.wanted['ports'][0]}"

    def remove(self, paths: list[Path]) -> None:
        """Remove files of vassals and wait until the emperors have stopped them.

        Raises:
            VassalError: one does not stop.
        """
        for path in paths:
            path.unlink(missing_ok=True)
        deadline = time.monotonic() + self.stop_seconds + 15
        for path in paths:
            device = path.parent.parent.name
            leftovers = [self.run_dir / device / f"{path.stem}{ending}" for ending in (".sock", ".stats", ".model")]
            while self.known_to_emperor(device, path.name):
                if time.monotonic() > deadline:
                    raise VassalError(f"Vassal {device}/{path.stem} does not stop. Look: {self.look(device)}")
                time.sleep(POLL_SECONDS)
            # A vassal that had to be killed leaves its sockets behind.
            for leftover in leftovers:
                leftover.unlink(missing_ok=True)
            shutil.rmtree(self.run_dir / device / f"{path.stem}.metrics", ignore_errors=True)

    def known_to_emperor(self, device: str, name: str) -> bool:
        """Whether an emperor still has a vassal."""
        return any(one.get("id") == name for one in self.emperor(device).get("vassals", []))

    def names(self, paths: Iterable[Path]) -> list[str]:
        """Files of vassals as ``DEVICE/NAME``."""
        return [f"{path.parent.parent.name}/{path.stem}" for path in paths]

    def clear_partials(self) -> None:
        """Remove half-written files of a run that was cut off."""
        for stray in self.devices_dir.glob("*/vassals/.*.partial"):
            stray.unlink()
