"""Which services run with older settings than those on disk."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import ansible_modules
import pytest

stale_services = ansible_modules.load("modules", "stale_services")


@pytest.fixture
def process() -> Iterator[int]:
    child = subprocess.Popen(["sleep", "60"])
    yield child.pid
    child.kill()
    child.wait()


def test_the_start_of_a_process_is_told_to_the_second(process: int) -> None:
    assert stale_services.started_at(process) == pytest.approx(time.time(), abs=2)


def test_a_process_that_is_gone_has_no_start() -> None:
    assert stale_services.started_at(2**22 + 1) is None


@pytest.mark.parametrize(
    ("age", "stale"),
    [pytest.param(0, True, id="younger"), pytest.param(-60, False, id="older"), pytest.param(3600, False, id="future")],
)
def test_only_a_file_younger_than_the_process_makes_it_stale(tmp_path: Path, age: float, stale: bool) -> None:
    settings = tmp_path / "emperor.ini"
    settings.touch()
    os.utime(settings, (time.time() + age, time.time() + age))
    started = time.time() - 30
    assert stale_services.is_stale(started, [str(settings), str(tmp_path / "not there")]) is stale


def test_what_does_not_run_is_not_stale(tmp_path: Path) -> None:
    assert not stale_services.is_stale(None, [str(tmp_path)])


def test_the_manager_is_asked_for_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, process: int) -> None:
    fresh, old = tmp_path / "fresh", tmp_path / "old"
    fresh.touch()
    old.touch()
    os.utime(old, (time.time() - 60, time.time() - 60))
    asked = []

    def answer(module: object, command: list[str]) -> tuple[int, str, str]:
        asked.append(command)
        return 0, "0\n" if command[-1] == "down" else f"{process}\n", ""

    monkeypatch.setattr(stale_services.AnsibleModule, "run_command", answer)
    monkeypatch.setattr(stale_services, "started_at", lambda pid: time.time() - 30 if pid == process else None)
    services = [
        {"name": "changed", "files": [str(old), str(fresh)]},
        {"name": "unchanged", "files": [str(old)]},
        {"name": "down", "files": [str(fresh)]},
    ]
    result = ansible_modules.call(stale_services, {"services": services, "manager": "systemd"})
    assert result["stale"] == ["changed"]
    assert [command[-1] for command in asked] == ["changed", "unchanged", "down"]
