"""Measures how long an ill device goes on getting requests. Called by bench/watch.

Clients ask without a pause on connections of their own, and each answer names its device. A fault is made:
  xid       a line "NVRM: Xid (...): 79" in the kernel's log
  lost      NVML shows a card as lost
  answer    the known answer of a device is wrong from now on, and so are all its others
For each: seconds until a client has the last answer of the ill device, and answers that were bad until then. The watch
runs with its own defaults, as a process of its own. What NVML shows comes from a double, every `nvml_seconds`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ansible_modules  # noqa: F401 - lets the files of plugins/module_utils import each other
import rendering
import tree
import watch_page
from bench_hosts import machine
from stack import Fleet, Roles
from switch_host import Client, Host, by_hand
from watched import Watched

RAW = tree.ROOT / "docs" / "performance" / "watch.json"
DEFAULTS: dict[str, Any] = {"interval_seconds": 2.0, "failures": 2, "good_seconds": 3, "nvml_seconds": 5.0}
#: Longest time that a fault may take to be acted upon.
PATIENCE_SECONDS = 40.0
FAULTS = ("xid", "lost", "answer")


class Load:
    """Clients that ask all the while, and note when each device answered last."""

    def __init__(self, port: int) -> None:
        self.client = Client(port)
        self.end = threading.Event()
        self.answers: list[tuple[float, int, str]] = []
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(2)]

    def run(self) -> None:
        """Ask until the end."""
        while not self.end.wait(0.005):
            status, _, device = self.client.ask()
            self.answers.append((time.monotonic(), status, device))


def make(watched: Watched, fault: str, device: str) -> None:
    if fault == "xid":
        watched.xid(device, 79, "GPU has fallen off the bus.")
    elif fault == "lost":
        watched.show(**{device: {"lost": "GPU is lost (15)"}})
    else:
        watched.make_ill(device)


def mend(watched: Watched, fault: str, device: str) -> None:
    """Make it well; of the fatal ones a boot is the way back."""
    watched.show()
    if fault == "answer":
        watched.make_well(device)
    else:
        watched.reboot()


def one(watched: Watched, fault: str, device: str, number: int) -> dict[str, Any]:
    """One fault: seconds, and bad answers."""
    with watched.run():
        # Not always at the same moment of the watch's own rounds.
        time.sleep(1 + number * 0.77)
        load = Load(watched.host.port)
        for thread in load.threads:
            thread.start()
        time.sleep(0.5)
        began = time.monotonic()
        make(watched, fault, device)
        while watched.down() != [device]:
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise SystemExit(f"bench: {device} is not out after {PATIENCE_SECONDS:g} s: {watched.status()}")
            time.sleep(0.005)
        # Until the last answer of a request that was on its way.
        time.sleep(1)
        load.end.set()
        for thread in load.threads:
            thread.join()
    # A device whose answers are wrong does not say its name.
    of_device = [at for at, status, name in load.answers if at > began and (name == device or status != 200)]
    bad = sum(1 for at, status, _ in load.answers if at > began and status != 200)
    mend(watched, fault, device)
    with watched.run():
        deadline = time.monotonic() + PATIENCE_SECONDS
        while watched.down():
            if time.monotonic() > deadline:
                raise SystemExit(f"bench: {device} does not come back: {watched.status()}")
            time.sleep(0.05)
        time.sleep(0.3)
    return {
        "seconds": round(max(of_device, default=began) - began, 3),
        "bad_answers": bad,
        "answers": len(load.answers),
    }


def measure(repeat: int) -> dict[str, list[dict[str, Any]]]:
    """All faults, so many times each."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-"))
    folder.chmod(0o755)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in FAULTS}
    try:
        host = Host(Fleet(folder, Roles(rendering.variables, rendering.render)))
        # Outs of late make the way back longer, which is not what is measured.
        watched = Watched(host, **DEFAULTS)
        with by_hand(host), host.fleet.emperor("one"), host.fleet.emperor("two"):
            host.go(watched.wanted())
            with host.fleet.nginx([host.port]):
                host.go(watched.wanted())
                for number in range(repeat):
                    for fault in FAULTS:
                        state = Path(watched.settings["state_file"])
                        state.unlink(missing_ok=True)
                        result = one(watched, fault, ("one", "two")[number % 2], number)
                        found[fault].append(result)
                        print(f"{fault:7} {result}", flush=True)
    finally:
        shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./fleet bench watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5, help="for each fault")
    parser.add_argument("--out", type=Path, default=RAW, help="file to write")
    given = parser.parse_args()
    found = measure(given.repeat)
    raw = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "settings": DEFAULTS,
        "faults": found,
        "median_seconds": {name: statistics.median(one["seconds"] for one in runs) for name, runs in found.items()},
    }
    given.out.write_text(json.dumps(raw, indent=2) + "\n")
    print(f"written: {given.out}")
    if given.out == RAW:
        watch_page.write()


if __name__ == "__main__":
    main()
