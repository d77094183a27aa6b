"""The logs of a machine: files with what rotation put away, the journal, what comes while somebody follows."""

import gzip
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ansible_modules
import log_sources
import pytest
from log_lines import Parser, Query
from log_sources import Files

host_logs = ansible_modules.load("modules", "host_logs")
Json = dict[str, Any]

#: 2026-11-25T22:00:00Z
START = 1_795_644_000
#: What the module asks of journalctl, over a file with entries: oldest first unless --reverse.
JOURNALCTL = """#!{python}
import json, sys
options = dict(one.partition("=")[::2] for one in sys.argv[1:] if not one.startswith("--unit="))
units = [one.partition("=")[2] for one in sys.argv[1:] if one.startswith("--unit=")]
assert "nginx.service" in units and "uwsgi-emperor@*" in units and "--all" in options and options["--output"] == "json"
entries = [json.loads(line) for line in open({entries!r})]
if "--after-cursor" in options:
    entries = [one for one in entries if int(one["__CURSOR"]) > int(options["--after-cursor"])]
at = lambda name: float(options[name].lstrip("@")) * 1e6
if "--since" in options:
    entries = [one for one in entries if int(one["__REALTIME_TIMESTAMP"]) >= at("--since")]
if "--until" in options:
    entries = [one for one in entries if int(one["__REALTIME_TIMESTAMP"]) <= at("--until")]
if "--lines" in options:
    entries = entries[-int(options["--lines"]):]
for one in reversed(entries) if "--reverse" in options else entries:
    print(json.dumps(one), flush=True)
"""


def stamp(second: float) -> str:
    """A time, in seconds from 22 o'clock on."""
    at = START + second
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{round(at % 1 * 1000):03d}Z"


def app(second: float, request: str = "", **members: Any) -> str:
    line = {"time": stamp(second), "level": "info", "event": "request", "service": "ocr", "device": "gpu0", **members}
    return json.dumps(line | ({"request_id": request} if request else {}))


def access(second: float, request: str, **members: Any) -> str:
    line = {
        "time": stamp(second),
        "request_id": request,
        "uri": "/v1/parse",
        "status": 200,
        "seconds": 0.5,
        "pid": 7,
        "connection": 3,
    }
    return json.dumps(line | members)


class Machine:
    """The folders of a machine's logs."""

    def __init__(self, folder: Path, *, systemd: bool) -> None:
        self.log_dir, self.nginx_dir = folder / "fleet", folder / "nginx"
        for path in (self.log_dir, self.nginx_dir):
            path.mkdir()
        self.entries = folder / "entries"
        self.entries.touch()
        self.count = 0
        program = folder / "journalctl"
        program.write_text(JOURNALCTL.format(python=sys.executable, entries=str(self.entries)))
        program.chmod(0o755)
        self.options: Json = {
            "log_dir": str(self.log_dir),
            "nginx_dir": str(self.nginx_dir),
            "supervisor_log": str(folder / "supervisord.log"),
            "systemd_dir": str(folder if systemd else folder / "none"),
            "journalctl": str(program),
            "routes": {"/v1/parse": "ocr"},
        }

    def nginx(self, *lines: str, log: str = "access.log") -> None:
        with (self.nginx_dir / log).open("a") as stream:
            stream.writelines(f"{line}\n" for line in lines)

    def journal(self, second: float, message: Any, unit: str = "uwsgi-emperor@gpu0.service", **fields: Any) -> None:
        self.count += 1
        entry = {
            "__CURSOR": str(self.count),
            "__REALTIME_TIMESTAMP": str(int((START + second) * 1_000_000)),
            "MESSAGE": message,
        }
        with self.entries.open("a") as stream:
            stream.write(json.dumps(entry | {"_SYSTEMD_UNIT": unit, "PRIORITY": "6"} | fields) + "\n")

    def ask(self, **options: Any) -> Json:
        answer = ansible_modules.call(host_logs, self.options | options)
        assert not answer["failed"], answer
        return answer

    def records(self, **options: Any) -> list[Json]:
        return [json.loads(line) for line in self.ask(**options)["lines"]]

    def requests(self, **options: Any) -> list[str]:
        return [one["request_id"] for one in self.records(**options)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, systemd=True)


@pytest.fixture
def container(tmp_path: Path) -> Machine:
    return Machine(tmp_path, systemd=False)


# ---- what there is


def test_lines_of_all_sources_come_in_the_order_of_their_times(machine: Machine) -> None:
    machine.nginx(access(1, "a"), access(3, "b"))
    machine.journal(1, app(0.9, "a"))
    machine.journal(2.5, app(2.5, "b"))
    (machine.log_dir / "audit.log").write_text(json.dumps({"time": stamp(2), "event": "drained", "by": "x"}) + "\n")
    found = machine.records()
    assert [(one["time"][17:23], one["source"]) for one in found] == [
        ("00.900", "uwsgi-emperor@gpu0"),
        ("01.000", "nginx"),
        ("02.000", "audit"),
        ("02.500", "uwsgi-emperor@gpu0"),
        ("03.000", "nginx"),
    ]
    assert not machine.ask()["cut"]


def test_at_the_same_time_the_app_comes_before_nginx(machine: Machine) -> None:
    machine.nginx(access(1, "a"))
    machine.journal(1, app(1, "a"))
    assert [one["source"] for one in machine.records()] == ["uwsgi-emperor@gpu0", "nginx"]


def test_what_rotation_has_put_away_is_read_too(machine: Machine) -> None:
    machine.nginx(access(9, "newest"))
    (machine.nginx_dir / "access.log.1").write_text(access(8, "younger") + "\n" + access(8.5, "young") + "\n")
    for number, request in ((2, "old"), (10, "oldest")):
        with gzip.open(machine.nginx_dir / f"access.log.{number}.gz", "wt") as stream:
            stream.write(access(7 - number / 10, request) + "\n")
    (machine.nginx_dir / "access.log.bak").write_text(access(1, "no log") + "\n")
    assert machine.requests() == ["oldest", "old", "younger", "young", "newest"]
    assert machine.requests(request_id="oldest") == ["oldest"]


def test_the_newest_lines_are_kept_and_it_is_said_that_there_are_more(machine: Machine) -> None:
    machine.nginx(*(access(second, f"n{second}") for second in range(0, 20, 2)))
    for second in range(1, 20, 2):
        machine.journal(second, app(second, f"j{second}"))
    answer = machine.ask(lines=4)
    assert [json.loads(line)["request_id"] for line in answer["lines"]] == ["n16", "j17", "n18", "j19"]
    assert answer["cut"]
    assert not machine.ask(lines=20)["cut"]


def test_of_a_packed_file_the_newest_lines_are_kept(machine: Machine) -> None:
    with gzip.open(machine.nginx_dir / "access.log.2.gz", "wt") as stream:
        stream.writelines(access(second, f"n{second}") + "\n" for second in range(50))
    answer = machine.ask(lines=2)
    assert [json.loads(line)["request_id"] for line in answer["lines"]] == ["n48", "n49"]
    assert answer["cut"]


def test_an_answer_is_bounded_whatever_its_lines_hold(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_logs, "MOST_CHARACTERS", 100_000)
    for second in range(100):
        machine.journal(second, "x" * 10_000)
    answer = machine.ask()
    assert 5 <= len(answer["lines"]) <= 10
    assert answer["cut"]


def test_since_and_until(machine: Machine) -> None:
    machine.nginx(*(access(second, f"n{second}") for second in range(10)))
    for second in range(10):
        machine.journal(second, app(second, f"j{second}"))
    bounds = {"since": (START + 4) * 1_000_000, "before": (START + 5) * 1_000_000}
    assert machine.requests(**bounds) == ["j4", "n4", "j5", "n5"]


def test_a_file_that_was_put_away_before_is_not_opened(machine: Machine) -> None:
    machine.nginx(access(9, "new"))
    broken = machine.nginx_dir / "access.log.2.gz"
    broken.write_text("no gzip")
    failed = ansible_modules.call(host_logs, machine.options)
    assert failed["failed"] and str(broken) in failed["msg"]
    now = int(time.time() + 60) * 1_000_000
    assert machine.requests(since=now) == []


def test_level_service_and_device(machine: Machine) -> None:
    machine.nginx(access(1, "a"), access(2, "b", status=500), access(3, "c", uri="/readyz"))
    machine.journal(4, app(4, "d", level="error", service="echo"))
    machine.journal(5, app(5, "e", device="gpu1"), unit="uwsgi-emperor@gpu1.service")
    assert machine.requests() == ["a", "b", "d", "e"], "what probes ask is left out"
    assert machine.requests(level="debug") == ["a", "b", "c", "d", "e"]
    assert machine.requests(level="warning") == ["b", "d"]
    assert machine.requests(service="ocr") == ["a", "b", "e"]
    assert machine.requests(device="gpu1") == ["e"]


def test_the_way_of_one_request(machine: Machine) -> None:
    second = time.localtime(START + 2)
    error = time.strftime("%Y/%m/%d %H:%M:%S", second) + " [error] 7#7: *3 upstream timed out"
    machine.nginx(access(2.5, "mine", status=504), access(9, "other", connection=4))
    machine.nginx(error, error.replace("*3", "*4"), log="error.log")
    machine.journal(1, app(1, "other"))
    machine.journal(2.4, app(2.4, "mine"))
    machine.journal(
        2.2, json.dumps({"time": stamp(2.2), "level": "error", "event": "batch_failed", "request_ids": ["x", "mine"]})
    )
    found = machine.records(request_id="mine", level="debug")
    assert [(one["source"], one["event"]) for one in found] == [
        ("nginx", "upstream timed out"),
        ("uwsgi-emperor@gpu0", "batch_failed"),
        ("uwsgi-emperor@gpu0", "request"),
        ("nginx", "request"),
    ]
    assert found[0]["request_id"] == "mine"
    assert [one["event"] for one in machine.records(request_id="mine", level="error")] == [
        "upstream timed out",
        "batch_failed",
    ]
    # Without an id the error is told to be of a request as well.
    assert [one.get("request_id") for one in machine.records() if one["source"] == "nginx"] == [
        "mine",
        None,
        "mine",
        "other",
    ]
    assert machine.records(request_id="min", level="debug") == []


def test_entries_of_the_journal(machine: Machine) -> None:
    machine.journal(1, list("no text \xff".encode("latin-1")))
    machine.journal(
        2, "Main process exited, code=killed", unit="init.scope", UNIT="uwsgi-emperor@gpu0.service", PRIORITY="4"
    )
    machine.journal(
        2.5, "Finished fleet-logrotate.service - Put logs away.", unit="init.scope", UNIT="fleet-logrotate.service"
    )
    machine.journal(3, "worker line", _CMDLINE="ocr@gpu0 uWSGI worker 1")
    machine.journal(4, "nginx: [emerg] bind() failed", unit="nginx.service", PRIORITY="3")
    found = machine.records()
    assert [one["event"] for one in found] == [
        "no text �",
        "Main process exited, code=killed",
        "worker line",
        "nginx: [emerg] bind() failed",
    ]
    assert [one["source"] for one in found] == ["uwsgi-emperor@gpu0"] * 3 + ["nginx"]
    assert [one["level"] for one in found] == ["info", "warning", "info", "error"]
    assert [one.get("service") for one in found] == [None, None, "ocr", None]


def test_without_systemd_the_files_of_supervisor_are_read(container: Machine) -> None:
    container.journal(1, "not asked")
    log = container.log_dir / "uwsgi-emperor@cpu0.log"
    log.write_text(f"*** Starting uWSGI ***\n{app(1, 'a', device='cpu0')}\nlast words\n")
    (container.log_dir / "uwsgi-emperor@cpu0.log.1").write_text(app(0.5, "older") + "\n")
    Path(container.options["supervisor_log"]).write_text("2026-11-25 22:00:00,500 INFO spawned: 'nginx' with pid 9\n")
    found = container.records()
    assert {one["source"] for one in found} == {"uwsgi-emperor@cpu0", "supervisord"}
    events = [one["event"] for one in found if one["source"] != "supervisord"]
    assert events == ["request", "*** Starting uWSGI ***", "request", "last words"], (
        "a line without a time stays in its place"
    )
    assert all(one["device"] == "cpu0" for one in found if one["source"] != "supervisord" and one["event"] != "request")


def test_a_machine_without_logs_has_none(container: Machine) -> None:
    assert container.ask()["lines"] == []


def test_a_log_is_read_from_its_end_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.log"
    lines = [f"{number} {'é' * (number % 40)}" for number in range(500)]
    path.write_text("\n".join(lines) + "\n\nno end")
    monkeypatch.setattr(log_sources, "BLOCK", 64)
    assert list(log_sources.backwards(path)) == ["no end", *reversed(lines)]


# ---- what comes


def test_a_follower_gets_the_last_lines_and_then_what_comes(machine: Machine) -> None:
    machine.nginx(*(access(second, f"n{second}") for second in range(20)))
    machine.journal(19.5, app(19.5, "j"))
    first = machine.ask(follow=True, lines=3)
    assert [json.loads(line)["request_id"] for line in first["lines"]] == ["n18", "n19", "j"]
    nothing = machine.ask(follow=True, cursor=first["cursor"])
    assert nothing["lines"] == []
    machine.nginx(access(21, "n21"))
    machine.journal(20, app(20, "j20"))
    more = machine.ask(follow=True, cursor=nothing["cursor"])
    assert [json.loads(line)["request_id"] for line in more["lines"]] == ["j20", "n21"]
    assert machine.ask(follow=True, cursor=more["cursor"])["lines"] == []


def test_a_follower_waits_for_a_line(machine: Machine) -> None:
    machine.journal(0, app(0, "former"))
    cursor = machine.ask(follow=True)["cursor"]
    process = ansible_modules.begin(
        "host_logs", machine.options | {"follow": True, "cursor": cursor, "wait_seconds": 60}
    )
    time.sleep(1)
    began = time.monotonic()
    machine.nginx(access(1, "a"))
    machine.journal(1, app(1, "a"))
    answer = ansible_modules.finish(process)
    assert [json.loads(line)["source"] for line in answer["lines"]] == ["uwsgi-emperor@gpu0", "nginx"]
    assert time.monotonic() - began < 20


def test_a_follower_that_gets_nothing_is_answered_in_time(machine: Machine) -> None:
    cursor = machine.ask(follow=True)["cursor"]
    began = time.monotonic()
    assert machine.ask(follow=True, cursor=cursor, wait_seconds=0.5)["lines"] == []
    assert 0.4 < time.monotonic() - began < 10


def test_a_follower_gets_the_lines_of_its_request_only(machine: Machine) -> None:
    cursor = machine.ask(follow=True, request_id="mine")["cursor"]
    second = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(START + 2))
    machine.nginx(access(2.5, "mine"), access(3, "other", connection=4))
    machine.nginx(f"{second} [error] 7#7: *3 late", f"{second} [error] 7#7: *4 late", log="error.log")
    answer = machine.ask(follow=True, request_id="mine", cursor=cursor)
    assert [json.loads(line)["request_id"] for line in answer["lines"]] == ["mine", "mine"]


def test_too_much_at_once_is_cut_for_a_follower_too(machine: Machine) -> None:
    cursor = machine.ask(follow=True)["cursor"]
    machine.nginx(*(access(second, f"n{second}") for second in range(20)))
    answer = machine.ask(follow=True, cursor=cursor, lines=5)
    assert [json.loads(line)["request_id"] for line in answer["lines"]] == [f"n{second}" for second in range(15, 20)]
    assert answer["cut"]


@pytest.fixture
def log(tmp_path: Path) -> Callable[[], tuple[Files, Path]]:
    def make() -> tuple[Files, Path]:
        path = tmp_path / "access.log"
        return Files(path, "nginx", Parser(), Query(level="debug")), path

    return make


def read(files: Files, mark: Json) -> tuple[list[str], Json]:
    records, mark = files.since(mark)
    return [one["request_id"] for one in records], mark


def write(path: Path, *lines: str, end: str = "\n") -> None:
    with path.open("a") as stream:
        stream.write("\n".join(lines) + end)


def test_nothing_is_lost_or_told_twice_over_a_rotation(log: Callable[[], tuple[Files, Path]]) -> None:
    files, path = log()
    write(path, access(1, "before"))
    mark = files.end()
    write(path, access(2, "a"))
    path.rename(path.with_name("access.log.1"))
    # nginx writes to the former file until it has heard of it.
    write(path.with_name("access.log.1"), access(3, "b"))
    write(path, access(4, "c"))
    assert read(files, mark)[0] == ["a", "b", "c"]
    found, mark = read(files, mark)
    # And once more, while there was nobody to look.
    path.with_name("access.log.1").rename(path.with_name("access.log.2"))
    write(path, access(5, "d"))
    path.rename(path.with_name("access.log.1"))
    write(path, access(6, "e"))
    found, mark = read(files, mark)
    assert found == ["d", "e"]
    assert read(files, mark)[0] == []


def test_a_rotation_without_a_new_file_yet(log: Callable[[], tuple[Files, Path]]) -> None:
    files, path = log()
    write(path, access(1, "a"))
    mark = files.end()
    write(path, access(2, "b"))
    path.rename(path.with_name("access.log.1"))
    found, mark = read(files, mark)
    assert found == ["b"]
    write(path, access(3, "c"))
    assert read(files, mark)[0] == ["c"]


def test_half_a_line_waits_for_its_end(log: Callable[[], tuple[Files, Path]]) -> None:
    files, path = log()
    line = access(1, "a")
    write(path, line[:20], end="")
    found, mark = read(files, {"inode": 0, "offset": 0})
    assert found == []
    write(path, line[20:])
    assert read(files, mark)[0] == ["a"]


def test_a_file_that_was_emptied_is_read_from_its_start(log: Callable[[], tuple[Files, Path]]) -> None:
    files, path = log()
    write(path, access(1, "a"), access(2, "b"))
    mark = files.end()
    path.write_text("")
    write(path, access(3, "c"))
    assert read(files, mark)[0] == ["c"]


def test_who_was_away_for_long_gets_the_end(
    log: Callable[[], tuple[Files, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, path = log()
    write(path, *(access(second, f"n{second}") for second in range(100)))
    monkeypatch.setattr(log_sources, "MOST_BYTES", 1000)
    found, mark = read(files, {"inode": path.stat().st_ino, "offset": 0})
    assert found[-1] == "n99" and 1 < len(found) < 10
    assert mark["offset"] == path.stat().st_size
