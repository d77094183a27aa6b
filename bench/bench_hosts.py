"""Test hosts for measurements, and what a command on them takes. Used inside of tests/hosts/run."""

import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ANSIBLE = ROOT / ".venv" / "bin" / "ansible-playbook"
#: A model that needs no torch, so that many hosts fit on one machine.
ECHO = [{"name": "echo", "route": "/v1/echo", "model": "inference.models.echo:EchoModel"}]
Run = dict[str, Any]
NOTHING: Mapping[str, str] = {}


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

    def command(self, command: Sequence[str | Path], environment: Mapping[str, str] = NOTHING) -> str:
        """The output of a command; ends the program when it fails."""
        done = subprocess.run(
            command,
            env={**self.environment(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            told = " ".join(map(str, command))
            sys.exit(f"{done.stdout[-6000:]}\nbench: failed, the lines above say why: {told}")
        return done.stdout

    def deploy(self, *hosts: str, environment: Mapping[str, str] = NOTHING) -> Run:
        """Measure the real command."""
        # A cache of its own: what this machine has made before does not count.
        options = ["-e", f"release_cache_dir={self.folder}/cache"]
        return self.measured([ROOT / "fleet", "deploy", *self.inventories(*hosts), *options], environment)

    def play(self, tasks: Sequence[Any], environment: Mapping[str, str] = NOTHING, **keywords: Any) -> Run:
        """Measure a play of these tasks, which gathers no facts unless it is told to."""
        play = {"hosts": "inference", "become": True, "gather_facts": False, "tasks": tasks, **keywords}
        playbook = self.folder / "play.yml"
        playbook.write_text(json.dumps([play]))
        return self.measured([ANSIBLE, *self.inventories(), playbook], environment)

    def measured(self, command: Sequence[str | Path], environment: Mapping[str, str]) -> Run:
        """Run a command and say what it took, and what it did on the host with the most tasks."""
        cpu, machine, began = children_seconds(), machine_seconds(), time.monotonic()
        text = self.command(command, environment)
        seconds = time.monotonic() - began
        recap = re.findall(r"^(\S+) +: ok=(\d+) +changed=(\d+) .*skipped=(\d+)", text, re.MULTILINE)
        counts = [(int(ok) + int(skipped), int(changed)) for host, ok, changed, skipped in recap if host != "localhost"]
        return {
            "seconds": round(seconds, 1),
            "controller_cpu_seconds": round(children_seconds() - cpu, 1),
            "machine_cpu_seconds": round(machine_seconds() - machine, 1),
            "tasks_per_host": max((tasks for tasks, _ in counts), default=0),
            "changed_hosts": sum(changed > 0 for _, changed in counts),
            "task_seconds": json.loads((self.folder / "task_times.json").read_text()),
        }


def mitogen_environment() -> dict[str, str]:
    """For ./fleet, and what ./fleet makes of it for a plain ansible-playbook."""
    (plugins,) = (ROOT / ".venv").glob("lib/python3*/site-packages/ansible_mitogen/plugins/strategy")
    return {
        "FLEET_MITOGEN": "1",
        "ANSIBLE_STRATEGY": "mitogen_linear",
        "ANSIBLE_STRATEGY_PLUGINS": str(plugins),
    }


def must_change(run: Run, hosts: int, what: str) -> None:
    """A run that did not do what it stands for gives no number."""
    if run["changed_hosts"] != hosts:
        sys.exit(f"bench: {what} changed {run['changed_hosts']} hosts, and not {hosts}: not what was to be measured")
    del run["changed_hosts"]


def fewest_seconds(runs: Sequence[Run]) -> Run:
    """The run that was disturbed least, with the seconds of all when there are more."""
    best = min(runs, key=lambda run: float(run["seconds"]))
    return best if len(runs) == 1 else {**best, "seconds_of_all": [run["seconds"] for run in runs]}


def show(label: str, run: Run) -> None:
    print(
        f"{label:<26} {run['seconds']:7.1f} s   controller {run['controller_cpu_seconds']:6.1f} s of CPU, "
        f"machine {run['machine_cpu_seconds']:6.1f} s   {run['tasks_per_host']:3} tasks a host",
        flush=True,
    )


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
