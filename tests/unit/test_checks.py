"""The Postman collection and the JMeter plan of checks/, and docs/client.md, against the OCR service behind nginx."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import documents
import environments
import processes
import pytest
import tree
from stack import DEVICES, Fleet, Json

CHECKS = tree.ROOT / "checks"
COLLECTION = CHECKS / "postman" / "ocr.postman_collection.json"
ENVIRONMENT = CHECKS / "postman" / "local.postman_environment.json"
PLAN = CHECKS / "jmeter" / "ocr.jmx"
PAGE = tree.ROOT / "docs" / "client.md"
#: A small limit, so that a body over it is quickly sent.
LIMIT_MIB = 1
CONVERT = """
import importlib.util, pathlib, sys
from inference.models.ocr.convert import convert
convert(pathlib.Path(importlib.util.find_spec("rapidocr").origin).parent, pathlib.Path(sys.argv[1]))
"""
#: Headers that belong to a connection and not to a request.
OF_CONNECTIONS = {"connection", "host", "keep-alive", "transfer-encoding", "date", "server", "content-length"}

#: Changes an answer: gets method, path, status, headers and body, and gives the last three back.
Change = Callable[[str, str, int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]


@pytest.fixture(scope="module")
def port(new_fleet: Callable[[], Fleet]) -> Iterator[int]:
    """Where one device serves OCR behind nginx, all from the roles' templates."""
    fleet = new_fleet()
    (port,) = processes.free_ports()
    service: Json = {
        "name": "ocr",
        "route": "/v1/parse",
        "model": "inference.models.ocr:OcrModel",
        "port": port,
        "workers": 1,
        "max_body_mib": LIMIT_MIB,
    }
    python = environments.app()
    release = fleet.release("0.1.0-tested", tree.ROOT / "app" / "src", python.parent.parent)
    subprocess.run([python, "-c", CONVERT, Path(release["dir"]) / "models"], check=True)
    vassals = fleet.vassals([service], release, DEVICES[:1])
    with ExitStack() as stop:
        for vassal in vassals:
            # It loads a real model, which on a busy machine takes longer than the waits of other tests.
            stop.enter_context(fleet.vassal(vassal, seconds=120))
        fleet.lay([service], fleet.upstreams(vassals), site_listen_addresses=["127.0.0.1"])
        stop.enter_context(fleet.nginx([port]))
        yield port


@contextmanager
def altered(port: int, change: Change) -> Iterator[int]:
    """Pass requests on to a port and change the answers; gives the port to ask instead."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in OF_CONNECTIONS}
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in OF_CONNECTIONS}
            status, kept, text = change(self.command, self.path, answer.status, kept, answer.read())
            connection.close()
            self.send_response(status)
            for name, value in {**kept, "Content-Length": str(len(text))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = pass_on  # noqa: N815 - http.server wants these names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def three_wrong(method: str, path: str, status: int, headers: dict[str, str], body: bytes) -> Any:
    """One answer has another request id, those with text have lost it, and one error is no problem any more."""
    if path == "/version":
        headers = {**headers, "X-Request-ID": "another"}
    elif status == 200 and method == "POST":
        body = json.dumps({**json.loads(body), "text": "", "lines": []}, separators=(",", ":")).encode()
    elif status == 405:
        headers, body = {**headers, "Content-Type": "text/html"}, b"<html>405</html>"
    return status, headers, body


# ---- the files


def requests_of(items: list[Json]) -> Iterator[Json]:
    for item in items:
        if "item" in item:
            yield from requests_of(item["item"])
        else:
            yield item


def test_collection_and_environment_fit_together() -> None:
    collection, environment = json.loads(COLLECTION.read_text()), json.loads(ENVIRONMENT.read_text())
    assert collection["info"]["schema"].endswith("/v2.1.0/collection.json")
    own = {one["key"]: one["value"] for one in collection["variable"]}
    assert own == {one["key"]: one["value"] for one in environment["values"]}
    used = set(re.findall(r"\{\{(\w+)\}\}", COLLECTION.read_text()))
    assert used <= {*own, "request_id", "large"}


def test_the_plan_asks_for_what_the_collection_asks_for() -> None:
    """Except for the body over the limit, which each of them takes its own way to."""
    collection = json.loads(COLLECTION.read_text())
    errors = [one["name"] for one in requests_of(collection["item"]) if one["name"][:3].isdigit()]
    # Our own file: nothing to guard against.
    samplers = [one.get("testname") or "" for one in ElementTree.parse(PLAN).iter("HTTPSamplerProxy")]  # noqa: S314
    assert len(errors) == 8
    assert [name for name in samplers if name[:3].isdigit()] == [name for name in errors if name[:3] != "413"]
    assert len(samplers) == len(list(requests_of(collection["item"]))) - 1


def test_every_package_of_newman_is_pinned_by_its_hash() -> None:
    lock = json.loads((CHECKS / "package-lock.json").read_text())
    packages = {name: one for name, one in lock["packages"].items() if name}
    assert packages["node_modules/newman"]["version"] == "6.2.2"
    assert not [name for name, one in packages.items() if not one.get("integrity", "").startswith("sha512-")]


# ---- Postman


def newman(port: int, folder: Path) -> tuple[int, Json]:
    """Run the collection; gives newman's exit status, and its report of the run."""
    report = folder / "report.json"
    command: list[str | Path] = [environments.newman(), "run", COLLECTION, "--environment", ENVIRONMENT]
    command += ["--env-var", f"url=http://127.0.0.1:{port}", "--env-var", f"limit_mib={LIMIT_MIB}"]
    command += ["--working-dir", tree.ROOT, "--reporters", "json", "--reporter-json-export", report]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert report.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(report.read_text())["run"]


def failures(run: Json) -> list[tuple[str, str]]:
    """Which request failed which test."""
    return [(one["source"]["name"], one["error"]["test"]) for one in run["failures"]]


def test_newman_is_content_with_the_service(port: int, tmp_path: Path) -> None:
    status, run = newman(port, tmp_path)
    assert (status, failures(run)) == (0, [])
    assert run["stats"]["requests"] == {"total": 13, "pending": 0, "failed": 0}
    assert run["stats"]["assertions"]["total"] == 51


def test_newman_sees_wrong_answers(port: int, tmp_path: Path) -> None:
    with altered(port, three_wrong) as other:
        status, run = newman(other, tmp_path)
    assert status == 1
    reads = ["the text of the image was read", "each line has a score and four corners inside the image"]
    assert failures(run) == [
        ("What runs", "the request id is kept"),
        *(("As a form", test) for test in reads),
        *(("As the body", test) for test in reads),
        ("405 the route wants POST", "the error is the problem method-not-allowed"),
    ]


# ---- JMeter


def jmeter(port: int, *properties: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, CHECKS / "jmeter" / "run.py", "--jmeter", environments.jmeter()]
    command += ["host=127.0.0.1", f"port={port}", *properties]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.long
def test_jmeter_is_content_with_the_service(port: int) -> None:
    done = jmeter(port, "threads=2", "loops=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "72 of 72 answers are right" in done.stdout
    assert "ok      Read an image as a form: 6 of 6" in done.stdout


@pytest.mark.long
def test_jmeter_sees_wrong_answers(port: int) -> None:
    with altered(port, three_wrong) as other:
        done = jmeter(other)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.findall(r"^FAILED  (.*): 0 of 1", done.stdout, re.MULTILINE) == [
        "What runs",
        "Read an image as a form",
        "Read an image as the body",
        "405 the route wants POST",
    ]
    assert "8 of 12 answers are right" in done.stdout


def test_a_jmeter_that_is_not_there_is_named() -> None:
    command: list[str | Path] = [sys.executable, CHECKS / "jmeter" / "run.py", "--jmeter", "/no/such/jmeter"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "/no/such/jmeter: No such file or directory; mend it with: sudo apt-get install jmeter" in done.stderr


# ---- the page of the client


def test_every_block_of_the_clients_page_does_what_it_shows(port: int, tmp_path: Path) -> None:
    found = documents.blocks(PAGE)
    assert len(found) > 5, "the page has lost its marks"
    program = environments.app().parent
    (tmp_path / "app").symlink_to(tree.ROOT / "app")
    environment = {**os.environ, "PATH": f"{program}:{os.environ['PATH']}", "FLEET_URL": f"http://localhost:{port}"}
    for block in found:
        script = block.script.replace("8100", str(port))
        command: list[str | Path] = ["bash", "-uc"] if block.language == "sh" else [program / "python", "-c"]
        done = subprocess.run(
            [*command, script],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            check=False,
        )
        documents.compare(block, done.stdout.replace(str(port), "8100"))
