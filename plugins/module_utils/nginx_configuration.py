"""The configuration folder of nginx: test a whole configuration beside the running one, place it, have it taken."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ansible.module_utils.listeners import holders, ports_of

START_SECONDS = 10
#: Whoever else changes nginx's folder has placed its files and seen new workers by then.
ALONE_SECONDS = 3 * START_SECONDS
POLL_SECONDS = 0.1
ERROR_LOG = Path("/var/log/nginx/error.log")


def children(pid: int) -> set[int]:
    """Processes whose parent is ``pid``."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in parentheses may hold spaces; the parent is the second field behind it.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.add(int(entry.name))
    return found


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not asked after yet does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def program_changed(pid: int) -> list[str]:
    """The program of a running process when another one has taken its place on the disk since; else nothing."""
    link = Path("/proc") / str(pid) / "exe"
    try:
        installed = Path(str(link.readlink()).removesuffix(" (deleted)"))
        running, wanted = link.stat(), installed.stat()
    except OSError:
        # Another user's process, none at all, or a program that was removed: nothing that a restart would mend.
        return []
    return [] if (running.st_dev, running.st_ino) == (wanted.st_dev, wanted.st_ino) else [str(installed)]


class NginxError(Exception):
    """The configuration was not placed, or nginx does not serve with it; the text says why and what mends it."""


class NotTaken(NginxError):
    """The running nginx keeps its former configuration; the text says why."""


class StillBusy(NginxError):
    """The running nginx works with what it was told to, and requests that it took before are still on their way."""


class Late(NotTaken):
    """The running nginx was told to load its files, and did not say that it has; it may still do so."""


@contextlib.contextmanager
def alone(state_file: Path, seconds: float = ALONE_SECONDS) -> Iterator[None]:
    """Keep everybody else from changing nginx's folder, or which devices are out of it, until the end of the block.

    A deploy and the watch of a host work at the same time, and each must see what the other has written. The lock lies
    beside the state file, in a folder of root's, where no user can take it or put another file in its place; it goes with
    its process.

    Raises:
        NginxError: somebody else had it for longer than that.
    """
    state_file.parent.mkdir(parents=True, exist_ok=True)
    path = state_file.with_suffix(".lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise NginxError(
                        f"another program changes nginx's configuration for longer than {seconds:g} s; nothing was changed. "
                        f"Look: fuser -v {path}"
                    ) from error
            time.sleep(POLL_SECONDS / 5)
        yield
    finally:
        os.close(handle)


#: Places in the files of a site that are filled in on the host, by SERVICE/DEVICE.
PLACES = re.compile(r"@(?P<what>ADDRESS|DOWN|FORMER) (?P<vassal>[^@\s]+)@")
#: Behind the cases in which nginx asks another device.
RETRY = "@RETRY@"
#: Where nobody listens; nginx wants an address also of a device that is out.
NOWHERE = "unix:/run/fleet/nobody.sock"


def written(address: str) -> str:
    """An address as nginx writes it."""
    return f"unix:{address}" if address.startswith("/") else address


def fill(text: str, addresses: Mapping[str, str], out: Collection[str], former: Mapping[str, str]) -> str:
    """Put addresses and devices' states into the text of a site's file.

    Args:
        text: holds ``@ADDRESS SERVICE/DEVICE@``, and at the end of the line ``@DOWN SERVICE/DEVICE@`` and
            ``@FORMER SERVICE/DEVICE@``; where requests may be sent twice, ``@RETRY@``.
        addresses: ``/path.sock`` or ``host:port`` by ``SERVICE/DEVICE``; one that is missing is out.
        out: devices that get no requests.
        former: where former vassals listen that help out while the new ones have to prove themselves.
    """

    def value(match: re.Match[str]) -> str:
        what, vassal = match["what"], match["vassal"]
        address, is_out = addresses.get(vassal), vassal.partition("/")[2] in out
        if what == "ADDRESS":
            return NOWHERE if address is None else written(address)
        if what == "DOWN":
            return " down" if address is None or is_out else ""
        if vassal not in former or is_out:
            return ""
        return f"\n    # The former release, for what the new one fails at.\n    server {written(former[vassal])} backup max_fails=0;"

    return PLACES.sub(value, text).replace(RETRY, " non_idempotent" if former else "")


def last_errors() -> str:
    """The end of nginx's error log, and what mends it where that is known."""
    lines = ERROR_LOG.read_text(errors="replace").splitlines()[-5:] if ERROR_LOG.is_file() else []
    if any("Address already in use" in line for line in lines):
        lines.append(
            "A port goes from all addresses to one of them, or back, only while nginx does not run. Where an edge leads "
            "requests elsewhere: ./fleet drain HOST. Then, on the host: systemctl stop nginx; then deploy again."
        )
    return "\n".join(lines)


def run_command(command: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@dataclass
class Change:
    """What was begun: nginx was told of it, and its former workers may still have requests."""

    changed: bool
    differences: list[dict]
    master: int
    former: set[int]
    began: float


class Configuration:
    """The configuration folder of one host.

    Args:
        options: ``files``, ``links``, ``root``, ``state_file``, ``nginx``, ``pid_file``, ``ports``, ``wait_seconds``,
            as the module ``host_switch`` has them. Without a program in ``nginx`` the running nginx alone tests what is placed,
            when it is told to load it: for who may not start one.
    """

    def __init__(self, options: Mapping) -> None:
        self.root = Path(options["root"])
        self.files: dict[str, str] = {one["path"]: one["content"] for one in options["files"]}
        self.links: dict[str, str] = {one["path"]: one["target"] for one in options["links"]}
        self.ports: list[int] = list(options["ports"])
        self.program: str = options["nginx"]
        self.wait_seconds: int = options["wait_seconds"]
        self.state_file = Path(options["state_file"])
        self.pid_file = Path(options["pid_file"])
        self.state = self.read_state()
        self.hash = hashlib.sha256(json.dumps([self.files, self.links], sort_keys=True).encode()).hexdigest()

    def read_state(self) -> dict:
        """What was placed and is loaded; empty before the first time."""
        found: dict = json.loads(self.state_file.read_text()) if self.state_file.is_file() else {}
        return found

    def unwanted(self) -> list[str]:
        """Paths that an earlier run placed and that nothing wants now."""
        return [path for path in self.state.get("placed", []) if path not in self.files and path not in self.links]

    def differences(self) -> list[dict]:
        """What placing would change, as Ansible's diff wants it."""
        found = []
        for path, content in self.files.items():
            target = self.root / path
            former = target.read_text() if target.is_file() else ""
            if former != content:
                found.append(
                    {"before_header": str(target), "after_header": str(target), "before": former, "after": content}
                )
        for path, to in self.links.items():
            target = self.root / path
            former = str(target.readlink()) if target.is_symlink() else ""
            if former != to:
                found.append(
                    {
                        "before_header": str(target),
                        "after_header": str(target),
                        "before": f"{former}\n",
                        "after": f"-> {to}\n",
                    }
                )
        for path in self.unwanted():
            if (self.root / path).exists() or (self.root / path).is_symlink():
                found.append(
                    {"before_header": str(self.root / path), "after_header": "", "before": "there\n", "after": ""}
                )
        return found

    def lay_into(self, folder: Path) -> None:
        """Write all files and links into a folder, each in one step; nginx.conf, which names the others, after them."""
        for path, content in sorted(self.files.items(), key=lambda one: one[0] == "nginx.conf"):
            if path == "nginx.conf":
                self.link_into(folder)
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            partial.write_text(content)
            partial.chmod(0o644)
            partial.rename(target)
        if "nginx.conf" not in self.files:
            self.link_into(folder)
        for path in self.unwanted():
            (folder / path).unlink(missing_ok=True)

    def link_into(self, folder: Path) -> None:
        """Make all links in a folder, each in one step."""
        for path, to in self.links.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            partial.unlink(missing_ok=True)
            partial.symlink_to(to)
            partial.rename(target)

    def snapshot(self) -> dict[str, tuple[str, str] | None]:
        """What stands now at every path that will be touched: text of a file, target of a link, or nothing."""
        found: dict[str, tuple[str, str] | None] = {}
        for path in [*self.files, *self.links, *self.unwanted()]:
            target = self.root / path
            if target.is_symlink():
                found[path] = ("link", str(target.readlink()))
            else:
                found[path] = ("file", target.read_text()) if target.is_file() else None
        return found

    def restore(self, former: dict[str, tuple[str, str] | None], state: dict) -> None:
        """Put back what a snapshot holds, nginx.conf first, since it names the others."""
        for path, content in sorted(former.items(), key=lambda one: one[0] != "nginx.conf"):
            target = self.root / path
            partial = target.with_name(f".{target.name}.partial")
            partial.unlink(missing_ok=True)
            if content is None:
                target.unlink(missing_ok=True)
                continue
            if content[0] == "link":
                partial.symlink_to(content[1])
            else:
                partial.write_text(content[1])
                partial.chmod(0o644)
            partial.rename(target)
        self.write_state(state)

    def test(self) -> None:
        """Have nginx test the wanted configuration in a copy, where its program may be started; refuse what it refuses.

        Raises:
            NginxError: with the words of nginx.
        """
        if not self.program:
            return
        # What a run that was killed here left behind.
        for left in self.root.parent.glob(".nginx-test-*"):
            shutil.rmtree(left, ignore_errors=True)
        # A name below /etc keeps relative includes and the rights of the original.
        copy = Path(tempfile.mkdtemp(prefix=".nginx-test-", dir=self.root.parent))
        try:
            shutil.copytree(self.root, copy, symlinks=True, dirs_exist_ok=True)
            self.lay_into(copy)
            rc, out, err = run_command([self.program, "-t", "-q", "-c", str(copy / "nginx.conf")])
            if rc != 0:
                said = (out + err).strip().replace(str(copy), str(self.root))
                raise NginxError(
                    f"nginx refuses the new configuration; nothing was changed and the former one serves on. nginx says:\n{said}"
                )
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def check_ports(self) -> None:
        """Refuse ports that another program holds; nginx itself would say so only in its log."""
        ours = ports_of(self.master())
        for port in self.ports:
            if port not in ours and (holder := holders(port)):
                raise NginxError(
                    f"Port {port} is taken by {holder}; nothing was changed. Stop that program "
                    f"(look: ss -ntlp sport = :{port}), or give the service another port."
                )

    def keep_original(self) -> None:
        """Keep the first nginx.conf that was there before this project."""
        original, kept = self.root / "nginx.conf", self.root / "nginx.conf.before-fleet"
        if original.is_file() and not kept.exists() and "placed" not in self.state:
            shutil.copy2(original, kept)

    def remember(self, **further: object) -> None:
        """Write the state file in one step."""
        self.write_state({**self.state, "placed": sorted([*self.files, *self.links]), **further})

    def write_state(self, state: dict) -> None:
        """Write the state file as it is given."""
        self.state = state
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.state_file.with_suffix(".partial")
        partial.write_text(json.dumps(self.state))
        partial.rename(self.state_file)

    def master(self) -> int:
        """Process id of the running master, or 0."""
        try:
            pid = int(self.pid_file.read_text())
            # 0 and below would be many processes.
            if pid <= 0:
                return 0
            os.kill(pid, 0)
        except (OSError, ValueError):
            return 0
        return pid

    def tell(self) -> tuple[int, str]:
        """Tell nginx to load its files; gives the exit code and what was said."""
        if self.program:
            rc, out, err = run_command([self.program, "-s", "reload"])
            return rc, out + err
        if not (master := self.master()):
            return 1, "it does not run"
        os.kill(master, signal.SIGHUP)
        return 0, ""

    def reload(self, master: int) -> set[int]:
        """Reload and wait until new workers run; gives the former ones."""
        began = time.monotonic()
        former = children(master)
        rc, said = self.tell()
        if rc != 0:
            raise NotTaken(f"nginx -s reload failed: {said}")
        while not children(master) - former:
            if time.monotonic() - began > START_SECONDS:
                raise Late(f"nginx did not take the new configuration. Its error log says:\n{last_errors()}")
            time.sleep(POLL_SECONDS / 5)
        return former

    def busy(self, change: Change) -> set[int]:
        """Former workers that still run: they hold the former list of devices."""
        return change.former & children(change.master)

    def take_over(self) -> int:
        """Have a new nginx take the place of the running one without a closed port or a cut request; gives its process id.

        This is nginx's own way to change its program: the running master starts the new one and hands over its listening
        sockets, and ends when its workers have answered their last requests. The new one also reads the configuration anew.

        Raises:
            NginxError: no new one came, and the former one serves on; or the former one still has requests.
        """
        began = time.monotonic()
        with alone(self.state_file):
            former, new = self.start_beside(began)
        os.kill(former, signal.SIGQUIT)
        while runs(former):
            if time.monotonic() - began > self.wait_seconds:
                raise StillBusy(
                    f"the former nginx (process {former}) still serves requests after {self.wait_seconds} s; the new one has "
                    "taken over. Look: ss -np | grep nginx; then deploy again."
                )
            time.sleep(POLL_SECONDS)
        return new

    def start_beside(self, began: float) -> tuple[int, int]:
        """Have the running nginx start a new one beside it; gives the process ids of both."""
        beside = self.pid_file.with_name(f"{self.pid_file.name}.oldbin")
        # A run that was cut off here has left both.
        former = int(beside.read_text()) if beside.is_file() else 0
        if not (former and runs(former)):
            former = self.master()
            if not former:
                raise NginxError("nginx does not run, so nothing can take its place. Look: systemctl status nginx")
            os.kill(former, signal.SIGUSR2)
        while (new := self.master()) in {0, former} or not children(new):
            if time.monotonic() - began > START_SECONDS:
                raise NginxError(
                    f"nginx did not start its new program; the former one serves on. Its error log says:\n{last_errors()}"
                )
            time.sleep(POLL_SECONDS)
        return former, new

    def stale(self) -> bool:
        """Whether nginx runs with something else than what is wanted, also after a run cut off before its reload."""
        return bool(self.master()) and self.state.get("loaded") != self.hash

    def apply(self) -> dict:
        """Bring files and the running nginx to the wanted state, and wait until requests of the former one are answered.

        Returns:
            ``changed``, ``diff`` (as Ansible wants it), ``reload_seconds`` and ``running``.

        Raises:
            NginxError: nothing was changed, or the former files were put back.
        """
        with alone(self.state_file):
            change = self.begin()
        return self.finish(change)

    def begin(self) -> Change:
        """Place the files and have nginx work with them; who calls is :func:`alone` since before this object was made.

        Raises:
            NginxError: nothing was changed, or the former files were put back.
        """
        began = time.monotonic()
        differences = self.differences()
        master = self.master()
        changed = bool(differences) or self.stale()
        self.check_ports()
        former, state = self.snapshot(), dict(self.state)
        if differences:
            self.test()
            self.keep_original()
            # What is placed is noted first, so that a run cut off here knows its files.
            self.remember(placed=sorted({*self.state.get("placed", []), *self.files, *self.links}), loaded="")
            self.lay_into(self.root)
        workers: set[int] = set()
        try:
            if changed and master:
                workers = self.reload(master)
        except NotTaken as error:
            late = isinstance(error, Late)
            # What it works with in the end only a reload that it has answered tells.
            self.restore(former, {**state, "loaded": ""} if late else state)
            if late:
                # It may be slow and no more, and would still take what was put away: a name that is looked up for long.
                self.tell()
            raise NginxError(f"{error}\nThe former files were put back; nginx serves on with them.") from error
        if changed:
            self.remember(loaded="", laid=self.hash)
        return Change(changed, differences, master, workers, began)

    def finish(self, change: Change) -> dict:
        """Wait until the former workers are gone, and note what is loaded; gives what :meth:`apply` gives.

        Others may change nginx meanwhile: what is on its way to a former worker is not their concern.

        Raises:
            StillBusy: they are not, after ``wait_seconds``.
        """
        # They hold the former list of devices; what is on their way must still find its vassal.
        while busy := self.busy(change):
            if time.monotonic() - change.began > self.wait_seconds:
                raise StillBusy(
                    f"nginx workers {sorted(busy)} still serve requests of the former configuration "
                    f"after {self.wait_seconds} s. Look: ss -np | grep nginx; then deploy again."
                )
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - change.began if change.former else 0.0
        if change.changed or self.state.get("loaded") != self.hash:
            with alone(self.state_file):
                self.state = self.read_state()
                # What another program has loaded since, it notes by itself.
                if not change.changed or self.state.get("laid") == self.hash:
                    self.remember(loaded=self.hash)
        return {
            "changed": change.changed,
            "diff": change.differences,
            "reload_seconds": round(seconds, 1),
            "running": bool(change.master),
        }
