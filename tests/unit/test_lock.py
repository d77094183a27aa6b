"""The lock of the fleet: one taker of many, whole or not there, and who may take over what a dead run left."""

import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ansible_modules
import pytest
import tree
import yaml

lock = ansible_modules.load("modules", "fleet_lock")
action = ansible_modules.load("action", "fleet_lock")
runs = ansible_modules.load("action", "fleet_run")
Json = dict[str, Any]


def run_of(name: str, **changes: Any) -> Json:
    return {
        **{"id": name, "by": f"{name}@controller", "controller": "controller", "pid": 1, "pid_started": 2},
        **{"processes_of": "boot/1", "verb": "deploy", "why": "", **changes},
    }


class Host:
    """The folder of one host's lock, and the module called over it."""

    def __init__(self, folder: Path) -> None:
        self.path, self.log = folder / "lib" / "lock.json", folder / "log" / "audit.log"

    def arguments(self, state: str, run: Json, **more: Any) -> Json:
        return {"state": state, "run": run, "path": str(self.path), "audit_log": str(self.log), **more}

    def ask(self, state: str, run: Json, *, check: bool = False, **more: Any) -> Json:
        return ansible_modules.call(lock, self.arguments(state, run, **more), check=check)

    def events(self) -> list[tuple[str, str]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [(line["event"], line["run"]) for line in lines]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_it_is_taken_once_and_released_by_its_taker_only(host: Host) -> None:
    first, second = run_of("a", why="new model"), run_of("b")
    assert host.ask("taken", first)["changed"]
    assert {**first, "time": "x"} == {**json.loads(host.path.read_text()), "time": "x"}
    again = host.ask("taken", first)
    assert (again["changed"], again["holder"]) == (False, None)
    assert host.ask("taken", second)["holder"]["by"] == "a@controller"
    assert not host.ask("released", second)["changed"]
    assert host.path.exists()
    assert host.ask("released", first)["changed"]
    assert host.ask("taken", second)["changed"]
    assert host.events() == [("lock_taken", "a"), ("lock_taken", "b")]
    assert [path.name for path in host.path.parent.iterdir()] == ["lock.json"]


def test_nothing_is_made_where_there_is_nothing_to_release(host: Host) -> None:
    assert not host.ask("released", run_of("a"))["changed"]
    assert not host.ask("broken", run_of("a"), replace="b")["changed"]
    assert not host.path.parent.exists()


def test_a_check_changes_nothing_and_says_who_holds_it(host: Host) -> None:
    assert host.ask("taken", run_of("a"), check=True) == {
        **{"changed": True, "holder": None, "replaced": None, "failed": False},
        **{"invocation": host.ask("taken", run_of("a"), check=True)["invocation"]},
    }
    assert not host.path.parent.exists()
    host.ask("taken", run_of("a"))
    assert host.ask("taken", run_of("b"), check=True)["holder"]["id"] == "a"
    assert host.ask("released", run_of("a"), check=True)["changed"]
    assert host.path.exists()


def test_it_is_replaced_only_by_who_names_its_holder(host: Host) -> None:
    host.ask("taken", run_of("a"))
    assert host.ask("taken", run_of("b"), replace="c")["holder"]["id"] == "a"
    found = host.ask("taken", run_of("b"), replace="a", reason="a is dead")
    assert (found["changed"], found["replaced"]["id"]) == (True, "a")
    # The next that saw the same stale lock comes too late.
    assert host.ask("taken", run_of("c"), replace="a")["holder"]["id"] == "b"
    assert host.events() == [("lock_taken", "a"), ("lock_broken", "b"), ("lock_taken", "b")]


@pytest.mark.parametrize("text", ["", '{"id": "a", "by"', "[]", "{}", "\0\0\0"])
def test_a_half_written_lock_is_stale(host: Host, text: str) -> None:
    host.path.parent.mkdir()
    host.path.write_text(text)
    found = host.ask("taken", run_of("b"))
    assert found["changed"]
    assert found["replaced"] == {"id": lock.UNREADABLE, "text": text}
    assert json.loads(host.path.read_text())["id"] == "b"
    assert host.events() == [("lock_broken", "b"), ("lock_taken", "b")]


def test_breaking_says_whose_it_was(host: Host) -> None:
    host.ask("taken", run_of("a"))
    assert host.ask("shown", run_of("b"))["holder"]["id"] == "a"
    assert not host.ask("broken", run_of("b"), replace="c")["changed"]
    assert host.ask("broken", run_of("b"), replace="a")["holder"]["id"] == "a"
    assert not host.path.exists()
    assert host.events()[-1] == ("lock_broken", "b")


TAKER = """
import json, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[3].split(":")
import ansible_modules
module = ansible_modules.load("modules", "fleet_lock")
lock = module.Lock(Path(sys.argv[1]))
names = sys.argv[2].split(",")
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([name for name in names if module.take(lock, {"id": name}, "old", False)[0]]))
"""


def taker(host: Host, names: str) -> subprocess.Popen[str]:
    arguments = [str(host.path), names, f"{tree.ROOT / 'tests'}:{tree.ROOT / 'plugins' / 'module_utils'}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", TAKER, *arguments], text=True, **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_at_once_one_takes_it(host: Host, stale: bool) -> None:
    """Also when all of them see the same stale lock, which each may replace."""
    if stale:
        host.ask("taken", run_of("old"))
    processes = [taker(host, f"run{n}") for n in range(8)]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    taken = [name for process in processes for name in json.loads(process.communicate()[0])]
    assert len(taken) == 1
    assert json.loads(host.path.read_text())["id"] == taken[0]


def test_killed_at_any_point_it_is_whole_or_not_there(host: Host) -> None:
    """The taker is stopped before each of its steps in turn."""
    for step in range(1, 40):
        child = os.fork()
        if child == 0:
            left = step

            def trace(frame: Any, event: str, argument: Any) -> Any:
                nonlocal left
                if event == "line" and frame.f_code.co_filename.endswith("fleet_lock.py"):
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                return trace

            sys.settrace(trace)
            lock.take(lock.Lock(host.path), {"id": "child"}, "old", False)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if host.path.exists():
            assert json.loads(host.path.read_text())["id"] in {"child", "old"}
        # Whatever it left, the next one gets on.
        found = host.ask("taken", run_of("next"), replace="child")
        assert found["holder"] is None or found["holder"]["id"] == "old"
        assert host.ask("taken", run_of("next"), replace="old")["holder"] is None
        assert [path.name for path in host.path.parent.iterdir()] == ["lock.json"]
        assert host.ask("released", run_of("next"))["changed"]
        host.ask("taken", run_of("old"))
        if status == 0:
            assert step > 15
            return
    raise AssertionError("the taker never came to its end")


# ---- who runs


def test_which_process_a_run_is() -> None:
    here = runs.describe(os.getpid(), "deploy", "because")
    assert here["pid_started"] == runs.started(os.getpid()) > 0
    assert (here["controller"], here["verb"], here["why"]) == (socket.gethostname(), "deploy", "because")
    assert here["id"] != runs.describe(os.getpid(), "deploy", "")["id"]
    assert datetime.datetime.strptime(here["id"].partition("-")[0], "%Y%m%dT%H%M%S%z")


def test_who_stands_behind_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "ada")
    assert runs.describe(1, "deploy", "")["by"] == f"ada@{socket.gethostname()}"
    monkeypatch.delenv("SUDO_USER")
    assert not runs.describe(1, "deploy", "")["by"].startswith("ada@")


def test_a_dead_process_has_no_start() -> None:
    process = subprocess.Popen(["sleep", "60"])
    assert runs.started(process.pid) > 0
    process.kill()
    while runs.started(process.pid):
        time.sleep(0.01)
    # Nobody has waited for it: until then it is a zombie of the same id and start.
    assert Path(f"/proc/{process.pid}").exists()
    process.wait()
    assert runs.started(process.pid) == 0


def test_who_has_ended() -> None:
    holder = run_of("a", pid=5, pid_started=100)
    assert action.ended(holder, "boot/1", 0)
    assert action.ended(holder, "boot/1", 101), "another process with the same id"
    assert not action.ended(holder, "boot/1", 100)
    assert not action.ended(holder, "boot/2", 0), "after a boot, or from elsewhere, nothing is known of it"
    assert not action.ended({"id": "unreadable"}, None, 0)


def test_how_a_holder_is_told() -> None:
    now = datetime.datetime(2026, 1, 1, 12, 30, tzinfo=datetime.UTC)
    holder = run_of("a", why="new model", pid=7, time="2026-01-01T12:00:00+00:00")
    assert action.describe(holder, now) == (
        "`deploy` of a@controller since 2026-01-01T12:00:00+00:00 (30 min ago), because: new model (process 7 there)"
    )
    assert action.describe({"id": "unreadable"}, now) == "a lock that cannot be read"


# ---- the role, run by Ansible


PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - fleet_run: {verb: toy, why: a toy}
      register: __toy
      run_once: true
    - ansible.builtin.set_fact:
        fleet_run: "{{ __toy.run }}"
      run_once: true
    - ansible.builtin.import_role: {name: lock}
    - ansible.builtin.copy: {content: "{{ fleet_run | to_json }}", dest: "{{ toy_folder }}/run.json", mode: "0644"}
      run_once: true
    - ansible.builtin.wait_for: {path: "{{ toy_folder }}/go", sleep: 1}
      run_once: true
      when: toy_wait is defined
    - ansible.builtin.import_role: {name: lock, tasks_from: release}
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.debug: {msg: "{{ inventory_hostname }} went on"}
"""
UNLOCK = """
- hosts: all
  gather_facts: false
  tasks:
    - fleet_run: {verb: unlock, why: ""}
      register: __toy
      run_once: true
    - ansible.builtin.set_fact:
        fleet_run: "{{ __toy.run }}"
      run_once: true
    - ansible.builtin.import_role: {name: lock, tasks_from: break}
"""


class Fleet:
    """Four hosts, all of them this machine, with a lock each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = ["edge1", "host1", "host2", "host3"]
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        groups = {"edge": self.names[:1], "inference": self.names[1:]}
        inventory = {group: {"hosts": {name: dict(here) for name in names}} for group, names in groups.items()}
        self.write(inventory)
        (folder / "toy.yml").write_text(PLAYBOOK)
        (folder / "unlock.yml").write_text(UNLOCK)
        self.variables = {
            "__lock_file": f"{folder}/{{{{ __lock_host }}}}/lock.json",
            "__lock_audit_log": f"{folder}/{{{{ __lock_host }}}}/audit.log",
            "toy_folder": str(folder),
        }

    def write(self, inventory: Json) -> None:
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory))

    def lose(self, *names: str) -> None:
        """Have hosts that do not answer."""
        inventory = yaml.safe_load((self.folder / "hosts.yml").read_text())
        for group in inventory.values():
            for name in set(names) & set(group["hosts"]):
                group["hosts"][name] = {"ansible_host": "127.0.0.1", "ansible_port": 1}
        self.write(inventory)

    def locked(self) -> list[str]:
        return [name for name in self.names if (self.folder / name / "lock.json").exists()]

    def lay(self, name: str, run: Json) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / "lock.json").write_text(json.dumps({**run, "time": "2026-01-01T00:00:00+00:00"}))

    def begin(self, playbook: str = "toy.yml", *arguments: str, **variables: Any) -> subprocess.Popen[str]:
        program = Path(sys.executable).parent / "ansible-playbook"
        given = [*arguments, "-e", json.dumps(self.variables | variables)]
        environment = {"ANSIBLE_CONFIG": str(tree.ROOT / "ansible.cfg"), "ANSIBLE_BECOME_EXE": str(self.sudo())}
        return subprocess.Popen(
            [program, "-i", self.folder / "hosts.yml", self.folder / playbook, *given],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def sudo(self) -> Path:
        """Stands in for sudo, which the machine of the tests may not have: runs the command as it is."""
        path = self.folder / "sudo"
        path.write_text(
            '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do case $1 in -u | -p) shift ;; esac; shift; done\nexec "$@"\n'
        )
        path.chmod(0o755)
        return path

    def run(self, playbook: str = "toy.yml", *arguments: str, **variables: Any) -> tuple[int, str]:
        process = self.begin(playbook, *arguments, **variables)
        text = process.communicate(timeout=120)[0]
        return process.returncode, text

    def start(self) -> tuple[subprocess.Popen[str], Json]:
        """A run that holds the lock until the file `go` is there."""
        process = self.begin(toy_wait=True)
        deadline = time.monotonic() + 60
        while not (self.folder / "run.json").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        return process, json.loads((self.folder / "run.json").read_text())

    def end(self, process: subprocess.Popen[str]) -> None:
        (self.folder / "go").write_text("")
        process.communicate(timeout=60)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_a_second_run_is_refused_while_the_first_one_goes_on(fleet: Fleet) -> None:
    first, run = fleet.start()
    try:
        # The process that the command line started, and not one of its workers.
        assert run["pid"] == first.pid
        assert fleet.locked() == ["edge1", "host1", "host2"]
        code, text = fleet.run()
        assert code == 2
        assert f"The fleet is locked by `toy` of {run['by']} since " in text
        assert f"because: a toy (process {first.pid} there). Wait for it, or stop it: kill {first.pid}." in text
        assert "went on" not in text
        code, text = fleet.run("unlock.yml")
        assert (code, fleet.locked()) == (2, ["edge1", "host1", "host2"])
        assert f"which still runs on this controller. Stop it first: kill {first.pid}" in text
    finally:
        fleet.end(first)
    assert (first.returncode, fleet.locked()) == (0, [])
    code, text = fleet.run()
    assert (code, fleet.locked(), text.count("went on")) == (0, [], 4)
    assert "changed=0" in text


def test_what_a_killed_run_left_is_taken_over(fleet: Fleet) -> None:
    first, run = fleet.start()
    first.kill()
    first.communicate()
    (fleet.folder / "go").write_text("")
    assert fleet.locked() == ["edge1", "host1", "host2"]
    code, text = fleet.run()
    assert (code, fleet.locked()) == (0, [])
    assert "that run has ended without releasing it" in " ".join(text.split())
    events = [json.loads(line) for line in (fleet.folder / "edge1" / "audit.log").read_text().splitlines()]
    assert [one["event"] for one in events] == ["lock_taken", "lock_broken", "lock_taken"]
    assert events[1]["holder"]["id"] == run["id"]


def test_who_is_refused_gives_back_what_it_had(fleet: Fleet) -> None:
    fleet.lay("host1", run_of("other", why="a test"))
    code, text = fleet.run()
    assert (code, fleet.locked()) == (2, ["host1"])
    assert (
        "because: a test (process 1 there). Wait for it. If that run is dead: ./fleet unlock (the lock lies on host1)"
        in text
    )
    code, text = fleet.run("unlock.yml")
    assert (code, fleet.locked()) == (0, [])
    assert "Removed the lock of `deploy` of other@controller since 2026-01-01" in text
    code, text = fleet.run("unlock.yml")
    assert code == 0
    assert "Nobody holds the lock; nothing was changed." in text


def test_hosts_that_are_down_cannot_hold_it(fleet: Fleet) -> None:
    fleet.lose("edge1", "host2")
    code, text = fleet.run("toy.yml", "--limit", "host1,host3")
    assert (code, text.count("went on")) == (0, 2), text
    assert (fleet.folder / "host1" / "audit.log").exists()
    # Not part of the run, and nevertheless the one that all runs ask.
    code, text = fleet.run("toy.yml", "--limit", "host3")
    assert code == 0, text
    fleet.lose("host1")
    code, text = fleet.run("toy.yml", "--limit", "host3")
    assert code == 2
    assert "None of edge1, host1, host2 can be reached to lock the fleet. Nothing was changed." in text
