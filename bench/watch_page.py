"""Makes the table of docs/gpus.md from the raw output of bench/watch."""

import json
import statistics
from typing import Any

from deploy_page import ROOT, table

RAW = ROOT / "docs" / "performance" / "watch.json"
PAGE = ROOT / "docs" / "gpus.md"
START = "<!-- from here: made by `./fleet bench watch` -->"
END = "<!-- to here: `./fleet bench watch` -->"
NAMES = {
    "xid": "Xid 79 in the kernel's log",
    "lost": "NVML shows the card as lost",
    "answer": "Every answer of the device is wrong",
}


def rows(raw: dict[str, Any]) -> list[list[object]]:
    """One row for each fault."""
    found: list[list[object]] = []
    for fault, name in NAMES.items():
        runs = raw["faults"][fault]
        seconds = [one["seconds"] for one in runs]
        bad = [one["bad_answers"] for one in runs]
        found.append([name, len(runs), f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}", max(bad)])
    return found


def page(text: str) -> str:
    """The page with its numbers renewed."""
    raw = json.loads(RAW.read_text())
    known, settings = raw["machine"], raw["settings"]
    heads = ["Fault", "Runs", "Seconds to the last answer of the device, median", "Longest", "Bad answers, most"]
    of_machine = f"{known['cpu']}, {known['cores']} cores, {raw['date']}"
    of_settings = ", ".join(f"`watch_{name}` {value:g}" for name, value in settings.items() if name != "good_seconds")
    words = f"{of_machine}; {of_settings}; raw output: [performance/watch.json](performance/watch.json)."
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table(heads, rows(raw))}\n{words}\n\n{END}{after}"


def write() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    write()
