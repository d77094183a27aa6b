#!/usr/bin/env python3
"""Draws docs/images/dashboard.svg: the dashboard's own queries, answered by a Prometheus with made-up measurements.

.venv/bin/python tools/dashboard_picture.py
"""

import contextlib
import html
import json
import math
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import environments  # noqa: E402 - found by the line above

DASHBOARD = ROOT / "roles" / "monitoring" / "files" / "dashboard.json"
PICTURE = ROOT / "docs" / "images" / "dashboard.svg"
#: Times are fixed, so that the same dashboard gives the same picture.
END = 1_790_000_000
HOURS = 6
STEP = 60
#: Seconds between two points of a line: as many as a panel has room for.
POINTS = 180
#: What Grafana would fill in.
FILLED_IN = {"$__rate_interval": "5m", "$service": ".*", "$instance": ".*", "$datasource": "prometheus"}


# ---- measurements --------------------------------------------------------------------------------------------------


class Series:
    """Made-up measurements of a fleet of three hosts, as text that Prometheus can load."""

    def __init__(self) -> None:
        self.random = random.Random(7)  # noqa: S311 - a picture, no secret
        self.counters: dict[str, float] = {}
        self.samples: dict[str, list[tuple[int, float]]] = {}

    def gauge(self, name: str, at: int, value: float) -> None:
        """Note a value."""
        self.samples.setdefault(name, []).append((at, value))

    def count(self, name: str, at: int, more: float) -> None:
        """Note a counter that has grown."""
        self.counters[name] = self.counters.get(name, 0.0) + max(more, 0)
        self.gauge(name, at, round(self.counters[name], 3))

    def text(self) -> str:
        """In the format OpenMetrics; samples of a series stand together."""
        lines = [f"{name} {value} {at}" for name in sorted(self.samples) for at, value in self.samples[name]]
        return "\n".join([*lines, "# EOF", ""])


HOSTS = {"gpu-host-1": 4, "gpu-host-2": 2, "gpu-host-3": 1}
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


def measurements() -> str:
    """Six hours: load that rises and falls, a rollout, a drained card, and half an hour with too many requests."""
    out = Series()
    begin = END - HOURS * 3600
    for at in range(begin, END + 1, STEP):
        hour = (at - begin) / 3600
        load = 9 + 5 * math.sin(hour * 0.9 - 0.7) + 3 * out.random.random()
        crowd = max(0.0, 1 - abs(hour - 4.4) / 0.28)
        for host, cards in HOSTS.items():
            first = list(HOSTS).index(host)
            release = "0.2.0-7c41e9d02b3f" if hour >= 1.5 + 0.09 * first else "0.1.0-abe41fade50b"
            labels = f'instance="{host}",job="fleet",role="inference"'
            for job in ("fleet", "node"):
                out.gauge(f'up{{instance="{host}",job="{job}",role="inference"}}', at, 1)
            out.gauge(
                f'fleet_deploy_info{{{labels},by="anna",deployment="d-{release[:5]}",release="{release}"}}', at, 1
            )
            deployed = begin + 5400 + 324 * first if hour >= 1.5 + 0.09 * first else begin - 500_000
            out.gauge(f"fleet_deploy_timestamp_seconds{{{labels}}}", at, deployed)
            for path, size, free in (
                ("/", 250, 171 - hour * 0.4),
                ("/opt/fleet", 500, 310 - (14 if hour > 1.4 else 0) - first * 40),
            ):
                out.gauge(f'fleet_disk_free_bytes{{{labels},path="{path}"}}', at, round(free * 2**30))
                out.gauge(f'fleet_disk_size_bytes{{{labels},path="{path}"}}', at, size * 2**30)
            busy = 0.12 + 0.02 * load * (1 + crowd) / 2
            for mode, share in (("idle", 1 - busy), ("user", busy)):
                name = f'node_cpu_seconds_total{{cpu="0",instance="{host}",job="node",mode="{mode}",role="inference"}}'
                out.count(name, at, STEP * share)
            for state in ("reading", "writing", "waiting"):
                number = {
                    "reading": 1,
                    "writing": load * (1 + 2 * crowd) * 0.8,
                    "waiting": 12 + 4 * out.random.random(),
                }[state]
                out.gauge(f'fleet_nginx_connections{{{labels},state="{state}"}}', at, round(number))
            for card in range(cards):
                drained = host == "gpu-host-1" and card == 2 and 2.6 <= hour < 3.7
                one_card(
                    out, at, hour, load / 2.6, crowd, f'device="gpu{card}",{labels}', release, drained, first + card
                )
        for edge in ("edge-1", "edge-2"):
            out.gauge(f'up{{instance="{edge}",job="node",role="edge"}}', at, 1)
            first_edge = edge == "edge-1"
            for mode, share in (
                ("idle", 0.8 - 0.1 * crowd if first_edge else 0.97),
                ("user", 0.2 + 0.1 * crowd if first_edge else 0.03),
            ):
                out.count(
                    f'node_cpu_seconds_total{{cpu="0",instance="{edge}",job="node",mode="{mode}",role="edge"}}',
                    at,
                    STEP * share,
                )
        for name, bound in (("error_ratio", 0.05), ("temperature_celsius", 87), ("disk_free_ratio", 0.05)):
            out.gauge(f"fleet:bound:{name}", at, bound)
        out.gauge(
            'fleet_certificate_expiry_timestamp_seconds{instance="gpu-host-1",job="fleet",path="/etc/ssl/fleet.pem"}',
            at,
            END + 61 * 86400,
        )
    return out.text()


def one_card(
    out: Series, at: int, hour: float, load: float, crowd: float, labels: str, release: str, drained: bool, number: int
) -> None:
    """Measurements of one card."""
    load = 0 if drained else load * (1 + 1.6 * crowd) * (0.92 + 0.16 * out.random.random())
    requests = load * STEP
    refused = requests * 0.13 * crowd
    both = f'{labels},release="{release}",service="ocr"'
    for status, share in (("200", 0.985), ("400", 0.008), ("415", 0.006), ("504", 0.0006)):
        out.count(
            f'fleet_requests_total{{{both},route="/v1/parse",status="{status}"}}', at, (requests - refused) * share
        )
    out.count(f'fleet_requests_total{{{both},route="/v1/parse",status="503"}}', at, refused)
    for reason, more in (("busy", refused), ("unreadable-input", requests * 0.008), ("over-time", requests * 0.0006)):
        out.count(f'fleet_requests_rejected_total{{{both},reason="{reason}"}}', at, more)
    queue = 0.008 + 0.012 * load / 5 + 0.9 * crowd
    stages = {"queue": queue, "decode": 0.031, "compute": 0.16 + 0.015 * load / 5}
    stages["total"] = sum(stages.values())
    for stage, mean in stages.items():
        out.count(f'fleet_request_duration_seconds_sum{{{both},stage="{stage}"}}', at, requests * mean)
        out.count(f'fleet_request_duration_seconds_count{{{both},stage="{stage}"}}', at, requests)
        for bound in (*BUCKETS, math.inf):
            # Log-normal around the mean.
            share = (
                1.0
                if bound == math.inf
                else 0.5 * (1 + math.erf((math.log(bound / mean) + 0.1) / (0.45 * math.sqrt(2))))
            )
            le = "+Inf" if bound == math.inf else f"{bound}"
            out.count(
                f'fleet_request_duration_seconds_bucket{{{both},le="{le}",stage="{stage}"}}', at, requests * share
            )
    batches = requests / (1.2 + 0.35 * load + 5 * crowd)
    out.count(f"fleet_batch_items_sum{{{both}}}", at, requests)
    out.count(f"fleet_batch_items_count{{{both}}}", at, batches)
    busy = min(1.0, load * 0.11)
    out.gauge(f"fleet_requests_in_flight{{{both}}}", at, round(load * stages["total"] + crowd * 20))
    out.gauge(
        f"fleet_queue_items{{{both}}}", at, round(64 * min(1.0, 0.02 + 0.02 * load / 5 + crowd * 1.1) * (not drained))
    )
    out.gauge(f"fleet_queue_items_max{{{both}}}", at, 64)
    for state, workers in (("busy", round(8 * busy)), ("idle", 8 - round(8 * busy))):
        out.gauge(f'fleet_workers{{{both},state="{state}"}}', at, workers)
    out.count(f"fleet_worker_respawns_total{{{both}}}", at, 1 if number == 3 and abs(hour - 5.2) < 0.009 else 0)
    out.gauge(f"fleet_device_in_rotation{{{labels}}}", at, 0 if drained else 1)
    out.gauge(f"fleet_device_utilization_ratio{{{labels}}}", at, round(min(0.99, busy * 1.25), 3))
    out.gauge(f"fleet_device_memory_used_bytes{{{labels}}}", at, round((9.2 + 4 * busy + 0.3 * number) * 2**30))
    out.gauge(f"fleet_device_memory_total_bytes{{{labels}}}", at, 24 * 2**30)
    out.gauge(f"fleet_device_temperature_celsius{{{labels}}}", at, round(41 + 38 * min(1, busy * 1.2) + number))
    out.count(f'fleet_device_ecc_errors_total{{{labels},kind="uncorrected"}}', at, 0)


# ---- Prometheus ----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def prometheus(text: str) -> Iterator[str]:
    """A Prometheus of this program's own, with measurements; gives its URL.

    Raises:
        RuntimeError: it does not start.
    """
    programs = environments.monitoring()
    with tempfile.TemporaryDirectory(prefix="fleet-picture-") as name:
        folder = Path(name)
        (folder / "measurements").write_text(text)
        (folder / "prometheus.yml").write_text("{}\n")
        load: list[str | Path] = [
            programs / "promtool",
            "tsdb",
            "create-blocks-from",
            "openmetrics",
            folder / "measurements",
            folder / "data",
        ]
        subprocess.run(load, check=True, stdout=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{free_port()}"
        command: list[str | Path] = [
            programs / "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            "--storage.tsdb.retention.time=100y",
            # What was not measured this minute is gone; a scrape would have left a mark of that.
            f"--query.lookback-delta={STEP + 5}s",
            f"--web.listen-address={url.removeprefix('http://')}",
            "--log.level=warn",
        ]  # fmt: skip
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/-/ready", timeout=2).close()  # noqa: S310 - our own
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"Prometheus does not start:\n{(folder / 'log').read_text()}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


def ask(url: str, kind: str, **parameters: Any) -> list[dict[str, Any]]:
    """Result of a query over Prometheus' HTTP API."""
    with urllib.request.urlopen(f"{url}/api/v1/{kind}?{urllib.parse.urlencode(parameters)}", timeout=60) as answer:  # noqa: S310
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def filled(expression: str) -> str:
    """An expression of the dashboard as Grafana would send it."""
    for name, value in FILLED_IN.items():
        expression = expression.replace(name, value)
    return expression


def legend(pattern: str, labels: dict[str, str]) -> str:
    """A legend as Grafana writes it."""
    for name, value in labels.items():
        pattern = pattern.replace(f"{{{{{name}}}}}", value)
    return pattern.strip() or ", ".join(value for name, value in labels.items() if name != "__name__")


# ---- drawing -------------------------------------------------------------------------------------------------------

UNIT_WIDTH, UNIT_HEIGHT, GAP = 52, 27, 8
COLOURS = ("#2f7ed8", "#f28e2b", "#3fa34d", "#b07aa1", "#c9a227", "#e15759", "#17a2a2", "#8c6d4f")
STATUS = {"green": "#2b9348", "orange": "#e08a1e", "red": "#d13b3b"}
BACKGROUND, CARD, BORDER, TEXT, FAINT, GRID = "#f4f5f7", "#ffffff", "#dfe3e8", "#24292f", "#6b7683", "#e9ecef"


def written(value: float, unit: str) -> str:
    """A value with its unit, short."""
    if unit == "percentunit":
        return f"{round(value * 100, 2):.3g} %"
    if unit == "celsius":
        return f"{value:.0f} °C"
    if unit == "s":
        if value >= 3600:
            return f"{value / 3600:.1f} h"
        return f"{value * 1000:.0f} ms" if 0 < value < 1 else f"{value:.3g} s"
    if unit == "d":
        return f"{value:.0f} d"
    return f"{value:.3g}" + (" /s" if unit == "reqps" else "")


def text(
    x: float, y: float, what: str, size: int = 11, colour: str = TEXT, anchor: str = "start", weight: str = "400"
) -> str:
    style = f'font-size="{size}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{html.escape(what)}</text>'


def box(x: float, y: float, width: float, height: float, style: str) -> str:
    """A rectangle."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {style}/>'


def nice_top(value: float) -> float:
    """The next round number."""
    if value <= 0:
        return 1.0
    size = 10 ** math.floor(math.log10(value))
    return float(next(step * size for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * size >= value * 0.999))


class Panel:
    """One panel of the dashboard at its place."""

    def __init__(self, panel: dict[str, Any], url: str, top: float) -> None:
        place = panel["gridPos"]
        self.panel, self.url = panel, url
        self.x, self.y = place["x"] * UNIT_WIDTH + GAP, place["y"] * UNIT_HEIGHT + GAP + top
        self.w, self.h = place["w"] * UNIT_WIDTH - GAP, place["h"] * UNIT_HEIGHT - GAP
        self.defaults = panel["fieldConfig"]["defaults"] if panel["type"] != "row" else {}
        self.unit = self.defaults.get("unit", "short")

    def draw(self) -> str:
        """The panel as SVG."""
        kind = self.panel["type"]
        if kind == "row":
            return text(self.x + 2, self.y + 15, self.panel["title"], 13, TEXT, weight="600")
        card = box(self.x, self.y, self.w, self.h, f'rx="4" fill="{CARD}" stroke="{BORDER}"')
        body = {"timeseries": self.lines, "stat": self.number, "state-timeline": self.states, "table": self.table}[
            kind
        ]()
        return card + text(self.x + 10, self.y + 18, self.panel["title"], 12, TEXT, weight="600") + body

    def instant(self) -> list[dict[str, Any]]:
        """Result of its first query, now."""
        return ask(self.url, "query", query=filled(self.panel["targets"][0]["expr"]), time=END)

    def series(self) -> list[tuple[str, list[tuple[float, float]]]]:
        """Name and points of each of its lines."""
        found = []
        for target in self.panel["targets"]:
            result = ask(
                self.url,
                "query_range",
                query=filled(target["expr"]),
                start=END - HOURS * 3600 + 600,
                end=END,
                step=POINTS,
            )
            for one in result:
                values = [(float(at), float(value)) for at, value in one["values"] if value not in {"NaN", "+Inf"}]
                if values:
                    found.append((legend(target["legendFormat"], one["metric"]), values))
        return found

    def colour_of(self, value: float) -> str:
        """Colour of a value by the thresholds."""
        steps = self.defaults["thresholds"]["steps"]
        name = [step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]
        return STATUS[name] if len(steps) > 1 else TEXT

    def number(self) -> str:
        """One large number."""
        found = self.instant()
        value = float(found[0]["value"][1]) if found else 0.0
        return text(
            self.x + self.w / 2,
            self.y + self.h * 0.72,
            written(value, self.unit),
            27,
            self.colour_of(value),
            "middle",
            "600",
        )

    def frame(self) -> tuple[float, float, float, float]:
        """Left, right, top and bottom of the drawing."""
        return self.x + 52, self.x + self.w - 12, self.y + 32, self.y + self.h - 42

    def hours(self) -> str:
        """Words of the axis of time."""
        left, right, _, bottom = self.frame()
        out = []
        for hour in range(1, HOURS):
            x = left + (hour * 3600 - 600) / (HOURS * 3600 - 600) * (right - left)
            out.append(text(x, bottom + 13, f"−{HOURS - hour} h", 9, FAINT, "middle"))
        return "".join(out)

    def x_of(self, at: float) -> float:
        """Place of a time."""
        left, right, _, _ = self.frame()
        begin = END - HOURS * 3600 + 600
        return left + (at - begin) / (END - begin) * (right - left)

    def lines(self) -> str:
        """Lines, or areas on each other."""
        left, right, upper, lower = self.frame()
        found = self.series()
        out = []
        if not found:
            return text((left + right) / 2, (upper + lower) / 2, "nothing to show", 11, FAINT, "middle") + self.hours()
        stacked = "stacking" in self.defaults.get("custom", {})
        base: dict[float, float] = {}
        layers = []
        for name, values in found:
            low = [(at, base.get(at, 0.0) if stacked else 0.0) for at, _ in values]
            high = [(at, value + (base.get(at, 0.0) if stacked else 0.0)) for at, value in values]
            if stacked:
                base.update(high)
            layers.append((name, low, high))
        peak = max(value for _, _, high in layers for _, value in high)
        top = self.defaults.get("max") or nice_top(peak * 1.02)
        bottom = 0.0
        if "min" not in self.defaults:
            bottom = math.floor(min(value for _, _, high in layers for _, value in high) / 10) * 10

        def y_of(value: float) -> float:
            return lower - (min(value, top) - bottom) / (top - bottom) * (lower - upper)

        for step in range(5):
            value = bottom + (top - bottom) * step / 4
            y = y_of(value)
            out.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
            out.append(text(left - 6, y + 3, written(value, self.unit), 9, FAINT, "end"))
        shown = []
        for index, (name, low, high) in enumerate(layers):
            bound = name == "bound"
            colour = STATUS["red"] if bound else COLOURS[index % len(COLOURS)]
            points = [f"{self.x_of(at):.1f},{y_of(value):.1f}" for at, value in high]
            if not bound:
                ends = ((high[-1][0], bottom), (high[0][0], bottom))
                under = [f"{self.x_of(at):.1f},{y_of(value):.1f}" for at, value in (reversed(low) if stacked else ends)]
                opacity = 0.35 if stacked else 0.06 if len(layers) < 4 else 0
                out.append(
                    f'<polygon points="{" ".join([*points, *under])}" fill="{colour}" fill-opacity="{opacity}"/>'
                )
            dash = ' stroke-dasharray="5 4"' if bound else ""
            out.append(
                f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.3"{dash}/>'
            )
            shown.append((name, colour))
        return "".join(out) + self.hours() + self.legend(shown)

    def legend(self, shown: list[tuple[str, str]]) -> str:
        """As much of the legend as fits on a line."""
        out, x, y = [], self.x + 12.0, self.y + self.h - 10
        for index, (name, colour) in enumerate(shown):
            width = 16 + 5.6 * len(name) + 10
            if x + width > self.x + self.w - 34 and index < len(shown) - 1:
                out.append(text(x, y, f"+ {len(shown) - index}", 10, FAINT))
                break
            out.append(f'<rect x="{x:.1f}" y="{y - 5}" width="11" height="3" rx="1.5" fill="{colour}"/>')
            out.append(text(x + 15, y, name, 10, FAINT))
            x += width
        return "".join(out)

    def states(self) -> str:
        """A bar for each series, coloured by its value."""
        found = sorted(self.series())
        left, right, upper, lower = self.x + 108, self.x + self.w - 12, self.y + 32, self.y + self.h - 24
        begin = END - HOURS * 3600 + 600
        height = (lower - upper) / max(len(found), 1)
        out = []
        for row, (name, values) in enumerate(found):
            y = upper + row * height
            out.append(text(left - 8, y + height / 2 + 3, name, 10, FAINT, "end"))
            start = values[0]
            for after in [*values[1:], (float(END), math.nan)]:
                if after[1] != start[1]:
                    x1, x2 = (left + (at - begin) / (END - begin) * (right - left) for at in (start[0], after[0]))
                    colour = STATUS["green" if start[1] == 1 else "red"]
                    style = f'fill="{colour}" fill-opacity="0.78"'
                    out.append(box(x1, y + 2, x2 - x1, height - 4, style))
                    start = after
        for hour in range(1, HOURS):
            x = left + (hour * 3600 - 600) / (HOURS * 3600 - 600) * (right - left)
            out.append(text(x, lower + 14, f"−{HOURS - hour} h", 9, FAINT, "middle"))
        return "".join(out)

    def table(self) -> str:
        """One row for each host."""
        columns = (("host", 0.03), ("release", 0.27), ("by", 0.68), ("ago", 0.84))
        out = [text(self.x + self.w * at, self.y + 42, name, 10, FAINT, weight="600") for name, at in columns]
        for row, one in enumerate(sorted(self.instant(), key=lambda one: one["metric"]["instance"])):
            cells = (
                one["metric"]["instance"],
                one["metric"]["release"],
                one["metric"]["by"],
                written(float(one["value"][1]), "s"),
            )
            y = self.y + 64 + row * 22
            out += [text(self.x + self.w * at, y, cell, 10) for cell, (_, at) in zip(cells, columns, strict=True)]
            out.append(
                f'<line x1="{self.x + 10}" x2="{self.x + self.w - 10}" y1="{y + 7}" y2="{y + 7}" stroke="{GRID}"/>'
            )
        return "".join(out)


def picture(url: str) -> str:
    """The whole dashboard as SVG."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    width = 24 * UNIT_WIDTH + GAP
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * UNIT_HEIGHT + GAP
    drawn = "\n".join(Panel(panel, url, 0).draw() for panel in panels)
    view = f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {view}>\n'
        "<title>The dashboard: requests, devices and machines of a fleet, with made-up measurements</title>\n"
        f'<rect width="{width}" height="{height}" fill="{BACKGROUND}"/>\n{drawn}\n</svg>\n'
    )


def main() -> int:
    with prometheus(measurements()) as url:
        PICTURE.write_text(picture(url))
    print(f"written: {PICTURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
