#!/usr/bin/python
"""Check from the host itself that it serves as the inventory says."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_checks
short_description: Check ports, workers, devices, answers and errors of a host
description:
  - Never fails because of what it finds; gives a list of checks, each with C(name), C(ok), C(detail) and C(mend).
options:
  vassals: {description: "Wanted vassals, as for the module C(vassals), with C(name) of each.", type: list, elements: dict, required: true}
  services:
    description: Services with name, port, route, max_body_mib and sample; app says that the project's own app answers,
      images that it takes nothing but images.
    type: list
    elements: dict
    required: true
  units: {description: Units that must run beside nginx., type: list, elements: str, required: true}
  ports: {description: "Ports that nginx listens on: those of the services, and that of the metrics.", type: list, elements: int, default: []}
  members: {description: "On an edge: hosts that must be in service.", type: list, elements: str, default: []}
  edge_program: {description: "On an edge: the program that knows its hosts.", type: path, default: /usr/local/lib/fleet/fleet-edge}
  manager: {description: Service manager., type: str, choices: [systemd, supervisor], required: true}
  user: {description: User of the workers., type: str, required: true}
  release: {description: Release that must answer., type: str, required: true}
  devices_dir: {description: Folder of the devices., type: path, default: /etc/fleet/devices}
  run_dir: {description: Folder of the sockets., type: path, default: /run/fleet}
  pid_file: {description: File with the process id of nginx., type: path, default: /run/nginx.pid}
  timeout_seconds: {description: Longest time for one answer., type: int, default: 60}
"""

import base64
import functools
import http.client
import json
import pwd
import re
import time
from collections.abc import Callable
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.fleet_socket import (
    Answer,
    SocketError,
    mismatch,
    request,
    stats,
    stats_path,
)
from ansible.module_utils.listeners import listeners, nginx_master, ports_of
from ansible.module_utils.nginx_configuration import program_changed
from ansible.module_utils.vassal_files import workers_of

REQUEST_ID = "fleet-verify-0001"
#: Longest time for the exporter to start, which does so with each release.
EXPORTER_SECONDS = 15


class Failed(Exception):
    """A check found something wrong; the text says what and which value was seen."""


def call(
    port: int, method: str, path: str, timeout: float, body: bytes = b"", headers: dict[str, str] | None = None
) -> Answer:
    """One request through nginx.

    Raises:
        Failed: no connection or no answer.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body=body or None, headers=headers or {})
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"port {port}: {error or type(error).__name__}") from error
    finally:
        connection.close()


def expect_problem(answer: Answer, status: int) -> str:
    """Check that an answer is the problem it should be.

    Raises:
        Failed: with the status and body seen.
    """
    problem = answer.json()
    if answer.status != status:
        raise Failed(f"{answer.status} instead of {status}: {answer.body[:200].decode(errors='replace')}")
    if answer.headers.get("content-type") != "application/problem+json":
        raise Failed(f"content type {answer.headers.get('content-type')!r} instead of application/problem+json")
    lacking = {"type", "title", "status", "detail", "request_id"} - set(problem)
    if lacking or problem["status"] != status:
        raise Failed(f"problem without {sorted(lacking) or 'its status'}: {problem}")
    return f"{status} {problem['title']}"


def is_up(metrics: str, vassal: dict) -> bool:
    """Whether the metrics have a vassal's uWSGI as one that answers; without stats it cannot be asked."""
    labels = f'service="{vassal["service"]}",device="{vassal["device"]}",release="{vassal["release"]}"'
    return not vassal["stats"] or f"fleet_vassal_up{{{labels}}} 1.0" in metrics


class Checks:
    """All checks of one host, each run even when an earlier one failed."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.options = module.params
        self.timeout = module.params["timeout_seconds"]
        self.results: list[dict] = []

    def check(self, name: str, what: Callable[[], str], mend: str) -> None:
        """Run one check and note its result."""
        try:
            self.results.append({"name": name, "ok": True, "detail": what(), "mend": ""})
        except (Failed, SocketError, OSError, LookupError) as error:
            self.results.append({"name": name, "ok": False, "detail": str(error), "mend": mend})

    # ---- service manager and ports

    def unit(self, name: str) -> str:
        """A unit runs and starts with the host."""
        if self.options["manager"] == "systemd":
            words = [
                self.module.run_command(["systemctl", verb, name])[1].strip() for verb in ("is-active", "is-enabled")
            ]
            if words != ["active", "enabled"]:
                raise Failed(f"{name} is {' and '.join(words)}")
            return "active, enabled"
        out = self.module.run_command(["supervisorctl", "status", name])[1].split()
        if out[1:2] != ["RUNNING"]:
            raise Failed(f"{name} is {out[1] if len(out) > 1 else 'unknown to supervisor'}")
        return "running"

    def program(self) -> str:
        """nginx runs as it is installed; an upgrade does not always restart it."""
        if changed := program_changed(nginx_master(self.options["pid_file"])):
            raise Failed(f"nginx runs with {changed[0]} of before its upgrade")
        return "the installed one"

    def open_ports(self) -> str:
        """nginx listens on the services' ports and on no other."""
        wanted = self.service_ports() | set(self.options["ports"])
        found = ports_of(nginx_master(self.options["pid_file"]))
        if missing := wanted - found:
            raise Failed(f"nginx does not listen on {sorted(missing)}")
        if surplus := found - wanted:
            raise Failed(f"nginx also listens on {sorted(surplus)}")
        return f"nginx listens on {', '.join(map(str, sorted(wanted)))} only"

    def service_ports(self) -> set[int]:
        """Ports that the services are on."""
        return {service["port"] for service in self.options["services"]}

    def metrics(self, port: int) -> str:
        """The exporter tells of every vassal, through nginx; it may have been started a moment ago."""
        deadline = time.monotonic() + EXPORTER_SECONDS
        while True:
            answer = call(port, "GET", "/metrics", self.timeout)
            text = answer.body.decode(errors="replace")
            lacking = [one for one in self.options["vassals"] if not is_up(text, one)]
            if answer.status == 200 and not lacking:
                return f"{sum(not line.startswith('#') for line in text.splitlines())} series"
            if time.monotonic() > deadline:
                if answer.status != 200:
                    raise Failed(f"{answer.status}: {text[:200]}")
                raise Failed(
                    "no fleet_vassal_up of 1 for " + ", ".join(f"{one['device']}/{one['name']}" for one in lacking)
                )
            time.sleep(0.3)

    def closed_ports(self) -> str:
        """No emperor, vassal or worker listens beyond the loopback."""
        owner = pwd.getpwnam(self.options["user"]).pw_uid
        # The table names each socket's owner; looking into the processes takes a right that containers lack.
        outside = {one.port for one in listeners() if one.uid == owner and not one.loopback}
        if outside:
            raise Failed(f"processes of {self.options['user']} listen beyond loopback on {sorted(outside)}")
        return f"{self.options['user']} listens on nothing beyond loopback"

    def member(self, name: str) -> str:
        """An edge leads requests to a host, unless somebody has drained it."""
        found = json.loads(self.module.run_command([self.options["edge_program"], "status"])[1])["members"].get(name)
        if found is None:
            raise Failed(f"{name} has not joined this edge")
        if found["drained"]:
            return f"drained by {found['drained']['by']}: {found['drained']['why'] or 'no reason given'}"
        if not found["in_service"]:
            raise Failed(f"{name} gets no requests: {found['probe']['reason']}")
        return "in service"

    # ---- vassals

    def vassal_file(self, vassal: dict) -> str:
        """The vassal that the inventory describes was deployed."""
        path = Path(self.options["devices_dir"]) / vassal["device"] / "vassals" / f"{vassal['name']}.ini"
        if not path.is_file():
            others = sorted(one.stem for one in path.parent.glob(f"{vassal['service']}--*.ini"))
            raise Failed(
                f"{vassal['name']} is not there; {', '.join(others) or 'no vassal'} is. The inventory or the code changed since."
            )
        match = re.search(r"^(?:http-)?socket = (\S+)$", path.read_text(), re.MULTILINE)
        vassal["address"] = match[1] if match else ""
        return str(vassal["name"])

    def workers(self, vassal: dict) -> str:
        """As many workers accept as were asked for, all of the right user."""
        state = stats(stats_path(self.options["run_dir"], vassal["device"], vassal["name"]))
        pids = [one["pid"] for one in state["workers"] if one["pid"] and one["accepting"]]
        wanted = vassal["workers"]
        if vassal.get("fit"):
            # The host settled it by what it measured.
            wanted = workers_of(Path(self.options["devices_dir"], vassal["device"], "vassals", f"{vassal['name']}.ini"))
        if len(pids) != wanted:
            raise Failed(f"{len(pids)} of {wanted} workers accept requests")
        owner = pwd.getpwnam(self.options["user"]).pw_uid
        for pid in [state["pid"], *pids]:
            try:
                uid = Path(f"/proc/{pid}").stat().st_uid
            except FileNotFoundError:
                raise Failed(f"process {pid} has just died") from None
            if uid != owner:
                raise Failed(f"process {pid} runs as {pwd.getpwuid(uid).pw_name}, not as {self.options['user']}")
        return f"{len(pids)} workers as {self.options['user']}"

    def ready(self, vassal: dict) -> str:
        """The device answers on its own socket, with the release that was deployed."""
        answer = request(vassal["address"], vassal["protocol"], vassal["ready_path"], timeout=self.timeout)
        if answer.status != 200:
            raise Failed(f"{answer.status}: {answer.body[:200].decode(errors='replace')}")
        # A WSGI app of one's own need not know of releases.
        seen = answer.json().get("release", self.options["release"])
        if seen != self.options["release"]:
            raise Failed(f"release {seen} answers, {self.options['release']} was deployed")
        return "known answer on its own socket"

    # ---- through nginx

    def known_answer(self, service: dict) -> str:
        """The sample gives the known answer through nginx."""
        sample = service["sample"]
        answer = call(
            service["port"], "POST", service["route"], self.timeout, base64.b64decode(sample["body_b64"]),
            {"Content-Type": sample["content_type"], "X-Request-ID": REQUEST_ID},
        )  # fmt: skip
        if answer.status != 200:
            raise Failed(f"{answer.status}: {answer.body[:200].decode(errors='replace')}")
        if difference := mismatch(answer.json(), sample["expect"]):
            raise Failed(difference)
        if answer.headers.get("x-request-id") != REQUEST_ID:
            raise Failed(f"X-Request-ID {REQUEST_ID} came back as {answer.headers.get('x-request-id')!r}")
        return f"answered by {answer.json().get('device', '?')}"

    def errors(self, service: dict) -> str:
        """Bad requests get their errors."""
        port, route = service["port"], service["route"]
        seen = [
            expect_problem(call(port, "GET", "/no/such/route", self.timeout), 404),
            # Announced only: nginx refuses by the length, before anything is sent.
            expect_problem(
                call(
                    port,
                    "POST",
                    route,
                    self.timeout,
                    headers={"Content-Length": str((service["max_body_mib"] + 1) * 2**20)},
                ),
                413,
            ),
        ]
        if service["app"]:
            seen.append(expect_problem(call(port, "DELETE", route, self.timeout), 405))
        if service["images"]:
            seen.append(
                expect_problem(call(port, "POST", route, self.timeout, headers={"Content-Type": "image/png"}), 400)
            )
            text = {"Content-Type": "text/plain"}
            seen.append(expect_problem(call(port, "POST", route, self.timeout, b"this is no image", text), 415))
        return ", ".join(seen)

    def run(self) -> list[dict]:
        """Run all checks."""
        deploy = "./fleet deploy"
        for unit in self.options["units"]:
            kind, _, device = unit.partition("@")
            name = f"emperor of {device}" if kind == "uwsgi-emperor" else unit
            self.check(name, functools.partial(self.unit, unit), self.look(unit))
        self.check("nginx", lambda: self.unit("nginx"), self.look("nginx"))
        self.check("program of nginx", self.program, "./fleet deploy restarts it while its requests go elsewhere")
        self.check("open ports", self.open_ports, "see what holds the port: ss -ntlp; then ./fleet deploy")
        if self.options["user"]:
            self.check("closed ports", self.closed_ports, "see which process it is: ss -ntlp")
        for port in sorted(set(self.options["ports"]) - self.service_ports()):
            unit = "fleet-exporter"
            self.check(f"metrics through port {port}", functools.partial(self.metrics, port), self.look(unit))
        for member in self.options["members"]:
            self.check(f"host {member}", functools.partial(self.member, member), f"./fleet verify {member}")
        for vassal in self.options["vassals"]:
            label = f"{vassal['service']} on {vassal['device']}"
            self.check(f"{label}: vassal", functools.partial(self.vassal_file, vassal), deploy)
            if not vassal.get("address"):
                continue
            look = self.look(f"uwsgi-emperor@{vassal['device']}")
            if vassal["stats"]:
                self.check(f"{label}: workers", functools.partial(self.workers, vassal), look)
            if vassal["ready_path"]:
                self.check(f"{label}: ready", functools.partial(self.ready, vassal), look)
        for service in self.options["services"]:
            label = f"{service['name']} through port {service['port']}"
            if service["sample"]:
                self.check(
                    f"{label}: known answer",
                    functools.partial(self.known_answer, service),
                    "tail /var/log/nginx/error.log",
                )
            self.check(f"{label}: errors", functools.partial(self.errors, service), deploy)
        return self.results

    def look(self, unit: str) -> str:
        """The command that shows what a unit said."""
        return f"journalctl -u {unit} -n 50" if self.options["manager"] == "systemd" else f"supervisorctl tail {unit}"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "vassals": {"type": "list", "elements": "dict", "required": True},
            "services": {"type": "list", "elements": "dict", "required": True},
            "units": {"type": "list", "elements": "str", "required": True},
            "ports": {"type": "list", "elements": "int", "default": []},
            "members": {"type": "list", "elements": "str", "default": []},
            "edge_program": {"type": "path", "default": "/usr/local/lib/fleet/fleet-edge"},
            "manager": {"type": "str", "choices": ["systemd", "supervisor"], "required": True},
            "user": {"type": "str", "required": True},
            "release": {"type": "str", "required": True},
            "devices_dir": {"type": "path", "default": "/etc/fleet/devices"},
            "run_dir": {"type": "path", "default": "/run/fleet"},
            "pid_file": {"type": "path", "default": "/run/nginx.pid"},
            "timeout_seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    results = Checks(module).run()
    module.exit_json(changed=False, checks=results, passed=all(one["ok"] for one in results))


if __name__ == "__main__":
    main()
