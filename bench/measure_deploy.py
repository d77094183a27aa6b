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
import platform
import re
import resource
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deploy_page

ROOT = Path(__file__).resolve().parent.parent
ANSIBLE = ROOT / ".venv" / "bin" / "ansible-playbook"
IMAGE = ROOT / "app" / "tests" / "images" / "invoice.png"
EXPECTED = ROOT / "app" / "tests" / "images" / "expected.json"
RAW = ROOT / "docs" / "performance" / "deploy.json"
POLL_SECONDS = 0.2
SIZES = [1, 5, 20]
STEPS = ["first", "release_only", "no_change", "plain", "ocr"]
#: What the plain play keeps on a host.
PLAIN = "/var/tmp/fleet-bench"  # noqa: S108 - on a test host, which is thrown away
ECHO = [{"name": "echo", "route": "/v1/echo", "model": "inference.models.echo:EchoModel"}]
Run = dict[str, Any]


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


def children_seconds() -> float:
    """Processor time of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine_seconds() -> float:
    """Processor time of the whole machine since it started, hosts included."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Fleet:
    """Test hosts, made for one series of measurements."""

    folder: Path
    hosts: Sequence[str]
    kind: str
    variables: dict[str, Any]

    def environment(self) -> dict[str, str]:
        """What Molecule would set for create.yml, and the clock of the tasks."""
        return {
            **{name: value for name, value in os.environ.items() if name not in {"FLEET_MITOGEN", "ANSIBLE_STRATEGY"}},
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_CALLBACK_PLUGINS": f"{ROOT}/plugins/callback:{ROOT}/bench/callback",
            "ANSIBLE_CALLBACKS_ENABLED": "task_times",
            "BENCH_TASK_TIMES": str(self.folder / "task_times.json"),
            "MOLECULE_EPHEMERAL_DIRECTORY": str(self.folder),
            "MOLECULE_SCENARIO_NAME": f"bench{self.folder.name}",
        }

    def inventories(self, *hosts: str) -> list[str]:
        """Options that name the variables of all test hosts, their addresses, and the hosts meant."""
        files = [self.folder / "inventory", *(self.folder / f"{host}.yml" for host in hosts or self.hosts)]
        return [f"--inventory={path}" for path in [ROOT / "molecule" / "shared" / "inventory", *files]]

    def create(self) -> dict[str, str]:
        """Start the hosts and give their addresses."""
        (self.folder / "inventory").mkdir(parents=True)
        for host in self.hosts:
            inventory = {"inference": {"hosts": {host: {"test_hosts_kind": self.kind, **self.variables}}}}
            (self.folder / f"{host}.yml").write_text(json.dumps(inventory))
        self.command([ANSIBLE, *self.inventories(), ROOT / "molecule" / "shared" / "create.yml"])
        text = (self.folder / "inventory" / "addresses.yml").read_text()
        return dict(re.findall(r"(\w+):\s+ansible_host: (\S+)", text))

    def destroy(self) -> None:
        """Remove the hosts, so that they do not disturb the next series."""
        self.command([ANSIBLE, *self.inventories(), ROOT / "molecule" / "shared" / "destroy.yml"])

    def command(self, command: Sequence[str | Path], **environment: str) -> str:
        """The output of a command; ends the program when it fails."""
        done = subprocess.run(
            command, env=self.environment() | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            told = " ".join(map(str, command))
            sys.exit(f"{done.stdout[-6000:]}\nbench/deploy: failed, the lines above say why: {told}")
        return done.stdout

    def deploy(self, *hosts: str, mitogen: bool = False) -> Run:
        """Measure the real command."""
        # A cache of its own: what this machine has made before does not count.
        options = ["-e", f"release_cache_dir={self.folder}/cache"]
        return self.measured([ROOT / "fleet", "deploy", *self.inventories(*hosts), *options], mitogen)

    def measured(self, command: Sequence[str | Path], mitogen: bool) -> Run:
        """Run a command and say what it took, and what it did on the host with the most tasks."""
        cpu, machine, began = children_seconds(), machine_seconds(), time.monotonic()
        text = self.command(command, **(mitogen_environment() if mitogen else {}))
        seconds = time.monotonic() - began
        recap = re.findall(r"^(\S+) +: ok=(\d+) +changed=(\d+) .*skipped=(\d+)", text, re.MULTILINE)
        counts = [(int(ok) + int(skipped), int(changed)) for host, ok, changed, skipped in recap if host != "localhost"]
        return {
            "seconds": round(seconds, 1),
            "controller_cpu_seconds": round(children_seconds() - cpu, 1),
            "machine_cpu_seconds": round(machine_seconds() - machine, 1),
            "tasks_per_host": max(tasks for tasks, _ in counts),
            "changed_hosts": sum(changed > 0 for _, changed in counts),
            "task_seconds": json.loads((self.folder / "task_times.json").read_text()),
        }

    def plain(self, mitogen: bool = False) -> Run:
        """Measure the play to compare with: 15 folders and 15 files, and the facts that every play gathers."""
        tasks: list[dict[str, Any]] = []
        for number in range(15):
            path = f"{PLAIN}/{number}"
            tasks += [
                {"ansible.builtin.file": {"path": path, "state": "directory", "mode": "0755"}},
                {"ansible.builtin.copy": {"dest": f"{path}/file", "content": f"{number}\n", "mode": "0644"}},
            ]
        play = {"hosts": "inference", "become": True, "gather_facts": True, "gather_subset": ["!all"], "tasks": tasks}
        playbook = self.folder / "plain.yml"
        playbook.write_text(json.dumps([play]))
        return self.measured([ANSIBLE, *self.inventories(), playbook], mitogen)

    def prepare_plain(self) -> None:
        """Make what the plain play is going to find, in one task."""
        script = f"for n in $(seq 0 14); do install -d -m 755 {PLAIN}/$n; echo $n >{PLAIN}/$n/file; done"
        play = {
            "hosts": "inference",
            "become": True,
            "gather_facts": False,
            "tasks": [{"ansible.builtin.shell": f"umask 022; {script}"}],
        }
        playbook = self.folder / "prepare.yml"
        playbook.write_text(json.dumps([play]))
        self.command([ANSIBLE, *self.inventories(), playbook])


def mitogen_environment() -> dict[str, str]:
    """For ./fleet, and what ./fleet makes of it for a plain ansible-playbook."""
    (plugins,) = (ROOT / ".venv").glob("lib/python3*/site-packages/ansible_mitogen/plugins/strategy")
    return {
        "FLEET_MITOGEN": "1",
        "ANSIBLE_STRATEGY": "mitogen_linear",
        "ANSIBLE_STRATEGY_PLUGINS": str(plugins),
    }


def show(label: str, run: Run) -> None:
    print(
        f"{label:<26} {run['seconds']:7.1f} s   controller {run['controller_cpu_seconds']:6.1f} s of CPU, "
        f"machine {run['machine_cpu_seconds']:6.1f} s   {run['tasks_per_host']:3} tasks a host",
        flush=True,
    )


def must_change(run: Run, hosts: int, what: str) -> None:
    """A run that did not do what it stands for gives no number."""
    if run["changed_hosts"] != hosts:
        sys.exit(
            f"bench/deploy: {what} changed {run['changed_hosts']} hosts, and not {hosts}: not what was to be measured"
        )
    del run["changed_hosts"]


def fewest_seconds(runs: Sequence[Run]) -> Run:
    """The run that was disturbed least, with the seconds of all when there are more."""
    best = min(runs, key=lambda run: float(run["seconds"]))
    return best if len(runs) == 1 else {**best, "seconds_of_all": [run["seconds"] for run in runs]}


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
        fleet.prepare_plain()
    for mitogen in [False, True] if given.mitogen else [False]:
        # One after the other and not each on its own: what disturbs the machine for a while disturbs both.
        for _ in range(given.repeat):
            for step, measure_step in (("no_change", fleet.deploy), ("plain", fleet.plain)):
                if step in given.only:
                    name = f"{step}_mitogen" if mitogen else step
                    run = measure_step(mitogen=mitogen)
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
        deploy_page.write(raw)
        print(f"written: {deploy_page.PAGE}")


if __name__ == "__main__":
    main()
