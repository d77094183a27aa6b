"""Prometheus, Alertmanager, every alert, and the dashboard: as the role makes them, judged by Debian's own programs."""

import grp
import json
import os
import pwd
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible_modules
import dashboard_picture
import environments
import processes
import pytest
import tree
import yaml
from stack import Roles

Json = dict[str, Any]
monitoring = ansible_modules.load("filter", "monitoring")
module = ansible_modules.load("modules", "monitoring_apply")
checks = ansible_modules.load("modules", "monitoring_checks")

ROLE = tree.ROOT / "roles" / "monitoring"
DASHBOARD = json.loads((ROLE / "files" / "dashboard.json").read_text())
ALERTS = yaml.safe_load((ROLE / "files" / "rules" / "alerts.yml").read_text())
CASES: dict[str, Json] = yaml.safe_load((Path(__file__).parent / "data/monitoring/alerts.yml").read_text())
PAGE = tree.ROOT / "docs" / "monitoring.md"
#: What the fleet's exporter tells, and the labels of each.
VASSAL = {"service", "device", "release"}
HISTOGRAM = ("_bucket", "_sum", "_count")
METRICS: dict[str, set[str]] = {
    "fleet_requests_total": VASSAL | {"route", "status"},
    "fleet_requests_rejected_total": VASSAL | {"reason"},
    **{f"fleet_request_duration_seconds{end}": VASSAL | {"stage", "le"} for end in HISTOGRAM},
    **{f"fleet_batch_items{end}": VASSAL | {"le"} for end in HISTOGRAM},
    "fleet_requests_in_flight": VASSAL,
    "fleet_queue_items": VASSAL,
    "fleet_queue_items_max": VASSAL,
    "fleet_workers": VASSAL | {"state"},
    "fleet_worker_respawns_total": VASSAL,
    "fleet_listen_queue": VASSAL,
    "fleet_device_in_rotation": {"device"},
    "fleet_device_out": {"device", "by", "reason"},
    "fleet_vassal_up": VASSAL,
    "fleet_device_memory_used_bytes": {"device"},
    "fleet_device_memory_total_bytes": {"device"},
    "fleet_device_utilization_ratio": {"device"},
    "fleet_device_temperature_celsius": {"device"},
    "fleet_device_ecc_errors_total": {"device", "kind"},
    "fleet_device_xid_errors_total": {"device", "xid"},
    "fleet_nginx_connections": {"state"},
    "fleet_nginx_requests_total": set(),
    "fleet_deploy_info": {"release", "deployment", "by"},
    "fleet_deploy_timestamp_seconds": set(),
    "fleet_certificate_expiry_timestamp_seconds": {"path"},
    "fleet_disk_free_bytes": {"path"},
    "fleet_disk_size_bytes": {"path"},
    "fleet_scrape_duration_seconds": set(),
}
#: What others tell.
OTHERS = {
    "up",
    "ALERTS",
    "node_cpu_seconds_total",
    "node_filesystem_avail_bytes",
    "node_filesystem_size_bytes",
    "node_systemd_unit_state",
    "prometheus_config_last_reload_successful",
    "alertmanager_config_last_reload_successful",
    "alertmanager_notifications_failed_total",
}
#: Labels that Prometheus or the role's configuration adds.
ADDED = {"instance", "job", "role"}

GROUPS = {"inference": ["gpu-host-1", "gpu-host-2"], "edge": ["edge-1"], "monitoring": ["watch-1"]}
HOSTVARS: dict[str, Json] = {
    "gpu-host-1": {"ansible_host": "192.0.2.11"},
    "gpu-host-2": {
        "edge_host_address": "fd00::2",
        "exporter_port": 9181,
        "ansible_facts": {"service_mgr": "supervisor"},
    },
    "edge-1": {"ansible_host": "192.0.2.21", "ansible_facts": {"service_mgr": "systemd"}},
    "watch-1": {"ansible_host": "192.0.2.31", "monitoring_node_port": 9200},
}
FLEET: Json = {"groups": GROUPS, "hostvars": HOSTVARS, "inventory_hostname": "watch-1"}
SECRETS = {
    "monitoring_receivers": [
        {"name": "nobody"},
        {"name": "team", "webhook_configs": [{"url": "https://hooks.example.com/T0k3n/abc"}]},
        {
            "name": "mail",
            "email_configs": [
                {
                    "to": "team@example.com",
                    "from": "fleet@example.com",
                    "smarthost": "mail.example.com:587",
                    "auth_username": "fleet",
                    "auth_password": "correct horse",
                }
            ],
        },
    ],
    "monitoring_route": {
        "receiver": "nobody",
        "routes": [{"receiver": "mail", "matchers": ['severity = "critical"']}, {"receiver": "team"}],
    },
}


@pytest.fixture(scope="session")
def programs() -> Path:
    return environments.monitoring()


def lay(roles: Roles, folder: Path, **variables: Any) -> Path:
    """The configuration of a monitoring host, below a folder."""
    given = FLEET | variables
    files = roles.evaluate("monitoring", "{{ __monitoring_files }}", **given)
    files.append(
        {
            "path": "/etc/fleet/monitoring/alertmanager.yml",
            "content": roles.evaluate(
                "monitoring",
                "{{ lookup('ansible.builtin.template', 'etc/fleet/monitoring/alertmanager.yml.j2') }}",
                **given,
            ),
        }
    )
    for one in files:
        path = folder / Path(one["path"]).relative_to("/etc")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(one["content"])
    return folder / "fleet" / "monitoring"


@pytest.fixture(scope="module")
def laid(roles: Roles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay(roles, tmp_path_factory.mktemp("etc"))


def run(program: Path, *arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- configuration


@pytest.mark.parametrize(
    "variables",
    [
        {},
        SECRETS,
        {"groups": {"inference": [], "monitoring": ["watch-1"]}},
        {
            "monitoring_scrape_configs": [{"job_name": "own", "static_configs": [{"targets": ["192.0.2.99:9999"]}]}],
            "monitoring_alertmanager_global": {"resolve_timeout": "3m"},
            "monitoring_alerts_off": ["EdgeBusy"],
            "monitoring_listen_address": "[::]",
        },
    ],
    ids=["defaults", "receivers", "no host", "further"],
)
def test_the_programs_take_the_configuration(roles: Roles, programs: Path, tmp_path: Path, variables: Json) -> None:
    folder = lay(roles, tmp_path, **variables)
    said = run(programs / "promtool", "check", "config", "prometheus.yml", cwd=folder)
    assert said.count("SUCCESS") == 5, "the files there are, the configuration, and three files of rules"
    run(programs / "amtool", "check-config", "alertmanager.yml", cwd=folder)


def test_prometheus_asks_every_machine_of_the_inventory(laid: Path) -> None:
    jobs = {
        one["job_name"]: one["static_configs"]
        for one in yaml.safe_load((laid / "prometheus.yml").read_text())["scrape_configs"]
    }
    found = {
        job: [(one["labels"]["instance"], one["labels"]["role"], one["targets"]) for one in configs]
        for job, configs in jobs.items()
    }
    assert found == {
        "fleet": [("gpu-host-1", "inference", ["192.0.2.11:9180"]), ("gpu-host-2", "inference", ["[fd00::2]:9181"])],
        # The one under supervisor has no node exporter.
        "node": [
            ("gpu-host-1", "inference", ["192.0.2.11:9100"]),
            ("edge-1", "edge", ["192.0.2.21:9100"]),
            ("watch-1", "monitoring", ["127.0.0.1:9200"]),
        ],
        "prometheus": [("watch-1", "monitoring", ["127.0.0.1:9090"])],
        "alertmanager": [("watch-1", "monitoring", ["127.0.0.1:9093"])],
    }


def test_a_machine_in_two_groups_has_one_node_exporter() -> None:
    variables = {"a": {"ansible_host": "192.0.2.11"}, "b": {"ansible_host": "192.0.2.12"}}
    found = monitoring.monitoring_targets(variables, {"inference": ["a"], "monitoring": ["a", "b"]}, "a")
    assert [(one["target"], one["role"]) for one in found["node"]] == [
        ("127.0.0.1:9100", "inference"),
        ("192.0.2.12:9100", "monitoring"),
    ]
    assert [one["target"] for one in found["fleet"]] == ["127.0.0.1:9180"]


def test_by_default_alerts_go_to_nobody_and_nothing_listens_outside(laid: Path) -> None:
    config = yaml.safe_load((laid / "alertmanager.yml").read_text())
    assert config["receivers"] == [{"name": "nobody"}]
    assert config["route"]["receiver"] == "nobody"
    for name, port in (("prometheus", 9090), ("prometheus-alertmanager", 9093)):
        unit = (laid.parents[1] / "systemd" / "system" / f"{name}.service.d" / "fleet.conf").read_text()
        assert f"--web.listen-address=127.0.0.1:{port} " in unit
    assert "--cluster.listen-address= " in unit


def test_only_monitoring_hosts_may_ask_a_node_exporter(roles: Roles) -> None:
    text = roles.evaluate(
        "monitoring",
        "{{ lookup('ansible.builtin.template', __monitoring_node_file[1:] ~ '.j2') }}",
        **FLEET,
    )
    assert text.endswith("IPAddressDeny=any\nIPAddressAllow=localhost 192.0.2.31\n")


def test_secrets_stand_in_one_file_and_in_no_message() -> None:
    found = monitoring.monitoring_secrets(SECRETS["monitoring_receivers"])
    assert {"https://hooks.example.com/T0k3n/abc", "correct horse"} <= set(found)
    assert not {"nobody", "team", "mail"} & set(found), "names stand in messages that somebody has to understand"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"monitoring_alerts_off": ["ReleaseMixd"]},
            "monitoring_alerts_off names 'ReleaseMixd'. Did you mean ReleaseMixed?",
        ),
        (
            {"monitoring_alert_for": {"ReleaseMixed": "an hour"}},
            "ReleaseMixed is 'an hour'; it takes a number with s, m, h or d",
        ),
        ({"monitoring_route": {"receiver": "nobdy"}}, "monitoring_route names 'nobdy'. Did you mean nobody?"),
        (
            {"monitoring_route": {"receiver": "nobody", "routes": [{"receiver": "x"}]}},
            "monitoring_route names 'x'. There are nobody.",
        ),
        ({"monitoring_route": {}}, "monitoring_route has no receiver"),
        ({"monitoring_error_ratio": 5}, "monitoring_error_ratio is 5; it takes a share between 0 and 1"),
        ({"monitoring_scrape_seconds": 0}, "monitoring_scrape_seconds is 0; it must be above 0."),
        (
            {"hostvars": HOSTVARS | {"watch-1": {}}},
            "watch-1 is known as 'watch-1': hosts and edges answer only addresses",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(roles: Roles, settings: Json, said: str) -> None:
    (complaint,) = roles.evaluate("monitoring", "{{ __monitoring_complaints }}", **FLEET | settings)
    assert said in complaint


def test_the_defaults_are_fine(roles: Roles) -> None:
    assert roles.evaluate("monitoring", "{{ __monitoring_complaints }}", **FLEET) == []


def test_alerts_can_be_left_out_and_wait_longer(roles: Roles, tmp_path: Path) -> None:
    everything = monitoring.alert_names(ALERTS)
    folder = lay(
        roles,
        tmp_path,
        monitoring_alerts_off=everything[1:],
        monitoring_alert_for={everything[0]: "7m"},
        monitoring_runbook="u",
    )
    (rule,) = [
        rule for group in yaml.safe_load((folder / "rules/alerts.yml").read_text())["groups"] for rule in group["rules"]
    ]
    assert (rule["alert"], rule["for"], rule["annotations"]["runbook"]) == (
        everything[0],
        "7m",
        f"u#{everything[0].lower()}",
    )


# ---- alerts


def expectations(name: str, case: Json) -> Iterator[Json]:
    """What promtool has to find at one moment: how many alerts fire, and each of them by its labels."""
    alert = f'alertname="{name}", alertstate="firing"'
    wanted = case.get("labels", [])
    counted = [{"labels": "{}", "value": len(wanted)}] if wanted else []
    yield {"expr": f"count(ALERTS{{{alert}}})", "eval_time": case["at"], "exp_samples": counted}
    for labels in wanted:
        matchers = ", ".join([alert, *(f'{key}="{value}"' for key, value in labels.items())])
        yield {
            "expr": f"count(ALERTS{{{matchers}}})",
            "eval_time": case["at"],
            "exp_samples": [{"labels": "{}", "value": 1}],
        }


def series_of(case: Json) -> list[Json]:
    return [{"series": name, "values": str(values)} for name, values in case["series"].items()]


def rules_of(laid: Path, *names: str) -> Json:
    """Files of rules for promtool, each worked out before the next; by itself it takes groups in any order."""
    files = [laid / "rules" / f"{name}.yml" for name in names]
    groups = [group["name"] for path in files for group in yaml.safe_load(path.read_text())["groups"]]
    return {"rule_files": [str(path) for path in files], "group_eval_order": groups}


def cases_of(name: str, sides: Json) -> list[Json]:
    return [
        {
            "name": f"{name} {side} {number}",
            "interval": sides.get("interval", "1m"),
            "input_series": series_of(case),
            "promql_expr_test": list(expectations(name, case)),
        }
        for side in ("fires", "silent")
        for number, case in enumerate(sides[side], 1)
    ]


def test_every_alert_has_a_case_where_it_fires_and_one_where_it_does_not() -> None:
    assert sorted(CASES) == sorted(monitoring.alert_names(ALERTS))
    assert not [name for name, sides in CASES.items() if not sides["fires"]]
    assert [name for name, sides in CASES.items() if not sides["silent"]] == ["Watchdog"], "which always fires"
    assert not [name for name, sides in CASES.items() for case in sides["fires"] if not case["labels"]]
    assert not [name for name, sides in CASES.items() for case in sides["silent"] if case.get("labels")]


@pytest.mark.parametrize("name", sorted(CASES))
def test_alert(laid: Path, programs: Path, tmp_path: Path, name: str) -> None:
    document = {
        **rules_of(laid, "bounds", "recording", "alerts"),
        "evaluation_interval": CASES[name].get("interval", "1m"),
        "tests": cases_of(name, CASES[name]),
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(document))
    run(programs / "promtool", "test", "rules", "test.yml", cwd=tmp_path)


def test_a_wrong_expectation_is_seen(laid: Path, programs: Path, tmp_path: Path) -> None:
    """Else the cases above would prove nothing."""
    case = {**CASES["HostUnreachable"]["silent"][0], "labels": [{"instance": "a"}]}
    document = {
        **rules_of(laid, "recording", "alerts"),
        "tests": cases_of("HostUnreachable", {"fires": [case], "silent": []}),
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [programs / "promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 1


def test_every_alert_says_how_bad_it_is_and_stands_on_the_page() -> None:
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert {rule["labels"]["severity"] for rule in rules} == {"critical", "warning", "none"}
    assert not [rule["alert"] for rule in rules if not {"summary", "description"} <= set(rule["annotations"])]
    headings = re.findall(r"^### (\w+)$", PAGE.read_text(), re.MULTILINE)
    assert headings == monitoring.alert_names(ALERTS), "docs/monitoring.md has a heading for each, in this order"


def test_what_people_read_is_filled_in(laid: Path, programs: Path, tmp_path: Path) -> None:
    text = (laid / "rules" / "alerts.yml").read_text()
    case = CASES["DeviceOutOfRotation"]["fires"][0]
    expected = {
        "exp_labels": {**case["labels"][0], "severity": "warning"},
        "exp_annotations": {
            "summary": "gpu0 of a gets no requests",
            "description": "Taken out by anna: new fan",
            "runbook": "docs/monitoring.md#deviceoutofrotation",
        },
    }
    test = {
        "input_series": series_of(case),
        "interval": "1m",
        "alert_rule_test": [{"alertname": "DeviceOutOfRotation", "eval_time": "15m", "exp_alerts": [expected]}],
    }
    assert "$labels.by" in text
    (tmp_path / "test.yml").write_text(yaml.safe_dump({**rules_of(laid, "alerts"), "tests": [test]}))
    run(programs / "promtool", "test", "rules", "test.yml", cwd=tmp_path)


# ---- names of metrics


def names_in(expression: str) -> set[str]:
    """Names of metrics of an expression: words that are no function, no label and no word of the language."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\boffset \w+", "", bare)
    bare = re.sub(r"\b(by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)", "", bare)
    words = re.findall(r"[a-zA-Z_][\w:]*(?!\s*\(|[\w:])", bare)
    return {word for word in words if word not in {"and", "or", "unless", "bool", "by", "on"}}


def labels_in(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Labels by which each metric is chosen."""
    for name, matchers in re.findall(r"([a-zA-Z_][\w:]*)\{([^}]*)\}", expression):
        yield name, set(re.findall(r"(\w+)\s*(?:=|!)", re.sub(r'"[^"]*"', "", matchers)))


def expressions() -> dict[str, str]:
    """Every expression of the rules and of the dashboard."""
    found: dict[str, str] = {}
    for path in sorted((ROLE / "files" / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            found |= {rule.get("alert") or rule["record"]: rule["expr"] for rule in group["rules"]}
    for panel in DASHBOARD["panels"]:
        for one in panel.get("targets", []):
            found[f"{panel['title']} {one['refId']}"] = one["expr"]
    found |= {f"annotation {one['name']}": one["expr"] for one in DASHBOARD["annotations"]["list"] if "expr" in one}
    return found


def recorded(roles: Roles) -> set[str]:
    texts = [
        (ROLE / "files/rules/recording.yml").read_text(),
        roles.render("monitoring", "etc/fleet/monitoring/rules/bounds.yml.j2"),
    ]
    return {rule["record"] for text in texts for group in yaml.safe_load(text)["groups"] for rule in group["rules"]}


def test_only_metrics_that_exist_are_used(roles: Roles) -> None:
    known = set(METRICS) | OTHERS | recorded(roles)
    unknown = {where: sorted(names_in(one) - known) for where, one in expressions().items() if names_in(one) - known}
    assert not unknown
    for where, one in expressions().items():
        for name, labels in labels_in(one):
            if name in METRICS:
                assert labels <= METRICS[name] | ADDED, f"{where}: {name}"


def test_every_recorded_number_is_used(roles: Roles) -> None:
    used = {name for one in expressions().values() for name in names_in(one)}
    # For whoever looks.
    assert recorded(roles) - used == {"fleet:request_seconds:p50_5m"}


# ---- the dashboard


def test_the_dashboard_is_one() -> None:
    panels = DASHBOARD["panels"]
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["title"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    assert {panel["type"] for panel in panels} == {"row", "stat", "timeseries", "state-timeline", "table"}
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert set(place) == {"x", "y", "w", "h"}
        assert place["w"] > 0
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"]
        refs = [one["refId"] for one in panel["targets"]]
        assert refs
        assert len(set(refs)) == len(refs)
        assert all(one["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for one in panel["targets"])
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps([panel.get("targets") for panel in panels])))
    assert used == variables


def test_prometheus_understands_every_query_of_the_dashboard(programs: Path, tmp_path: Path) -> None:
    found = [dashboard_picture.filled(one) for where, one in expressions().items()]
    rules = [{"record": f"dashboard:{number}", "expr": one} for number, one in enumerate(found)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in run(programs / "promtool", "check", "rules", "rules.yml", cwd=tmp_path)


def test_the_picture_shows_the_dashboard_as_it_is() -> None:
    picture = dashboard_picture.PICTURE.read_text()
    assert not [panel["title"] for panel in DASHBOARD["panels"] if f">{panel['title']}<" not in picture], (
        "mend it with: .venv/bin/python tools/dashboard_picture.py"
    )


# ---- placing and loading


class Manager:
    """Stands in for systemd: notes what it is told; its services load whatever they find."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.running = False
        self.old: list[str] = []

    def stale(self, name: str, files: list[str]) -> list[str]:
        return self.old

    def is_right(self, name: str) -> bool:
        return self.running

    def start(self, name: str) -> None:
        self.told.append(f"start {name}")
        self.running = True

    def restart(self, name: str) -> None:
        self.told.append(f"restart {name}")
        self.old = []

    def call(self, *arguments: str) -> None:
        self.told.append(" ".join(arguments))

    def ask(self, *arguments: str) -> tuple[int, str]:
        self.told.append(" ".join(arguments))
        return 0, ""


class Host:
    """A monitoring host below a folder, with Debian's own programs and without its services."""

    def __init__(self, folder: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "monitoring"
        self.manager = Manager()
        self.programs = programs
        self.metrics = {"when": "4e9", "ok": "1"}
        monkeypatch.setattr(module, "ask", lambda url: self.answer())
        # Only root may give files away.
        monkeypatch.setattr("ansible.module_utils.placed_files.numbers", lambda owner, group: (-1, -1))
        monkeypatch.setattr(
            "ansible.module_utils.placed_files.has_rights", lambda path, mode, owner, group: path.exists()
        )

    def answer(self) -> str:
        when, ok = self.metrics["when"], self.metrics["ok"]
        prefix = "prometheus_config_last_reload_success"
        return f"{prefix}_timestamp_seconds {when}\n{prefix}ful {ok}\n"

    def apply(self, config: str, more: Json | None = None, *, really: bool = True) -> Any:
        files = {"prometheus.yml": config, **(more or {})}
        options = {
            "folder": str(self.folder),
            "files": [
                {"path": str(self.folder / name), "content": text, "mode": "0644"} for name, text in files.items()
            ],
            "secret_files": {},
            "secret_group": "root",
            "checks": [[str(self.programs / "promtool"), "check", "config", "prometheus.yml"]],
            "units": [
                {
                    "name": "prometheus.service",
                    "restart": [],
                    "reload": [str(self.folder / "prometheus.yml")],
                    "metrics": "http://127.0.0.1/metrics",
                    "prefix": "prometheus",
                }
            ],
            "timeout_seconds": 0.3,
        }
        one = module.Monitoring(options, self.manager)
        one.run(really=really)
        return one

    @property
    def placed(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in sorted(self.folder.rglob("*")) if path.is_file()}


@pytest.fixture
def host(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, programs, monkeypatch)


def test_a_configuration_is_placed_and_the_service_started(host: Host) -> None:
    assert host.apply("global: {}\n").did[-1] == "started prometheus.service"
    assert host.placed == {"prometheus.yml": "global: {}\n"}
    assert host.apply("global: {}\n").did == [], "a second run has nothing to do"


def test_what_promtool_refuses_is_never_placed(host: Host) -> None:
    host.apply("global: {}\n")
    with pytest.raises(
        module.Refused, match=r"refuses the configuration, so nothing was changed:[\s\S]*scrape_intervall"
    ):
        host.apply("global: {scrape_intervall: 5s}\n")
    assert host.placed == {"prometheus.yml": "global: {}\n"}
    assert host.manager.told == ["start prometheus.service"]


def test_a_changed_configuration_is_loaded_without_a_restart(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.apply("global: {}\n")
    # As when the run was cut off between placing and loading: the next one sees that a former one is loaded.
    host.metrics["when"] = "5"
    monkeypatch.setattr(host.manager, "call", lambda *words: host.metrics.update(when="4e9", told=" ".join(words)))
    assert host.apply("global: {}\n").did == ["reloaded prometheus.service"]
    assert host.metrics["told"] == "reload prometheus.service"
    assert host.manager.told == ["start prometheus.service"]


def test_a_unit_whose_file_changed_is_restarted(host: Host) -> None:
    host.apply("global: {}\n")
    host.manager.old = ["fleet.conf"]
    assert host.apply("global: {}\n").did == ["restarted prometheus.service"]


def test_a_service_that_refuses_gets_its_former_files_back(host: Host) -> None:
    host.apply("global: {}\n", {"own.yml": "groups: []\n"})
    host.metrics["ok"] = "0"
    with pytest.raises(module.Refused, match=r"refused its configuration[\s\S]*The former configuration was put back"):
        host.apply("global: {scrape_interval: 5s}\n", {"other.yml": "groups: []\n"})
    assert host.placed == {"prometheus.yml": "global: {}\n", "own.yml": "groups: []\n"}
    assert host.manager.told[-1] == "reload-or-restart prometheus.service"


def test_a_service_that_does_not_answer_is_waited_for_in_vain(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ask", lambda url: "")
    with pytest.raises(module.Refused, match=r"gives no answer. Look: journalctl -u prometheus.service -n 50"):
        host.apply("global: {}\n")
    assert host.placed == {}


def test_files_that_are_not_wanted_any_more_go(host: Host) -> None:
    host.apply("global: {}\n", {"own.yml": "groups: []\n"})
    host.apply("global: {}\n")
    assert list(host.placed) == ["prometheus.yml"]


def test_a_check_changes_nothing(host: Host) -> None:
    assert host.apply("global: {}\n", really=False).did == [f"would place {host.folder / 'prometheus.yml'}"]
    assert not host.folder.exists()
    with pytest.raises(module.Refused):
        host.apply("nonsense: {}\n", really=False)


class RealManager(Manager):
    """Runs the real programs, in place of systemd."""

    def __init__(self, commands: dict[str, list[str]], log: Path) -> None:
        super().__init__()
        self.commands = commands
        self.log = log
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def is_right(self, name: str) -> bool:
        return name in self.processes and self.processes[name].poll() is None

    def start(self, name: str) -> None:
        super().start(name)
        with self.log.open("ab") as log:
            self.processes[name] = subprocess.Popen(self.commands[name], stdout=log, stderr=log)

    def call(self, *arguments: str) -> None:
        super().call(*arguments)
        self.processes[arguments[1]].send_signal(signal.SIGHUP)

    def end(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(timeout=30)


def test_a_real_prometheus_starts_and_loads_what_changed(roles: Roles, programs: Path, tmp_path: Path) -> None:
    """As a process of this machine. Alertmanager has to be installed for that: its templates have a fixed place."""
    (port,) = processes.free_ports(1)
    here, url = tmp_path / "monitoring", f"http://127.0.0.1:{port}"
    command = [
        str(programs / "prometheus"),
        f"--config.file={here}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    manager = RealManager({"prometheus.service": command}, tmp_path / "log")
    who = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name, "mode": "0644"}
    fleet = {"groups": {"monitoring": ["watch-1"]}, "monitoring_scrape_seconds": 1, "monitoring_prometheus_port": port}

    def apply(**variables: Any) -> list[str]:
        laid = lay(roles, tmp_path / "laid", **fleet, **variables)
        files = {path.relative_to(laid): path.read_text() for path in laid.rglob("*") if path.is_file()}
        options = {
            "folder": str(here),
            "files": [{"path": str(here / name), "content": text, **who} for name, text in files.items()],
            "secret_files": {},
            "secret_group": "root",
            "checks": [[str(programs / "promtool"), "check", "config", "prometheus.yml"]],
            "units": [
                {
                    "name": "prometheus.service",
                    "restart": [],
                    "reload": [str(here / "prometheus.yml"), str(here / "rules")],
                    "metrics": f"{url}/metrics",
                    "prefix": "prometheus",
                }
            ],
            "timeout_seconds": 30,
        }
        one = module.Monitoring(options, manager)
        one.run(really=True)
        return [did for did in one.did if not did.startswith("placed")]

    try:
        assert apply() == ["started prometheus.service"]
        assert apply() == []
        assert apply(monitoring_p99_seconds=7) == ["reloaded prometheus.service"]

        class Systemd:
            def ask(self, verb: str, name: str) -> tuple[int, str]:
                return 0, {"is-active": "active", "is-enabled": "enabled"}[verb]

        options = {
            "prometheus": url,
            "alertmanager": "http://127.0.0.1:9",
            "units": list(manager.commands),
            "targets": [{"job": "prometheus", "instance": "watch-1"}],
            "alerts": monitoring.alert_names(ALERTS),
            "timeout_seconds": 20,
        }
        results = {one["name"]: one for one in checks.Checks(options, Systemd()).run()}
        assert {name for name, one in results.items() if one["ok"]} == {
            "prometheus.service",
            "targets",
            "rules",
            "firing alerts",
        }
        assert "http://127.0.0.1:9/metrics" in results["configuration"]["detail"]

        def bound() -> bool:
            found = checks.ask(f"{url}/api/v1/query?query=fleet:bound:p99_seconds")["data"]["result"]
            return bool(found and found[0]["value"][1] == "7")

        processes.wait_for(bound, "the new bound")
    finally:
        manager.end()


# ---- verify


TARGET = {"labels": {"job": "fleet", "instance": "a"}, "health": "up", "lastError": ""}
ANSWERS: Json = {
    "metrics": "\nprometheus_config_last_reload_successful 1\nalertmanager_config_last_reload_successful 1\n",
    "targets": {"data": {"activeTargets": [TARGET]}},
    "rules": {"data": {"groups": [{"rules": [{"name": "Watchdog", "type": "alerting", "health": "ok"}]}]}},
    "alertmanagers": {"data": {"activeAlertmanagers": [{"url": "http://127.0.0.1:9093/api/v2/alerts"}]}},
    "status": {},
    "alerts": {"data": {"alerts": [{"labels": {"alertname": "GpuHot"}, "state": "firing"}]}},
}


def verified(monkeypatch: pytest.MonkeyPatch, **other: Any) -> dict[str, str]:
    """What fails, with what was seen; and which alerts fire."""
    answers = ANSWERS | other
    monkeypatch.setattr(checks, "ask", lambda url: answers[re.sub(r"\?.*", "", url).rsplit("/", 1)[1]])
    monkeypatch.setattr(checks, "read", lambda url: answers["metrics"])

    class Systemd:
        def ask(self, verb: str, name: str) -> tuple[int, str]:
            return 0, {"is-active": answers.get("unit", "active"), "is-enabled": "enabled"}[verb]

    options = {
        "prometheus": "http://p",
        "alertmanager": "http://a",
        "units": ["prometheus.service"],
        "targets": [{"job": "fleet", "instance": "a"}],
        "alerts": ["Watchdog"],
        "timeout_seconds": 0,
    }
    results = checks.Checks(options, Systemd()).run()
    assert all(one["mend"] for one in results if not one["ok"])
    assert next(one["detail"] for one in results if one["name"] == "firing alerts") == "GpuHot"
    return {one["name"]: one["detail"] for one in results if not one["ok"]}


def test_verify_finds_nothing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verified(monkeypatch) == {}


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({"unit": "failed"}, {"prometheus.service": "prometheus.service is failed and enabled"}),
        (
            {"metrics": "\nprometheus_config_last_reload_successful 0\n"},
            {"configuration": "prometheus has refused its configuration"},
        ),
        ({"targets": {"data": {"activeTargets": []}}}, {"targets": "not asked: fleet of a"}),
        (
            {"targets": {"data": {"activeTargets": [{**TARGET, "health": "down", "lastError": "connection refused"}]}}},
            {"targets": "no answer: fleet of a: connection refused"},
        ),
        ({"rules": {"data": {"groups": []}}}, {"rules": "not loaded: Watchdog"}),
        (
            {
                "rules": {
                    "data": {
                        "groups": [
                            {"rules": [{"name": "Watchdog", "type": "alerting", "health": "err", "lastError": "x"}]}
                        ]
                    }
                }
            },
            {"rules": "Watchdog: x"},
        ),
        (
            {"alertmanagers": {"data": {"activeAlertmanagers": []}}},
            {"alertmanager": "Prometheus knows no Alertmanager"},
        ),
    ],
)
def test_verify_finds(monkeypatch: pytest.MonkeyPatch, other: Json, found: dict[str, str]) -> None:
    assert verified(monkeypatch, **other) == found
