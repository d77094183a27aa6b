"""What preflight refuses before anything is changed, and that it lets good inventories pass."""

import ast
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import ansible_modules
import pytest
import tree
import yaml
from stack import Json, Roles

preflight = ansible_modules.load("action", "preflight")
resolve = ansible_modules.load("filter", "services").services_resolve
OCR: Json = {"name": "ocr", "route": "/v1/parse", "model": "inference.models.ocr:OcrModel"}
SYSTEM = platform.freedesktop_os_release()
PLAYBOOK = ansible_modules.PREFLIGHT


def complaints(**options: Any) -> list[str]:
    found: list[str] = preflight.service_complaints(resolve([{**OCR, **options}]), 90, 90)
    return found


# ---- misspelt variables


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("site_listen_prt", "site_listen_addresses"),
        ("sites_server_name", "site_server_name"),
        ("site_server_nam", "site_server_name"),
        ("site_cors_origin", "site_cors_origins"),
        ("device_list", "devices_list"),
        ("devices_gpus", "devices_gpu"),
        ("emperor_stop_second", "emperor_stop_seconds"),
        ("nginx_worker_conections", "nginx_worker_connections"),
        ("release_keeps", "release_keep"),
        ("service", "services"),
        ("alow_outage", "allow_outage"),
        ("relase", "release"),
        ("teardown_confrm", "teardown_confirm"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_one_that_is_meant(name: str, meant: str) -> None:
    assert preflight.misspelt([name]) == [f"no role has a variable {name}. Did you mean {meant}?"]


def test_a_variable_like_none_of_ours_but_with_a_roles_prefix_is_refused() -> None:
    (complaint,) = preflight.misspelt(["site_zzzzqqqq"])
    assert complaint == "no role has a variable site_zzzzqqqq. The role's variables stand in roles/site/README.md."
    assert Path(tree.ROOT, "roles", "site", "README.md").exists()


def test_all_slips_are_told_at_once() -> None:
    assert len(preflight.misspelt(["site_server_nam", "devices_gpus", "site_server_name"])) == 2


def test_other_variables_are_nobodys_business() -> None:
    names = [
        "my_secret",
        "ansible_host",
        "http_proxy",
        "location",
        "_internal",
        "fleet_release",
        "inventory_dir",
        "groups",
    ]
    assert preflight.misspelt([*names, *preflight.known_variables(), *preflight.COMMAND_LINE]) == []


def test_every_variable_of_every_role_is_known() -> None:
    for folder in (tree.ROOT / "roles").iterdir():
        defaults = folder / "defaults" / "main.yml"
        if defaults.exists():
            names = yaml.safe_load(defaults.read_text()) or {}
            assert set(names) <= set(preflight.known_variables()), folder.name


# ---- services


def test_what_nginx_answers_is_described() -> None:
    code = ast.parse((tree.ROOT / "app" / "src" / "inference" / "openapi.py").read_text())
    (described,) = (
        ast.literal_eval(node.value)
        for node in code.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "FROM_NGINX"
    )
    variables = yaml.safe_load((tree.ROOT / "roles" / "site" / "vars" / "main.yml").read_text())
    assert [tuple(one[:3]) for one in variables["__site_problems"]] == list(described)


def test_a_good_service_has_no_complaint() -> None:
    assert complaints() == []
    assert complaints(wsgi_file="app/x.py", model="") == []
    assert complaints(module="mine.wsgi", model="") == []
    assert complaints(program="/home/me/cats.pt2", model="") == []
    assert complaints(environment={"A_1": "x"}, uwsgi_options={"max-requests": 5, "harakiri": 60}) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "OCR"}, "service name 'OCR': it takes up to 31 lower-case letters, digits and dashes"),
        ({"name": "a" * 32}, "it takes up to 31"),
        ({"name": "a--b/c"}, "service name 'a--b/c'"),
        ({"route": "v1/parse"}, "route is 'v1/parse'; it takes a path such as /v1/parse"),
        ({"route": "/v1/{id}"}, "route is '/v1/{id}'"),
        ({"route": "/a;}"}, "route is '/a;}'"),
        ({"route": "/readyz"}, "route /readyz is taken by the health checks"),
        ({"route": "/status"}, "route /status is taken by the site's own pages"),
        ({"route": "/openapi.json"}, "route /openapi.json is taken by the site's own pages"),
        ({"route": "/docs"}, "route /docs is taken by the site's own pages"),
        ({"route": "/openapi/ocr.json"}, "Take another, for example /v1/openapi/ocr.json."),
        ({"model": "OcrModel"}, "model is 'OcrModel'; it takes MODULE:CLASS"),
        ({"model": ""}, "model is ''; it takes MODULE:CLASS"),
        ({"port": 0}, "port is 0; it takes 1 to 65535"),
        ({"port": 70000}, "port is 70000"),
        ({"base_port": 80}, "base_port is 80; it takes 1024 to 65000"),
        ({"buffer_size": 65537}, "buffer_size is 65537; it takes 1024 to 65536 bytes"),
        ({"buffer_size": 0}, "buffer_size is 0"),
        ({"memory_per_worker_mib": 0}, "memory_per_worker_mib and host_memory_per_worker_mib must be above 0"),
        ({"host_memory_per_worker_mib": -1}, "memory_per_worker_mib and host_memory_per_worker_mib must be above 0"),
        ({"master": False}, "master is false: an emperor cannot stop a vassal without a master"),
        (
            {"mode": "batch", "wsgi_file": "app/x.py"},
            "mode is batch, and module or wsgi_file name",
        ),
        ({"mode": "batch", "module": "mine.wsgi"}, "mode is batch, and module or wsgi_file"),
        ({"mode": "batch", "batch_max_items": 0}, "batch_max_items is 0; it takes a whole number from 1 up"),
        ({"mode": "batch", "batch_delay_ms": -1}, "batch_delay_ms is -1; it takes a whole number from 0 up"),
        ({"environment": {"MY-TOKEN": "x"}}, "environment: 'MY-TOKEN' is no name that a shell can export"),
        ({"uwsgi_options": {"max-request": 5}}, "uWSGI has no option 'max-request'. Did you mean max-requests?"),
        ({"uwsgi_options": {"qqqqqq": 5}}, "uWSGI has no option 'qqqqqq'."),
        ({"uwsgi_options": {"processes": 5}}, "processes cannot be given here; use the service's option workers."),
        ({"uwsgi_options": {"socket": "/x"}}, "socket cannot be given here; use the service's option transport."),
        (
            {"uwsgi_options": {"attach-daemon2": "x"}},
            "attach-daemon2 cannot be given here; use the",
        ),
        ({"uwsgi_options": {"chdir": "/"}}, "chdir cannot be given here; it is set by the role."),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_what_is_wrong_with_a_service_is_told(options: Json, said: str) -> None:
    (complaint,) = complaints(**options)
    assert said in complaint
    assert complaint.startswith("service ")


@pytest.mark.parametrize(
    ("timeout", "expected"), [(89, []), (90, ["emperor_stop_seconds"]), (600, ["emperor_stop_seconds"])]
)
def test_a_switch_must_not_cut_the_longest_request(timeout: int, expected: list[str]) -> None:
    found = preflight.service_complaints(resolve([{**OCR, "timeout_seconds": timeout}]), 90, 3600)
    assert [f"Raise {name}" in complaint for name, complaint in zip(expected, found, strict=True)] == [True] * len(
        expected
    )
    both = preflight.service_complaints(resolve([{**OCR, "timeout_seconds": timeout}]), 90, 90)
    assert len(both) == 2 * len(expected)


def test_a_host_without_services_is_refused() -> None:
    assert preflight.service_complaints([], 90, 90) == ["services is empty; a host needs at least one."]


def test_every_option_that_the_template_sets_is_known_to_uwsgi() -> None:
    """And the other way round: what cannot be given in uwsgi_options stands in the template."""
    template = Path(tree.ROOT, "roles/services/templates/etc/fleet/devices/vassals/vassal.ini.j2").read_text()
    lines = [line.partition(" =")[0] for line in template.partition("[uwsgi]")[2].splitlines() if " = " in line]
    used = {name for name in lines if name and not name.startswith(("#", "{"))}
    assert used >= {"socket", "workers", "need-app"}
    assert used <= preflight.uwsgi_options()
    assert set(preflight.OWNED) - {"processes"} <= used
    assert len(preflight.uwsgi_options()) > 500


# ---- CORS and devices


def test_credentials_for_every_page_are_refused() -> None:
    assert preflight.cors_complaints(["*"], False) == []
    assert preflight.cors_complaints(["https://app.example.com", "http://localhost:3000"], True) == []
    (complaint,) = preflight.cors_complaints(["*", "https://app.example.com"], True)
    assert "site_cors_credentials is true and site_cors_origins holds '*'" in complaint


@pytest.mark.parametrize(
    "origin", ["app.example.com", "https://a.example/path", "https://a.example/", 'https://a";', "null"]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    (complaint,) = preflight.cors_complaints([origin], False)
    assert f"site_cors_origins: {origin!r} is not an origin" in complaint


def test_names_of_devices() -> None:
    assert preflight.device_complaints([{"name": "gpu0"}, {"name": "gpu1mig2"}]) == []
    found = preflight.device_complaints([{"name": "GPU 0"}, {"name": "../x"}, {"name": "a"}, {"name": "a"}, {}])
    assert [complaint.partition(" ")[2] for complaint in found] == [
        "name 'GPU 0' takes up to 16 lower-case letters and digits, a letter first.",
        "name '../x' takes up to 16 lower-case letters and digits, a letter first.",
        "name '' takes up to 16 lower-case letters and digits, a letter first.",
        "'a' stands there 2 times.",
    ]


# ---- the role, run by Ansible


def begin(folder: Path, inventory: Path) -> subprocess.Popen[str]:
    """Start the role over an inventory."""
    playbook = folder / "preflight.yml"
    playbook.write_text(PLAYBOOK)
    # This machine stands for the hosts, so its own system has to pass.
    here = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "preflight_further_systems": [f"{SYSTEM['ID'].capitalize()} {SYSTEM['VERSION_ID']}"],
    }
    return subprocess.Popen(
        [Path(sys.executable).parent / "ansible-playbook", "-i", inventory, playbook, "-e", json.dumps(here)],
        env=os.environ
        | {"ANSIBLE_CONFIG": str(tree.ROOT / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Json]:
    """The last result of each host."""
    out, err = process.communicate(timeout=120)
    try:
        report = json.loads(out)
    except ValueError:
        raise AssertionError(out + err) from None
    found: dict[str, Json] = {}
    for task in report["plays"][0]["tasks"]:
        # The other roles check their variables too, though nothing else of them is run.
        if task["task"]["name"].startswith("preflight : "):
            for host, result in task["hosts"].items():
                found[host] = {"task": task["task"]["name"], **result}
    assert {host for host, result in found.items() if result.get("failed")} == {
        host for host, stats in report["stats"].items() if stats["failures"]
    }
    assert not any(stats["changed"] or stats["unreachable"] for stats in report["stats"].values())
    return found


@pytest.mark.parametrize(
    ("facts", "known"),
    [
        (("Debian", "12", "12.11"), True),
        (("Debian", "13", "13.0"), True),
        (("Debian", "11", "11.9"), False),
        (("Ubuntu", "22", "22.04"), True),
        (("Ubuntu", "24", "24.04"), True),
        (("Ubuntu", "23", "23.10"), False),
        (("Fedora", "42", "42"), False),
    ],
)
def test_systems(roles: Roles, facts: tuple[str, str, str], known: bool) -> None:
    names = ("distribution", "distribution_major_version", "distribution_version")
    system = {"ansible_facts": dict(zip(names, facts, strict=True))}
    assert roles.evaluate("preflight", "{{ __preflight_system in __preflight_systems }}", **system) is known


LAST = "preflight : Refuse hosts that this project does not know"


HOSTS: dict[str, Json] = {
    "slips": {
        "site_listen_prt": 80,
        "device_list": [],
        "site_cors_origins": ["*"],
        "site_cors_credentials": True,
        "devices_list": [{"name": "GPU 0"}],
        "emperor_environment": {"MY-TOKEN": "x", "MINE": "y"},
        "services": [{**OCR, "timeout_seconds": 90, "uwsgi_options": {"max-request": 1}}],
    },
    "option": {"services": [{**OCR, "wokers": 2}]},
    "choice": {"site_balance": "fastest"},
    "nested": {"devices_list": [{"nam": "gpu0"}]},
    "twins": {"services": [OCR, OCR]},
    "good": {"services": [{**OCR, "workers": 2}]},
    # As in inventory/local: nothing is set at all.
    "bare": {},
}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Json], dict[str, Json]]:
    """What the role says of the hosts above and of those of inventory/example; run side by side."""
    folder = tmp_path_factory.mktemp("inventory")
    (folder / "hosts.yml").write_text(yaml.safe_dump({"inference": {"hosts": HOSTS}}))
    processes = [begin(folder, folder / "hosts.yml"), begin(folder, tree.ROOT / "inventory" / "example")]
    ours, example = [finish(process) for process in processes]
    return ours, example


def test_the_example_passes(played: tuple[dict[str, Json], dict[str, Json]]) -> None:
    assert set(played[1]) == {"gpu-host-1", "gpu-host-2", "gpu-host-3"}
    for host, result in played[1].items():
        assert (result["task"], result.get("failed", False)) == (LAST, False), f"{host}: {result.get('msg')}"


def test_the_local_inventory_sets_nothing() -> None:
    (group,) = yaml.safe_load((tree.ROOT / "inventory" / "local" / "hosts.yml").read_text()).values()
    names = [name for host in group["hosts"].values() for name in host] + list(group.get("vars", {}))
    assert all(name.startswith("ansible_") for name in names)


def test_every_bad_host_of_an_inventory_is_refused(played: tuple[dict[str, Json], dict[str, Json]]) -> None:
    found = played[0]
    said = {host: result.get("msg", "") if result.get("failed") else "" for host, result in found.items()}
    slips = said["slips"]
    assert slips.startswith("Nothing was changed. Mend in the inventory:\n- ")
    for line in (
        "no role has a variable device_list. Did you mean devices_list?",
        "no role has a variable site_listen_prt. Did you mean site_listen_addresses?",
        "uWSGI has no option 'max-request'. Did you mean max-requests?",
        "Raise emperor_stop_seconds.",
        "Raise nginx_shutdown_seconds.",
        "site_cors_credentials is true",
        "devices_list: name 'GPU 0'",
        "emperor_environment: 'MY-TOKEN' is no name",
    ):
        assert line in slips
    assert slips.count("\n- ") == 8
    assert "'ocr' and 'ocr' have the same name" in said["twins"]
    failed = {host: json.dumps(found[host]) for host in ("option", "choice", "nested")}
    assert "wokers" in failed["option"]
    assert "value of site_balance must be one of: least_conn, round_robin, ip_hash, got: fastest" in failed["choice"]
    assert "nam" in failed["nested"]
    assert "Did you mean workers?" in failed["option"]
    assert all("Check the types of all variables" in found[host]["task"] for host in ("choice", "nested"))
    for host in ("good", "bare"):
        assert (found[host]["task"], said[host]) == (LAST, "")
