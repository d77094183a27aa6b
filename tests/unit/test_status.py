"""What status and releases read on a host, and the tables made of it."""

import json
import os
from pathlib import Path
from typing import Any

import ansible_modules
import pytest

report = ansible_modules.load("filter", "report")
reach = ansible_modules.load("action", "fleet_reach")
Json = dict[str, Any]

VASSAL: Json = {"service": "ocr", "release": "r2", "workers": 2, "accepting": 2, "busy": 1, "state": "ok"}
DEVICE: Json = {"name": "gpu0", "memory_mib": 24576, "vassals": [VASSAL], "drained": None}
DEPLOYED: Json = {"id": "r2", "at": "2026-11-24T20:15:00+00:00", "by": "ada@controller"}
MEMBER: Json = {
    "address": "192.0.2.11",
    "weight": 2,
    "services": {"ocr": 8100},
    "drained": None,
    "probe": {"healthy": True, "since": "2026-11-24T20:16:00+00:00", "reason": ""},
    "in_service": True,
}
DRAINED: Json = {"by": "ada@controller", "since": "2026-11-24T20:20:00+00:00", "why": "new fan"}


def answered(*devices: Json, deployed: Json | None = DEPLOYED) -> Json:
    return {"__status": {"status": {"devices": list(devices), "deployed": deployed}}}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


# ---- status


def test_a_host_and_its_last_deploy() -> None:
    found = report.status_report({"a": answered(DEVICE)}, ["a"])
    assert found["exit"] == 0
    assert [cells(line) for line in found["lines"]] == [
        ["HOST", "DEVICE", "MEMORY", "SERVICE", "RELEASE", "WORKERS", "IN FLIGHT", "STATE", "DRAINED", "DEPLOYED"],
        ["a", "gpu0", "24.0 GiB", "ocr", "r2", "2/2", "1", "ok", "-", "2026-11-24 20:15 by ada@controller"],
    ]
    assert found["data"]["hosts"]["a"]["deployed"]["by"] == "ada@controller"


def test_a_host_without_vassals_and_deploys() -> None:
    found = report.status_report({"a": answered({**DEVICE, "vassals": []}, deployed=None)}, ["a"])
    assert cells(found["lines"][1]) == ["a", "gpu0", "24.0 GiB", *["-"] * 4, "NO VASSAL", "-", "never"]


def test_a_host_that_cannot_be_reached_is_unknown() -> None:
    hosts = {"a": answered(DEVICE), "b": {"__reached": {"reached": False, "msg": "b cannot be reached.\nrefused"}}}
    found = report.status_report(hosts, ["a", "b"])
    assert cells(found["lines"][2]) == ["b", *["-"] * 6, "UNKNOWN", "-", "-"]
    assert found["failures"] == ["b: could not be asked: b cannot be reached. refused"]
    assert (found["exit"], found["data"]["exit"], list(found["data"]["hosts"])) == (2, 2, ["a"])
    failed = {"b": {"__reached": {"reached": True}, "__status": {"failed": True, "msg": "no driver"}}}
    assert report.status_report(failed, ["b"])["failures"] == ["b: could not be asked: no driver"]


def edge(name: str, **members: Json) -> Json:
    return {"edge": name, "members": members, "msg": ""}


@pytest.mark.parametrize(
    ("device", "members", "said"),
    [
        (None, [None, None], "-"),
        (DRAINED, [None, None], "device"),
        (None, [DRAINED, DRAINED], "host"),
        (None, [None, DRAINED], "host at edge2 only"),
        (DRAINED, [DRAINED, DRAINED], "device and host"),
    ],
)
def test_what_is_drained(device: Json | None, members: list[Json | None], said: str) -> None:
    asked = [edge(f"edge{n}", a={**MEMBER, "drained": drained}) for n, drained in enumerate(members, 1)]
    found = report.status_report({"a": answered({**DEVICE, "drained": device})}, ["a"], asked)
    assert cells(found["lines"][1])[8] == said


def test_devices_that_are_out_and_what_the_watch_says() -> None:
    ill = {"fault": "lost", "why": "lost: the card", "out": True, "command": "./fleet reboot HOST"}
    by_watch = {**DRAINED, "by": "fleet-watch", "why": "lost: the card"}
    hosts = {
        "a": answered({**DEVICE, "drained": DRAINED}),
        "b": answered({**DEVICE, "drained": by_watch}, {**DEVICE, "name": "gpu1"}, {**DEVICE, "name": "gpu2"}),
    }
    last = {"fault": "known-answer", "why": "known-answer: 503", "out": False, "command": "journalctl"}
    hosts["b"]["__status"]["status"]["watch"] = {
        "devices": {"gpu0": ill, "gpu1": last},
        "amiss": ["NVML is not read: x"],
    }
    found = report.status_report(hosts, ["a", "b"])
    assert [cells(line) for line in found["lines"][5:]] == [
        [],
        ["OUT", "SINCE", "BY", "WHY"],
        ["a/gpu0", "2026-11-24 20:20", "ada@controller", "new fan"],
        ["b/gpu0", "2026-11-24 20:20", "fleet-watch", "lost: the card"],
        ["mend: ./fleet reboot b"],
        ["b/gpu1", "-", "fleet-watch", "ill, and stays in: known-answer: 503"],
        ["mend: journalctl"],
        [],
        ["b: NVML is not read: x"],
    ]
    assert found["exit"] == 0


def test_edges_and_their_members() -> None:
    sick = {"healthy": False, "since": "2026-11-24T20:21:00+00:00", "reason": "readyz: 503"}
    members = {
        "a": MEMBER,
        "b": {**MEMBER, "drained": DRAINED, "in_service": False},
        "c": {**MEMBER, "probe": sick, "in_service": False},
    }
    asked = [edge("edge1", **members), {"edge": "edge2", "members": None, "msg": "no route"}]
    found = report.status_report({"a": answered(DEVICE), "d": answered(DEVICE)}, ["a", "d"], asked)
    assert [cells(line) for line in found["lines"][4:]] == [
        ["EDGE", "MEMBER", "ADDRESS", "WEIGHT", "STATE", "SINCE", "WHY"],
        ["edge1", "a", "192.0.2.11", "2", "in service", "2026-11-24 20:16", "-"],
        ["edge1", "b", "192.0.2.11", "2", "drained", "2026-11-24 20:20", "ada@controller: new fan"],
        ["edge1", "c", "192.0.2.11", "2", "ejected", "2026-11-24 20:21", "readyz: 503"],
        ["edge1", "d", "-", "-", "not joined", "-", "./fleet deploy lets it join when it is well"],
        ["edge2", "-", "-", "-", "UNKNOWN", "-", "no route"],
        ["edge2: could not be asked: no route"],
    ]
    assert (found["exit"], found["data"]["edges"]["edge2"]) == (2, None)
    assert json.loads(json.dumps(found["data"]))["edges"]["edge1"]["b"]["drained"]["why"] == "new fan"


def test_an_edge_alone() -> None:
    found = report.status_report({}, [], [edge("edge1", a=MEMBER)])
    assert (cells(found["lines"][0])[0], len(found["lines"]), found["exit"]) == ("EDGE", 2, 0)


def test_what_a_host_says_of_itself(tmp_path: Path) -> None:
    (tmp_path / "drained.json").write_text(json.dumps({"cpu1": DRAINED}))
    (tmp_path / "deployed.json").write_text(json.dumps({**DEPLOYED, "dir": "/opt/fleet/releases/r2"}))
    options = {
        "devices": [{"name": "cpu0"}, {"name": "cpu1"}],
        "devices_dir": str(tmp_path),
        "drained_file": str(tmp_path / "drained.json"),
        "deployed_file": str(tmp_path / "deployed.json"),
    }
    options["watch_file"] = str(tmp_path / "watch.json")
    status = ansible_modules.run("host_status", options)["status"]
    assert [device["drained"] for device in status["devices"]] == [None, DRAINED]
    assert (status["deployed"], status["watch"]) == (DEPLOYED, None)
    (tmp_path / "watch.json").write_text(json.dumps({"amiss": [], "devices": {}}))
    assert ansible_modules.run("host_status", options)["status"]["watch"] == {"amiss": [], "devices": {}}
    os.utime(tmp_path / "watch.json", (1, 1))
    (amiss,) = ansible_modules.run("host_status", options)["status"]["watch"]["amiss"]
    assert amiss.startswith("fleet-watch has said nothing for ")
    (tmp_path / "drained.json").write_text("{")
    (tmp_path / "deployed.json").unlink()
    status = ansible_modules.run("host_status", options)["status"]
    assert ([device["drained"] for device in status["devices"]], status["deployed"]) == ([None, None], None)


def test_hosts_with_different_releases() -> None:
    """Each is well; that they differ only the whole tells."""
    hosts = {
        name: answered(DEVICE, deployed={**DEPLOYED, "id": release}) for name, release in (("a", "r1"), ("b", "r2"))
    }
    found = report.status_report({**hosts, "c": answered(DEVICE, deployed=None)}, ["a", "b", "c"])
    assert found["lines"][4:7] == [
        "",
        "The hosts have 2 releases: r1 on a; r2 on b.",
        f"  mend: {report.MEND_MIXTURE}",
    ]
    assert (found["exit"], found["data"]["releases"]) == (0, {"r1": ["a"], "r2": ["b"]})
    assert report.status_report(hosts, ["a"])["lines"][2:] == []


# ---- releases


class Host:
    """Folders of releases and records of deployments."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.records = folder / "deployments"
        self.records.mkdir()

    def release(self, name: str, created: str) -> None:
        folder = self.root / "releases" / name
        folder.mkdir(parents=True)
        (folder / "REVISION.json").write_text(json.dumps({"id": name, "created": created}))
        (folder / "model").write_bytes(os.urandom(2 * 2**20))
        (folder / "venv").symlink_to("../../environments/e1")

    def record(self, name: str, release: str, *services: str) -> None:
        folder = str(self.root / "releases" / release)
        content = {"release": {"id": release, "dir": folder}, "vassals": [{"service": one} for one in services]}
        (self.records / f"{name}.json").write_text(json.dumps(content))

    def ask(self) -> list[Json]:
        options = {"root": self.root, "deployed_file": self.root / "deployed.json", "deployments_dir": self.records}
        found: list[Json] = ansible_modules.run("release_list", {n: str(path) for n, path in options.items()})[
            "releases"
        ]
        return found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_bare_host_has_no_releases(host: Host) -> None:
    assert host.ask() == []
    found = report.releases_report({"a": {"__releases": {"releases": [], "environments_mib": 0}}}, ["a"])
    assert (cells(found["lines"][1]), found["exit"]) == (["a", "none", *["-"] * 5], 0)


def test_releases_with_the_newest_deployment_first(host: Host) -> None:
    for name, created in (("r1", "2026-01-01"), ("r2", "2026-01-02"), ("r3", "2026-01-03"), (".r4.partial", "x")):
        host.release(name, f"{created}T00:00:00+00:00")
    (host.root / "releases" / "r3" / "REVISION.json").unlink()
    (host.root / "environments" / "e1").mkdir(parents=True)
    (host.root / "environments" / "e1" / "torch").write_bytes(os.urandom(2**20))
    host.record("20260102T030405Z-aaaa", "r1", "ocr", "echo", "ocr")
    host.record("20260103T030405Z-bbbb", "r2", "ocr")
    # Gone back to the older one.
    current = {"id": "r1", "at": "2026-01-04T00:00:00+00:00", "record": "20260102T030405Z-aaaa"}
    current["history"] = ["20260102T030405Z-aaaa", "20260103T030405Z-bbbb"]  # type: ignore[assignment]
    (host.root / "deployed.json").write_text(json.dumps(current))
    found = host.ask()
    assert [(one["id"], one["state"], one["deployed"], one["services"]) for one in found] == [
        ("r1", ["current"], "2026-01-04T00:00:00+00:00", ["echo", "ocr"]),
        ("r2", ["former"], "2026-01-03T03:04:05+00:00", ["ocr"]),
        ("r3", [], "", []),
    ]
    # The environments, which releases share, are not counted with them.
    assert all(2 <= one["size_mib"] < 2.5 for one in found)
    hosts = {"a": {"__releases": {"releases": found, "environments_mib": 1.0}}, "b": {"__reached": {"msg": "gone"}}}
    table = report.releases_report(hosts, ["a", "b"])
    assert [cells(line) for line in table["lines"]] == [
        ["HOST", "RELEASE", "CREATED", "DEPLOYED", "STATE", "SIZE", "SERVICES"],
        ["a", "r1", "2026-01-01 00:00", "2026-01-04 00:00", "current", f"{found[0]['size_mib']} MiB", "echo ocr"],
        ["a", "r2", "2026-01-02 00:00", "2026-01-03 03:04", "former", f"{found[1]['size_mib']} MiB", "ocr"],
        ["a", "r3", "-", "-", "INCOMPLETE", f"{found[2]['size_mib']} MiB", "-"],
        ["b", "-", "-", "-", "UNKNOWN", "-", "-"],
        ["b: could not be asked: gone"],
    ]
    assert (table["exit"], table["data"]["hosts"]["a"]["environments_mib"]) == (2, 1.0)


# ---- a host that does not answer


@pytest.mark.parametrize(
    ("error", "first"),
    [
        ("Host key verification failed.", "its host key is not known here, or has changed."),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "its host key is not known here, or has changed."),
        ("ada@192.0.2.1: Permission denied (publickey).", "it does not let this user or key in: -u USER"),
        ("connect to host 192.0.2.1 port 22: No route to host", "look: ssh -v ada@192.0.2.1"),
    ],
)
def test_what_mends_a_host_that_cannot_be_reached(error: str, first: str) -> None:
    found = reach.mends("gpu-1", "192.0.2.1", "ada@192.0.2.1", error)
    assert found[0].startswith(first)
    assert "look: ssh -v ada@192.0.2.1" in found
    assert found[-1] == "or go on without it: --limit '!gpu-1'"
