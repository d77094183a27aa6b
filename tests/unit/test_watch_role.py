"""What the role watch works out, and the pages that are made of its table and its numbers."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import classes
import pytest
import tree
import watch_page
from stack import CPU, Roles

GPU = {"name": "gpu0", **CPU, "kind": "gpu", "uuid": "GPU-1"}
Render = Callable[..., str]


def worked_out(roles: Roles, devices: list[dict[str, Any]], manager: str = "systemd", **given: Any) -> dict[str, Any]:
    found = roles.evaluate(
        "watch", "{{ [__watch_unit, __watch_files] }}", fleet_devices=devices, __emperor_manager=manager, **given
    )
    unit, files = json.loads(json.dumps(found))
    return {"unit": unit, "files": {one["path"]: one for one in files}}


def test_the_unit_restarts_with_any_of_its_files(roles: Roles) -> None:
    found = worked_out(roles, [{"name": "cpu0", **CPU}], watch_failures=3)
    assert found["unit"]["name"] == "fleet-watch.service"
    assert set(found["unit"]["files"]) == set(found["files"])
    settings = json.loads(found["files"]["/etc/fleet/watch.json"]["content"])
    assert settings == {"failures": 3, "good_seconds": 20, "interval_seconds": 2.0, "nvml_seconds": 5.0}
    assert "/usr/local/lib/fleet/watch/ansible/module_utils/upstreams.py" in found["files"]


def test_supervisor_has_the_same_program(roles: Roles) -> None:
    found = worked_out(roles, [{"name": "cpu0", **CPU}], "supervisor")
    assert found["unit"]["name"] == "fleet-watch"
    text = found["files"]["/etc/supervisor/conf.d/fleet-watch.conf"]["content"]
    assert "command=/usr/bin/python3 -I -B /usr/local/lib/fleet/watch/fleet_watch.py /etc/fleet/watch.json" in text


def test_the_sandbox_is_as_tight_as_the_host_allows(roles: Roles) -> None:
    def unit(devices: list[dict[str, Any]], **given: Any) -> list[str]:
        files = worked_out(roles, devices, **given)["files"]
        return list(files["/etc/systemd/system/fleet-watch.service"]["content"].splitlines())

    of_cpu = unit([{"name": "cpu0", **CPU}])
    assert {
        "NoNewPrivileges=true",
        "CapabilityBoundingSet=CAP_DAC_OVERRIDE",
        "RestrictAddressFamilies=AF_UNIX",
        "IPAddressDeny=any",
        "ProtectSystem=strict",
        "PrivateDevices=true",
        "MemoryDenyWriteExecute=true",
    } <= set(of_cpu)
    assert "IPAddressAllow=localhost" not in of_cpu
    of_gpu = unit([GPU])
    assert "PrivateDevices=false" in of_gpu
    assert "PrivateDevices=true" not in of_gpu
    service = {"name": "a", "route": "/a", "model": "inference.models.echo:EchoModel", "transport": "tcp"}
    of_tcp = unit([GPU], services=[service])
    assert {"IPAddressAllow=localhost", "RestrictAddressFamilies=AF_UNIX AF_INET"} <= set(of_tcp)


def lay(roles: Roles, folder: Path) -> None:
    """Lay the program below a folder."""
    for path, one in worked_out(roles, [GPU])["files"].items():
        if path.startswith("/usr/local/lib/fleet/watch/"):
            target = folder / path.removeprefix("/usr/local/lib/fleet/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(one["content"])


def test_on_a_bare_host_it_tells_systemd_that_it_is_ready_and_ends_in_order(roles: Roles, tmp_path: Path) -> None:
    lay(roles, tmp_path)
    names = ("devices_dir", "upstreams_dir", "nginx_root", "run_dir", "log_dir", "deployments_dir")
    files = ("nginx_state_file", "pid_file", "drained_file", "measured_file", "deployed_file")
    given = {
        "interval_seconds": 0.2,
        "state_file": str(tmp_path / "watch.json"),
        "status_file": str(tmp_path / "state.json"),
        "places": {name: str(tmp_path / name) for name in (*names, *files)},
    }
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(given))
    command: list[str | Path] = [sys.executable, "-I", "-B", tmp_path / "watch" / "fleet_watch.py", settings]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        address = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **address})
        try:
            assert systemd.recv(100) == b"READY=1\nWATCHDOG=1"
            assert systemd.recv(100)
        finally:
            process.terminate()
            said = process.communicate(timeout=20)[1]
    assert (process.returncode, said) == (0, "")
    state = json.loads((tmp_path / "state.json").read_text())
    assert (state["devices"], state["amiss"]) == ({}, [])


def test_what_is_placed_runs_by_itself(roles: Roles, tmp_path: Path) -> None:
    """With Python alone, and with an `ansible` elsewhere that must not win."""
    lay(roles, tmp_path)
    settings = tmp_path / "watch.json"
    settings.write_text(json.dumps({"classes_file": str(tmp_path / "none.ini")}))
    command: list[str | Path] = [sys.executable, "-I", "-B", tmp_path / "watch" / "fleet_watch.py", settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("fleet-watch: ")
    assert "none.ini" in done.stderr
    settings.write_text("{")
    assert "./fleet deploy writes its files anew" in subprocess.run(command, capture_output=True, text=True).stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("interval_seconds", 0), ("failures", 0), ("good_seconds", -1), ("nvml_seconds", 0.1), ("failures", "many")],
)
def test_numbers_that_make_no_sense_are_refused(roles: Roles, name: str, value: Any) -> None:
    with pytest.raises(Exception, match=rf"watch_{name}: {value}"):
        worked_out(roles, [GPU], **{f"watch_{name}": value})


def test_the_page_has_the_table_of_classes() -> None:
    text = classes.PAGE.read_text()
    assert classes.page(text) == text, "mend it with: .venv/bin/python tools/classes.py"


def test_the_page_has_the_numbers_of_the_last_run() -> None:
    text = watch_page.PAGE.read_text()
    assert watch_page.page(text) == text, "mend it with: .venv/bin/python bench/watch_page.py"


def test_the_page_says_the_defaults_of_the_role(role_variables: Callable[[str], dict[str, Any]]) -> None:
    text = (tree.ROOT / "docs" / "gpus.md").read_text()
    for name, value in role_variables("watch").items():
        if name.startswith("watch_"):
            assert f"| `{name}` | `{json.dumps(value)}` |" in text
