"""nginx's logs as a real nginx writes them and Debian's logrotate puts them away, from the roles' own templates."""

import functools
import gzip
import http.client
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ansible_modules
import environments
import processes
import pytest
from log_lines import Parser, Query
from log_sources import Files
from processes import wait_for
from stack import GROUP, USER, Fleet

SERVICE: dict[str, Any] = {
    "name": "echo",
    "route": "/v1/echo",
    "model": "inference.models.echo:EchoModel",
    "timeout_seconds": 20,
}


class Host:
    """nginx without any vassal behind it, and its rotation."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.folder = fleet.log_dir
        (self.port,) = processes.free_ports(1)
        upstreams = [{"service": "echo", "device": "one", "address": f"{fleet.run_dir}/one/echo--1-abc.sock"}]
        fleet.device("one")
        fleet.lay([SERVICE | {"port": self.port}], upstreams, site_listen_addresses=["127.0.0.1"])
        self.state = fleet.folder / "status"

    def ask(self, request: str, path: str = "/v1/echo", body: bytes = b"x") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", path, body, {"X-Request-ID": request})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def rotate(self, *options: str, **variables: Any) -> str:
        """Run logrotate with the role's file, for the folder of this test; gives what it says."""
        settings = self.fleet.folder / "logrotate.conf"
        text = self.fleet.roles.render("logs", "etc/fleet/logrotate.conf.j2", **variables)
        places = [
            ("/var/log/nginx/", f"{self.folder}/"),
            ("www-data adm", f"{USER} {GROUP}"),
            ("/run/nginx.pid", f"{self.fleet.folder}/nginx.pid"),
        ]
        settings.write_text(self.fleet.local(text, *places))
        settings.chmod(0o644)
        command: list[str | Path] = [environments.logrotate(), "--state", self.state, *options, settings]
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path})
        assert done.returncode == 0, done.stderr
        assert "error:" not in done.stderr, done.stderr
        return done.stderr

    def has(self, name: str, request: str) -> bool:
        path = self.folder / name
        if not path.exists():
            return False
        text = gzip.decompress(path.read_bytes()).decode() if name.endswith(".gz") else path.read_text()
        return f'"request_id":"{request}"' in text

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("access.log*"))

    def logs(self, **options: Any) -> list[dict[str, Any]]:
        nowhere = str(self.fleet.folder / "none")
        places = {"nginx_dir": str(self.folder), "log_dir": nowhere, "supervisor_log": nowhere, "systemd_dir": nowhere}
        answer = ansible_modules.run(
            "host_logs", {**places, "level": "debug", "routes": {"/v1/echo": "echo"}, **options}
        )
        return [json.loads(line) for line in answer["lines"]]


@pytest.fixture
def host(new_fleet: Callable[[], Fleet]) -> Iterator[Host]:
    found = Host(new_fleet())
    with found.fleet.nginx([found.port]):
        yield found


def test_times_have_milliseconds(host: Host) -> None:
    before = time.time()
    for number in range(10):
        host.ask(f"n{number}")
    wait_for(lambda: host.has("access.log", "n9"), "the line")
    times = [json.loads(line)["time"] for line in (host.folder / "access.log").read_text().splitlines()]
    parts = {text[19:23] for text in times}
    assert all(text[19] == "." for text in times) and len(parts) > 1, times
    (first, *_) = host.logs()
    at = time.mktime(time.strptime(first["time"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert abs(at + time.localtime().tm_isdst * 3600 - before) < 60


def test_errors_of_nginx_are_found_by_the_id_of_their_request(host: Host) -> None:
    # No vassal listens: nginx says so in its error log, which knows no ids.
    assert [host.ask("mine"), host.ask("other"), host.ask("mine", "/nothing")] == [503, 503, 404]
    wait_for(lambda: len(host.logs()) == 5, "all lines")
    found = host.logs(request_id="mine")
    events = [one["event"] for one in found]
    assert sorted(event.partition(" to ")[0] for event in events) == ["connect()", "request", "request"], found
    assert {one["request_id"] for one in found} == {"mine"}
    (error,) = [one for one in found if one["level"] == "critical"]
    assert (error["service"], "failed (2: No such file or directory)" in error["event"]) == ("echo", True)
    refused = next(one for one in found if one["event"] == "request" and one["status"] == 503)
    assert (refused["service"], refused["level"]) == ("echo", "warning")


def test_the_rotation_is_one_that_logrotate_takes(host: Host) -> None:
    host.ask("a")
    said = host.rotate("--debug", "--verbose")
    for name in ("access.log", "error.log"):
        assert f"considering log {host.folder}/{name}" in said
    assert "after 1 days (14 rotations)" in said
    assert host.names() == ["access.log"], "it was only asked what it would do"


def test_logs_are_put_away_packed_and_removed_and_nginx_goes_on(host: Host) -> None:
    watch = Files(host.folder / "access.log", "nginx", Parser(), Query(level="debug"))
    mark = watch.end()
    told: list[str] = []
    for number in range(4):
        assert host.ask(f"n{number}") == 503
        wait_for(functools.partial(host.has, "access.log", f"n{number}"), "the line in the new file")
        if number % 2:
            # A follower that looks now and then misses nothing.
            records, mark = watch.since(mark)
            told += [one["request_id"] for one in records]
        host.rotate("--force", logs_keep_files=3)
    assert told == ["n0", "n1", "n2", "n3"]
    assert host.names() == ["access.log", "access.log.1", "access.log.2.gz", "access.log.3.gz"], "the oldest is gone"
    assert [host.has(name, f"n{number}") for name, number in zip(host.names()[1:], (3, 2, 1), strict=True)] == [
        True
    ] * 3
    assert (host.folder / "access.log").stat().st_mode & 0o777 == 0o640
    assert [one["request_id"] for one in host.logs() if one["event"] == "request"] == ["n1", "n2", "n3"]


def test_a_log_that_is_large_is_put_away_before_its_day_is_over(host: Host) -> None:
    host.ask("a")
    host.rotate(logs_rotate_mib=1)
    assert host.names() == ["access.log"], "neither old nor large"
    with (host.folder / "access.log").open("a") as stream:
        stream.write("x" * (2**20 + 1) + "\n")
    host.rotate(logs_rotate_mib=1)
    assert host.names() == ["access.log", "access.log.1"]
    host.ask("b")
    wait_for(lambda: host.has("access.log", "b"), "nginx has taken the new file")


def test_a_full_disk_stops_no_request(new_fleet: Callable[[], Fleet]) -> None:
    """nginx can write neither its lines nor that it cannot."""
    host = Host(new_fleet())
    for name in ("access.log", "error.log"):
        (host.folder / name).symlink_to("/dev/full")
    with host.fleet.nginx([host.port]):
        assert [host.ask(f"n{number}", "/.fleet/alive" if number % 2 else "/nothing") for number in range(20)] == [
            404,
            200,
        ] * 10


def test_rotation_goes_without_nginx_too(new_fleet: Callable[[], Fleet]) -> None:
    host = Host(new_fleet())
    (host.folder / "access.log").write_text("x\n")
    host.rotate("--force")
    assert host.names() == ["access.log", "access.log.1"]
