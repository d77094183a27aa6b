"""How a host behaves: a real nginx in front of the real app under real uWSGI, all from the roles' templates."""

import http.client
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments
import fleet_socket
import processes
import pytest
import tree
from described import Document
from processes import Server, wait_for
from stack import DEVICES, Fleet, Json

ECHO: Json = {
    "name": "echo",
    "route": "/v1/echo",
    "model": "inference.models.echo:EchoModel",
    "workers": 1,
    "listen": 64,
    # The largest body takes its time on a busy machine; how a 504 comes about, the service `late` shows.
    "timeout_seconds": 20,
}
TINY: Json = {
    "name": "tiny",
    "route": "/tell",
    "wsgi_file": str(Path(__file__).parent / "data" / "tiny" / "tiny.py"),
    "ready_path": "",
    "protocol": "http",
    "workers": 1,
    "listen": 64,
}
LATE: Json = {**TINY, "name": "late", "route": "/late", "protocol": "uwsgi", "timeout_seconds": 1}
SITE: Json = {"site_listen_addresses": ["127.0.0.1"], "site_fail_seconds": 1}
ORIGIN = "https://app.example.com"


@dataclass
class Reply:
    """An answer that came through nginx."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Stack:
    """Two devices with the echo model behind nginx, and a WSGI app of one's own over HTTP."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.port, self.other_port = processes.free_ports(2)
        self.services = [{**service, "port": self.port} for service in (ECHO, TINY, LATE)]
        venv = environments.app().parent.parent
        release = fleet.release("r1", tree.ROOT / "app" / "src", venv)
        self.vassals = fleet.vassals(self.services, release)
        self.upstreams = fleet.upstreams(self.vassals)
        self.late: Future[tuple[Reply, float]]
        self.running: dict[str, tuple[ExitStack, Server]] = {}
        self.document: Document | None = None

    def start(self, vassal: Json) -> None:
        stack = ExitStack()
        server = stack.enter_context(self.fleet.vassal(vassal))
        self.running[f"{vassal['service']} {vassal['device']}"] = (stack, server)

    def stop(self, name: str) -> None:
        self.running.pop(name)[0].close()

    def stop_all(self) -> None:
        for name in list(self.running):
            self.stop(name)

    def vassal(self, name: str) -> Json:
        (found,) = [one for one in self.vassals if f"{one['service']} {one['device']}" == name]
        return found

    def configure(self, **variables: Any) -> None:
        """Have nginx run with other variables."""
        self.fleet.reload(self.services, self.upstreams, **{**SITE, **variables})

    def ask(
        self, method: str = "POST", path: str = "/v1/echo", body: Any = b"x", headers: dict[str, str] | None = None
    ) -> Reply:
        """One request on a connection of its own; the answer is held against the description of the service."""
        if self.document is None:
            # Past nginx, which counts requests.
            self.document = Document(self.fleet.ask(self.vassal("echo one"), "/openapi.json").json())
        reply = self.send(method, path, body, headers)
        # The WSGI apps of this file describe nothing, and the page and its files are not part of the API.
        if not path.startswith(("/tell", "/late")) and (self.document.has(path) or reply.status >= 400):
            self.document.check(method, path, reply.status, reply.headers, reply.body)
        return reply

    def send(self, method: str, path: str, body: Any, headers: dict[str, str] | None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def be_late(self) -> tuple[Reply, float]:
        """Ask for what takes too long; gives the answer and the seconds that it took."""
        began = time.monotonic()
        return self.ask("POST", "/late?seconds=9"), time.monotonic() - began

    def devices(self, count: int) -> Counter[str]:
        """Which devices answer that many requests."""
        replies = [self.ask() for _ in range(count)]
        assert [reply.status for reply in replies] == [200] * count
        return Counter(reply.json()["device"] for reply in replies)

    def log(self, request_id: str) -> Json:
        """nginx's line of a request."""

        def find() -> list[Json]:
            lines = (self.fleet.log_dir / "access.log").read_text().splitlines()
            return [line for line in map(json.loads, lines) if line["request_id"] == request_id]

        return wait_for(find, f"the line of {request_id}")[0]


@pytest.fixture(scope="module")
def stack(new_fleet: Callable[[], Fleet]) -> Iterator[Stack]:
    stack = Stack(new_fleet())
    with ExitStack() as stop:
        # Those that run at the end: tests stop some and start others.
        stop.callback(stack.stop_all)
        # Side by side, since each of them imports its app.
        with ThreadPoolExecutor() as pool:
            list(pool.map(stack.start, stack.vassals))
        stack.fleet.lay(stack.services, stack.upstreams, **SITE)
        stop.enter_context(stack.fleet.nginx([stack.port]))
        with ThreadPoolExecutor() as pool:
            # Sent now and looked at later, since it takes six seconds.
            stack.late = pool.submit(stack.be_late)
            yield stack


@pytest.fixture
def plain(stack: Stack) -> Iterator[Stack]:
    """The stack with the defaults again after a test that changed its variables."""
    yield stack
    stack.configure()


def problem(reply: Reply, status: int, slug: str) -> Json:
    """The members of a problem, once it is certain that it is one."""
    assert (reply.status, reply.headers["Content-Type"]) == (status, "application/problem+json")
    found: Json = reply.json()
    assert set(found) >= {"type", "title", "status", "detail", "request_id"}
    assert (found["type"], found["status"]) == (f"urn:inference-fleet:problem:{slug}", status)
    assert found["request_id"] == reply.headers["X-Request-ID"]
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert len(reply.headers.get_all("X-Request-ID", [])) == 1
    return found


# ---- over the devices


def test_requests_are_spread_over_the_devices(stack: Stack) -> None:
    assert stack.devices(12) == {"one": 6, "two": 6}


def test_a_busy_device_is_passed_by(stack: Stack) -> None:
    """least_conn sees the request that a device works on; round_robin would send every second one there."""
    slow = threading.Thread(target=lambda: stack.ask("GET", "/tell?seconds=1.5"))
    slow.start()
    vassals = [stack.vassal(f"tiny {device}") for device in ("one", "two")]

    def busy() -> list[str]:
        return [one["device"] for one in vassals if stack.fleet.stats(one)["workers"][0]["status"] == "busy"]

    (taken,) = wait_for(busy, "the slow request to be taken")
    began = time.monotonic()
    answered = {stack.ask("GET", "/tell").json()["device"] for _ in range(6)}
    assert answered == {"one", "two"} - {taken}
    assert time.monotonic() - began < 1
    slow.join()


def test_a_dead_device_is_left_out_and_comes_back(stack: Stack) -> None:
    stack.stop("echo two")
    assert stack.devices(20) == {"one": 20}, "no request fails"
    # After its three failures it is not even tried, until its second is over; each further try comes with a request.
    assert (
        "upstream server temporarily disabled while connecting to upstream"
        in (stack.fleet.log_dir / "error.log").read_text()
    )
    stack.ask(headers={"X-Request-ID": "without-the-dead"})
    assert "," not in stack.log("without-the-dead")["upstream"]
    stack.start(stack.vassal("echo two"))
    wait_for(lambda: stack.ask().json()["device"] == "two", "the device to come back")
    assert stack.devices(8) == {"one": 4, "two": 4}


def test_without_any_device_it_is_a_503_that_says_when_to_come_again(stack: Stack) -> None:
    for device in ("one", "two"):
        stack.stop(f"tiny {device}")
    replies = [stack.ask("GET", "/tell") for _ in range(8)]
    for reply in replies:
        problem(reply, 503, "busy")
        assert reply.headers["Retry-After"] == "5"
    for device in ("one", "two"):
        stack.start(stack.vassal(f"tiny {device}"))
    wait_for(lambda: stack.ask("GET", "/tell").status == 200, "the devices to come back")


# ---- problems and request ids


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("POST", "/", 405, "method-not-allowed"),
        ("POST", "/v1/echo/more", 404, "not-found"),
        ("GET", "/v1/echo", 405, "method-not-allowed"),
        ("DELETE", "/v1/echo", 405, "method-not-allowed"),
        ("TRACE", "/v1/echo", 405, "method-not-allowed"),
        ("POST", "/v1/echo", 400, "unreadable-input"),
    ],
)
def test_problems_have_one_form_wherever_they_come_from(
    stack: Stack, method: str, path: str, status: int, slug: str
) -> None:
    body = b"{" if status == 400 else None
    headers = {"X-Request-ID": f"{method}-{status}.1", "Content-Type": "application/json"}
    found = problem(stack.ask(method, path, body, headers), status, slug)
    assert found["request_id"] == f"{method}-{status}.1"
    line = stack.log(f"{method}-{status}.1")
    assert (line["status"], line["method"], line["uri"]) == (status, method, path)


def test_the_places_of_nginxs_own_answers_cannot_be_asked_for(stack: Stack) -> None:
    problem(stack.ask("GET", "/.problem/503"), 404, "not-found")


@pytest.mark.parametrize(
    ("sent", "status", "slug"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n", 431, "headers-too-large"),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "uri-too-long"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "unreadable-input"),
        (b"what is this\r\n\r\n", 400, "unreadable-input"),
        (b"GET / HTTP/4.0\r\nHost: x\r\n\r\n", 505, "version-not-supported"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: odd\r\n\r\n", 501, "not-implemented"),
    ],
    ids=lambda value: value.decode()[:20] if isinstance(value, bytes) else "",
)
def test_what_is_no_http_gets_a_problem_too(stack: Stack, sent: bytes, status: int, slug: str) -> None:
    with fleet_socket.connect(f"127.0.0.1:{stack.port}", 10) as link:
        link.sendall(sent)
        answer = fleet_socket.split_response(fleet_socket.read_all(link))
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert (answer.json()["type"], answer.json()["status"]) == (f"urn:inference-fleet:problem:{slug}", status)


def test_the_largest_body_passes_and_one_byte_more_does_not(stack: Stack) -> None:
    size = 100 * 2**20
    reply = stack.ask(body=bytes(size), headers={"Content-Type": "application/octet-stream"})
    assert reply.status == 200
    assert reply.json()["echo"]["bytes"] == size
    # Only announced: it is refused before it is sent.
    reply = stack.ask(body=None, headers={"Content-Length": str(size + 1), "X-Request-ID": "large"})
    assert "larger" in problem(reply, 413, "body-too-large")["detail"]
    assert stack.log("large")["upstream"] == "", "no device saw it"


def test_an_answer_that_takes_too_long_is_a_504(stack: Stack) -> None:
    """The service may take one second; nginx gives its app five more to say so itself."""
    reply, seconds = stack.late.result()
    problem(reply, 504, "over-time")
    assert 5.5 < seconds < 20


@pytest.mark.parametrize("kept", ["me-1", "a.b_c~d:e+f=g/h", "x" * 128])
def test_a_request_id_of_the_client_is_kept(stack: Stack, kept: str) -> None:
    for path in ("/v1/echo", "/tell"):
        reply = stack.ask("POST", path, headers={"X-Request-ID": kept, "Content-Type": "text/plain"})
        assert reply.headers.get_all("X-Request-ID") == [kept]
        seen = reply.json()["request_id"] if path == "/v1/echo" else reply.json()["request"]["HTTP_X_REQUEST_ID"]
        assert seen == kept


@pytest.mark.parametrize("bad", [None, "", "two words", 'a"b', "x" * 129, "Grüße"])
def test_another_one_is_replaced(stack: Stack, bad: str | None) -> None:
    headers = {} if bad is None else {"X-Request-ID": bad}
    replies = [stack.ask(headers=headers) for _ in range(2)]
    ids = [reply.headers["X-Request-ID"] for reply in replies]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    assert len(set(ids)) == 2
    assert [reply.json()["request_id"] for reply in replies] == ids


def test_the_access_log_is_json_and_names_the_device(stack: Stack) -> None:
    stack.ask(headers={"X-Request-ID": "log-1"})
    line = stack.log("log-1")
    assert (line["method"], line["uri"], line["status"], line["client"]) == ("POST", "/v1/echo", 200, "127.0.0.1")
    assert re.fullmatch(r"unix:/.*/run/(one|two)/echo--r1-[0-9a-f]{6}\.sock", line["upstream"])
    assert line["upstream_status"] == "200"
    assert float(line["seconds"]) >= 0


def test_health_and_version_come_from_the_first_service(stack: Stack) -> None:
    assert [stack.ask("GET", path).status for path in ("/healthz", "/readyz")] == [200, 200]
    assert stack.ask("GET", "/version").json()["release"] == "r1"


# ---- the description of the API


def test_each_service_describes_itself(stack: Stack) -> None:
    first = stack.ask("GET", "/openapi.json")
    assert (first.status, first.headers["Content-Type"]) == (200, "application/json")
    assert stack.ask("GET", "/openapi/echo.json").body == first.body
    assert "/v1/echo" in first.json()["paths"]
    # A WSGI app of one's own does not.
    problem(stack.ask("GET", "/openapi/tiny.json"), 404, "not-found")


def test_what_nginx_refuses_by_its_method_says_what_is_allowed(stack: Stack) -> None:
    for method, path, allowed in (
        ("TRACE", "/v1/echo", "OPTIONS, POST"),
        ("TRACE", "/healthz?x", "GET, HEAD, OPTIONS"),
        ("POST", "/docs", "GET, HEAD"),
    ):
        reply = stack.send(method, path, None, None)
        problem(reply, 405, "method-not-allowed")
        assert reply.headers.get_all("Allow") == [allowed]
    # The app's own words come through once.
    assert stack.ask("PUT", "/v1/echo").headers.get_all("Allow") == ["OPTIONS, POST"]


def test_the_page_of_the_api_may_load_nothing_from_elsewhere(stack: Stack) -> None:
    reply = stack.ask("GET", "/docs?service=echo")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    (policy,) = reply.headers.get_all("Content-Security-Policy", [])
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    page = reply.body.decode()
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert {"/assets/docs.js", "/assets/docs.css"} <= set(loaded)
    assert all(one.startswith(("/", "#")) for one in loaded)
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", page)
    assert "Content-Security-Policy" not in stack.ask("GET", "/healthz").headers


# ---- tests that have nginx take other settings


def test_weights(plain: Stack) -> None:
    for balance in ("least_conn", "round_robin"):
        plain.configure(site_balance=balance, site_device_weights={"one": 3})
        assert plain.devices(16) == {"one": 12, "two": 4}


def test_one_client_one_device_with_ip_hash(plain: Stack) -> None:
    plain.configure(site_balance="ip_hash")
    assert list(plain.devices(8).values()) == [8]


# ---- CORS


def allowed(reply: Reply) -> dict[str, str]:
    """The CORS headers of an answer, each of which may stand there once."""
    prefix = "access-control-"
    found = [(name.lower(), value) for name, value in reply.headers.items() if name.lower().startswith(prefix)]
    assert len(found) == len(dict(found))
    return {name.removeprefix(prefix): value for name, value in found}


def preflight(stack: Stack, origin: str) -> Reply:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    return stack.ask("OPTIONS", "/v1/echo", None, headers)


def test_cors_is_off_by_default(stack: Stack) -> None:
    reply = stack.ask(headers={"Origin": ORIGIN})
    assert (reply.status, allowed(reply)) == (200, {})
    assert "Vary" not in reply.headers
    assert allowed(preflight(stack, ORIGIN)) == {}


def test_cors_for_listed_origins(plain: Stack) -> None:
    plain.configure(site_cors_origins=[ORIGIN, "http://localhost:3000"], site_cors_credentials=True)
    for origin in (ORIGIN, "http://localhost:3000"):
        asked = preflight(plain, origin)
        assert (asked.status, asked.body) == (204, b"")
        assert allowed(asked) == {
            "allow-origin": origin,
            "allow-methods": "GET, POST, OPTIONS",
            "allow-headers": "Content-Type, X-Request-ID",
            "allow-credentials": "true",
            "max-age": "600",
            "expose-headers": "X-Request-ID, Retry-After",
        }
        assert asked.headers["Vary"] == "Origin"
        reply = plain.ask(headers={"Origin": origin})
        assert reply.status == 200
        expected = {"allow-origin": origin, "allow-credentials": "true", "expose-headers": "X-Request-ID, Retry-After"}
        assert allowed(reply) == expected
        # A page has to see what went wrong, too.
        for path in ("/nowhere", "/v1/echo"):
            assert allowed(plain.ask("GET", path, None, {"Origin": origin})) == expected


@pytest.mark.parametrize(
    "origin", ["https://evil.example.com", "https://app.example.com.evil.com", "http://app.example.com", "null"]
)
def test_cors_gives_another_origin_nothing(plain: Stack, origin: str) -> None:
    plain.configure(site_cors_origins=[ORIGIN], site_cors_credentials=True)
    for reply in (preflight(plain, origin), plain.ask(headers={"Origin": origin})):
        assert not {"allow-origin", "allow-methods", "allow-headers", "allow-credentials"} & set(allowed(reply))
        assert reply.headers["Vary"] == "Origin"


def test_cors_for_everybody(plain: Stack) -> None:
    plain.configure(site_cors_origins=["*"], site_cors_headers=["Authorization"])
    asked = allowed(preflight(plain, "https://anybody.example"))
    assert (asked["allow-origin"], asked["allow-headers"]) == ("*", "Authorization")
    assert "allow-credentials" not in asked
    assert allowed(plain.ask(headers={"Origin": "null"}))["allow-origin"] == "*"


# ---- over HTTP


def test_the_http_protocol_hands_on_who_asks(stack: Stack) -> None:
    headers = {"X-Forwarded-For": "203.0.113.7", "X-Real-IP": "6.6.6.6", "X-Forwarded-Proto": "https"}
    told = stack.ask("POST", "/tell?a=b", b"12345", headers).json()
    assert {name: told["request"].get(name) for name in list(told["request"]) if name.startswith("HTTP_X_")} == {
        "HTTP_X_REAL_IP": "127.0.0.1",
        "HTTP_X_FORWARDED_FOR": "203.0.113.7, 127.0.0.1",
        "HTTP_X_FORWARDED_PROTO": "http",
        "HTTP_X_REQUEST_ID": told["request"]["HTTP_X_REQUEST_ID"],
        "HTTP_X_REQUEST_START": told["request"]["HTTP_X_REQUEST_START"],
    }
    assert re.fullmatch(r"t=\d+\.\d{3}", told["request"]["HTTP_X_REQUEST_START"])
    assert (told["request"]["QUERY_STRING"], told["bytes"]) == ("a=b", 5)


def test_the_address_that_a_trusted_proxy_gives_is_believed(plain: Stack) -> None:
    plain.configure(site_trusted_proxies=["127.0.0.0/8"])
    # One that only claims it, the client, and another proxy between it and the one in front.
    headers = {"X-Forwarded-For": "6.6.6.6, 203.0.113.7, 127.0.0.5", "X-Request-ID": "proxied"}
    assert plain.ask("GET", "/tell", None, headers).json()["request"]["HTTP_X_REAL_IP"] == "203.0.113.7"
    assert plain.log("proxied")["client"] == "203.0.113.7"


def test_each_device_has_its_own_environment(stack: Stack) -> None:
    for device in DEVICES:
        told = stack.fleet.ask(stack.vassal(f"tiny {device['name']}"), "/tell").json()
        assert told["environment"]["INFERENCE_DEVICE"] == device["name"]
