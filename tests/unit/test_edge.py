"""An edge: which hosts get requests, and how; with a real nginx in front of hosts that this test plays."""

import contextlib
import fcntl
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import ansible_modules
import environments
import fleet_edge
import processes
import pytest
import shared_address
import tree
from ansible.errors import AnsibleFilterError
from fleet_edge import Members, Settings
from nginx_configuration import children
from processes import wait_for
from stack import USER, Fleet, Json

PROGRAM = tree.ROOT / "roles" / "edge" / "files" / "fleet_edge.py"
OCR: Json = {"name": "ocr", "route": "/v1/parse", "model": "inference.models.ocr:OcrModel"}
CATS: Json = {"name": "cats-2", "route": "/v1/cats", "model": "mine:Cats", "max_body_mib": 7, "timeout_seconds": 30}
RUN = {"id": "r1", "by": "me@here", "verb": "test"}
#: Stands where fleet-edge finds nginx, and can be held up.
WRAPPER = """#!/bin/sh
while [ -e {folder}/hold ]; do sleep 0.05; done
exec {nginx} -e stderr -p {folder}/nginx -c {folder}/nginx/nginx.conf "$@"
"""


class Server(ThreadingHTTPServer):
    """One that takes many connections at once, as nginx does."""

    request_queue_size = 128


class FakeHost:
    """An inference host's nginx, as an edge sees it."""

    def __init__(self, name: str) -> None:
        fake = self
        self.name = name
        self.status, self.headers, self.body = 200, {"X-Fleet-Host": name}, b""
        self.seen: list[Json] = []
        self.hold = threading.Event()
        self.hold.set()
        # Given by the kernel: those of free_ports are for the edge.
        self.port = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers["Content-Length"] or 0)
                fake.seen.append({"path": self.path, "body": self.rfile.read(length), "headers": dict(self.headers)})
                fake.hold.wait(30)
                body = fake.body or json.dumps({"host": fake.name, "path": self.path}).encode()
                self.send_response(fake.status)
                for key, value in {"Content-Type": "application/json", **fake.headers}.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None: ...

        self.handler = Handler
        self.start()

    def start(self) -> None:
        self.server = Server(("127.0.0.1", self.port), self.handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self.status, self.body = status, body
        self.headers = {"X-Fleet-Host": self.name, **{key.replace("_", "-"): value for key, value in headers.items()}}


class Edge:
    """The files of an edge below a folder, and its nginx."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.folder = fleet.folder
        self.dir = fleet.folder / "edge"
        self.port, self.other_port = processes.free_ports(2)
        self.services: list[Json] = [{**OCR, "port": self.port}]
        self.upstreams = self.dir / "upstreams.conf"
        self.probes_file = self.folder / "probes.json"
        wrapper = fleet.folder / "helpers" / "nginx"
        wrapper.write_text(WRAPPER.format(nginx=environments.nginx(), folder=self.folder))
        wrapper.chmod(0o755)
        self.settings = self.folder / "edge.json"
        self.configure()

    def configure(self, **more: Any) -> None:
        settings = {
            "services": {one["name"]: one["port"] for one in self.services},
            "wait_seconds": 20,
            "back_seconds": 5,
            "state_dir": str(self.dir),
            "probes_file": str(self.probes_file),
            "pid_file": str(self.folder / "nginx.pid"),
            "error_log": str(self.fleet.log_dir / "error.log"),
            "audit_log": str(self.folder / "audit.log"),
            "nginx": [str(self.folder / "helpers" / "nginx")],
            "probe_seconds": 0.5,
        }
        self.settings.write_text(json.dumps({**settings, **more}))

    def begin(self, verb: str, *arguments: str) -> subprocess.Popen[str]:
        """Start fleet-edge as Ansible does, and do not wait for it."""
        run = [] if verb in {"status", "alive"} else ["--run", json.dumps(RUN)]
        return subprocess.Popen(
            [sys.executable, "-W", "error", PROGRAM, "--settings", self.settings, verb, *run, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tree.ROOT / "plugins" / "module_utils")},
        )

    def call(self, verb: str, *arguments: str) -> tuple[int, Json]:
        """Exit status and result of a verb, within this process: quicker than a Python of its own."""
        output = io.StringIO()
        run = [] if verb in {"status", "alive"} else ["--run", json.dumps(RUN)]
        with contextlib.redirect_stdout(output):
            status = fleet_edge.main(["--settings", str(self.settings), verb, *run, *arguments])
        return status, json.loads(output.getvalue())

    def do(self, verb: str, *arguments: str) -> Json:
        status, result = self.call(verb, *arguments)
        assert status == 0, result
        return result

    def join(self, *names: str, port: int = 1, weight: int = 1, address: str = "127.0.0.1") -> None:
        for name in names:
            services = json.dumps({one["name"]: port for one in self.services})
            self.do("join", name, f"--address={address}", f"--weight={weight}", f"--services={services}")

    def probe(self, **healthy: bool) -> None:
        """Be the prober."""
        members = {name: {"healthy": one, "since": "now", "reason": "a test"} for name, one in healthy.items()}
        self.probes_file.write_text(json.dumps({"members": members}))

    def servers(self, upstream: str = "fleet_ocr") -> dict[str, str]:
        """What stands behind each host's server, or the server itself when it is no host's."""
        text = self.upstreams.read_text()
        block = re.search(rf"^upstream {upstream} \{{$(.*?)^\}}$", text, re.MULTILINE | re.DOTALL)
        assert block, text
        found = re.findall(r"# Host (\S+?)(?::.*)?\.\n\s+server \S+ (.*);", block[1])
        return dict(found)

    def members(self) -> Json:
        found: Json = json.loads((self.dir / "members.json").read_text())["members"]
        return found

    def audit(self) -> list[str]:
        path = self.folder / "audit.log"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        assert all((line["run"], line["by"], line["verb"]) == ("r1", "me@here", "test") for line in lines)
        return [f"{line['event']} {line['host']}" for line in lines]

    # ---- nginx

    def lay(self, **variables: Any) -> Path:
        """Write the whole configuration by the role's own expressions; gives its main file."""
        root = self.fleet.nginx_folder()
        given = {
            "site_listen_addresses": ["127.0.0.1"],
            "groups": {"inference": ["one"]},
            "hostvars": {"one": {"services": self.services}},
            "inventory_hostname": "edge-1",
            "ansible_facts": {"all_ipv6_addresses": []},
            "__site_problems": self.fleet.roles.variables("site")["__site_problems"],
            **variables,
        }
        sites: list[Json] = json.loads(json.dumps(self.fleet.roles.evaluate("edge", "{{ __edge_rendered }}", **given)))
        sites[0]["upstream"] = self.fleet.local(sites[0]["upstream"], ("/var/lib/fleet/edge/", f"{self.dir}/"))
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/nginx-temporary/{kind};\n"
            for kind in ("client_body", "proxy", "uwsgi", "fastcgi", "scgi")
        )
        main = self.fleet.roles.render(
            "nginx",
            "etc/nginx/nginx.conf.j2",
            nginx_extra_config=temporary,
            fleet_sites=sites,
            nginx_worker_processes=2,
        )
        main = self.fleet.local(
            main,
            ("user www-data;", f"user {USER};"),
            ("/run/nginx.pid", f"{self.folder}/nginx.pid"),
            ("/var/log/nginx/", f"{self.fleet.log_dir}/"),
        )
        layout = ansible_modules.load("filter", "site")
        for one in layout.nginx_files(main, sites):
            (root / one["path"]).parent.mkdir(exist_ok=True)
            (root / one["path"]).write_text(one["content"])
        for one in layout.nginx_links(sites):
            (root / one["path"]).parent.mkdir(exist_ok=True)
            (root / one["path"]).unlink(missing_ok=True)
            (root / one["path"]).symlink_to(one["target"])
        return root / "nginx.conf"

    def master(self) -> int:
        return int((self.folder / "nginx.pid").read_text())

    def workers(self) -> set[int]:
        return children(self.master())

    def ask(
        self,
        method: str = "POST",
        path: str = "/v1/parse",
        body: bytes | None = b"x",
        headers: Json | None = None,
        source: str = "127.0.0.1",
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30, source_address=(source, 0))
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def hosts(self, count: int = 12, **more: Any) -> Counter[str]:
        """Which hosts answer that many requests."""
        answers = [self.ask(**more) for _ in range(count)]
        assert [status for status, _, _ in answers] == [200] * count
        return Counter(json.loads(body)["host"] for _, _, body in answers)


@pytest.fixture
def edge(fleet: Fleet) -> Edge:
    """An edge whose nginx does not run; its upstreams are there, as the role makes them before the sites."""
    made = Edge(fleet)
    made.fleet.nginx_folder()
    (made.folder / "nginx" / "nginx.conf").write_text("events {}\n")
    made.do("apply")
    made.lay()
    return made


@pytest.fixture
def hosts() -> Iterator[dict[str, FakeHost]]:
    made = {name: FakeHost(name) for name in ("one", "two")}
    yield made
    for host in made.values():
        host.hold.set()
        host.stop()


@pytest.fixture
def served(edge: Edge, hosts: dict[str, FakeHost]) -> Iterator[Edge]:
    """An edge that serves, with two hosts."""
    with edge.fleet.nginx([edge.port]):
        for name, host in hosts.items():
            edge.join(name, port=host.port)
        yield edge


# ---- what it makes of hosts and verdicts


def members(**hosts: Json) -> Members:
    plain = {"address": "10.0.0.1", "weight": 1, "services": {"ocr": 8100}, "drained": None}
    return Members({name: {**plain, **host} for name, host in hosts.items()}, {})


@pytest.mark.parametrize("balance", ["least_conn", "ip_hash", "round_robin"])
@pytest.mark.parametrize("count", [0, 1, 2, 16])
def test_nginx_takes_every_balance_and_number_of_hosts(edge: Edge, balance: str, count: int) -> None:
    edge.configure(balance=balance)
    joined = {
        f"host-{number}": {
            "address": f"10.0.0.{number + 1}",
            "weight": number + 1,
            "services": {"ocr": 8100},
            "drained": None,
        }
        for number in range(count)
    }
    (edge.dir / "members.json").write_text(json.dumps({"members": joined}))
    edge.do("apply")
    text = edge.upstreams.read_text()
    assert (f"    {balance};" in text) == (count > 0 and balance != "round_robin")
    assert "zone fleet_ocr 64k;" in text
    assert edge.servers() == {f"host-{number}": f"weight={number + 1} max_fails=0" for number in range(count)}
    assert ("server 127.0.0.1:9 down;" in text) == (count == 0), "an upstream without a server is refused by nginx"


def test_drained_and_unhealthy_hosts_stay_but_get_nothing(edge: Edge) -> None:
    edge.join("a", "b", "c")
    edge.probe(a=True, b=False, c=True)
    edge.do("drain", "c", "--why=a test")
    assert edge.servers() == {
        "a": "weight=1 max_fails=0",
        "b": "weight=1 max_fails=0 down",
        "c": "weight=1 max_fails=0 down",
    }


def test_addresses_of_both_families() -> None:
    text = members(a={"address": "fd00::1"}, b={"address": "host-2.example"}).render(Settings())
    assert "server [fd00::1]:8100 " in text
    assert "server host-2.example:8100 " in text


def test_each_service_has_the_hosts_that_have_it(edge: Edge) -> None:
    edge.services = [{**OCR, "port": edge.port}, {**CATS, "port": edge.other_port}]
    edge.configure()
    edge.do("join", "a", "--address=10.0.0.1", '--services={"ocr": 8100}')
    edge.do("join", "b", "--address=10.0.0.2", '--services={"ocr": 8100, "cats-2": 8200}')
    edge.lay()
    edge.do("apply")
    assert list(edge.servers()) == ["a", "b"]
    assert list(edge.servers("fleet_cats_2")) == ["b"]
    # Of cats-2 it is the last.
    assert edge.call("drain", "b")[0] == 3
    assert edge.call("drain", "a")[0] == 0


def test_when_the_prober_finds_none_healthy_all_get_requests(edge: Edge) -> None:
    edge.join("a", "b", "c")
    edge.do("drain", "c")
    edge.probe(a=True, b=False, c=False)
    assert edge.do("apply")["changed"]
    edge.probe(a=False, b=False, c=False)
    assert edge.do("apply")["changed"]
    assert edge.servers() == {
        "a": "weight=1 max_fails=0",
        "b": "weight=1 max_fails=0",
        "c": "weight=1 max_fails=0 down",
    }
    status = edge.do("status")
    assert status["fail_open"] == ["ocr"]
    assert [one["in_service"] for one in status["members"].values()] == [True, True, False]
    edge.probe(a=True, b=False, c=False)
    edge.do("apply")
    assert list(edge.servers().values()) == ["weight=1 max_fails=0", *["weight=1 max_fails=0 down"] * 2]
    assert edge.do("status")["fail_open"] == []


def test_status_tells_all_there_is(edge: Edge) -> None:
    edge.join("a", weight=4)
    edge.probe(a=False)
    assert edge.do("status")["members"]["a"] == {
        "address": "127.0.0.1",
        "weight": 4,
        "services": {"ocr": 1},
        "drained": None,
        "probe": {"healthy": False, "since": "now", "reason": "a test"},
        "in_service": True,
    }


# ---- verbs


def test_what_changes_nothing_says_so(edge: Edge) -> None:
    services = '--services={"ocr": 8100}'
    for verb, *arguments in (
        ["join", "a", "--address=10.0.0.1", services],
        ["join", "b", "--address=10.0.0.2", services],
        ["drain", "a"],
        ["undrain", "a"],
        ["leave", "a"],
    ):
        assert edge.do(verb, *arguments)["changed"], verb
        before = edge.upstreams.stat().st_mtime_ns, (edge.dir / "members.json").stat().st_mtime_ns
        assert not edge.do(verb, *arguments)["changed"], verb
        assert before == (edge.upstreams.stat().st_mtime_ns, (edge.dir / "members.json").stat().st_mtime_ns)
    assert edge.audit() == ["joined a", "joined b", "drained a", "undrained a", "left a"]
    assert not edge.do("apply")["changed"]


def test_a_host_that_is_not_known(edge: Edge) -> None:
    for verb in ("drain", "undrain"):
        status, said = edge.call(verb, "nobody")
        assert (status, "nobody" in said["error"]) == (2, True)
    assert edge.do("leave", "nobody") == {"changed": False, "left": []}


def test_a_wrong_command_line_is_told_apart_from_that(edge: Edge) -> None:
    process = edge.begin("drain")
    _, err = process.communicate()
    assert (process.returncode, "usage" in err) == (64, True)


def test_the_last_host_is_not_drained(edge: Edge) -> None:
    edge.join("a", "b")
    edge.do("drain", "a", "--why=kernel")
    status, said = edge.call("drain", "b")
    assert (status, said["changed"]) == (3, False)
    assert "ocr" in said["error"]
    assert "allow_outage" in said["error"]
    assert edge.members()["b"]["drained"] is None
    assert edge.do("drain", "b", "--allow-outage")["drained"]["by"] == "me@here"
    assert [one["drained"]["why"] for one in edge.members().values()] == ["kernel", ""]


def test_one_that_gets_no_requests_may_be_drained(edge: Edge) -> None:
    edge.join("a", "b")
    edge.probe(a=True, b=False)
    assert edge.call("drain", "a")[0] == 3, "the other one is unhealthy"
    edge.do("drain", "b")


def test_the_last_one_is_not_drained_either_when_all_are_found_unhealthy(edge: Edge) -> None:
    """Then all get requests, and the last one of them is the last one still."""
    edge.join("a", "b")
    edge.probe(a=False, b=False)
    edge.do("drain", "a")
    status, said = edge.call("drain", "b")
    assert (status, said["changed"]) == (3, False)
    assert edge.servers()["b"] == "weight=1 max_fails=0"
    edge.do("drain", "b", "--allow-outage")


def test_a_host_that_joins_again_keeps_its_drain(edge: Edge) -> None:
    edge.join("a", "b")
    edge.do("drain", "a")
    edge.join("a", weight=7)
    assert edge.members()["a"]["drained"]
    assert edge.servers()["a"] == "weight=7 max_fails=0 down"


def test_hosts_that_are_gone_from_the_inventory_leave(edge: Edge) -> None:
    edge.join("a", "b", "c")
    assert edge.do("retain", "b", "d") == {"changed": True, "left": ["a", "c"], "held": []}
    assert edge.do("retain", "b", "d") == {"changed": False, "left": [], "held": []}
    assert list(edge.servers()) == ["b"]


def test_hosts_that_alone_serve_stay_until_others_have_joined(edge: Edge) -> None:
    """All hosts of the inventory are others than before, or those that stay do not serve."""
    edge.join("a", "b")
    assert edge.do("retain", "c") == {"changed": False, "left": [], "held": ["a", "b"]}
    edge.join("c")
    edge.do("drain", "c")
    edge.probe(a=True, b=False, c=True)
    assert edge.do("retain", "c") == {"changed": True, "left": ["b"], "held": ["a"]}, "b gets nothing anyway"
    edge.do("undrain", "c")
    edge.probe(a=True, c=False)
    assert edge.do("retain", "c")["held"] == ["a"], "the prober finds c unhealthy"
    edge.probe(a=False, c=False)
    assert edge.do("retain", "c") == {"changed": True, "left": ["a"], "held": []}, "it is no better than c"


def test_the_last_host_leaves_with_its_service_or_when_an_outage_is_allowed(edge: Edge) -> None:
    edge.join("a")
    assert edge.do("retain", "b")["held"] == ["a"]
    assert edge.do("retain", "b", "--allow-outage") == {"changed": True, "left": ["a"], "held": []}
    edge.join("a")
    edge.services = [{**CATS, "port": edge.port}]
    edge.configure()
    edge.do("apply")
    edge.lay()
    assert edge.do("retain", "b")["left"] == ["a"], "nobody wants what it serves"


def test_an_upstream_stays_as_long_as_a_site_may_name_it(edge: Edge) -> None:
    """The role places sites after the upstreams, and prunes after the sites."""
    edge.services = [{**CATS, "port": edge.port}]
    edge.configure()
    edge.do("apply")
    assert "upstream fleet_ocr {" in edge.upstreams.read_text()
    edge.lay()
    edge.do("retain")
    assert "upstream fleet_ocr {" not in edge.upstreams.read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ["a;b", "--address=10.0.0.1", '--services={"ocr": 8100}'],
        ["a", "--address=10.0.0.1;", '--services={"ocr": 8100}'],
        ["a", "--address=unix:/x", '--services={"ocr": 8100}'],
        ["a", "--address=10.0.0.1", "--services={}"],
        ["a", "--address=10.0.0.1", '--services={"ocr": 0}'],
        ["a", "--address=10.0.0.1", '--services={"o r": 1}'],
        ["a", "--address=10.0.0.1", "--weight=0", '--services={"ocr": 8100}'],
    ],
)
def test_nothing_gets_into_nginx_that_is_no_host(edge: Edge, arguments: list[str]) -> None:
    status, said = edge.call("join", *arguments)
    assert (status, said["changed"]) == (1, False)
    assert edge.members() == {}


def test_undrain_waits_until_the_host_is_healthy(edge: Edge) -> None:
    edge.join("a", "b")
    edge.do("drain", "a")
    edge.probe(a=False, b=True)
    process = edge.begin("undrain", "a")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    edge.probe(a=True, b=True)
    assert process.wait(10) == 0
    process.communicate()
    assert "down" not in edge.servers()["a"]


def test_undrain_tells_of_a_host_that_does_not_get_well(edge: Edge) -> None:
    edge.join("a", "b")
    edge.do("drain", "a")
    edge.probe(a=False, b=True)
    edge.configure(back_seconds=0.3)
    status, said = edge.call("undrain", "a")
    assert (status, said["changed"]) == (4, True)
    assert "a test" in said["error"]
    assert edge.members()["a"]["drained"] is None


# ---- what goes wrong


def test_what_nginx_refuses_is_put_back(edge: Edge) -> None:
    edge.join("a")
    before = edge.upstreams.read_text()
    status, said = edge.call("join", "b", "--address=no-such-host.invalid", '--services={"ocr": 8100}')
    assert (status, said["changed"]) == (1, False)
    assert "host not found" in said["error"]
    assert edge.upstreams.read_text() == before
    assert list(edge.members()) == ["a"]
    assert edge.audit() == ["joined a"]


def test_nginx_that_takes_them_late_gets_the_former_ones_again(
    edge: Edge, hosts: dict[str, FakeHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read the new ones already, and only waits for something; it must not end up with what was put away."""
    late, pipe, main = (edge.folder / name for name in ("late.conf", "pipe", "nginx/nginx.conf"))
    late.touch()
    # Read last; as a pipe it holds nginx up until somebody writes.
    main.write_text(main.read_text() + f"include {late};\n")
    test = fleet_edge.Nginx.test

    def hold_after_the_test(nginx: fleet_edge.Nginx) -> str:
        said = test(nginx)
        late.unlink()
        os.mkfifo(late)
        os.link(late, pipe)
        return said

    edge.configure(start_seconds=1)
    with edge.fleet.nginx([edge.port]):
        for name, host in hosts.items():
            edge.join(name, port=host.port)
        former = edge.workers()
        monkeypatch.setattr(fleet_edge.Nginx, "test", hold_after_the_test)
        status, said = edge.call("drain", "one")
        assert (status, "did not take the new upstreams" in said["error"]) == (1, True)
        late.unlink()
        late.touch()
        with pipe.open("w"):
            pass
        wait_for(lambda: edge.workers() and not edge.workers() & former, "other workers")
        wait_for(lambda: edge.hosts() == {"one": 6, "two": 6}, "the former upstreams")
        monkeypatch.setattr(fleet_edge.Nginx, "test", test)
        last = edge.workers()
        assert not edge.do("apply")["changed"]
        assert not edge.workers() & last, "the next run makes sure"


@pytest.mark.parametrize("pid", ["", "0", "-1", "4194305"])
def test_without_a_master_nobody_gets_its_signal(edge: Edge, pid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 0 would be this program itself, and all that it was started with; -1 would be everybody."""
    (edge.folder / "nginx.pid").write_text(pid)
    signals: list[tuple[int, int]] = []
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda *given: signals.append(given) if given[1] else kill(*given))
    edge.join("a")
    assert signals == []


def test_while_another_nginx_takes_over_the_reload_waits_for_it(served: Edge) -> None:
    """Only its former file is there then."""
    pid_file = served.folder / "nginx.pid"
    beside = pid_file.with_name("nginx.pid.oldbin")
    before = served.workers()
    pid_file.rename(beside)
    process = served.begin("drain", "one")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    beside.rename(pid_file)
    assert process.wait(10) == 0
    process.communicate()
    assert not served.workers() & before


def test_one_at_a_time(edge: Edge) -> None:
    with (edge.dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = edge.begin("join", "a", "--address=10.0.0.1", '--services={"ocr": 8100}')
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.7)
        assert edge.members() == {}
    assert process.wait(10) == 0
    process.communicate()
    assert list(edge.members()) == ["a"]


def test_none_is_lost_when_many_join_at_once(edge: Edge) -> None:
    arguments = ["--address=10.0.0.1", '--services={"ocr": 8100}']
    runs = [edge.begin("join", f"host-{number}", *arguments) for number in range(8)]
    assert [(run.communicate(), run.returncode)[1] for run in runs] == [0] * 8
    assert len(edge.servers()) == len(edge.members()) == 8


@pytest.mark.parametrize(
    "probes",
    ["", "{", "[]", '{"members": 5}', '{"members": {"a": 1, "b": {"healthy": true}}}', '{"members": null}', "\0\0"],
)
def test_verdicts_that_cannot_be_read_take_no_host_out(edge: Edge, probes: str) -> None:
    edge.join("a", "b")
    edge.probes_file.write_text(probes)
    assert not edge.do("apply")["changed"]


def test_a_link_is_no_verdict(edge: Edge) -> None:
    """The prober's user could else have root read what it may not."""
    edge.join("a", "b")
    edge.probe(a=False, b=True)
    edge.probes_file.rename(edge.folder / "elsewhere")
    edge.probes_file.symlink_to(edge.folder / "elsewhere")
    edge.do("apply")
    assert "down" not in edge.servers()["a"]


def killed(edge: Edge, verb: str, *arguments: str) -> None:
    """Run a verb that is killed while nginx tests its file."""
    (edge.folder / "hold").touch()
    before = edge.upstreams.read_text()
    process = edge.begin(verb, *arguments)
    wait_for(lambda: edge.upstreams.read_text() != before, "the new upstreams")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (edge.folder / "hold").unlink()


def test_a_run_that_is_killed_leaves_nothing_half_done(served: Edge) -> None:
    killed(served, "drain", "one")
    assert served.members()["one"]["drained"] is None
    served.do("apply")
    assert "down" not in served.servers()["one"], "members.json is what counts"
    killed(served, "drain", "one")
    assert served.do("drain", "one")["changed"]
    assert served.hosts() == {"two": 12}


def test_what_a_killed_run_did_not_load_is_loaded_by_the_next(served: Edge) -> None:
    """As if it was killed right before the reload: all files are new, and nginx is not."""
    applied = served.dir / "applied.json"
    former = applied.read_text()
    served.do("drain", "one")
    applied.write_text(former)
    before = served.workers()
    assert served.do("drain", "one")["changed"] is False
    assert not served.workers() & before


# ---- with nginx


def test_requests_are_spread_by_weight(served: Edge, hosts: dict[str, FakeHost]) -> None:
    assert served.hosts() == {"one": 6, "two": 6}
    served.join("one", port=hosts["one"].port, weight=3)
    assert served.hosts() == {"one": 9, "two": 3}


def test_weights_hold_under_load(served: Edge, hosts: dict[str, FakeHost]) -> None:
    """By requests in flight, that is: the host with three times the weight works on three times as many."""
    served.join("one", port=hosts["one"].port, weight=3)
    for host in hosts.values():
        host.hold.clear()
        host.seen.clear()
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(served.ask) for _ in range(16)]
        wait_for(lambda: sum(len(host.seen) for host in hosts.values()) == 16, "all of them to be under way")
        for host in hosts.values():
            host.hold.set()
        assert [one.result()[0] for one in asked] == [200] * 16
    assert (len(hosts["one"].seen), len(hosts["two"].seen)) == (12, 4)


def test_ip_hash_sticks_to_a_host_for_each_client(served: Edge, hosts: dict[str, FakeHost]) -> None:
    """Clients are told apart by the first three bytes of their addresses; a host that was drained gets its own back."""
    served.configure(balance="ip_hash")
    served.do("apply")
    clients = [f"127.0.{number}.1" for number in range(1, 25)]

    def place() -> dict[str, str]:
        found = {}
        for client in clients:
            answers = served.hosts(3, source=client)
            assert len(answers) == 1, f"{client} met {answers}"
            found[client] = next(iter(answers))
        return found

    before = place()
    counts = Counter(before.values())
    assert set(counts) == {"one", "two"}
    assert place() == before
    served.do("drain", "two")
    assert set(place().values()) == {"one"}
    former = served.workers()
    served.do("undrain", "two")
    wait_for(lambda: not former & served.workers(), "the workers that leave it out to end")
    assert place() == before, "a host that is down keeps its place"
    served.join("one", port=hosts["one"].port, weight=7)
    assert Counter(place().values())["one"] > counts["one"]


def test_nginx_is_reloaded_only_when_something_changed(served: Edge) -> None:
    before = served.workers()
    for verb, *arguments in (["apply"], ["undrain", "one"], ["leave", "nobody"], ["retain", "one", "two"]):
        served.do(verb, *arguments)
    assert served.workers() == before
    served.do("drain", "one")
    assert not served.workers() & before


def test_drain_waits_for_the_last_request(served: Edge, hosts: dict[str, FakeHost]) -> None:
    for host in hosts.values():
        host.hold.clear()
    with ThreadPoolExecutor() as pool:
        slow = [pool.submit(served.ask) for _ in range(4)]
        wait_for(lambda: len(hosts["one"].seen) == len(hosts["two"].seen) == 2, "the slow requests")
        process = served.begin("drain", "one")
        wait_for(lambda: "down" in served.servers()["one"], "the new upstreams")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        # A run after one that was killed while it waited has to wait as well.
        process.send_signal(signal.SIGKILL)
        process.communicate()
        again = served.begin("drain", "one")
        with pytest.raises(subprocess.TimeoutExpired):
            again.wait(1)
        for host in hosts.values():
            host.hold.set()
        assert again.wait(10) == 0
        again.communicate()
        assert [one.result()[0] for one in slow] == [200] * 4
    hosts["one"].seen.clear()
    assert served.hosts() == {"two": 12}
    assert hosts["one"].seen == []


def test_the_wait_for_former_workers_is_bounded(served: Edge, hosts: dict[str, FakeHost]) -> None:
    hosts["one"].hold.clear()
    served.do("drain", "two")
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(served.ask)
        wait_for(lambda: hosts["one"].seen, "the slow request")
        served.do("undrain", "two")
        status, said = served.call("drain", "one", "--wait=0.5")
        assert (status, said["changed"]) == (4, True)
        assert "still serve requests" in said["error"]
        # The verdicts that come in between are not held up.
        served.probe(one=True, two=True)
        assert served.call("apply", "--wait=0.1")[0] == 4
        hosts["one"].hold.set()
        assert slow.result()[0] == 200


def test_alive_asks_nginx_itself(served: Edge) -> None:
    assert served.call("alive") == (0, {"changed": False})
    served.configure(services={"ocr": served.other_port})
    assert served.call("alive")[0] == 1


def test_an_edge_steps_aside_and_comes_back(served: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_address, "NOTICED_SECONDS", 0)
    monkeypatch.setattr(shared_address, "holds", lambda address: False)
    status, said = served.call("aside")
    assert (status, said["changed"], "no other edge answers" in said["error"]) == (1, False, True)
    assert served.do("aside", "--allow-outage") == {"changed": False, "had": False}
    assert served.do("back") == {"changed": False}
    served.configure(address="192.0.2.10", peers=["127.0.0.1"])
    assert served.do("aside") == {"changed": True, "had": False}
    status, said = served.call("alive")
    assert (status, "this edge has stepped aside" in said["error"]) == (1, True)
    assert served.ask()[0] == 200, "whoever comes still is answered"
    assert served.do("back") == {"changed": True}
    assert served.call("alive")[0] == 0
    # A run that was killed in between keeps nobody out for ever.
    (served.dir / "aside").write_text("1000000000")
    assert served.call("alive")[0] == 0
    (served.dir / "aside").unlink()
    lines = [json.loads(line) for line in (served.folder / "audit.log").read_text().splitlines()]
    assert [line["event"] for line in lines][-2:] == ["stepped_aside", "came_back"]


def test_what_hosts_and_clients_are_told(served: Edge, hosts: dict[str, FakeHost]) -> None:
    served.do("drain", "two")
    sent = {
        "X-Request-ID": "mine-1",
        "X-Fleet-Edge": "forged",
        "X-Forwarded-For": "203.0.113.7",
        "Connection": "keep-alive",
    }
    status, headers, _ = served.ask(headers=sent)
    assert status == 200
    assert headers.get_all("X-Fleet-Host") == ["one"]
    assert headers.get_all("X-Fleet-Edge") == ["edge-1"]
    assert headers.get_all("X-Request-ID") == ["mine-1"]
    assert headers.get_all("X-Content-Type-Options") == ["nosniff"]
    seen = hosts["one"].seen[-1]["headers"]
    assert seen["X-Fleet-Edge"] == "1"
    assert seen["X-Request-ID"] == "mine-1"
    assert seen["X-Forwarded-For"] == "203.0.113.7, 127.0.0.1"
    assert seen["Connection"] == "close"
    for path in ("/healthz", "/readyz", "/version", "/openapi.json", "/openapi/ocr.json", "/docs"):
        assert json.loads(served.ask("GET", path, None)[2])["path"] == path


def test_the_page_is_that_of_a_host_and_the_live_view_is_of_all(served: Edge, hosts: dict[str, FakeHost]) -> None:
    for host in hosts.values():
        policy = {"Content_Security_Policy": "of the host", "Referrer_Policy": "x", "Cache_Control": "x", "Allow": "x"}
        host.answer(200, json.dumps({"host": host.name}).encode(), **policy)
    for path in ("/", "/status", "/assets/try.js"):
        status, headers, body = served.ask("GET", path, None)
        assert (status, json.loads(body)["host"]) == (200, headers["X-Fleet-Host"])
        (policy_seen,) = headers.get_all("Content-Security-Policy") or []
        assert policy_seen.startswith("default-src 'none'; ")
        assert headers.get_all("Cache-Control") == ["no-store"]
        assert headers.get_all("Referrer-Policy") == ["no-referrer"]
    assert served.ask("GET", "/assets/index.html", None)[0] == 404
    listed = {"name": "ocr", "route": "/v1/parse", "model": OCR["model"], "input": "image", "max_body_mib": 100}
    assert json.loads(served.ask("GET", "/.fleet/services.json", None)[2]) == [listed]
    # One that gets no requests is seen all the same.
    served.do("drain", "two")
    assert served.hosts(8, method="GET", path="/status.json", body=None) == {"one": 4, "two": 4}
    assert served.hosts(4, method="GET", path="/", body=None) == {"one": 4}
    hosts["two"].stop()
    assert served.hosts(4, method="GET", path="/status.json", body=None) == {"one": 4}


@pytest.mark.parametrize("status", [400, 405, 415, 422, 429, 503])
def test_problems_of_the_app_come_through_as_they_are(served: Edge, hosts: dict[str, FakeHost], status: int) -> None:
    for host in hosts.values():
        host.answer(status, b'{"detail":"of the app"}', Content_Type="application/problem+json", Retry_After="17")
    got, headers, body = served.ask()
    assert (got, body) == (status, b'{"detail":"of the app"}')
    assert headers.get_all("Retry-After") == ["17"]
    # None of these says that another host would know better.
    assert sum(len(host.seen) for host in hosts.values()) == 1


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "slug"),
    [
        ("GET", "/nothing", {}, 404, "not-found"),
        ("DELETE", "/", {}, 405, "method-not-allowed"),
        ("GET", "/.problem/503", {}, 404, "not-found"),
        ("POST", "/v1/parse", {"Content-Length": str(100 * 2**20 + 1)}, 413, "body-too-large"),
    ],
)
def test_problems_of_the_edge_itself(
    served: Edge, hosts: dict[str, FakeHost], method: str, path: str, headers: Json, status: int, slug: str
) -> None:
    got, answered, body = served.ask(method, path, None, {"X-Request-ID": "p-1", **headers})
    problem = json.loads(body)
    assert (got, answered["Content-Type"], answered["X-Request-ID"]) == (status, "application/problem+json", "p-1")
    assert (problem["type"], problem["request_id"]) == (f"urn:inference-fleet:problem:{slug}", "p-1")
    assert answered["X-Fleet-Edge"] == "edge-1"
    assert not hosts["one"].seen


@pytest.mark.parametrize("retry", [False, True])
def test_a_host_that_finds_no_device(edge: Edge, hosts: dict[str, FakeHost], retry: bool) -> None:
    """It answers 502 then. Another one may take it, unless it is a POST of which nobody said that it is safe."""
    edge.lay(edge_retry_sent_requests=retry)
    with edge.fleet.nginx([edge.port]):
        for name, host in hosts.items():
            edge.join(name, port=host.port)
        hosts["one"].answer(502, b"nothing to show")
        assert edge.hosts(8, method="GET", body=None) == {"two": 8}
        statuses = Counter(edge.ask()[0] for _ in range(8))
        assert set(statuses) == ({200} if retry else {200, 503})
        hosts["two"].answer(502, b"nothing to show")
        status, headers, body = edge.ask("GET", body=None)
        assert (status, headers["Content-Type"], headers["Retry-After"]) == (503, "application/problem+json", "5")
        assert json.loads(body)["type"] == "urn:inference-fleet:problem:busy"
        assert headers["X-Fleet-Host"] in hosts


def test_a_host_that_cannot_be_reached_costs_no_request(served: Edge, hosts: dict[str, FakeHost]) -> None:
    hosts["one"].stop()
    assert served.hosts() == {"two": 12}
    hosts["two"].stop()
    status, headers, body = served.ask()
    assert (status, headers["Retry-After"]) == (503, "5")
    assert json.loads(body)["status"] == 503
    for host in hosts.values():
        host.start()
    # The prober decides who is out, not nginx: at the first request they are in again.
    assert served.hosts() == {"one": 6, "two": 6}


# ---- sites


@pytest.fixture
def judge(edge: Edge, nginx_test: Callable[[Path], subprocess.CompletedProcess[str]]) -> Callable[..., str]:
    """Lay sites that nginx accepts; gives the text of the first one."""

    def make(services: list[Json], **variables: Any) -> str:
        edge.services = services
        edge.configure()
        main = edge.folder / "nginx" / "nginx.conf"
        main.write_text("events {}\n")
        edge.do("apply")
        judged = nginx_test(edge.lay(**variables))
        assert judged.returncode == 0, judged.stderr
        text = (main.parent / "sites-enabled" / f"{services[0]['name']}.conf").read_text()
        return "\n".join(line.strip() for line in text.splitlines())

    return make


def test_limits_are_those_of_the_services(judge: Callable[..., str]) -> None:
    text = judge([{**OCR, "port": 8100}, {**CATS, "port": 8100}])
    parse, cats = (
        text[text.index(f"location = {route} {{") :].split("\n}\n")[0] for route in ("/v1/parse", "/v1/cats")
    )
    assert "client_max_body_size 100m;" in parse
    assert "proxy_read_timeout 70s;" in parse
    assert "client_max_body_size 7m;" in cats
    assert "proxy_read_timeout 40s;" in cats
    assert "proxy_pass http://fleet_cats_2;" in cats
    assert "proxy_next_upstream error timeout http_502;" in cats
    assert "proxy_next_upstream_timeout 10s;" in cats
    assert text.count("location = /readyz {") == 1


def test_cors_listening_and_proxies_are_those_of_the_role_site(judge: Callable[..., str]) -> None:
    text = judge(
        [{**OCR, "port": 8100}],
        site_cors_origins=["https://app.example.com"],
        site_trusted_proxies=["10.0.0.0/8"],
        site_listen_addresses=["0.0.0.0", "[::]"],  # noqa: S104 it is only rendered
        ansible_facts={"all_ipv6_addresses": ["fe80::1"]},
    )
    assert "add_header Access-Control-Allow-Origin $cors_origin_ocr always;" in text
    assert "proxy_hide_header Access-Control-Allow-Origin;" in text
    assert "set_real_ip_from 10.0.0.0/8;" in text
    assert "listen 0.0.0.0:8100;\nlisten [::]:8100 ipv6only=on;" in text


# ---- services of all hosts


def services_of(**hosts: Json) -> list[Json]:
    found: list[Json] = ansible_modules.load("filter", "services").edge_services(hosts, list(hosts))
    return found


def test_an_edge_serves_what_any_host_has() -> None:
    found = services_of(
        one={"services": [OCR]}, two={"services": [{**OCR, "timeout_seconds": 90, "max_body_mib": 5}, CATS]}
    )
    assert [(one["name"], one["timeout_seconds"], one["max_body_mib"]) for one in found] == [
        ("ocr", 90, 100),
        ("cats-2", 30, 7),
    ]


def test_a_host_without_services_has_the_default_ones() -> None:
    assert [one["name"] for one in services_of(one={})] == ["ocr"]


@pytest.mark.parametrize("other", [{"port": 8200}, {"route": "/v2/parse"}])
def test_hosts_have_to_agree_on_ports_and_routes(other: Json) -> None:
    with pytest.raises(AnsibleFilterError, match=r"on one and .* on two"):
        services_of(one={"services": [OCR]}, two={"services": [{**OCR, **other}]})


def test_services_of_two_hosts_may_not_clash() -> None:
    with pytest.raises(AnsibleFilterError, match="same port and route"):
        services_of(one={"services": [OCR]}, two={"services": [{**CATS, "route": "/v1/parse"}]})


def test_hosts_believe_the_addresses_of_their_edges() -> None:
    """Not names: nginx would look them up, and not start without an answer."""
    found = ansible_modules.load("filter", "edge").edge_addresses(
        {
            "a": {"ansible_host": "192.0.2.11"},
            "b": {"ansible_host": "edge-2.example", "edge_peer_address": "fd00::2"},
            "c": {},
            "d": {"ansible_host": "192.0.2.14", "edge_peer_address": ""},
        },
        ["a", "b", "c", "d"],
    )
    assert found == ["192.0.2.11", "fd00::2", "192.0.2.14"]


def test_only_inference_hosts_believe_them(fleet: Fleet) -> None:
    inventory = {
        "groups": {"edge": ["edge-1"], "inference": ["host1"]},
        "hostvars": {"edge-1": {"ansible_host": "192.0.2.11"}, "host1": {}},
    }
    upstreams = [{"service": "ocr", "device": "gpu0", "address": "/run/fleet/gpu0/ocr.sock"}]
    (host,) = fleet.sites([OCR], upstreams, **inventory)
    assert "    set_real_ip_from 192.0.2.11;\n    real_ip_header X-Forwarded-For;\n" in host["site"]
    (other,) = fleet.sites([OCR], upstreams, **{**inventory, "inventory_hostname": "edge-1"})
    assert "real_ip" not in other["site"]


# ---- keepalived


def test_keepalived_has_its_peer_and_its_place(edge: Edge) -> None:
    variables = {
        "groups": {"edge": ["edge-1", "edge-2"]},
        "hostvars": {"edge-1": {"ansible_host": "192.0.2.11"}, "edge-2": {"ansible_host": "192.0.2.12"}},
        "edge_virtual_address": "192.0.2.10/24",
        "edge_virtual_interface": "eth7",
    }
    texts = [
        edge.fleet.roles.render("edge", "etc/keepalived/keepalived.conf.j2", inventory_hostname=name, **variables)
        for name in ("edge-1", "edge-2")
    ]
    assert [re.findall(r"priority (\d+)", text) for text in texts] == [["200"], ["199"]]
    assert [re.findall(r"unicast_peer \{\s+(\S+)\s+\}", text) for text in texts] == [["192.0.2.12"], ["192.0.2.11"]]
    assert "interface eth7" in texts[0]
    assert "vrrp_version 3" in texts[0], "before it there are only whole seconds"


def test_what_the_programs_read_is_what_the_role_writes(edge: Edge) -> None:
    """Settings with a wrong name would be left out in silence."""
    variables = edge.fleet.roles.variables("edge")
    names = set(variables["__edge_settings"])
    known = set(fleet_edge.Settings.__dataclass_fields__)
    import fleet_prober

    known |= set(fleet_prober.Settings.__dataclass_fields__)
    assert names <= known
