#!/usr/bin/python3
"""Which hosts an edge sends requests to: join, leave, drain and undrain hosts, and have nginx follow.

Installed as /usr/local/lib/fleet/fleet-edge by the role edge. Needs Python's standard library only.
What hosts there are and which of them are drained stands in members.json, and nowhere else; the prober's verdicts
stand in probes.json. Of both this program makes upstreams.conf, has nginx test it, and reloads nginx when it changed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

# Beside this file: on an edge in /usr/local/lib/fleet, as one file with what the modules of the hosts use.
import audit
import shared_address

SETTINGS = Path("/etc/fleet/edge.json")
#: No service has its ports there, and nothing is asked of a server that is marked down.
NOWHERE = "127.0.0.1:9"
POLL_SECONDS = 0.05
NAME = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?$")
ADDRESS = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?$|^[0-9a-fA-F:.]*:[0-9a-fA-F:.]*$")
SERVICE = re.compile(r"^[a-z][a-z0-9-]{0,30}$")
#: Directive of each way to spread requests; round robin is what nginx does without one.
BALANCES = {"least_conn": "least_conn;", "ip_hash": "ip_hash;", "round_robin": ""}
#: Far more than the verdicts of a fleet take; the file is written by the prober, which is not trusted.
PROBES_BYTES = 4 * 2**20


class EdgeError(Exception):
    """What was asked for cannot be done; the text says why, and how to mend it."""

    status = 1


class UnknownMember(EdgeError):
    """No host of this name has joined."""

    status = 2


class NowhereElse(EdgeError):
    """Requests would have nowhere to go."""

    status = 3


class StillBusy(EdgeError):
    """It is done, but what had to be waited for did not come in time."""

    status = 4


@dataclass(frozen=True)
class Settings:
    """What the role edge wrote to /etc/fleet/edge.json."""

    services: dict[str, int] = field(default_factory=dict)
    balance: str = "least_conn"
    wait_seconds: float = 120.0
    #: Longest time in which nginx reads its files and starts workers.
    start_seconds: float = 10.0
    back_seconds: float = 90.0
    listen: str = "127.0.0.1"
    state_dir: str = "/var/lib/fleet/edge"
    probes_file: str = "/run/fleet-edge/probes.json"
    pid_file: str = "/run/nginx.pid"
    error_log: str = "/var/log/nginx/error.log"
    #: The address that the edges share, without the length of its network; empty for none.
    address: str = ""
    #: Where the other edges are found.
    peers: tuple[str, ...] = ()
    audit_log: str = "/var/log/fleet/audit.log"
    nginx: tuple[str, ...] = ("nginx",)

    def port(self) -> int:
        """One on which the nginx of every edge answers."""
        return min(self.services.values(), default=80)

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Those of a file; names that are not known are for the prober."""
        found = read_json(path)
        known = {name: value for name, value in found.items() if name in cls.__dataclass_fields__}
        for name in ("nginx", "peers"):
            if name in known:
                known[name] = tuple(known[name])
        return cls(**known)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one when there is no file.

    Raises:
        EdgeError: it holds something else.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EdgeError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise EdgeError(f"{path} holds no object.")
    return found


def write(path: Path, text: str) -> None:
    """Write a file in one step: it is there as a whole, also after a power cut, or as it was."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.chmod(0o644)
    partial.rename(path)


def digest(text: str) -> str:
    """Short name of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def upstream_name(service: str) -> str:
    """Name of a service's upstream in nginx."""
    return "fleet_" + service.replace("-", "_")


def hosts_name(port: int) -> str:
    """Name of the upstream in nginx with all hosts behind a port; no service has one of this form."""
    return f"hosts_{port}"


def server(address: str, port: int) -> str:
    """An address as nginx writes it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


# ---- who gets requests -----------------------------------------------------------------------------------------------


class Members:
    """The hosts that have joined, what they serve, and what the prober says of them."""

    def __init__(self, members: dict[str, dict[str, Any]], probes: dict[str, dict[str, Any]]) -> None:
        self.members = members
        self.probes = probes

    def healthy(self, name: str) -> bool:
        """What the prober says; a host that it has not asked yet has just passed its checks."""
        return bool(self.probes.get(name, {}).get("healthy", True))

    def of(self, service: str) -> list[str]:
        """The hosts that have a service."""
        return [name for name, member in sorted(self.members.items()) if service in member["services"]]

    def services(self) -> list[str]:
        """What any host has."""
        return sorted({service for member in self.members.values() for service in member["services"]})

    def standing(self, service: str) -> list[str]:
        """The hosts that are neither drained nor found unhealthy."""
        return [name for name in self.of(service) if not self.members[name]["drained"] and self.healthy(name)]

    def serving(self, service: str) -> list[str]:
        """The hosts that get a service's requests.

        When the prober says that none is healthy, it is more likely to be wrong, or all are too busy to answer it,
        than that trying them does harm: then all get requests that are not drained.
        """
        return self.standing(service) or [name for name in self.of(service) if not self.members[name]["drained"]]

    def fails_open(self, service: str) -> bool:
        """Whether hosts get requests although the prober found them unhealthy."""
        return bool(self.serving(service)) and not self.standing(service)

    def in_service(self, name: str) -> bool:
        """Whether a host gets requests."""
        return any(name in self.serving(service) for service in self.members[name]["services"])

    def alone(self, name: str) -> list[str]:
        """Services whose requests would have nowhere to go without this host."""
        return [one for one in sorted(self.members[name]["services"]) if self.serving(one) == [name]]

    def needed(self, leaving: Collection[str], services: Iterable[str]) -> list[str]:
        """Those of some hosts that cannot leave: a service would have fewer hosts than one."""
        rest = Members({name: one for name, one in self.members.items() if name not in leaving}, self.probes)
        found: set[str] = set()
        for one in services:
            if (self.standing(one) and not rest.standing(one)) or (self.serving(one) and not rest.serving(one)):
                found.update(name for name in self.serving(one) if name in leaving)
        return sorted(found)

    def status(self) -> dict[str, Any]:
        """Everything, for people and for the verbs."""
        found = {}
        for name, member in sorted(self.members.items()):
            probe = self.probes.get(name, {})
            found[name] = {
                **member,
                "probe": {
                    "healthy": self.healthy(name),
                    "since": probe.get("since"),
                    "reason": probe.get("reason", "not asked yet"),
                },
                "in_service": self.in_service(name),
            }
        return {"members": found, "fail_open": [one for one in self.services() if self.fails_open(one)]}

    def render(self, settings: Settings, kept: Sequence[str] = ()) -> str:
        """The upstreams; also those of services without a host, because a site that names one needs it.

        ``kept`` are names of upstreams that a site which is still enabled may name.
        """
        lines = ["# Made by fleet-edge of members.json and the prober's verdicts; changes to it are lost."]
        services = sorted({*settings.services, *self.services()})
        ports = sorted(set(settings.services.values()))
        known = [*map(upstream_name, services), *map(hosts_name, ports)]
        served = [(service, upstream_name(service)) for service in services]
        for service, name in [*served, *(("", name) for name in kept if name not in known)]:
            hosts = self.of(service) if service else []
            lines += ["", f"upstream {name} {{", "    # All nginx workers count together.", f"    zone {name} 64k;"]
            # The directives that choose a server have to stand before the servers.
            if hosts and BALANCES[settings.balance]:
                lines.append(f"    {BALANCES[settings.balance]}")
            serving = self.serving(service) if service else []
            for host in hosts:
                member = self.members[host]
                note = self.why_not(host) if host not in serving else ""
                lines.append(f"    # Host {host}{note}.")
                # The prober decides who is out. Were nginx to count failures as well, a host that is only busy would
                # be left out, its load would go to the others, and they would follow.
                settings_of_server = f"weight={member['weight']} max_fails=0{' down' if note else ''}"
                lines.append(
                    f"    server {server(member['address'], member['services'][service])} {settings_of_server};"
                )
            if not hosts:
                lines += ["    # No host has joined with it.", f"    server {NOWHERE} down;"]
            lines.append("}")
        for port in ports:
            lines += self.render_hosts(port, [one for one in services if settings.services.get(one) == port])
        return "\n".join(lines) + "\n"

    def render_hosts(self, port: int, services: Sequence[str]) -> list[str]:
        """Every host with one of the services of a port, one after the other, also those that get no requests."""
        name = hosts_name(port)
        lines = ["", f"upstream {name} {{", "    # For the live view.", f"    zone {name} 64k;"]
        addresses = []
        for _, member in sorted(self.members.items()):
            ports = [member["services"][one] for one in services if one in member["services"]]
            addresses += [server(member["address"], ports[0])] if ports else []
        lines += [f"    server {address} max_fails=1 fail_timeout=10s;" for address in addresses]
        return [*lines, *([] if addresses else [f"    server {NOWHERE} down;"]), "}"]

    def why_not(self, name: str) -> str:
        """Why a host gets no requests."""
        return ": drained" if self.members[name]["drained"] else ": found unhealthy"


# ---- nginx -----------------------------------------------------------------------------------------------------------


class Nginx:
    """The nginx of this edge."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: Workers that a reload of this run has replaced.
        self.replaced: set[int] = set()

    def test(self) -> str:
        """What nginx says against its configuration as it stands; empty when it takes it."""
        done = subprocess.run([*self.settings.nginx, "-t", "-q"], capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr).strip() or "nginx -t failed" if done.returncode else ""

    def master(self) -> int:
        """Process id of the running master, or 0."""
        pid_file = Path(self.settings.pid_file)
        end = time.monotonic() + self.settings.start_seconds
        while True:
            try:
                pid = int(pid_file.read_text())
                os.kill(pid, 0)
            except (OSError, ValueError):
                pid = 0
            # 0 and below would be many processes.
            if pid > 0:
                return pid
            # While a new nginx takes the place of the running one, there is only this file for a moment.
            if not pid_file.with_name(f"{pid_file.name}.oldbin").exists() or time.monotonic() > end:
                return 0
            time.sleep(POLL_SECONDS)

    def workers(self, master: int | None = None) -> dict[int, bool]:
        """Processes below the master, and whether each is on its way out."""
        found: dict[int, bool] = {}
        master = self.master() if master is None else master
        for entry in Path("/proc").iterdir() if master else ():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                # The name in parentheses may hold spaces; the parent is the second field behind it.
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == master:
                    found[int(entry.name)] = b"shutting down" in (entry / "cmdline").read_bytes()
        return found

    def signal(self) -> int:
        """Have nginx read its files again; gives its process id, or 0 when none runs: it reads them at its start."""
        # Asked once: without a master between two questions, the signal would go to this program and all beside it.
        if master := self.master():
            with contextlib.suppress(ProcessLookupError):
                # As `nginx -s reload` does, without reading the whole configuration once more.
                os.kill(master, signal.SIGHUP)
                return master
        return 0

    def reload(self) -> None:
        """Have nginx read its files again, and wait until it works with them.

        Raises:
            EdgeError: it stays with what it had.
        """
        former = self.workers()
        master = self.signal()
        end = time.monotonic() + self.settings.start_seconds
        while master and not self.workers(master).keys() - former.keys():
            if time.monotonic() > end:
                log = Path(self.settings.error_log)
                tail = log.read_text(errors="replace").splitlines()[-5:] if log.is_file() else []
                raise EdgeError("nginx did not take the new upstreams. Its error log says:\n" + "\n".join(tail))
            time.sleep(POLL_SECONDS)
        self.replaced |= former.keys()

    def wait_for_former(self, seconds: float) -> None:
        """Wait until the workers with former upstreams have answered their requests.

        Also for those that an earlier run has replaced: it may have been killed while it waited.

        Raises:
            StillBusy: they have not, within that time.
        """
        end = time.monotonic() + seconds
        waited_for = self.replaced | {pid for pid, leaving in self.workers().items() if leaving}
        while left := waited_for & self.workers().keys():
            if time.monotonic() > end:
                raise StillBusy(
                    f"nginx workers {sorted(left)} still serve requests with the former upstreams after {seconds:g} s. "
                    "Look: ss -np | grep nginx; then do it again."
                )
            time.sleep(POLL_SECONDS)


# ---- the edge --------------------------------------------------------------------------------------------------------


class Edge:
    """The files of one edge, under a lock."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.dir = Path(settings.state_dir)
        self.nginx = Nginx(settings)
        self.members_file = self.dir / "members.json"
        self.upstreams_file = self.dir / "upstreams.conf"
        self.applied_file = self.dir / "applied.json"
        #: While it says so, this edge wants no shared address.
        self.aside_file = self.dir / "aside"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs of this program out."""
        self.dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        with (self.dir / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def members(self) -> Members:
        """What stands in the files."""
        return Members(read_json(self.members_file).get("members", {}), self.probes())

    def probes(self) -> dict[str, dict[str, Any]]:
        """The prober's verdicts. Without any, all hosts count as healthy: a broken prober takes no fleet out."""
        path = Path(self.settings.probes_file)
        try:
            # The prober's user may write anything here, links too.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as stream:
                found = json.loads(stream.read(PROBES_BYTES))["members"]
            return {str(name): one for name, one in found.items() if isinstance(one, dict)}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            say(f"the verdicts in {path} are left out of account: {type(error).__name__}")
            return {}

    def kept_upstreams(self) -> list[str]:
        """Names in the file that stands there."""
        text = self.upstreams_file.read_text() if self.upstreams_file.is_file() else ""
        return re.findall(r"^upstream (\w+) \{$", text, re.MULTILINE)

    def settle(self, members: Members, prune: bool = False) -> bool:
        """Bring upstreams.conf, members.json and the running nginx to what the members say; gives what has changed.

        Raises:
            EdgeError: nginx refuses it. Nothing has changed then.
        """
        former = self.upstreams_file.read_text() if self.upstreams_file.is_file() else None
        text = members.render(self.settings, () if prune else self.kept_upstreams())
        if text != former:
            write(self.upstreams_file, text)
            if refused := self.nginx.test():
                self.put_back(former)
                raise EdgeError(
                    f"nginx refuses the new upstreams; the former ones were put back. nginx says:\n{refused}"
                )
        noted = json.dumps({"members": members.members}, indent=1, sort_keys=True) + "\n"
        known = self.members_file.read_text() if self.members_file.is_file() else ""
        if noted != known:
            write(self.members_file, noted)
        applied = read_json(self.applied_file)
        # Also after a run that was killed between writing and reloading.
        stale = applied.get("loaded") != digest(text)
        if stale and self.nginx.master():
            try:
                self.nginx.reload()
            except EdgeError:
                self.put_back(former)
                if known:
                    write(self.members_file, known)
                # It may be slow and no more, and would still take what was put away: a name that is looked up for long.
                self.nginx.signal()
                # What it works with in the end only a reload that it has answered tells.
                write(self.applied_file, json.dumps({**applied, "loaded": ""}) + "\n")
                raise
        # By it the prober sees whether its verdicts have been heeded.
        new = {"loaded": digest(text), "healthy": {name: members.healthy(name) for name in members.members}}
        if new != applied:
            write(self.applied_file, json.dumps(new) + "\n")
        return text != former or noted != known

    def put_back(self, former: str | None) -> None:
        """Have the former upstreams stand there again."""
        if former is None:
            self.upstreams_file.unlink(missing_ok=True)
        else:
            write(self.upstreams_file, former)

    def known(self, members: Members, name: str) -> dict[str, Any]:
        """A member.

        Raises:
            UnknownMember: it has not joined.
        """
        if name not in members.members:
            joined = ", ".join(sorted(members.members)) or "none"
            raise UnknownMember(f"no host {name} has joined this edge; joined are: {joined}.")
        return members.members[name]

    def wait_until_back(self, name: str) -> None:
        """Wait until the prober finds a host healthy.

        Raises:
            StillBusy: it does not, within the time for it.
        """
        end = time.monotonic() + self.settings.back_seconds
        while not (members := self.members()).healthy(name):
            if time.monotonic() > end:
                raise StillBusy(
                    f"the prober still finds {name} unhealthy after {self.settings.back_seconds:g} s: "
                    f"{members.probes[name].get('reason')}. It gets requests as soon as that is mended. "
                    "Look: systemctl status fleet-prober."
                )
            time.sleep(POLL_SECONDS)
        with self.locked():
            self.settle(self.members())


# ---- verbs -----------------------------------------------------------------------------------------------------------


def member_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """A member as the arguments of `join` describe it.

    Raises:
        EdgeError: they cannot be put into nginx's configuration.
    """
    services = arguments.services
    if not NAME.match(arguments.name):
        raise EdgeError(f"{arguments.name!r} is no name of a host.")
    if not ADDRESS.match(arguments.address):
        raise EdgeError(f"{arguments.name}: {arguments.address!r} is neither an address nor a name.")
    if not 1 <= arguments.weight <= 65535:
        raise EdgeError(f"{arguments.name}: weight is {arguments.weight}; it takes 1 to 65535.")
    bad = [
        service
        for service, port in services.items()
        if not SERVICE.match(service) or type(port) is not int or not 1 <= port <= 65535
    ]
    if bad or not services:
        raise EdgeError(f"{arguments.name}: --services takes names and ports, such as {{'ocr': 8100}}; not {services}.")
    return {"address": arguments.address, "weight": arguments.weight, "services": services}


def join(edge: Edge, arguments: argparse.Namespace) -> dict[str, Any]:
    """Send requests to a host; one that was drained stays so."""
    new = member_of(arguments)
    with edge.locked():
        members = edge.members()
        former = members.members.get(arguments.name)
        members.members[arguments.name] = {**new, "drained": former["drained"] if former else None}
        changed = edge.settle(members)
        if members.members[arguments.name] != former:
            note(edge, arguments.run, "joined", host=arguments.name, **new)
    edge.nginx.wait_for_former(waiting(edge, arguments))
    # A drained one may be down on purpose.
    if not members.members[arguments.name]["drained"]:
        edge.wait_until_back(arguments.name)
    return {"changed": changed}


def leave(edge: Edge, arguments: argparse.Namespace) -> dict[str, Any]:
    """Forget hosts, and wait until their last requests are answered."""
    with edge.locked():
        members = edge.members()
        gone = [name for name in arguments.names if members.members.pop(name, None)]
        changed = edge.settle(members)
        for name in gone:
            note(edge, arguments.run, "left", host=name)
    edge.nginx.wait_for_former(waiting(edge, arguments))
    return {"changed": changed, "left": gone}


def retain(edge: Edge, arguments: argparse.Namespace) -> dict[str, Any]:
    """Forget every host that is not named, and the upstreams that nothing needs any more.

    Hosts without which requests would have nowhere to go are held: they leave when those that replace them have joined.
    """
    with edge.locked():
        members = edge.members()
        gone = sorted(members.members.keys() - set(arguments.names))
        held = [] if arguments.allow_outage else members.needed(gone, edge.settings.services)
        gone = [name for name in gone if name not in held]
        for name in gone:
            del members.members[name]
        changed = edge.settle(members, prune=True)
        for name in gone:
            note(edge, arguments.run, "left", host=name)
    if gone:
        edge.nginx.wait_for_former(waiting(edge, arguments))
    return {"changed": changed, "left": gone, "held": held}


def drain(edge: Edge, arguments: argparse.Namespace) -> dict[str, Any]:
    """Send a host no more requests, and wait until the last ones are answered."""
    with edge.locked():
        members = edge.members()
        member = edge.known(members, arguments.name)
        fresh = not member["drained"]
        if fresh:
            alone = members.alone(arguments.name)
            if alone and not arguments.allow_outage:
                raise NowhereElse(
                    f"without {arguments.name} requests for {', '.join(alone)} have nowhere to go: no other host that "
                    "serves them is in service. Mend or undrain another one first, or lose these requests: "
                    "-e allow_outage=true."
                )
            member["drained"] = {
                "by": arguments.run.get("by", "somebody at the edge"),
                "since": audit.now(),
                "why": arguments.why,
                # By it a deploy knows what another one left that was cut off.
                "verb": arguments.run.get("verb", ""),
            }
        changed = edge.settle(members)
        if fresh:
            note(edge, arguments.run, "drained", host=arguments.name, why=arguments.why)
    edge.nginx.wait_for_former(waiting(edge, arguments))
    return {"changed": changed, "drained": member["drained"]}


def undrain(edge: Edge, arguments: argparse.Namespace) -> dict[str, Any]:
    """Send requests to a host again, once the prober finds it healthy."""
    with edge.locked():
        members = edge.members()
        member = edge.known(members, arguments.name)
        former, member["drained"] = member["drained"], None
        changed = edge.settle(members)
        if former:
            note(edge, arguments.run, "undrained", host=arguments.name)
    edge.wait_until_back(arguments.name)
    return {"changed": changed}


def status(edge: Edge, arguments: argparse.Namespace) -> dict[str, Any]:
    """Tell what stands in the files."""
    return {"changed": False, **edge.members().status()}


def apply(edge: Edge, arguments: argparse.Namespace) -> dict[str, Any]:
    """Have nginx follow members, settings and verdicts."""
    changed = False
    while True:
        with edge.locked():
            members = edge.members()
            changed |= edge.settle(members)
        # systemd may not start this program again for what is written while it runs.
        if edge.probes() == members.probes:
            break
    edge.nginx.wait_for_former(waiting(edge, arguments))
    return {"changed": changed}


def alive(edge: Edge, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fail when the nginx of this edge does not answer, or it has stepped aside; keepalived asks it."""
    left = shared_address.aside_until(edge.aside_file) - time.time()
    if left > 0:
        raise EdgeError(f"this edge has stepped aside, for at most {left:.0f} s more. End that: fleet-edge back")
    ask_alive(edge)
    return {"changed": False}


def ask_alive(edge: Edge) -> None:
    """Ask the nginx of this edge.

    Raises:
        EdgeError: it does not answer.
    """
    try:
        shared_address.ask(edge.settings.listen, edge.settings.port(), 5)
    except OSError as error:
        raise EdgeError(f"nginx does not answer on {edge.settings.listen}:{edge.settings.port()}: {error}") from error


def aside(edge: Edge, arguments: argparse.Namespace) -> dict[str, Any]:
    """Have another edge take the shared address, so that nginx can be stopped here; `back` ends it."""
    settings = edge.settings
    # Stop and start together, and some more; a run that was killed must not keep an edge out for ever.
    seconds = 2 * settings.wait_seconds + 60
    try:
        had = shared_address.step_aside(settings.address, settings.port(), settings.peers, edge.aside_file, seconds)
    except shared_address.NotMoved as error:
        if arguments.allow_outage:
            say(str(error))
            return {"changed": False, "had": False}
        raise EdgeError(str(error)) from error
    note(edge, arguments.run, "stepped_aside", address=settings.address, had=had)
    return {"changed": True, "had": had}


def back(edge: Edge, arguments: argparse.Namespace) -> dict[str, Any]:
    """Be there for the shared address again, once nginx answers."""
    was = edge.aside_file.exists()
    edge.aside_file.unlink(missing_ok=True)
    if was:
        shared_address.wait(
            lambda: shared_address.answers(edge.settings.listen, edge.settings.port()), edge.settings.start_seconds
        )
        ask_alive(edge)
        # Only then may the next edge step aside.
        time.sleep(shared_address.NOTICED_SECONDS)
        note(edge, arguments.run, "came_back", address=edge.settings.address)
    return {"changed": was}


def waiting(edge: Edge, arguments: argparse.Namespace) -> float:
    """Longest time for former workers."""
    return float(edge.settings.wait_seconds if arguments.wait is None else arguments.wait)


def note(edge: Edge, run: dict[str, Any], event: str, **fields: object) -> None:
    """Write to the audit log of this edge."""
    if failed := audit.note(run, event, Path(edge.settings.audit_log), **fields):
        say(f"not in the audit log: {failed}")


def say(text: str) -> None:
    """Tell people; programs read standard output."""
    sys.stderr.write(f"fleet-edge: {text}\n")


class Parser(argparse.ArgumentParser):
    """One that ends with 64 on a wrong command line, because 2 means something else here."""

    def error(self, message: str) -> NoReturn:
        """End with the usage and what is wrong."""
        self.print_usage(sys.stderr)
        self.exit(64, f"fleet-edge: {message}\n")


def json_object(text: str) -> dict[str, Any]:
    """An argument that is a JSON object."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog="fleet-edge", description="Which hosts this edge sends requests to.")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="file that the role edge writes")
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser)
    every: dict[str, Any] = {
        "join": join, "leave": leave, "retain": retain, "drain": drain, "undrain": undrain,
        "status": status, "apply": apply, "alive": alive, "aside": aside, "back": back,
    }  # fmt: skip
    for name, function in every.items():
        verb = verbs.add_parser(name, help=function.__doc__.splitlines()[0], description=function.__doc__)
        verb.set_defaults(function=function)
        if name in {"leave", "retain"}:
            verb.add_argument("names", nargs="+" if name == "leave" else "*", metavar="NAME")
        elif name in {"join", "drain", "undrain"}:
            verb.add_argument("name", metavar="NAME")
        if name in {"status", "alive"}:
            continue
        verb.add_argument("--run", type=json_object, default={}, help="who does it, as JSON: id, by, verb")
        verb.add_argument("--wait", type=float, help="longest time for former nginx workers, in seconds")
        if name == "join":
            verb.add_argument("--address", required=True)
            verb.add_argument("--weight", type=int, default=1)
            verb.add_argument("--services", type=json_object, required=True, help='as JSON: {"ocr": 8100}')
        if name == "drain":
            verb.add_argument("--why", default="")
        if name in {"drain", "retain", "aside"}:
            verb.add_argument("--allow-outage", action="store_true", help="also when requests have nowhere else to go")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Do one verb; gives the exit status."""
    given = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        result = given.function(Edge(Settings.read(given.settings)), given)
    except EdgeError as error:
        say(str(error))
        sys.stdout.write(json.dumps({"changed": isinstance(error, StillBusy), "error": str(error)}) + "\n")
        return error.status
    except OSError as error:
        say(f"{error}. Is the disk full? (df -h /var/lib/fleet)")
        sys.stdout.write(json.dumps({"changed": False, "error": str(error)}) + "\n")
        return 1
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
