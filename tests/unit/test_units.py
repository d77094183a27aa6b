"""Units: which run with older settings than those on disk, and what their managers are asked."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import units


@pytest.fixture
def process() -> Iterator[int]:
    child = subprocess.Popen(["sleep", "60"])
    yield child.pid
    child.kill()
    child.wait()


def test_the_start_of_a_process_is_told_to_the_second(process: int) -> None:
    assert units.started_at(process) == pytest.approx(time.time(), abs=2)


def test_a_process_that_is_gone_has_no_start() -> None:
    assert units.started_at(2**22 + 1) is None


@pytest.mark.parametrize(
    ("age", "stale"),
    [pytest.param(0, True, id="younger"), pytest.param(-60, False, id="older"), pytest.param(3600, False, id="future")],
)
def test_only_a_file_younger_than_the_process_makes_it_stale(tmp_path: Path, age: float, stale: bool) -> None:
    settings = tmp_path / "emperor.ini"
    settings.touch()
    os.utime(settings, (time.time() + age, time.time() + age))
    started = time.time() - 30
    found = units.younger(started, [str(settings), str(tmp_path / "not there")])
    assert found == ([str(settings)] if stale else [])


def test_what_does_not_run_is_not_stale(tmp_path: Path) -> None:
    assert units.younger(None, [str(tmp_path)]) == []


def test_the_manager_is_asked_for_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, process: int) -> None:
    fresh, old = tmp_path / "fresh", tmp_path / "old"
    fresh.touch()
    old.touch()
    os.utime(old, (time.time() - 60, time.time() - 60))
    systemd = units.Systemd()
    monkeypatch.setattr(units.Systemd, "ask", lambda self, *words: (0, "0" if words[-1] == "down" else str(process)))
    monkeypatch.setattr(units, "started_at", lambda pid: time.time() - 30 if pid == process else None)
    assert systemd.stale("changed", [str(old), str(fresh)]) == [str(fresh)]
    assert systemd.stale("unchanged", [str(old)]) == []
    assert systemd.stale("down", [str(fresh)]) == [], "what does not run is not stale"
    assert systemd.stale("soon", [str(old)], pending=[str(old), str(fresh)]) == [str(old)], "it is about to change"


def test_a_unit_is_right_only_when_it_runs_is_enabled_and_its_files_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["ActiveState=active", "UnitFileState=enabled", "NeedDaemonReload=no"]
    systemd = units.Systemd()
    monkeypatch.setattr(units.Systemd, "ask", lambda self, *words: (0, "\n".join(said)))
    assert systemd.is_right("nginx")
    for number, bad in enumerate(("ActiveState=failed", "UnitFileState=disabled", "NeedDaemonReload=yes")):
        former, said[number] = said[number], bad
        assert not systemd.is_right("nginx"), bad
        said[number] = former


def test_a_unit_that_does_not_start_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units.Systemd, "ask", lambda self, *words: (int(words[0] == "restart"), "Job failed."))
    monkeypatch.setattr(
        subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, "the model is broken\n", "")
    )
    with pytest.raises(units.UnitError, match=r"Job failed\. Look: journalctl -u nginx") as raised:
        units.Systemd().restart("nginx")
    assert "the model is broken" in str(raised.value)


def test_without_supervisor_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    supervisor = units.Supervisor()
    assert (supervisor.pid("nginx"), supervisor.is_right("nginx"), supervisor.state("nginx")) == (0, False, "ABSENT")


def test_the_manager_has_to_see_who_took_over(monkeypatch: pytest.MonkeyPatch) -> None:
    pids = ["7", "7", "9"]
    monkeypatch.setattr(units.Systemd, "ask", lambda self, *words: (0, pids.pop(0) if len(pids) > 1 else pids[0]))
    units.Systemd().follow("nginx", 9)
    monkeypatch.setattr(units, "START_SECONDS", 0.3)
    with pytest.raises(units.UnitError, match="process 11 has taken over, and the service manager watches 9"):
        units.Systemd().follow("nginx", 11)
