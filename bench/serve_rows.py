"""The rows of `./fleet bench serve`: what is measured for each, and which goal it is held against."""

from __future__ import annotations

import array
import base64
import http.client
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments
import serve_ours
import serve_peers
import serve_usage
import tree
from serve_load import Request, load

Row = dict[str, Any]
PORT = 23000
CONNECTIONS = 64
#: Loads of each server; the one with the median rate counts.
ROUNDS = 3
WARM_SECONDS = 2
IN_PROCESS = serve_peers.PEERS / "in_process.py"
#: Requests a second that the overloaded server is sent, as a share of what it can do.
OVERLOAD = 2.0
#: So many that the schedule never waits for a free one: answers take less than a quarter of a second.
OVERLOAD_CONNECTIONS = 512


@dataclass(frozen=True)
class Served:
    """A server that runs, and what its processes are."""

    port: int
    path: str
    kinds: Mapping[int, str]


def in_process(*arguments: str) -> Any:
    """Run the models without a server, and give what that prints."""
    return json.loads(environments.run(serve_peers.python(), IN_PROCESS, *arguments, output=True))


def echo_requests(path: str) -> list[Request]:
    return [Request(path, b"hello", "text/plain", b'"echo":"hello"')]


def mlp_requests(path: str) -> list[Request]:
    found = in_process("requests")
    kind = "application/octet-stream"
    return [Request(path, base64.b64decode(one["body"]), kind, one["expected"].encode()) for one in found]


def mlp_requests_as_json(path: str) -> list[Request]:
    """The same for BentoML, whose batching methods take numbers."""
    return [
        Request(
            path,
            json.dumps({"inputs": [list(array.array("f", one.body))]}).encode(),
            "application/json",
            # It writes JSON with blanks.
            one.expected.removeprefix(b'"output":').replace(b",", b", "),
        )
        for one in mlp_requests(path)
    ]


def measured(server: Served, requests: list[Request], connections: int, seconds: float) -> Row:
    """Warm up, load several times, and give the median load with the rates of all and what all took of the cores."""
    load(server.port, requests, connections, WARM_SECONDS)
    before = serve_usage.processor_seconds(server.kinds)
    loads = sorted(
        (load(server.port, requests, connections, seconds) for _ in range(ROUNDS)),
        key=lambda one: one["requests_per_second"],
    )
    after = serve_usage.processor_seconds(server.kinds)
    return {
        **loads[ROUNDS // 2],
        "rates": [one["requests_per_second"] for one in loads],
        "processor_us": serve_usage.of_each(before, after, sum(one["good"] + one["bad"] for one in loads)),
    }


def with_server(name: str, work: str, options: dict[str, Any], use: Callable[[Served], Row]) -> Row:
    """Start a server, use it, and say what it was; what fails is a result too, and the others go on."""
    print(f"  {name}", flush=True)
    try:
        with ExitStack() as stack:
            if name.startswith("ours"):
                server = stack.enter_context(serve_ours.ours(work, PORT, **options))
                return use(Served(server.port, server.route, server.kinds()))
            peer = stack.enter_context(serve_peers.peer(name.split(",")[0], work, PORT, **options))
            path = "/ocr" if work == "ocr" else "/predict"
            return use(Served(PORT, path, dict.fromkeys(peer.processes(), "server")))
    except (RuntimeError, AssertionError, OSError) as error:
        print(f"  {name} failed: {error}", flush=True)
        return {"failed": str(error)[-500:], "requests_per_second": 0.0}


def best(row: Row, names: list[str]) -> tuple[str, float]:
    """The quickest of some servers, and its rate."""
    return max(((name, row[name]["requests_per_second"]) for name in names), key=lambda one: one[1])


def goal(text: str, value: float, wanted: float, more: bool = True) -> Row:
    """Whether a goal is met."""
    return {
        "goal": text,
        "measured": round(value, 3),
        "wanted": wanted,
        "met": value >= wanted if more else value <= wanted,
    }


def echo(seconds: float) -> Row:
    """Nothing to compute: what the server itself costs."""

    def use(server: Served) -> Row:
        return measured(server, echo_requests(server.path), CONNECTIONS, seconds)

    peers = ["mosec", "gunicorn", "litserve", "bentoml"]
    found = {name: with_server(name, "echo", {}, use) for name in ["ours", *peers]}
    name, rate = best(found, peers)
    ratio = found["ours"]["requests_per_second"] / rate
    return {"servers": found, "goals": [goal(f"rate / that of {name}, the quickest peer", ratio, 1.5)]}


def mlp(seconds: float) -> Row:
    """A model that gains from batches, on one torch thread."""
    found: Row = {"torch loop": in_process("loop", str(seconds))}

    def use(server: Served) -> Row:
        return measured(server, mlp_requests(server.path), CONNECTIONS, seconds)

    def use_json(server: Served) -> Row:
        return measured(server, mlp_requests_as_json(server.path), CONNECTIONS, seconds)

    found["ours, mode batch"] = with_server("ours, mode batch", "mlp", {"mode": "batch"}, use)
    found["ours, mode process"] = with_server("ours, mode process", "mlp", {"workers": serve_ours.CORES}, use)
    found |= {name: with_server(name, "mlp", {}, use) for name in ("mosec", "litserve")}
    found["bentoml"] = with_server("bentoml", "mlp", {}, use_json)
    found["torch loop, again"] = in_process("loop", str(seconds))
    ours, mosec = found["ours, mode batch"], found["mosec"]
    loop = max(found[name]["requests_per_second"] for name in ("torch loop", "torch loop, again"))
    goals = [
        goal("rate / the torch loop's", ours["requests_per_second"] / loop, 0.97),
        goal("rate / mosec's", ours["requests_per_second"] / mosec["requests_per_second"], 1.0),
        goal("p99 / mosec's", ours["ms"]["p99"] / mosec["ms"]["p99"], 1.0, more=False),
    ]
    return {"servers": found, "goals": goals}


def single(seconds: float) -> Row:
    """One request at a time: what lies between a client and the model."""
    call = in_process("one", str(seconds))
    found: Row = {"in process": {"requests_per_second": call["requests_per_second"], "ms": {"p50": call["ms_p50"]}}}

    def use(server: Served) -> Row:
        return measured(server, mlp_requests(server.path), 1, seconds)

    found["ours, mode process"] = with_server("ours, mode process", "mlp", {"workers": serve_ours.CORES}, use)
    found["ours, mode batch"] = with_server("ours, mode batch", "mlp", {"mode": "batch"}, use)
    found["mosec"] = with_server("mosec", "mlp", {}, use)
    goals = [
        goal(f"p50 above the call's, ms: {name}", found[name]["ms"]["p50"] - call["ms_p50"], 1.5, more=False)
        for name in ("ours, mode process", "ours, mode batch")
    ]
    return {"servers": found, "goals": goals}


def answer_alone(port: int, request: Request) -> tuple[int, float]:
    """Status and milliseconds of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    began = time.monotonic()
    try:
        connection.request(request.method, request.path, request.body, {"Content-Type": request.content_type})
        response = connection.getresponse()
        response.read()
        return response.status, (time.monotonic() - began) * 1000
    finally:
        connection.close()


def overload(seconds: float) -> Row:
    """Twice as many requests as can be answered, on a schedule that does not wait for answers."""
    options = {"mode": "batch", "batch_max_items": 32, "queue_max_items": 64}

    def use(server: Served) -> Row:
        requests = mlp_requests(server.path)
        peak = measured(server, requests, CONNECTIONS, seconds)
        rate = OVERLOAD * peak["requests_per_second"]
        before = serve_usage.processor_seconds(server.kinds)
        flood = load(server.port, requests, OVERLOAD_CONNECTIONS, 6 * seconds, rate, traced=True)
        after = serve_usage.processor_seconds(server.kinds)
        flood["processor_us"] = serve_usage.of_each(before, after, flood["good"] + flood["bad"])
        waits = [float(value) for value in flood["retry_after"] if value != "none"]
        time.sleep(max(waits, default=0))
        status, ms = answer_alone(server.port, requests[0])
        after = {"status": status, "ms": round(ms, 1)}
        return {**flood, "peak": peak["requests_per_second"], "rate": round(rate, 1), "after_retry_after": after}

    found = with_server("ours, mode batch", "mlp", options, use)
    if "failed" in found:
        return {"servers": {"ours, mode batch": found}, "goals": [goal("the server works", 0, 1)]}
    batch_ms = 32_000 / in_process("loop", str(seconds))["requests_per_second"]
    bound_ms = 2 * batch_ms + 64_000 / found["peak"]
    statuses: dict[str, int] = found["statuses"]
    other = sum(count for status, count in statuses.items() if status not in ("200", "429", "503"))
    refused = sum(count for status, count in statuses.items() if status in ("429", "503"))
    told = sum(count for value, count in found["retry_after"].items() if value.isdigit())
    goals = [
        goal("right answers a second / the peak", found["requests_per_second"] / found["peak"], 0.95),
        goal("refusals with Retry-After / refusals", told / max(1, refused), 1.0),
        goal("answers other than 200, 429 and 503", other + sum(found.get("errors", {}).values()), 0, more=False),
        goal("p99 of accepted, ms", found["ms_by_status"]["200"]["p99"], round(bound_ms, 1), more=False),
        goal("a request after Retry-After, ms", found["after_retry_after"]["ms"], round(bound_ms, 1), more=False),
    ]
    return {"servers": {"ours, mode batch": found}, "goals": goals, "batch_ms": round(batch_ms, 2)}


def multipart(name: str, content: bytes) -> tuple[bytes, str]:
    """A form with the field that rapidocr_api wants."""
    kind = "image/png" if name.endswith("png") else "image/jpeg"
    head = (
        f'--b\r\nContent-Disposition: form-data; name="image_file"; filename="{name}"\r\nContent-Type: {kind}\r\n\r\n'
    )
    return head.encode() + content + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


def pages() -> dict[str, bytes]:
    """The pages, drawn by the app's Python, in the order in which they are sent."""
    with tempfile.TemporaryDirectory(prefix="fleet-pages-") as name:
        listing = environments.run(environments.app(), tree.ROOT / "bench" / "pages.py", name, output=True)
        paths = [Path(line.split()[0]) for line in listing.splitlines()]
        return {path.name: path.read_bytes() for path in paths}


def read_page(port: int, path: str, body: bytes, kind: str) -> list[str]:
    """The lines that a server reads in a page.

    Raises:
        RuntimeError: it does not answer with 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", path, body, {"Content-Type": kind})
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise RuntimeError(f"a page was answered with {response.status}: {text[:300]!r}")
        answer = json.loads(text)
    finally:
        connection.close()
    lines = answer["lines"] if "lines" in answer else answer.values()
    return [str(line.get("text", line.get("rec_txt"))) for line in lines]


def ocr(seconds: float) -> Row:
    """Pages of mixed sizes."""
    content = pages()
    lines: dict[str, list[list[str]]] = {}

    def user(name: str) -> Callable[[Served], Row]:
        def use(server: Served) -> Row:
            plain = name.startswith("ours")
            requests, lines[name] = [], []
            for page, body in content.items():
                sent, kind = (body, "application/octet-stream") if plain else multipart(page, body)
                read = read_page(server.port, server.path, sent, kind)
                lines[name].append(sorted(read))
                text = json.dumps(max(read, key=len), ensure_ascii=False).encode()
                requests.append(Request(server.path, sent, kind, text))
            return {f"c={count}": load(server.port, requests, count, 3 * seconds) for count in (1, 8)}

        return use

    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "ours, mode process": ("ocr", {"workers": serve_ours.CORES}),
        "ours, mode process, 1 worker": ("ocr", {"workers": 1}),
        "ours, mode batch": ("ocr", {"mode": "batch"}),
        "rapidocr_api": ("ocr", {}),
        "rapidocr_api, 2 workers": ("ocr", {"workers": 2}),
    }
    found = {name: with_server(name, work, options, user(name)) for name, (work, options) in kinds.items()}

    def rate(name: str, count: str) -> float:
        return float(found[name].get(count, {}).get("requests_per_second", 0))

    ours = [name for name in kinds if name.startswith("ours")]
    peers = [name for name in kinds if not name.startswith("ours")]
    goals = []
    for count in ("c=1", "c=8"):
        quickest = max(peers, key=lambda name: rate(name, count))
        goals += [
            goal(f"{count}: pages a second of {name} / {quickest}", rate(name, count) / rate(quickest, count), 1.2)
            for name in ours
        ]
    same = {
        name: sum(one == other for one, other in zip(lines[name], lines[peers[0]], strict=True))
        for name in lines
        if name != peers[0]
    }
    goals += [goal(f"pages with the same text as {peers[0]}: {name}", same[name], len(content)) for name in ours]
    return {"servers": found, "goals": goals, "pages": len(content), "same_text": same}


ROWS: dict[str, Callable[[float], Row]] = {
    "echo": echo,
    "mlp": mlp,
    "single": single,
    "overload": overload,
    "ocr": ocr,
}
