"""What verbs refuse before anything is changed, run by the real Ansible over the real playbooks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ansible_modules
import pytest
import tree
import yaml

Json = dict[str, Any]
limit = ansible_modules.load("filter", "limit")

HERE = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
# Nobody listens there.
DOWN = {"ansible_host": "127.0.0.1", "ansible_port": 1}
FLEET: Json = {"inference": {"hosts": {"gpu-host-1": DOWN, "gpu-host-2": DOWN}}, "edge": {"hosts": {"edge-1": DOWN}}}
NO_EDGE: Json = {"inference": FLEET["inference"]}


class Run:
    """A playbook that was begun over an inventory; it is waited for when its answer is asked."""

    def __init__(self, folder: Path, inventory: Json, verb: str, *options: str) -> None:
        folder.mkdir()
        (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
        sudo = folder / "sudo"
        # Never reached by a host that is down, and of no consequence to this machine.
        sudo.write_text("#!/bin/sh\nexit 1\n")
        sudo.chmod(0o755)
        command: list[str | Path] = [Path(sys.executable).parent / "ansible-playbook", "-i", folder / "hosts.yml"]
        environment = {"ANSIBLE_CONFIG": str(tree.ROOT / "ansible.cfg"), "ANSIBLE_BECOME_EXE": str(sudo)}
        self.process = subprocess.Popen(
            [*command, tree.ROOT / "playbooks" / f"{verb}.yml", *options],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def answer(self) -> tuple[int, str]:
        text, _ = self.process.communicate(timeout=180)
        return self.process.returncode, " ".join(text.split())


REFUSED: dict[str, tuple[Json, list[str], str]] = {
    "unreachable host": (
        FLEET,
        ["deploy"],
        "gpu-host-1 cannot be reached. Nothing was changed on any host. Failed to connect to the host via ssh",
    ),
    "empty group": ({"inference": {"hosts": {}}}, ["deploy"], "The group `inference` of the inventory"),
    "no inventory": ({"all": {"hosts": {"x": DOWN}}}, ["deploy"], "has no host. See inventory/example"),
    "misspelt beside a good one": (
        FLEET,
        ["deploy", "--limit", "gpu-host-1,gpu-hst-2"],
        "the inventory has no host gpu-hst-2. Did you mean gpu-host-2?",
    ),
    "misspelt exclusion": (FLEET, ["drain", "--limit", "all,!edge-2"], "no host edge-2. Did you mean edge-1?"),
    "host that is not of the fleet": (
        {**FLEET, "other": {"hosts": {"db-1": DOWN}}},
        ["deploy", "--limit", "db-1"],
        "--limit db-1 names none of the hosts that this is for: gpu-host-1, gpu-host-2, edge-1.",
    ),
    "drain without a host": (FLEET, ["drain"], "Name the hosts: ./fleet drain HOST. The inventory has gpu-host-1,"),
    "undrain without a host": (FLEET, ["undrain", "-e", "all=true"], "Name the hosts: ./fleet undrain HOST."),
    "drain of an edge": (
        FLEET,
        ["drain", "--limit", "edge-1"],
        "names none of the hosts that this is for: gpu-host-1, gpu-host-2.",
    ),
    "drain of a monitoring host": (
        {**FLEET, "monitoring": {"hosts": {"watch-1": DOWN}}},
        ["drain", "--limit", "watch-1"],
        "names none of the hosts that this is for: gpu-host-1, gpu-host-2.",
    ),
    "teardown of all and what watches them": (
        {**FLEET, "monitoring": {"hosts": {"watch-1": DOWN}}},
        ["teardown"],
        "The inventory has gpu-host-1, gpu-host-2, edge-1, watch-1. For all of them: -e all=true",
    ),
    "drain without an edge": (
        NO_EDGE,
        ["drain", "--limit", "gpu-host-1"],
        "The inventory has no edge, so nothing leads the requests of gpu-host-1 elsewhere. Take out one device",
    ),
    "undrain without an edge": (NO_EDGE, ["undrain", "--limit", "gpu-host-1"], "./fleet undrain gpu-host-1/DEVICE"),
    "a device that is down": (
        FLEET,
        ["drain", "--limit", "gpu-host-1", "-e", "fleet_device=gpu0"],
        "gpu-host-1 cannot be reached. Nothing was changed on any host.",
    ),
    "a device of a whole host's verb": (
        FLEET,
        ["reboot", "--limit", "gpu-host-1", "-e", "fleet_device=gpu0"],
        "./fleet reboot takes whole hosts, not one device (gpu0); drain, undrain and logs take HOST/DEVICE.",
    ),
    "reboot of all": (FLEET, ["reboot"], "The inventory has gpu-host-1, gpu-host-2. For all of them: -e all=true"),
    "teardown of all": (
        FLEET,
        ["teardown"],
        "The inventory has gpu-host-1, gpu-host-2, edge-1. For all of them: -e all=true",
    ),
    "teardown without a terminal": (
        FLEET,
        ["teardown", "--limit", "gpu-host-1,edge-1"],
        "Nothing was removed: confirmed were no hosts. Without a terminal: -e teardown_confirm=edge-1,gpu-host-1",
    ),
    "teardown of other hosts": (
        FLEET,
        ["teardown", "--limit", "gpu-host-1", "-e", "teardown_confirm=gpu-host-2"],
        "Nothing was removed: confirmed were gpu-host-2.",
    ),
    "teardown of a host that is down": (
        FLEET,
        ["teardown", "--limit", "gpu-host-1", "-e", "teardown_confirm=gpu-host-1"],
        "gpu-host-1 cannot be reached. Nothing was changed on any host.",
    ),
    "misspelt variable": (FLEET, ["deploy", "-e", "alow_outage=true"], "Did you mean allow_outage?"),
    "a fleet that cannot be locked": (
        FLEET,
        ["drain", "--limit", "gpu-host-1"],
        "None of edge-1, gpu-host-1, gpu-host-2 can be reached to lock the fleet. Nothing was changed.",
    ),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[int, str]]:
    """All of them, four at a time: most of a run is Ansible's start."""
    folder = tmp_path_factory.mktemp("verbs")
    known: dict[str, tuple[int, str]] = {}
    names = list(REFUSED)
    for start in range(0, len(names), 4):
        batch = names[start : start + 4]
        runs = {name: Run(folder / name.replace(" ", "-"), REFUSED[name][0], *REFUSED[name][1]) for name in batch}
        known |= {name: run.answer() for name, run in runs.items()}
    return known.__getitem__


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_changed(answers: Callable[[str], tuple[int, str]], name: str) -> None:
    code, text = answers(name)
    assert code in {2, 4}, text
    # Long lines are wrapped, and quotes doubled, by Ansible's output.
    assert REFUSED[name][2] in text.replace("''", "'"), text
    assert "changed=1" not in text


def test_who_is_asked_about_is_told_how_to_go_on(answers: Callable[[str], tuple[int, str]]) -> None:
    code, text = answers("unreachable host")
    assert code == 4
    for host in ("gpu-host-1", "gpu-host-2", "edge-1"):
        assert f"or go on without it: --limit '!{host}'" in text.replace("''", "'")
    assert "look: ssh -v -p 1 127.0.0.1" in text
    # The lock comes after, and so does everything else.
    assert "Take the lock" not in text


def test_one_host_that_is_down_stops_the_run_on_all(tmp_path: Path) -> None:
    """The first play goes on with nobody when one does not answer."""
    playbook = tmp_path / "toy.yml"
    playbook.write_text(
        yaml.safe_dump(
            [
                {"ansible.builtin.import_playbook": str(tree.ROOT / "playbooks" / "fleet" / "check.yml")},
                {
                    "hosts": "all",
                    "gather_facts": False,
                    "any_errors_fatal": True,
                    "tasks": [{"fleet_reach": {"say": "Nothing was changed."}}],
                },
                {"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.debug": {"msg": "went on"}}]},
            ]
        )
    )
    inventory = {"inference": {"hosts": {"good": HERE, "bad": DOWN}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", tmp_path / "hosts.yml", playbook],
        env=os.environ | {"ANSIBLE_CONFIG": str(tree.ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "ok: [good]" in done.stdout
    assert "bad cannot be reached. Nothing was changed." in done.stdout
    assert "went on" not in done.stdout


@pytest.mark.parametrize(
    ("given", "good"),
    [
        ("", True),
        ("all", True),
        ("a1:&edge", True),
        ("a*,!b1", True),
        ("a*[0:1],~b.*", True),
        ("inference[0]", True),
        ("@hosts.retry", True),
        ("a3", False),
        ("a1,!c*", False),
        ("~c.*", False),
    ],
)
def test_patterns_of_limit(given: str, good: bool) -> None:
    groups = {"all": ["a1", "a2", "b1"], "inference": ["a1", "a2"], "edge": ["b1"], "ungrouped": []}
    found = limit.limit_complaints(given, groups)
    assert (found == []) is good
    assert all(complaint.endswith("Its hosts are a1, a2, b1.") for complaint in found)


def test_every_verb_names_itself() -> None:
    """By that name it stands in locks and audit logs."""
    for path in sorted((tree.ROOT / "playbooks").glob("*.yml")):
        first = yaml.safe_load(path.read_text())[0]
        assert first["ansible.builtin.import_playbook"] == "fleet/check.yml", path.name
        assert first.get("vars", {}).get("fleet_verb") == path.stem, path.name


def test_what_verbs_take_is_known_to_the_check_for_slips() -> None:
    preflight = ansible_modules.load("action", "preflight")
    text = "".join(path.read_text() for path in (tree.ROOT / "playbooks").rglob("*.yml"))
    for name in ("allow_outage", "all", "why", "teardown_confirm"):
        assert name in text and name in preflight.COMMAND_LINE
    assert json.dumps(preflight.misspelt(sorted(preflight.COMMAND_LINE))) == "[]"
