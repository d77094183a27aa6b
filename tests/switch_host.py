"""A host below a folder that is switched from one deployment to another, with real emperors, vassals and nginx."""

import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import environments
import processes
import release_switch
import tree
from deployments import Deployments
from release_switch import RECORDED, Switch
from stack import CPU, GROUP, Fleet, Json
from units import Manager

TINY = tree.ROOT / "tests" / "unit" / "data" / "tiny"
DEVICES = [{"name": "one", **CPU}, {"name": "two", **CPU}]
SAMPLE = {"text": "hello", "content_type": "text/plain", "expect": {"answer": "42", "bytes": 5}}
RUN = {"id": "test", "by": "somebody", "verb": "deploy"}
#: As in the tests of nginx's configuration: reloads reach the nginx of this test.
WRAPPER = """#!/bin/sh
case $* in
"-s reload") exec {nginx} -e stderr -p {root} -c {root}/nginx.conf -s reload ;;
*) exec {nginx} -e stderr -p {root} "$@" ;;
esac
"""


class Units(Manager):
    """A service manager whose units run already; it notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.older: dict[str, list[str]] = {}

    def ask(self, *arguments: str) -> tuple[int, str]:
        return 0, ""

    def pid(self, name: str) -> int:
        return 1

    def is_right(self, name: str) -> bool:
        return True

    def start(self, name: str) -> None:
        self.told.append(f"start {name}")

    def restart(self, name: str) -> None:
        self.told.append(f"restart {name}")
        self.older.pop(name, None)

    def remove(self, name: str) -> None:
        self.told.append(f"remove {name}")

    def reread(self) -> None:
        self.told.append("reread")

    def stale(self, name: str, files: Any, pending: Any = ()) -> list[str]:
        return self.older.get(name, [])


class Client(threading.Thread):
    """Asks without a pause, and keeps every answer."""

    def __init__(self, port: int, path: str = "/tell") -> None:
        super().__init__(daemon=True)
        self.port = port
        self.path = path
        self.end = threading.Event()
        self.answers: list[tuple[int, str, str]] = []

    def run(self) -> None:
        while not self.end.wait(0.01):
            self.answers.append(self.ask())

    def ask(self) -> tuple[int, str, str]:
        """Status, release and device of one answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("POST", self.path, b"hello", {"Content-Type": "text/plain"})
            response = connection.getresponse()
            body = json.loads(response.read())
            return response.status, str(body.get("release")), str(body.get("device"))
        except (OSError, http.client.HTTPException, ValueError) as error:
            return 0, repr(error), ""
        finally:
            connection.close()


class Host:
    """A host with two devices, and what is wanted of it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.units = Units()
        (self.port,) = processes.free_ports(1)
        self.root = fleet.nginx_folder()
        self.wrapper = fleet.folder / "helpers" / "nginx"
        self.wrapper.write_text(WRAPPER.format(nginx=environments.nginx(), root=self.root))
        self.wrapper.chmod(0o755)

    def service(self, **options: Any) -> Json:
        common = {"name": "tell", "route": "/tell", "port": self.port, "wsgi_file": "app/tiny.py", "ready_path": "/"}
        return {**common, "workers": 1, "listen": 64, "load_seconds": 8, "sample": SAMPLE, **options}

    def wanted(self, release: str, devices: list[Json] | None = None, **options: Any) -> Json:
        """All that is wanted, as the role rollout puts it together."""
        devices = DEVICES if devices is None else devices
        folder = self.fleet.folder / "releases" / release
        if not folder.exists():
            self.fleet.release(release, TINY, Path(sys.prefix))
            (folder / "REVISION.json").write_text("{}")
        published = {"id": release, "dir": str(folder), "environment": ""}
        services = [self.service(**options)]
        upstreams = [{"service": "tell", "device": one["name"], "address": ""} for one in devices]
        files, links = self.fleet.configuration(services, upstreams, site_listen_addresses=["127.0.0.1"])
        nginx = {"files": files, "links": links, "ports": [], "wait_seconds": 20}
        return {
            **dict.fromkeys(RECORDED),
            "release": published,
            "services": [{"name": "tell"}],
            "vassals": self.fleet.vassals(services, published, devices),
            "devices": devices,
            "units": [{"name": f"emperor@{one['name']}", "device": one["name"], "files": []} for one in devices],
            "files": [],
            "folders": [],
            "nginx": nginx,
            "nginx_unit": {"name": "nginx", "files": []},
            "manager": "systemd",
            "group": GROUP,
            "stop_seconds": 20,
        }

    def places(self) -> Json:
        state = self.fleet.folder / "state"
        return {
            **self.fleet.folders(),
            "nginx_root": str(self.root),
            "nginx_state_file": str(state / "nginx.json"),
            "nginx_program": str(self.wrapper),
            "pid_file": str(self.fleet.folder / "nginx.pid"),
            "drained_file": str(state / "drained.json"),
            "deployed_file": str(state / "deployed.json"),
            "deployments_dir": str(state / "deployments"),
        }

    def switch(self, wanted: Json, **options: Any) -> Switch:
        given = {
            "state": "present", "record": "", "settle": True, "forget": False, "may_stop": False, "switch": "auto",
            "nginx_test": True, "run": RUN,
        }  # fmt: skip
        return Switch({**wanted, **self.places(), **given, **options})

    def go(self, wanted: Json, **options: Any) -> Switch:
        """Apply and record, as the module does."""
        switch = self.switch(wanted, **options)
        switch.apply()
        if switch.options["settle"]:
            switch.record(forget=switch.options["forget"])
        return switch

    def deployments(self) -> Deployments:
        places = self.places()
        return Deployments(Path(places["deployed_file"]), Path(places["deployments_dir"]))

    def restore(self, record: str, **options: Any) -> Switch:
        return self.go(self.deployments().read(record), state="restored", record=record, **options)

    def upstream(self) -> list[str]:
        text = (self.root / "upstreams" / "tell.conf").read_text()
        return [line.strip() for line in text.splitlines() if line.strip().startswith("server ")]

    def vassals(self) -> list[str]:
        """Release of each vassal that has a file, by device."""
        return sorted(
            f"{path.parent.parent.name} {path.stem.split('--')[1].rpartition('-')[0]}"
            for path in self.fleet.devices_dir.glob("*/vassals/*.ini")
        )

    @contextmanager
    def load(self) -> Iterator[list[tuple[int, str, str]]]:
        """Clients that ask all the while; each must get its answer."""
        clients = [Client(self.port) for _ in range(3)]
        answers: list[tuple[int, str, str]] = []
        for client in clients:
            client.start()
        time.sleep(0.2)
        try:
            yield answers
        finally:
            for client in clients:
                client.end.set()
            for client in clients:
                client.join()
                answers += client.answers
        failed = [one for one in answers if one[0] != 200]
        assert not failed, f"{len(failed)} of {len(answers)} failed: {failed[:3]}"


@contextmanager
def serving(host: Host, **options: Any) -> Iterator[None]:
    """Have a host serve release r1 on two devices until the end of the block."""
    with host.fleet.emperor("one"), host.fleet.emperor("two"):
        host.go(host.wanted("r1", **options))
        with host.fleet.nginx([host.port]):
            # The module starts it after it has placed the files; this one was started by hand.
            host.go(host.wanted("r1", **options))
            yield


@contextmanager
def by_hand(host: Host) -> Iterator[None]:
    """Outside of pytest: the host's units stand in for those of this machine, and nothing is noted in its audit log."""
    with (
        mock.patch.object(release_switch, "manager", lambda kind: host.units),
        mock.patch.object(release_switch, "note", lambda *arguments, **fields: ""),
    ):
        yield
