"""Measures how long a deploy takes, on bare test hosts. Called by bench/deploy inside of tests/hosts/run.

Three deploys with the real command, one after the other:
  first       a bare host, and a controller without a release: wheels are fetched, models are converted
  no_change   the same host again
  next_host   another bare host, for which the release is there already

A client asks each bare host all the while; the moment of its first right answer is noted too. Making .venv and the
hosts is not part of any number.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FLEET = ROOT / "fleet"
HOSTS = ROOT / "tests" / "hosts"
IMAGE = ROOT / "app" / "tests" / "images" / "invoice.png"
EXPECTED = ROOT / "app" / "tests" / "images" / "expected.json"
POLL_SECONDS = 0.2


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


def deploy(folder: Path, host: str, address: str) -> dict[str, Any]:
    """Deploy to one host and measure it; ends the program when the deploy fails."""
    client = FirstAnswer(address)
    client.start()
    # A cache of its own: what this machine has made before does not count.
    command: list[str | Path] = [FLEET, "deploy", *inventories(folder, host), "-e", f"release_cache_dir={folder}/cache"]
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.monotonic() - began
    client.give_up.set()
    client.join()
    if done.returncode:
        sys.exit(f"{done.stdout[-6000:]}\nbench/deploy: the deploy to {host} failed; the lines above say why")
    recap = re.search(rf"^{host} +: (.*)$", done.stdout, re.MULTILINE)
    return {
        "seconds": round(seconds, 1),
        "first_right_answer_seconds": None if client.seconds is None else round(client.seconds, 1),
        "recap": " ".join(recap[1].split()) if recap else "",
    }


def inventories(folder: Path, *hosts: str) -> list[str]:
    """Options that name the variables of all test hosts, their addresses, and the hosts meant."""
    folders = [ROOT / "molecule" / "shared" / "inventory", folder / "inventory"]
    return [f"--inventory={path}" for path in [*folders, *(folder / f"{host}.yml" for host in hosts)]]


def create(folder: Path, kind: str) -> dict[str, str]:
    """Start two bare hosts and give their addresses."""
    (folder / "inventory").mkdir(parents=True)
    for host in ("first", "next"):
        # Nothing but the host: what is measured is what stands in the roles' defaults.
        inventory = {"inference": {"hosts": {host: {"test_hosts_kind": kind}}}}
        (folder / f"{host}.yml").write_text(json.dumps(inventory))
    playbook = ROOT / "molecule" / "shared" / "create.yml"
    ansible = ROOT / ".venv" / "bin" / "ansible-playbook"
    command: list[str | Path] = [ansible, *inventories(folder, "first", "next"), playbook]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-6000:]}\nbench/deploy: the test hosts could not be made; the lines above say why")
    text = (folder / "inventory" / "addresses.yml").read_text()
    return dict(re.findall(r"(\w+):\s+ansible_host: (\S+)", text))


def machine() -> dict[str, Any]:
    """What the numbers belong to. Controller and hosts share this one machine."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def measure(kind: str, out: Path) -> None:
    """Make the hosts, deploy three times, write what came of it."""
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "kind": kind,
        "machine": machine(),
    }
    folder = Path(os.environ["FLEET_TEST_STATE"]) / "bench"
    # What Molecule would set for create.yml.
    os.environ.update(
        ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"),
        MOLECULE_EPHEMERAL_DIRECTORY=str(folder),
        MOLECULE_SCENARIO_NAME="bench",
    )
    addresses = create(folder, kind)
    runs: dict[str, dict[str, Any]] = {}
    for name, host in (("first", "first"), ("no_change", "first"), ("next_host", "next")):
        runs[name] = deploy(folder, host, addresses[host])
        print(f"{name:<10} {runs[name]['seconds']:7.1f} s  {runs[name]['recap']}", flush=True)
    del runs["no_change"]["first_right_answer_seconds"]  # it served all the while
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**facts, "runs": runs}, indent=2) + "\n")
    print(f"written: {out}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench/deploy", description="Measure deploys to bare test hosts.")
    kinds = "host has systemd, container has not"
    parser.add_argument("--kind", choices=["host", "container"], default="host", help=kinds)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "performance" / "deploy.json", help="file to write")
    given = parser.parse_args()
    measure(given.kind, given.out.resolve())


if __name__ == "__main__":
    main()
