"""Measures how long a deploy takes, on bare test hosts. Called by bench/deploy inside of tests/hosts/run.

Fleets of several sizes with the model `echo`, which needs no torch, so that many hosts fit on one machine:
  first          bare hosts, and a controller without a release
  release_only   one file of the app's code has changed; packages, settings and models have not
  no_change      the same again
  plain          beside it, on the same hosts: a play of 30 tasks that change nothing
  and the last two once more with Mitogen
One host with the built-in model for OCR:
  first          a bare host, and a controller without a release: wheels are fetched, models are converted
  no_change      the same host again
  next_host      another bare host, for which the release is there already
  A client asks each bare host all the while; the moment of its first right answer is noted too.
Making .venv and the hosts is not part of any number.
"""

import argparse
import datetime
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deploy_page
from bench_hosts import ECHO, NOTHING, ROOT, Fleet, Run, fewest_seconds, machine, mitogen_environment, must_change, show

IMAGE = ROOT / "app" / "tests" / "images" / "invoice.png"
EXPECTED = ROOT / "app" / "tests" / "images" / "expected.json"
RAW = ROOT / "docs" / "performance" / "deploy.json"
POLL_SECONDS = 0.2
SIZES = [1, 5, 20]
STEPS = ["first", "release_only", "no_change", "plain", "ocr"]
#: What the plain play keeps on a host.
PLAIN = "/var/tmp/fleet-bench"  # noqa: S108 - on a test host, which is thrown away


class FirstAnswer(threading.Thread):
    """Asks a host until it answers as it should, and notes when that was."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.url = f"http://{address}:8100/v1/parse"
        self.expected = "\n".join(json.loads(EXPECTED.read_text())[IMAGE.name])
        self.began = time.monotonic()
        self.seconds: float | None = None
        self.give_up = threading.Event()

    def run(self) -> None:
        """Ask until the answer is right."""
        while not self.give_up.wait(POLL_SECONDS):
            if self.is_right():
                self.seconds = time.monotonic() - self.began
                return

    def is_right(self) -> bool:
        """Send the page once."""
        request = urllib.request.Request(self.url, IMAGE.read_bytes(), {"Content-Type": "image/png"})  # noqa: S310 - http
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return bool(json.load(answer)["text"] == self.expected)
        except (OSError, urllib.error.URLError):
            return False


def plain(fleet: Fleet, environment: Mapping[str, str] = NOTHING) -> Run:
    """Measure the play to compare with: 15 folders and 15 files, and the facts that every play gathers."""
    tasks: list[dict[str, Any]] = []
    for number in range(15):
        path = f"{PLAIN}/{number}"
        tasks += [
            {"ansible.builtin.file": {"path": path, "state": "directory", "mode": "0755"}},
            {"ansible.builtin.copy": {"dest": f"{path}/file", "content": f"{number}\n", "mode": "0644"}},
        ]
    return fleet.play(tasks, environment, gather_facts=True, gather_subset=["!all"])


def no_change(fleet: Fleet, environment: Mapping[str, str] = NOTHING) -> Run:
    """Measure a deploy of what is there."""
    return fleet.deploy(environment=environment)


def prepare_plain(fleet: Fleet) -> None:
    """Make what the plain play is going to find, in one task."""
    script = f"for n in $(seq 0 14); do install -d -m 755 {PLAIN}/$n; echo $n >{PLAIN}/$n/file; done"
    fleet.play([{"ansible.builtin.shell": f"umask 022; {script}"}])


def measure_fleet(folder: Path, size: int, given: argparse.Namespace) -> dict[str, Run]:
    """The series for one number of hosts."""
    code = folder / "code" / "bench_code.py"
    code.parent.mkdir(parents=True)
    code.write_text("NUMBER = 1\n")
    hosts = [f"host{number}" for number in range(1, size + 1)]
    fleet = Fleet(folder, hosts, given.kind, {"services": ECHO, "release_code": [str(code.parent)]})
    fleet.create()
    runs: dict[str, Run] = {}

    first = fleet.deploy()
    show(f"{size} hosts, first", first)
    must_change(first, size, "the first deploy")
    if "first" in given.only:
        runs["first"] = first
    if "release_only" in given.only:
        code.write_text("NUMBER = 2\n")
        runs["release_only"] = fleet.deploy()
        show(f"{size} hosts, release_only", runs["release_only"])
        must_change(runs["release_only"], size, "the deploy of a new release")

    compared: dict[str, list[Run]] = {}
    if "plain" in given.only:
        prepare_plain(fleet)
    for mitogen in [False, True] if given.mitogen else [False]:
        # One after the other and not each on its own: what disturbs the machine for a while disturbs both.
        for _ in range(given.repeat):
            for step, measure_step in (("no_change", no_change), ("plain", plain)):
                if step in given.only:
                    name = f"{step}_mitogen" if mitogen else step
                    run = measure_step(fleet, mitogen_environment() if mitogen else NOTHING)
                    show(f"{size} hosts, {name}", run)
                    must_change(run, 0, name)
                    compared.setdefault(name, []).append(run)
    fleet.destroy()
    return runs | {name: fewest_seconds(found) for name, found in compared.items()}


def measure_ocr(folder: Path, kind: str) -> dict[str, Run]:
    """The built-in model: what a newcomer waits for."""
    # Nothing but the hosts: what is measured is what stands in the roles' defaults.
    fleet = Fleet(folder, ["first", "next"], kind, {})
    addresses = fleet.create()
    runs: dict[str, Run] = {}
    for name, host in (("first", "first"), ("no_change", "first"), ("next_host", "next")):
        client = FirstAnswer(addresses[host])
        client.start()
        run = fleet.deploy(host)
        client.give_up.set()
        client.join()
        if name != "no_change":  # it served all the while
            run["first_right_answer_seconds"] = None if client.seconds is None else round(client.seconds, 1)
        show(f"OCR, {name}", run)
        must_change(run, 0 if name == "no_change" else 1, name)
        runs[name] = run
    fleet.destroy()
    return runs


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All that was asked for."""
    began = time.monotonic()
    state = Path(os.environ["FLEET_TEST_STATE"]) / "bench"
    raw: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "kind": given.kind,
        "machine": machine(),
    }
    if "ocr" in given.only:
        raw["ocr"] = measure_ocr(state / "ocr", given.kind)
    if set(given.only) != {"ocr"}:
        raw["fleets"] = {str(size): measure_fleet(state / str(size), size, given) for size in given.hosts}
    raw["minutes"] = round((time.monotonic() - began) / 60, 1)
    return raw


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./fleet bench deploy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    def steps(text: str) -> list[str]:
        unknown = set(text.split(",")) - set(STEPS)
        if unknown:
            raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(STEPS)}")
        return text.split(",")

    parser.add_argument("--hosts", type=numbers, default=SIZES, metavar="1,5,20", help="sizes of the fleets")
    parser.add_argument("--only", type=steps, default=STEPS, metavar="STEP,...", help=f"some of {', '.join(STEPS)}")
    parser.add_argument("--kind", choices=["host", "container"], default="host", help="host has systemd, container not")
    parser.add_argument("--repeat", type=int, default=1, help="times that no_change and plain run; the shortest counts")
    parser.add_argument("--without-mitogen", dest="mitogen", action="store_false", help="leave Mitogen out")
    parser.add_argument(
        "--out", type=Path, help="file to write; without it a whole run writes what docs/performance.md shows"
    )
    given = parser.parse_args()
    # Numbers of a part, or of other hosts, do not stand in the documents.
    whole = (given.hosts, given.only, given.kind, given.mitogen, given.out) == (SIZES, STEPS, "host", True, None)
    out: Path = RAW if whole else (given.out or ROOT / ".cache" / "bench" / "deploy.json").resolve()
    raw = measure(given)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(raw, indent=2) + "\n")
    print(f"\n{deploy_page.tables(raw)}\nwritten: {out}")
    if whole:
        deploy_page.write()
        print(f"written: {deploy_page.PAGE}")


if __name__ == "__main__":
    main()
