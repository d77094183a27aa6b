"""Makes the tables of docs/performance.md from the raw output of bench/deploy and bench/ansible."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "docs" / "performance" / "deploy.json"
RAW_ANSIBLE = ROOT / "docs" / "performance" / "ansible.json"
PAGE = ROOT / "docs" / "performance.md"
#: As many tasks of the deploy without a change as are worth a row.
LONGEST = 15


def table(heads: list[str], rows: list[list[object]]) -> str:
    """A table, with what is missing left empty."""
    lines = [heads, ["---"] * len(heads), *([("" if cell is None else str(cell)) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def tables(raw: dict[str, Any]) -> str:
    """The part of the page that is made from numbers."""
    parts = [machine(raw)]
    fleets: dict[str, dict[str, Any]] = raw.get("fleets", {})
    if fleets:
        parts += [seconds_of_fleets(fleets), processor_time(fleets), longest_tasks(fleets)]
    if "ocr" in raw:
        parts.append(ocr(raw["ocr"]))
    return "\n".join(parts)


def machine(raw: dict[str, Any]) -> str:
    known = raw["machine"]
    rows: list[list[object]] = [
        ["Day", raw["date"]],
        ["Processor", f"{known['cpu']}, {known['cores']} cores"],
        ["Memory", f"{known['memory_gib']} GiB"],
        ["Kernel, Python", f"Linux {known['kernel']}, {known['python']}"],
        ["Test hosts", {"host": "with systemd", "container": "without systemd"}[raw["kind"]]],
        ["Load before the run", known["load_before"]],
    ]
    if "minutes" in raw:
        rows.append(["The whole run took", f"{raw['minutes']} minutes"])
    return table(["Machine", ""], rows)


def value(runs: dict[str, Any], name: str, what: str = "seconds") -> float | None:
    found: float | None = runs.get(name, {}).get(what)
    return found


def ratio(runs: dict[str, Any], name: str, beside: str) -> str | None:
    one, other = value(runs, name), value(runs, beside)
    return f"{one / other:.2f}" if one and other else None


def seconds_of_fleets(fleets: dict[str, dict[str, Any]]) -> str:
    heads = ["Hosts", "First deploy", "New release", "No change", "Plain play", "No change / plain", "Tasks a host"]
    rows: list[list[object]] = [
        [
            size,
            *(value(runs, name) for name in ("first", "release_only", "no_change", "plain")),
            ratio(runs, "no_change", "plain"),
            value(runs, "no_change", "tasks_per_host"),
        ]
        for size, runs in fleets.items()
    ]
    text = "### Seconds for a fleet\n\n" + table(heads, rows)
    if any("no_change_mitogen" in runs or "plain_mitogen" in runs for runs in fleets.values()):
        heads = ["Hosts, with Mitogen", "No change", "Plain play", "No change / plain", "No change, against without"]
        rows = [
            [
                size,
                value(runs, "no_change_mitogen"),
                value(runs, "plain_mitogen"),
                ratio(runs, "no_change_mitogen", "plain_mitogen"),
                ratio(runs, "no_change_mitogen", "no_change"),
            ]
            for size, runs in fleets.items()
        ]
        text += "\n" + table(heads, rows)
    return text


def processor_time(fleets: dict[str, dict[str, Any]]) -> str:
    names = ("no_change", "plain", "no_change_mitogen", "plain_mitogen")
    heads = ["Hosts", "Processor time of", "No change", "Plain play", "No change, Mitogen", "Plain play, Mitogen"]
    rows: list[list[object]] = [
        [size, of, *(value(runs, name, what) for name in names)]
        for size, runs in fleets.items()
        for of, what in (("the controller", "controller_cpu_seconds"), ("the whole machine", "machine_cpu_seconds"))
    ]
    return "### Seconds of processor time\n\n" + table(heads, rows)


def longest_tasks(fleets: dict[str, dict[str, Any]]) -> str:
    runs: dict[str, dict[str, float]] = {
        size: found["no_change"]["task_seconds"] for size, found in fleets.items() if "no_change" in found
    }
    if not runs:
        return ""
    largest = max(runs, key=int)
    names = sorted(runs[largest], key=lambda name: -runs[largest][name])
    rows: list[list[object]] = [
        [name, *(f"{runs[size].get(name, 0.0):.2f}" for size in runs)] for name in names[:LONGEST]
    ]
    rest = {
        size: sum(seconds for name, seconds in found.items() if name not in names[:LONGEST])
        for size, found in runs.items()
    }
    rows.append([f"the other {len(names[LONGEST:])}", *(f"{rest[size]:.2f}" for size in runs)])
    heads = ["Task", *(f"{size} host{'' if size == '1' else 's'}" for size in runs)]
    return "### Where the time of a deploy without a change goes, in seconds\n\n" + table(heads, rows)


def ocr(runs: dict[str, Any]) -> str:
    right = "first_right_answer_seconds"
    rows: list[list[object]] = [
        ["Bare host to first right answer, release made on the way", value(runs, "first", right)],
        ["Bare host to checked end of the deploy, release made on the way", value(runs, "first")],
        ["Bare host to first right answer, release made before", value(runs, "next_host", right)],
        ["Bare host to checked end of the deploy, release made before", value(runs, "next_host")],
        ["Deploy without a change", value(runs, "no_change")],
    ]
    return "### Seconds for one host with the built-in model for OCR\n\n" + table(["What", "Seconds"], rows)


def ansible(raw: dict[str, Any]) -> str:
    """What settings and tasks cost."""
    runs: dict[str, dict[str, Any]] = raw["settings"]
    rows: list[list[object]] = [
        [name, run["seconds"], run["controller_cpu_seconds"], run["machine_cpu_seconds"]] for name, run in runs.items()
    ]
    heads = ["Setting", "Seconds", "Processor time of the controller", "Processor time of the machine"]
    text = f"A deploy without a change on {raw['hosts']} hosts, with one setting changed:\n\n" + table(heads, rows)
    costs: list[list[object]] = [
        [name, cost["milliseconds"], cost["controller_cpu_milliseconds_per_host"]]
        for name, cost in raw["tasks"].items()
    ]
    heads = ["Task", "Milliseconds for all hosts", "Processor time of the controller for each host, ms"]
    return f"{machine(raw)}\n{text}\nWhat one task costs, on the same hosts:\n\n{table(heads, costs)}"


def part(text: str, command: str, made: str) -> str:
    """The page with one part replaced, between the marks that name its command."""
    begin, end = f"<!-- from here: made by `{command}` -->", f"<!-- to here: `{command}` -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{made}\n{end}{after}"


def page(text: str) -> str:
    """The page with the tables of the last runs."""
    text = part(text, "./fleet bench deploy", tables(json.loads(RAW.read_text())))
    return part(text, "./fleet bench ansible", ansible(json.loads(RAW_ANSIBLE.read_text())))


def write() -> None:
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    write()
