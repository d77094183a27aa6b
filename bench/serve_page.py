"""Makes docs/performance/serve.md's tables and plots from the raw output of bench/serve and bench/soak."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import serve_peers
from deploy_page import part, table

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "performance"
RAW = FOLDER / "serve.json"
RAW_SOAK = FOLDER / "soak.json"
PAGE = FOLDER / "serve.md"
PLOT = Path(__file__).with_name("serve_plot.py")
Cells = list[list[object]]

TITLES = {
    "echo": "`echo`, unbatched, 64 connections",
    "mlp": "MLP 1024-4096-4096-10, one torch thread, 64 connections",
    "single": "One request at a time (the same MLP)",
    "overload": "Twice as many requests as can be answered (the same MLP)",
    "ocr": "OCR, pages of mixed sizes",
}


def row(name: str, found: dict[str, Any]) -> str:
    """One row's tables."""
    parts = [f"### {TITLES[name]}\n", servers(name, found["servers"]), goals(found["goals"])]
    if usage := processor(found["servers"]):
        parts.insert(2, usage)
    if name == "overload":
        parts.insert(2, refusals(found["servers"]["ours, mode batch"]))
    machine = found["machine"]
    parts.append(
        f"Measured on {found['date']}: {machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}, Python "
        f"{machine['python']}; loads of {found['seconds']} s; load of the machine before: {machine['load_before']}.\n"
    )
    return "\n".join(parts)


def servers(name: str, found: dict[str, Any]) -> str:
    if name == "ocr":
        lines: Cells = []
        for server, loads in found.items():
            if "failed" in loads:
                lines.append([server, "failed", None, None, None])
            lines += [
                [server, count, one["requests_per_second"], one["ms"]["p50"], one["ms"]["p99"], one["bad"]]
                for count, one in loads.items()
                if count.startswith("c=")
            ]
        return table(["Server", "Connections", "Pages a second", "p50, ms", "p99, ms", "Wrong or failed"], lines)
    lines = []
    for server, one in found.items():
        ms = one.get("ms", {})
        rates = " · ".join(map(str, one["rates"])) if "rates" in one else None
        rate = "failed" if "failed" in one else one["requests_per_second"]
        lines.append([server, rate, rates, ms.get("p50"), ms.get("p99"), one.get("bad")])
    heads = ["Server", "Right answers a second", "Of each load", "p50, ms", "p99, ms", "Wrong, refused or failed"]
    return table(heads, lines)


def processor(found: dict[str, Any]) -> str:
    """What an answer takes of the cores, where it was measured."""
    measured = {server: one["processor_us"] for server, one in found.items() if "processor_us" in one}
    kinds = list(dict.fromkeys(kind for one in measured.values() for kind in one))
    lines: Cells = [
        [server, *(one.get(kind) for kind in kinds), round(sum(one.values()), 1)] for server, one in measured.items()
    ]
    return table(["Processor time of an answer, µs", *kinds, "all"], lines) if measured else ""


def goals(found: list[dict[str, Any]]) -> str:
    lines: Cells = [
        [one["goal"], one["measured"], one["wanted"], "met" if one["met"] else "**missed**"] for one in found
    ]
    return table(["Measured", "", "Goal", ""], lines)


def refusals(found: dict[str, Any]) -> str:
    lines: Cells = [
        [status, count, *(found["ms_by_status"].get(status, {}).get(name) for name in ("p50", "p99", "max"))]
        for status, count in sorted(found["statuses"].items())
    ]
    text = table(["Status", "Answers", "p50, ms", "p99, ms", "Longest, ms"], lines)
    values = ", ".join(f"{value} s ({count})" for value, count in sorted(found["retry_after"].items()))
    sent = f"Sent on schedule: {found['rate']} a second; the peak is {found['peak']}"
    return f"{text}\n{sent}. Retry-After: {values or 'none'}.\n"


def soak(found: dict[str, Any]) -> str:
    """The soak's tables."""
    lines: Cells = [
        [one["name"], one["begin_mib"], one["end_mib"], f"{one['growth_percent']:+.1f} %"] for one in found["processes"]
    ]
    statuses = ", ".join(f"{count} × {status}" for status, count in sorted(found["load"]["statuses"].items()))
    return "\n".join(
        [
            "### Soak: good and bad requests\n",
            table(["Process", "After warm-up, MiB", "At the end, MiB", "Growth"], lines),
            goals(found["goals"]),
            f"{found['minutes']} minutes on {found['date']}, the first {found['warm_minutes']} to warm up.\n",
            f"Answers: {statuses}. Raw numbers: [soak.json](soak.json).\n",
            "![Memory of each process](soak.svg)\n",
        ]
    )


def versions(raw: dict[str, Any]) -> str:
    lines: Cells = [["Load client", raw["client"]]]
    lines += [[name, version] for name, version in raw["versions"].items()]
    return table(["", "Version"], lines)


def page(text: str) -> str:
    """The page with what is made from the last runs' numbers."""
    parts = []
    raw = json.loads(RAW.read_text())
    parts += ["![Right answers a second, ours and the peers](serve.svg)\n"]
    parts += [row(name, raw["rows"][name]) for name in TITLES if name in raw["rows"]]
    if RAW_SOAK.exists():
        parts.append(soak(json.loads(RAW_SOAK.read_text())))
    parts.append("### Versions\n\n" + versions(raw))
    return part(text, "./fleet bench serve", "\n".join(parts))


def write() -> None:
    """Write the page, and draw its plots."""
    PAGE.write_text(page(PAGE.read_text()))
    subprocess.run([serve_peers.python(), PLOT, FOLDER], check=True)
