"""The page as a host serves it: a real nginx over the roles' templates, and stand-ins for the app and the exporter.

For the tests of the page, and for the pictures of it in the documents.
"""

import base64
import copy
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import environments
import processes
import tree
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from stack import Fleet, Json

DATA = tree.ROOT / "tests" / "unit" / "data" / "page"
IMAGES = tree.ROOT / "app" / "tests" / "images"
OCR: Json = {
    "name": "ocr",
    "route": "/v1/parse",
    "model": "inference.models.ocr:OcrModel",
    "protocol": "http",
    "max_body_mib": 1,
}
ECHO: Json = {
    "name": "echo",
    "route": "/v1/echo",
    "model": "inference.models.echo:EchoModel",
    "protocol": "http",
    "max_body_mib": 2,
}
GIB = 2**30


@dataclass
class Reply:
    """What a stand-in answers."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    #: Close the connection instead.
    cut: bool = False
    #: Seconds that it takes.
    after: float = 0.0


def recorded(name: str) -> Json:
    """A real answer to one of the app's test images."""
    found: Json = json.loads((DATA / f"{name}.json").read_text())
    return found


def problem(status: int, slug: str, title: str, detail: str, **headers: str) -> Reply:
    """An error as the app writes it."""
    members = {"type": f"urn:inference-fleet:problem:{slug}", "title": title, "status": status, "detail": detail}
    body = json.dumps({**members, "request_id": "0123456789abcdef0123456789abcdef"}).encode()
    return Reply(status, body, {"Content-Type": "application/problem+json", **headers})


class StandIn:
    """Plays the app and the exporter: answers what it is told to, and notes what it was asked."""

    def __init__(self) -> None:
        self.reply = Reply()
        self.status = Reply()
        self.seen: list[Json] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send(stand_in.status)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                stand_in.seen.append({"path": self.path, "type": self.headers["Content-Type"], "body": body})
                self.send(stand_in.reply)

            def send(self, reply: Reply) -> None:
                time.sleep(reply.after)
                if reply.cut:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def address_string(self) -> str:
                # A Unix socket has none.
                return "nginx"

            def log_message(self, *_: Any) -> None: ...

        self.handler = Handler

    def answer(self, members: Json) -> None:
        """Answer the service's requests with a JSON object from now on."""
        self.reply = Reply(body=json.dumps(members).encode())

    def tell(self, status: Json) -> None:
        """Have the exporter tell this from now on."""
        self.status = Reply(body=json.dumps(status).encode())

    @contextmanager
    def serving(self, exporter: Path) -> Iterator[int]:
        """Listen as the app, on the port that this gives, and as the exporter."""
        app = ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        servers: list[socketserver.BaseServer] = [
            app,
            socketserver.ThreadingUnixStreamServer(str(exporter), self.handler),
        ]
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield app.server_port
        finally:
            for server in servers:
                server.shutdown()
                server.server_close()


def device(name: str, **members: Any) -> Json:
    """A device as the exporter tells of it."""
    service = {
        "name": "ocr",
        "route": "/v1/parse",
        "release": "0.1.0-abe41fade50b",
        "workers": 4,
        "busy": 0,
        "queue": 0,
        "queue_max": 64,
        "in_flight": 0,
        "requests": 0,
        "rejected": 0,
    }
    service |= {key: members.pop(key) for key in list(members) if key in service and key != "name"}
    return {
        "name": name,
        "kind": "gpu",
        "model": "NVIDIA L4",
        "in_rotation": True,
        "out": None,
        "memory": {"used_bytes": 9 * GIB, "total_bytes": 24 * GIB},
        "utilization": 0.42,
        "temperature": 61,
        "services": [service],
        **members,
    }


def status(*devices: Json, host: str = "host1") -> Json:
    """What the exporter tells of a host."""
    return {
        "host": host,
        "release": "0.1.0-abe41fade50b",
        "since": "2026-11-24T20:31:15Z",
        "time": "2026-11-25T09:31:15Z",
        "devices": copy.deepcopy(list(devices)),
    }


class Site:
    """nginx with three sites: one with two services, and one for each of them alone."""

    def __init__(self, fleet: Fleet, app: StandIn) -> None:
        self.fleet = fleet
        self.app = app
        #: Both services; each of them alone.
        self.port, self.ocr_port, self.echo_port = processes.free_ports(3)

    @contextmanager
    def serving(self, **variables: Any) -> Iterator[None]:
        """Serve until the end of the block."""
        self.fleet.release("r1", tree.ROOT / "app" / "src", tree.ROOT)
        services = [
            {**OCR, "name": "read", "port": self.port},
            {**ECHO, "port": self.port},
            {**OCR, "port": self.ocr_port, "max_body_mib": 100},
            {**ECHO, "name": "echo-alone", "port": self.echo_port},
        ]
        with ExitStack() as stack:
            port = stack.enter_context(self.app.serving(self.fleet.folder / "http.sock"))
            address = f"127.0.0.1:{port}"
            upstreams = [{"service": one["name"], "device": "cpu0", "address": address} for one in services]
            self.fleet.lay(services, upstreams, site_listen_addresses=["127.0.0.1"], site_max_fails=0, **variables)
            stack.enter_context(self.fleet.nginx([self.port, self.ocr_port, self.echo_port]))
            yield

    def url(self, path: str = "/", port: int = 0) -> str:
        return f"http://127.0.0.1:{port or self.port}{path}"


class Tab:
    """The browser, with words for what the tests do in it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    # ---- looking

    def find(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        return self.find(css).text

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, css: str, text: str = "") -> WebElement:
        """Wait until an element is seen, and holds a text."""

        def seen() -> WebElement | None:
            found = [one for one in self.all(css) if one.is_displayed() and text in one.text]
            return found[0] if found else None

        return processes.wait_for(seen, lambda: f"{css} with {text!r}; the page shows\n{self.text('body')}")  # type: ignore[return-value]

    def pairs(self, css: str) -> dict[str, str]:
        """Terms and values of a list."""
        names, values = self.all(f"{css} dt"), self.all(f"{css} dd")
        return {name.text: value.text for name, value in zip(names, values, strict=True)}

    def complaints(self) -> list[str]:
        """What the console has said since the last time: errors, warnings, what the policy forbids."""
        found: list[Json] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [f"{one['source']}: {one['message']}" for one in found]

    # ---- the window

    def devtools(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def size(self, width: int, height: int, scale: float = 1, phone: bool = False) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        self.devtools("Emulation.setTouchEmulationEnabled", enabled=phone)

    def scheme(self, name: str) -> None:
        """Prefer light or dark; nothing moves, so that pictures do not depend on the moment."""
        features = [
            {"name": "prefers-color-scheme", "value": name},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def picture(self, whole: bool = True) -> bytes:
        """A PNG of the page, or of what the window shows of it."""
        return base64.b64decode(
            self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        )

    # ---- doing

    def open(self, url: str) -> None:
        self.driver.get(url)

    def send(self, path: Path) -> None:
        """Choose a file."""
        self.find("#file").send_keys(str(path))


@contextmanager
def browsing() -> Iterator[Tab]:
    """A browser without a window."""
    found = environments.browser()
    options = webdriver.ChromeOptions()
    options.binary_location = str(found.program)
    # It looks at nothing but our own page, and its sandbox does not work in most containers.
    for argument in ("--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=str(found.driver), env=found.environment)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Tab(driver)
    finally:
        driver.quit()
