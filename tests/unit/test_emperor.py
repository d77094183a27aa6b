"""What runs the emperors: units, programs of supervisor, environments and helpers, as they are rendered."""

import configparser
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stack import CPU, Json

Render = Callable[..., str]
GPU: Json = {"name": "gpu0", "kind": "gpu", "uuid": "GPU-2f0a9d3e", "model": "Tesla P100", "cpus": [0, 1], "cores": 2}
MIG: Json = {**GPU, "name": "gpu0mig1", "kind": "mig", "uuid": "MIG-a28ad590"}
CPUS: list[Json] = [{**CPU, "name": f"cpu{number}", "cpus": [2 * number, 2 * number + 1]} for number in range(2)]
SHELLCHECK = Path(sys.executable).parent / "shellcheck"


def ini(text: str, **options: Any) -> configparser.ConfigParser:
    """Read systemd's and supervisor's files; a key that stands there twice is an error."""
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes=("#", ";"), **options)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


# ---- the environment of a device


@pytest.fixture
def environment(render: Render, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The environment that a device's emperor has once a shell has read the file, as supervisor's helper does."""

    def read(device: Json, devices: list[Json], **variables: Any) -> dict[str, str]:
        file = tmp_path / "environment"
        file.write_text(
            render("emperor", "etc/fleet/devices/environment.j2", device=device, fleet_devices=devices, **variables)
        )
        script = f'set -eu; set -a; . "{file}"; set +a; exec /usr/bin/env -0'
        done = subprocess.run(["/bin/sh", "-c", script], env={}, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return dict(line.split("=", 1) for line in done.stdout.split("\0") if line)

    return read


def test_a_gpu_is_given_by_its_uuid(environment: Callable[..., dict[str, str]]) -> None:
    for device in (GPU, MIG):
        found = environment(device, [GPU, MIG])
        assert found["CUDA_VISIBLE_DEVICES"] == device["uuid"]
        assert (found["FLEET_DEVICE"], found["FLEET_CPUS"]) == (device["name"], "")
        assert found["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert found["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


def test_a_cpu_device_sees_no_card_and_has_cores_of_its_own(environment: Callable[..., dict[str, str]]) -> None:
    found = environment(CPUS[1], CPUS)
    assert (found["CUDA_VISIBLE_DEVICES"], found["FLEET_CPUS"]) == ("", "2,3")
    alone = environment(CPUS[1], CPUS[1:])
    assert alone["FLEET_CPUS"] == "", "one device has all cores anyway"


VALUES = {
    "PROXY": "http://proxy.example.com:3128",
    "SPACES": "  a b ",
    "QUOTES": 'it\'s "so"',
    "DOLLAR": "$HOME ${HOME} $(id)",
    "BACKTICK": "`id`",
    "BACKSLASH": "a\\b\\\\c\\n",
    "HASH": "# ; &",
    "PERCENT": "100%",
    "LANGUAGES": "Grüße",
    "NUMBER": 7,
}


def test_further_environment_arrives_as_it_was_given(environment: Callable[..., dict[str, str]]) -> None:
    found = environment(GPU, [GPU], emperor_environment=VALUES)
    assert {name: found.get(name) for name in VALUES} == {name: str(value) for name, value in VALUES.items()}


def test_further_environment_wins(environment: Callable[..., dict[str, str]]) -> None:
    assert environment(GPU, [GPU], emperor_environment={"LANG": "de_DE.UTF-8"})["LANG"] == "de_DE.UTF-8"


# ---- systemd


def test_the_unit(render: Render) -> None:
    unit = ini(
        render(
            "emperor",
            "etc/systemd/system/uwsgi-emperor@.service.j2",
            fleet_release={"uwsgi_home": "/opt/fleet/uwsgi/2.0.30-py3.11"},
            emperor_stop_seconds=40,
            emperor_unit_options=["MemoryMax=8G", "Nice=5"],
        )
    )
    service = dict(unit["Service"])
    assert service["ExecStart"] == ("/opt/fleet/uwsgi/2.0.30-py3.11/bin/uwsgi --ini /etc/fleet/devices/%i/emperor.ini")
    assert service["EnvironmentFile"] == "/etc/fleet/devices/%i/environment"
    assert (service["User"], service["SupplementaryGroups"]) == ("fleet", "www-data")
    assert (service["KillMode"], service["TimeoutStopSec"]) == ("mixed", "50"), "longer than the emperor's own patience"
    assert (service["Restart"], unit["Unit"]["StartLimitIntervalSec"]) == ("always", "0")
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("true", "strict")
    assert (service["MemoryMax"], service["Nice"]) == ("8G", "5")
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def test_the_sandbox_can_be_taken_away(render: Render) -> None:
    text = render(
        "emperor",
        "etc/systemd/system/uwsgi-emperor@.service.j2",
        fleet_release={"uwsgi_home": "/opt"},
        emperor_sandbox=False,
    )
    assert not [name for name in ini(text)["Service"] if name.startswith(("Protect", "Restrict", "NoNew", "Private"))]


@pytest.mark.parametrize(
    ("device", "devices", "expected"),
    [
        (GPU, [GPU, MIG], {"PrivateDevices": "false"}),
        (MIG, [MIG], {"PrivateDevices": "false"}),
        (CPUS[0], CPUS[:1], {"PrivateDevices": "true"}),
        (CPUS[1], CPUS, {"PrivateDevices": "true", "CPUAffinity": "2 3"}),
    ],
)
def test_the_drop_in_of_a_device(render: Render, device: Json, devices: list[Json], expected: dict[str, str]) -> None:
    template = "etc/systemd/system/uwsgi-emperor@DEVICE.service.d/device.conf.j2"
    assert dict(ini(render("emperor", template, device=device, fleet_devices=devices))["Service"]) == expected


# ---- supervisor


def test_the_program_of_supervisor(render: Render) -> None:
    text = render("emperor", "etc/supervisor/conf.d/uwsgi-emperor.conf.j2", device=GPU, emperor_stop_seconds=40)
    program = ini(text)["program:uwsgi-emperor@gpu0"]
    assert program["command"] == "/usr/local/lib/fleet/run-emperor gpu0"
    assert (program["stopsignal"], program["stopwaitsecs"], program["killasgroup"]) == ("TERM", "50", "true")
    assert (program["autostart"], program["autorestart"]) == ("true", "true")
    assert program["stdout_logfile"] == "/var/log/fleet/uwsgi-emperor@gpu0.log"


HELPERS = {
    ("emperor", "run-vassal"): {},
    ("emperor", "run-emperor"): {"fleet_release": {"uwsgi_home": "/opt/fleet/uwsgi/2.0.30-py3.11"}},
    ("nginx", "run-nginx"): {},
    ("logs", "run-logrotate"): {},
}


@pytest.mark.parametrize(("role", "name"), HELPERS)
def test_helpers_are_sound_shell(render: Render, tmp_path: Path, role: str, name: str) -> None:
    script = tmp_path / name
    script.write_text(render(role, f"usr/local/lib/fleet/{name}.j2", **HELPERS[role, name]))
    command: list[str | Path] = [SHELLCHECK, "--shell=dash", "--exclude=SC1090,SC1091", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_vassal_of_a_release_that_is_gone_says_what_mends_it(render: Render, tmp_path: Path) -> None:
    helper = tmp_path / "run-vassal"
    helper.write_text(render("emperor", "usr/local/lib/fleet/run-vassal.j2"))
    (tmp_path / "ocr--r1.ini").write_text("[uwsgi]\nchdir = /opt/fleet/releases/no-such-release\n")
    command: list[str | Path] = ["/bin/sh", helper, "--ini", "ocr--r1.ini"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "/opt/fleet/releases/no-such-release has no venv/bin/uwsgi; mend: ./fleet deploy" in done.stderr


def test_the_helper_hands_the_vassal_on_to_the_uwsgi_of_its_release(render: Render, tmp_path: Path) -> None:
    """What is run by it is seen here; tests of the services see the same with real uWSGI."""
    helper = tmp_path / "run-vassal"
    helper.write_text(render("emperor", "usr/local/lib/fleet/run-vassal.j2"))
    program = tmp_path / "r1" / "venv" / "bin" / "uwsgi"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "$ODD" "$PERCENT"\n')
    program.chmod(0o755)
    lines = ["[uwsgi]", "env = ODD=a 'b' \"c\" $d `e` \\f", "env = PERCENT=50%% %%d", f"chdir = {tmp_path}/r1"]
    (tmp_path / "ocr--r1.ini").write_text("\n".join(lines) + "\n")
    command: list[str | Path] = ["/bin/sh", helper, "--ini", "ocr--r1.ini"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout.splitlines() == [
        "--ini",
        f"{tmp_path}/ocr--r1.ini",
        "a 'b' \"c\" $d `e` \\f",
        "50% %d",
    ]


# ---- the emperor's own settings


def test_the_emperors_settings(render: Render) -> None:
    text = render(
        "emperor",
        "etc/fleet/devices/emperor.ini.j2",
        device=GPU,
        emperor_stop_seconds=40,
        emperor_scan_seconds=2,
        emperor_max_pause_seconds=7,
    )
    found = dict(ini(text)["uwsgi"])
    assert found["emperor"] == "/etc/fleet/devices/gpu0/vassals"
    assert found["emperor-stats"] == "/run/fleet/gpu0/emperor.stats"
    assert found["emperor-wrapper"] == "/usr/local/lib/fleet/run-vassal"
    assert found["emperor-graceful-shutdown"] == "true"
    assert (found["emperor-curse-tolerance"], found["emperor-freq"]) == ("40", "2")
    assert found["emperor-max-throttle"] == "7000", "milliseconds"
