#!/usr/bin/env python3
"""Writes the table of faults in docs/gpus.md from roles/watch/files/classes.ini.

.venv/bin/python tools/classes.py           writes it, between its markers
.venv/bin/python tools/classes.py --check   writes nothing; fails when something differs
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "roles" / "watch" / "files"))

from watch_policy import FaultClass, Table  # noqa: E402 - found by the line above

PAGE = ROOT / "docs" / "gpus.md"
START, END = "<!-- classes:start -->", "<!-- classes:end -->"
NOTE = "<!-- Made by tools/classes.py from roles/watch/files/classes.ini: edit that. -->"
HEAD = ["| Class | What | Seen | Severity | Out | Back | What a person does |", "|---|---|---|---|---|---|---|"]
BACK = {
    "answers": "good answers",
    "restarted": "good answers of new processes",
    "reset": "reset or boot",
    "reboot": "boot",
    "person": "`undrain`",
}
ANSWER = {"wrong": "known answer", "nobody": "uWSGI's stats, or nobody listens"}
NVML = {"lost": "NVML: card lost", "uncorrected": "NVML: ECC error more", "unmapped": "NVML: remapping failed"}


def seen(one: FaultClass) -> str:
    """How a fault of a class shows, in words."""
    found = ["Xid " + ", ".join(map(str, sorted(one.xids)))] if one.xids else []
    found += [NVML[word] for word in sorted(one.nvml)]
    if one.actions:
        found.append("recovery action " + ", ".join(sorted(one.actions)))
    if one.answer:
        found.append(ANSWER[one.answer])
    return "; ".join(found) or "any other Xid"


def table() -> str:
    """The table, as Markdown."""
    rows = list(HEAD)
    for one in Table(ROOT / "roles" / "watch" / "files" / "classes.ini").classes.values():
        out = "never" if one.severity == "none" else "at once" if one.after == 1 else f"{one.after} in ten minutes"
        back = "–" if one.severity == "none" else BACK[one.back]
        back += "" if one.good is None else f" for {one.good:g} s"
        command = one.command.replace("|", "\\|")
        rows.append(f"| `{one.name}` | {one.what} | {seen(one)} | {one.severity} | {out} | {back} | {command} |")
    return "\n".join(rows)


def page(text: str) -> str:
    """The page with its table renewed."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{NOTE}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    """Write or compare."""
    former = PAGE.read_text()
    wanted = page(former)
    if "--check" in sys.argv[1:]:
        sys.exit(0 if wanted == former else f"{PAGE} differs: run .venv/bin/python tools/classes.py")
    PAGE.write_text(wanted)


if __name__ == "__main__":
    main()
