"""./fleet logs on the controller: the order of lines of several machines, their form, and following them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible_modules
import follow
import pytest
import tree
import yaml

logs = ansible_modules.load("filter", "logs")
action = ansible_modules.load("action", "host_logs")
Json = dict[str, Any]


def line(second: float, source: str = "nginx", **members: Any) -> str:
    return json.dumps(
        {"time": f"2026-11-25T22:00:{second:09.6f}Z", "source": source, "level": "info", "event": "request", **members}
    )


def answered(*lines: str, **members: Any) -> Json:
    return {"__reached": {"reached": True}, "__logs": {"lines": list(lines), "cut": False, "clock": "", **members}}


def report(hostvars: Json, form: str = "text", edges: tuple[str, ...] = (), **query: Any) -> Json:
    found: Json = logs.logs_report(hostvars, list(hostvars), edges, query, form)
    return found


# ---- lines of several machines


def test_lines_of_all_machines_are_in_one_order() -> None:
    found = report(
        {"edge1": answered(line(3), line(4)), "host1": answered(line(1), line(3.5)), "host2": answered(line(2))},
        edges=("edge1",),
    )
    assert [text.split()[1] for text in found["lines"]] == ["host1", "host2", "edge1", "host1", "edge1"]
    assert (found["exit"], found["notes"]) == (0, [])


def test_at_the_same_time_a_host_comes_before_the_edge_that_asked_it() -> None:
    found = report({"edge1": answered(line(3)), "host1": answered(line(3))}, edges=("edge1",))
    assert [text.split()[1] for text in found["lines"]] == ["host1", "edge1"]


def test_a_line_for_people() -> None:
    vassal = line(
        1,
        "uwsgi-emperor@gpu0",
        device="gpu0",
        service="ocr",
        request_id="abc",
        logger="x",
        status=200,
        path="/a b",
        timing_ms={"total": 1.5},
    )
    nginx = line(2, device="gpu0", service="ocr", request_id="abc", status=200, upstream="")
    found = report({"h": answered(vassal, nginx, line(3, "fleet-prober", event="h is ill", level="warning"))})
    assert found["lines"] == [
        '2026-11-25T22:00:01.000000Z  h  gpu0/ocr  info     request abc status=200 path="/a b" timing_ms={"total":1.5}',
        "2026-11-25T22:00:02.000000Z  h  nginx     info     request abc service=ocr device=gpu0 status=200",
        "2026-11-25T22:00:03.000000Z  h  fleet-prober  warning  h is ill",
    ]


def test_a_traceback_stands_below_its_line() -> None:
    one = line(
        1, "uwsgi-emperor@cpu0", event="request_failed", traceback="Traceback:\n  File x\nValueError: \x1b[31mred\n"
    )
    found = report({"h": answered(one)})["lines"]
    assert found[0].endswith("request_failed")
    assert found[1:] == ["    Traceback:", "      File x", "    ValueError: \\x1b[31mred"]


def test_what_a_terminal_would_act_on_is_shown_as_text() -> None:
    one = line(1, event="\x1b]0;title\x07", request_id="a\rb", client="\x1b[2J")
    text = "\n".join(report({"h": answered(one)})["lines"])
    assert not set(text) & {"\x1b", "\x07", "\r"}
    assert "\\x1b]0;title\\x07" in text


def test_lines_for_programs() -> None:
    found = report({"h": answered(line(1, request_id="é", release=None))}, "json")
    assert found["data"] is None, "they are lines here too"
    assert [json.loads(text) for text in found["lines"]] == [
        {
            "time": "2026-11-25T22:00:01.000000Z",
            "host": "h",
            "source": "nginx",
            "level": "info",
            "event": "request",
            "request_id": "é",
            "release": None,
        }
    ]


def test_what_is_not_all_of_it_is_said() -> None:
    hosts = {
        "a": answered(
            line(1), cut=True, clock="its clock is 4.0 s behind this machine's: its lines stand in the wrong places"
        ),
        "b": {"__reached": {"reached": False, "msg": "b cannot be reached.\n  look: ssh"}},
        "c": {"__reached": {"reached": True}, "__logs": {"failed": True, "msg": "access.log cannot be read"}},
    }
    found = report(hosts)
    assert found["notes"] == [
        "a: these are the newest 1 lines, there are more: narrow it by --since, --until, --level or --service, "
        "or raise --lines",
        "a: its clock is 4.0 s behind this machine's: its lines stand in the wrong places",
        "b: could not be asked: b cannot be reached. look: ssh",
        "c: could not be asked: access.log cannot be read",
    ]
    assert (found["exit"], len(found["lines"])) == (2, 1)
    assert report({"a": answered()}, asked="since x")["notes"] == ["no line since x"]


@pytest.mark.parametrize(
    ("there", "said"),
    [(100.5, ""), (99.5, ""), (103.0, "2.0 s ahead of"), (97.0, "3.0 s behind")],
)
def test_a_wrong_clock_is_told_about(there: float, said: str) -> None:
    note = action.clock_note(100.0, there, 101.0)
    assert (said in note) if said else (note == "")


def test_routes_tell_services_also_of_an_inventory_that_is_not_right() -> None:
    services = ansible_modules.load("filter", "services")
    hosts: Json = {"a": {"services": [{"name": "x", "route": "/x"}, {"name": "no route"}]}, "b": {}}
    assert services.services_routes(hosts, ["a", "b"]) == {"/x": "x", "/v1/parse": "ocr"}


# ---- following


class Clock:
    """One that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_are_held_back_for_earlier_ones() -> None:
    clock = Clock()
    merge = follow.Merge(2.0, clock)
    merge.add([{"time": "5"}, {"time": "7"}])
    clock.now = 1.0
    assert merge.due() == []
    # Of another host, later here and earlier there.
    merge.add([{"time": "4"}, {"time": "6"}, {"time": "9"}])
    clock.now = 2.0
    assert [one["time"] for one in merge.due()] == ["4", "5", "6", "7"]
    clock.now = 2.5
    # Too late for its place, and not lost.
    merge.add([{"time": "3"}])
    clock.now = 3.0
    assert [one["time"] for one in merge.due()] == ["3", "9"]
    merge.add([{"time": "8", "n": 1}, {"time": "8", "n": 2}])
    assert [one["n"] for one in merge.due(everything=True)] == [1, 2], "lines of one time keep their order"


PLAYBOOK = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "host_logs": {
                    "follow": True,
                    "nginx_dir": "{{ folder }}",
                    "log_dir": "{{ folder }}/none",
                    "systemd_dir": "{{ folder }}/none",
                    "supervisor_log": "{{ folder }}/none",
                    "lines": 10,
                }
            }
        ],
    }
]


class Follower:
    """A run of follow.py over Ansible, with two hosts on this machine and one that is down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        hosts = {name: here | {"folder": str(folder / name)} for name in ("host1", "host2")}
        for name in hosts:
            (folder / name).mkdir()
            (folder / name / "access.log").write_text(self.access("old", -3600))
        down = {"ansible_host": "127.0.0.1", "ansible_port": 1, "folder": "x"}
        (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": {**hosts, "down": down}}}))
        (folder / "toy.yml").write_text(yaml.safe_dump(PLAYBOOK))
        command: list[str | Path] = [
            sys.executable,
            tree.ROOT / "tools" / "follow.py",
            Path(sys.executable).parent / "ansible-playbook",
        ]
        self.out = folder / "out"
        with self.out.open("w") as out, (folder / "err").open("w") as err:
            self.process = subprocess.Popen(
                [*command, "-i", folder / "hosts.yml", folder / "toy.yml"],
                env=os.environ
                | {"ANSIBLE_CONFIG": str(tree.ROOT / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "fleet_report"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @staticmethod
    def access(request: str, ago: float = 0) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + ago))
        return json.dumps({"time": at, "request_id": request, "uri": "/x", "status": 200, "seconds": 0}) + "\n"

    def write(self, host: str, request: str, ago: float = 0) -> None:
        with (self.folder / host / "access.log").open("a") as stream:
            stream.write(self.access(request, ago))

    def told(self) -> list[str]:
        return [f"{words[1]} {words[5]}" for words in map(str.split, self.out.read_text().splitlines())]

    def wait(self, *wanted: str) -> None:
        end = time.monotonic() + 60
        while not set(wanted) <= set(self.told()):
            assert self.process.poll() is None and time.monotonic() < end, (
                self.told(),
                (self.folder / "err").read_text(),
            )
            time.sleep(0.1)

    def stop(self) -> int:
        # As a terminal does: everybody gets it.
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(30)


@pytest.fixture
def follower(tmp_path: Path) -> Iterator[Follower]:
    found = Follower(tmp_path)
    yield found
    if found.process.poll() is None:
        os.killpg(found.process.pid, signal.SIGKILL)
        found.process.wait()


def test_following_several_hosts_until_ctrl_c(follower: Follower) -> None:
    """Also when one of them is down, and over a rotation."""
    follower.wait("host1 old", "host2 old")
    log = follower.folder / "host1" / "access.log"
    follower.write("host2", "second")
    follower.write("host1", "first")
    follower.wait("host1 first", "host2 second")
    follower.write("host1", "third")
    log.rename(log.with_name("access.log.1"))
    follower.write("host1", "fourth")
    follower.wait("host1 third", "host1 fourth")
    assert follower.stop() == 130
    # How long a machine takes to be asked is not for this test: only the lines of one have a sure order.
    told = follower.told()
    assert [one for one in told if one.startswith("host1")] == [
        "host1 old",
        "host1 first",
        "host1 third",
        "host1 fourth",
    ]
    assert [one for one in told if one.startswith("host2")] == ["host2 old", "host2 second"]
    said = (follower.folder / "err").read_text()
    assert "down: does not answer, and is asked again: " in said
    assert said.count("\n") == 1, said


def test_a_host_that_comes_back_is_told_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The action itself, over a machine that fails twice."""
    answers: list[Any] = [
        {"lines": ["1"], "cursor": {"n": 1}, "cut": True, "clock": ""},
        {"msg": "MODULE\nFAILURE", "failed": True},
        action.AnsibleConnectionFailure("ssh: no route"),
        {"lines": [], "cursor": {"n": 2}, "cut": False, "clock": ""},
        {"lines": ["2"], "cursor": {"n": 3}, "cut": True, "clock": "its clock is slow"},
        {"lines": ["3"], "cursor": {"n": 4}, "cut": False, "clock": "its clock is slow"},
        {"lines": [], "cursor": {"n": 5}, "cut": False, "clock": ""},
    ]
    asked: list[Json] = []
    sent: list[Json] = []

    def ask(one: Any, options: Json, variables: Json) -> Json:
        asked.append(options)
        answer = answers.pop(0)
        if not answers:
            # Whoever follows has read it all, and stops.
            with listening.accept()[0] as reader, reader.makefile() as stream:
                sent.extend(json.loads(stream.readline()) for _ in range(7))
        if isinstance(answer, BaseException):
            raise answer
        return dict(answer)

    monkeypatch.setattr(action.ActionModule, "_ask", ask)
    monkeypatch.setattr(action.time, "sleep", lambda seconds: None)
    with action.socket.socket(action.socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        monkeypatch.setenv("FLEET_FOLLOW_SOCKET", str(tmp_path / "s"))
        action.ActionModule._follow(
            object.__new__(action.ActionModule), {"lines": 10, "follow": True}, {"inventory_hostname": "h"}
        )
    assert sent == [
        {"host": "h", "lines": ["1"]},
        {"host": "h", "note": "does not answer, and is asked again: MODULE FAILURE"},
        {"host": "h", "note": "answers again"},
        {"host": "h", "note": "its clock is slow"},
        {"host": "h", "note": "more lines than 10 at once: the older ones are left out"},
        {"host": "h", "lines": ["2"]},
        {"host": "h", "lines": ["3"]},
    ]
    assert [one.get("cursor") for one in asked] == [None, {"n": 1}, {"n": 1}, {"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}]


def test_when_nobody_can_be_asked_it_ends_and_says_why() -> None:
    command: list[str | Path] = [
        sys.executable,
        tree.ROOT / "tools" / "follow.py",
        "sh",
        "-c",
        "echo no inventory >&2; exit 4",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "no inventory\n")
