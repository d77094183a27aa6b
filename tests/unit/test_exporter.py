"""The role exporter: its site under nginx, who may ask, and what of an inventory it refuses."""

import http.client
import json
import re
from pathlib import Path
from typing import Any

import processes
import pytest
from ansible.errors import AnsibleError
from stack import Fleet, Roles

ECHO = [{"name": "echo", "route": "/v1/echo", "model": "inference.models.echo:EchoModel"}]
GIVEN: dict[str, Any] = {
    "services": ECHO,
    "inventory_hostname": "host1",
    "groups": {"inference": ["host1"]},
    "hostvars": {},
    "fleet_devices": [{"name": "gpu0", "kind": "gpu", "uuid": "GPU-1", "model": "NVIDIA Test", "cores": 2}],
    "fleet_host": {"ipv6": False},
    "fleet_release": {"dir": "/opt/fleet/releases/1", "id": "1"},
    "ansible_facts": {"service_mgr": "systemd"},
    "ansible_managed": "Ansible managed",
    "__emperor_manager": "systemd",
    "__emperor_log_dir": "/var/log/fleet",
}


@pytest.fixture
def roles(role_variables: Any, render: Any) -> Roles:
    return Roles(role_variables, render)


def site(roles: Roles, **given: Any) -> str:
    return str(roles.evaluate("exporter", "{{ __exporter_site.site }}", **{**GIVEN, **given}))


def directives(text: str, name: str) -> list[str]:
    return re.findall(rf"^ +{name} ([^;]+);", text, re.MULTILINE)


def test_by_default_only_this_host_may_ask(roles: Roles) -> None:
    text = site(roles)
    assert directives(text, "listen") == ["127.0.0.1:9180"]
    assert directives(text, "(?:allow|deny)")[:3] == ["127.0.0.1", "::1", "all"]


def test_hosts_of_the_group_monitoring_may_ask(roles: Roles) -> None:
    hostvars = {
        "watcher": {"ansible_host": "10.0.0.9"},
        "other": {"ansible_host": "x", "monitoring_address": "fd00::9"},
    }
    groups = {"inference": ["host1"], "monitoring": ["watcher", "other", "host1"]}
    text = site(roles, hostvars=hostvars, groups=groups, exporter_allow=["192.0.2.0/24"])
    assert directives(text, "listen") == ["0.0.0.0:9180"]
    assert directives(text, "(?:allow|deny)")[:6] == ["127.0.0.1", "::1", "192.0.2.0/24", "fd00::9", "10.0.0.9", "all"]


def test_a_host_of_that_group_without_an_address_is_refused(roles: Roles) -> None:
    groups = {"inference": ["host1"], "monitoring": ["watcher"]}
    with pytest.raises(AnsibleError, match=r"watcher.*Set monitoring_address"):
        site(roles, hostvars={"watcher": {"ansible_host": "watcher.example"}}, groups=groups)


def test_a_port_that_a_service_has_is_refused(roles: Roles) -> None:
    with pytest.raises(AnsibleError, match="exporter_port: 8100 is the port of the service echo"):
        roles.evaluate("exporter", "{{ __exporter_site }}", **GIVEN, exporter_port=8100)


@pytest.mark.parametrize("manager", ["systemd", "supervisor"])
def test_its_unit_runs_the_code_of_the_release(roles: Roles, manager: str) -> None:
    given = {**GIVEN, "__emperor_manager": manager}
    files = {one["path"]: one for one in roles.evaluate("exporter", "{{ __exporter_files }}", **given)}
    unit = roles.evaluate("exporter", "{{ __exporter_unit }}", **given)
    assert unit["files"] == list(files)
    runs = [
        text for text in (one["content"] for one in files.values()) if "/opt/fleet/releases/1/venv/bin/python" in text
    ]
    assert len(runs) == 1
    settings = json.loads(files["/etc/fleet/exporter.json"]["content"])
    assert settings["devices"] == [{"name": "gpu0", "kind": "gpu", "uuid": "GPU-1", "model": "NVIDIA Test"}]
    assert settings["routes"] == {"echo": "/v1/echo"}
    assert settings["nginx_status"] == "http://127.0.0.1:9180/nginx"


def test_nginx_serves_it(roles: Roles, tmp_path: Path) -> None:
    """Metrics come from the exporter's socket; without it nginx says so, and its own numbers it has by itself."""
    fleet = Fleet(tmp_path, roles)
    port, own = processes.free_ports(2)
    given = {**GIVEN, "exporter_port": own}
    extra = roles.evaluate("exporter", "{{ __exporter_site }}", **given)
    service = [{**ECHO[0], "port": port}]
    fleet.lay(service, [{"service": "echo", "device": "gpu0", "address": "127.0.0.1:9"}])
    root = tmp_path / "nginx"
    (root / "sites-enabled" / "fleet-exporter.conf").write_text(
        fleet.local(extra["upstream"], ("/run/fleet-exporter/http.sock", str(tmp_path / "http.sock"))) + extra["site"]
    )
    main = root / "nginx.conf"
    main.write_text(main.read_text().rstrip().removesuffix("}") + "include sites-enabled/fleet-exporter.conf;\n}\n")

    def get(path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", own, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    with fleet.nginx([port, own]):
        assert get("/metrics")[0] == 502
        code, text = get("/nginx")
        assert (code, "Active connections: " in text) == (200, True)
        assert get("/status.json")[0] == 404
