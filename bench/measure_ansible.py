"""Measures what Ansible's settings and kinds of tasks cost. Called by bench/ansible inside of tests/hosts/run.

On some test hosts with the model `echo`:
  settings   a deploy without a change, each time with one setting of ansible.cfg changed
  tasks      plays of one kind of task each: what a task costs the controller, and how long it takes
Seconds depend on what else the machine does; processor time of the controller does so much less.
"""

import argparse
import datetime
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deploy_page
from bench_hosts import (
    ECHO,
    ROOT,
    Fleet,
    Run,
    fewest_seconds,
    machine,
    mitogen_environment,
    must_change,
    show,
)

#: How many tasks a play has; modules are slow enough with few.
TASKS = 20
MODULES = 5
BUILTIN = "ansible.builtin."


def settings(folder: Path) -> dict[str, Mapping[str, str]]:
    """Names of the settings that are tried, and the environment that sets each."""
    text = (ROOT / "ansible.cfg").read_text()
    # Paths in it are relative to its folder.
    text = re.sub(r"^(\w+ = )((?:plugins|roles|inventory)\b.*)$", rf"\g<1>{ROOT}/\2", text, flags=re.MULTILINE)
    poll = folder / "poll.cfg"
    poll.write_text(
        re.sub(r"^internal_poll_interval = .*$", "internal_poll_interval = 0.001", text, flags=re.MULTILINE)
    )
    return {
        "as it is": {},
        "pipelining off": {"ANSIBLE_PIPELINING": "false"},
        "no connection kept": {"ANSIBLE_SSH_ARGS": "-o ControlMaster=no"},
        "another cipher (aes128-gcm)": {
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=300s -o Ciphers=aes128-gcm@openssh.com"
        },
        "compression": {"ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=300s -o Compression=yes"},
        "5 forks, Ansible's default": {"ANSIBLE_FORKS": "5"},
        "poll every 20 ms instead of every millisecond": {"ANSIBLE_CONFIG": str(poll)},
        "Python of the hosts named, not looked for": {"ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3"},
        "facts kept in files": {
            "ANSIBLE_CACHE_PLUGIN": "ansible.builtin.jsonfile",
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(folder / "facts"),
        },
        "shorter output (minimal)": {"ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal"},
        "Mitogen": mitogen_environment(),
    }


def kinds(folder: Path) -> dict[str, tuple[int, list[dict[str, Any]]]]:
    """Plays of one kind of task: how many tasks, and the tasks."""
    nothing = folder / "nothing.yml"
    nothing.write_text(json.dumps([{f"{BUILTIN}meta": "noop"}]))
    ping: dict[str, Any] = {f"{BUILTIN}ping": {}}
    check: dict[str, Any] = {f"{BUILTIN}assert": {"that": "1 == 1", "quiet": True}}
    skipped = {"when": False}
    packages: dict[str, Any] = {"name": ["nginx", "python3-venv"], "install_recommends": False}
    one: dict[str, tuple[int, dict[str, Any]]] = {
        "skipped task": (TASKS, ping | skipped),
        "skipped include_tasks": (TASKS, {f"{BUILTIN}include_tasks": str(nothing)} | skipped),
        "include_tasks": (TASKS, {f"{BUILTIN}include_tasks": str(nothing)}),
        "set_fact": (TASKS, {f"{BUILTIN}set_fact": {"bench_number": "{{ 1 + 1 }}"}}),
        "assert": (TASKS, check),
        "assert, run_once": (TASKS, check | {"run_once": True}),
        "assert in a loop of 5": (MODULES, check | {"loop": [1, 2, 3, 4, 5]}),
        "ping: any small module": (MODULES, ping),
        "setup with the least facts": (MODULES, {f"{BUILTIN}setup": {"gather_subset": ["!all"]}}),
        "file": (MODULES, {f"{BUILTIN}file": {"path": "/srv/bench", "state": "directory", "mode": "0755"}}),
        "copy": (MODULES, {f"{BUILTIN}copy": {"dest": "/srv/bench-file", "content": "x\n", "mode": "0644"}}),
        "user": (MODULES, {f"{BUILTIN}user": {"name": "fleet", "system": True, "create_home": False}}),
        "apt, all installed": (MODULES, {f"{BUILTIN}apt": packages}),
        "dpkg-query of the same": (
            MODULES,
            {f"{BUILTIN}command": {"argv": ["dpkg-query", "--show", *packages["name"]]}},
        ),
    }
    return {name: (number, [task] * number) for name, (number, task) in one.items()}


def try_settings(fleet: Fleet, repeat: int) -> dict[str, Run]:
    """The deploy without a change, with each setting in turn, so that what disturbs the machine disturbs all."""
    runs: dict[str, list[Run]] = {}
    for _ in range(repeat):
        for name, environment in settings(fleet.folder).items():
            run = fleet.deploy(environment=environment)
            show(name, run)
            must_change(run, 0, name)
            del run["task_seconds"]
            runs.setdefault(name, []).append(run)
    return {name: fewest_seconds(found) for name, found in runs.items()}


def try_tasks(fleet: Fleet, size: int) -> dict[str, dict[str, float]]:
    """What one task of each kind costs, without the play around it."""
    idle = [{f"{BUILTIN}meta": "noop"}]
    # The first play opens the connections.
    fleet.play([{f"{BUILTIN}ping": {}}])
    before = fleet.play(idle)
    costs = {}
    for name, (number, tasks) in kinds(fleet.folder).items():
        run = fleet.play(tasks)
        show(name, run)
        cpu = run["controller_cpu_seconds"] - before["controller_cpu_seconds"]
        costs[name] = {
            "milliseconds": round((run["seconds"] - before["seconds"]) / number * 1000),
            "controller_cpu_milliseconds_per_host": round(cpu / number / size * 1000),
        }
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./fleet bench ansible", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=5, help="number of test hosts")
    parser.add_argument("--repeat", type=int, default=1, help="times that each setting is tried; the shortest counts")
    parser.add_argument("--out", type=Path, help="file to write, instead of the one that docs/performance.md shows")
    given = parser.parse_args()
    folder = Path(os.environ["FLEET_TEST_STATE"]) / "bench" / "ansible"
    raw: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "kind": "host",
        "hosts": given.hosts,
        "machine": machine(),
    }
    hosts = [f"host{number}" for number in range(1, given.hosts + 1)]
    fleet = Fleet(folder, hosts, "host", {"services": ECHO})
    fleet.create()
    show("first deploy", fleet.deploy())
    raw["tasks"] = try_tasks(fleet, given.hosts)
    raw["settings"] = try_settings(fleet, given.repeat)
    fleet.destroy()
    out: Path = (given.out or deploy_page.RAW_ANSIBLE).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(raw, indent=2) + "\n")
    print(f"\n{deploy_page.ansible(raw)}\nwritten: {out}")
    if not given.out:
        deploy_page.write()
        print(f"written: {deploy_page.PAGE}")


if __name__ == "__main__":
    main()
