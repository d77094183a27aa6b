"""The rollout as a play over hosts that this test plays: who waits for whom, and who goes back how."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tree
import yaml

Json = dict[str, Any]

#: Stands in for modules and for roles that speak with hosts: writes down what it is told, and answers by script.
ACTION = """
import json
from pathlib import Path
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

FOLDER = Path({folder!r})


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        host, arguments = task_vars["inventory_hostname"], self._task.args
        script = json.loads((FOLDER / "script.json").read_text()).get(host, {{}})
        result = {{"changed": False}}
        what = self._task.action
        if what == "edge_status":
            members = json.loads((FOLDER / "members.json").read_text())
            return {{**result, "edge": task_vars["inventory_hostname"], "members": members}}
        if what == "host_switch":
            back = arguments.get("state") == "restored"
            what = "back" if back else "settle" if arguments.get("settle", True) else "switch"
            if self._task.check_mode:
                what = "plan back"
            release = {{"id": "old" if back else "new"}}
            serving = {{"release": release, "vassals": [], "services": []}}
            result.update(serving=serving, stops=script.get("stops back", []), changed=True, started=[])
        elif what == "service_checks":
            what = "check " + arguments["release"]
        with (FOLDER / "log").open("a") as log:
            log.write(f"{{host}} {{what}}{{' may stop' if arguments.get('may_stop') else ''}}\\n")
        if script.get("lost") == what:
            raise AnsibleConnectionFailure("No route to host")
        if script.get("fails") == what:
            result.update(failed=True, msg=f"{{what}} failed")
        passed = not result.get("failed")
        return {{**result, "passed": passed, "checks": []}}
"""
PROGRAM = """#!/bin/sh
verb=$1 host=$2
echo "edge $verb $host" >>{folder}/log
for one in "$@"; do case $one in --why=*) echo "$host: $one" >>{folder}/why ;; esac; done
if [ "$verb $host" = "$(cat {folder}/refused)" ]; then
  echo "fleet-edge: nowhere to go" >&2
  echo '{{"changed": false}}'
  exit 3
fi
cat {folder}/answer
"""
ROLES = {
    "release/tasks/prune.yml": [],
    "lock/tasks/release.yml": [{"name": "Say that the lock is free", "ansible.builtin.debug": {"msg": "unlocked"}}],
    "verify/tasks/main.yml": [
        {
            "name": "Check the host",
            "service_checks": {"release": "{{ fleet_serving.release.id }}"},
            "register": "__verify",
        }
    ],
}


class Rollout:
    """Three hosts behind an edge, or without any, and a rollout over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("host_switch", "host_soak", "service_checks", "edge_status"):
            self.write(f"action/{name}.py", ACTION.format(folder=str(folder)))
        self.write("fleet-edge", PROGRAM.format(folder=folder)).chmod(0o755)
        for path, tasks in ROLES.items():
            self.write(f"roles/{path}", yaml.safe_dump(tasks))
        self.members: Json = {}
        self.refused = ""
        #: What the edge kept before the rollout, and keeps after it.
        self.held: list[str] = []
        self.held_later: list[str] = []

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def play(self, script: Json, edges: int = 1, **variables: Any) -> tuple[int, str]:
        """Exit status of ansible-playbook and what it says."""
        self.write("script.json", json.dumps(script))
        self.write("members.json", json.dumps(self.members))
        self.write("refused", self.refused)
        self.write("answer", json.dumps({"changed": True, "held": self.held_later}))
        (self.folder / "log").write_text("")
        (self.folder / "why").write_text("")
        plan = {"steps": ["switch"], "stops": [], "former": "1", "serving": {"release": {"id": "new"}, "vassals": []}}
        hosts = {
            name: {"__rollout_plan": {**plan, **script.get(name, {}).get("plan", {})}} for name in ("h1", "h2", "h3")
        }
        inventory: Json = {"inference": {"hosts": hosts}}
        if edges:
            inventory["edge"] = {"hosts": {"e1": {"__edge_retained": {"stdout": json.dumps({"held": self.held})}}}}
        common = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "fleet_devices": [{}],
            "services": [{"name": "ocr", "route": "/v1/parse", "port": 8100}],
            "fleet_run": {"id": "test", "by": "me", "verb": "deploy"},
        }
        inventory["all"] = {"vars": common}
        # No host is alone because of its plan, unless the test says so; and nothing is watched.
        extra = {"rollout_serial": [1, "100%"], "rollout_soak_seconds": 0, **variables}
        extra["__edge_program"] = str(self.folder / "fleet-edge")
        play = {
            "hosts": "inference",
            "gather_facts": False,
            "tasks": [
                {"name": "Roll out", "ansible.builtin.import_role": {"name": "rollout", "rolespec_validate": False}}
            ],
        }
        self.write("hosts.yml", yaml.safe_dump(inventory))
        self.write("play.yml", yaml.safe_dump([{"name": "Roll out", **play}]))
        done = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "-i", "hosts.yml", "play.yml", "-e", json.dumps(extra)],
            cwd=self.folder,
            env=os.environ
            | {
                "ANSIBLE_CONFIG": str(tree.ROOT / "ansible.cfg"),
                "ANSIBLE_ACTION_PLUGINS": f"{self.folder}/action:{tree.ROOT}/plugins/action",
                "ANSIBLE_ROLES_PATH": f"{self.folder}/roles:{tree.ROOT}/roles",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout

    def log(self) -> list[str]:
        """What was done, in order; hosts of one batch do it side by side."""
        return (self.folder / "log").read_text().splitlines()

    def way_back(self) -> list[str]:
        """What was done after the last host was asked what going back takes."""
        lines = self.log()
        return lines[max(number for number, line in enumerate(lines) if line.endswith("plan back")) + 1 :]


@pytest.fixture
def rollout(tmp_path: Path) -> Rollout:
    return Rollout(tmp_path)


MEMBER = {"address": "192.0.2.1", "weight": 1, "services": {"ocr": 8100}}
STOPS = {"stops back": ["cpu0: too little memory"]}
DEAD = {"plan": {"stops": ["cpu0: too little memory"]}}


def test_hosts_that_must_stop_go_back_one_by_one_each_drained(rollout: Rollout) -> None:
    status, text = rollout.play({"h1": STOPS, "h2": STOPS, "h3": {**DEAD, "fails": "switch"}})
    assert status
    assert rollout.way_back() == [
        # It was drained already, and nothing has to stop on it any more.
        "h3 back may stop",
        "h3 check old",
        "edge undrain h3",
        "edge drain h1",
        "h1 back may stop",
        "h1 check old",
        "edge undrain h1",
        "edge drain h2",
        "h2 back may stop",
        "h2 check old",
        "edge undrain h2",
    ]
    assert (rollout.folder / "why").read_text().splitlines()[-2:] == [
        "h1: --why=cpu0: too little memory",
        "h2: --why=cpu0: too little memory",
    ]
    for host in ("h1", "h2", "h3"):
        assert f"- {host} went back to its former release old" in text


def test_hosts_on_which_nothing_must_stop_go_back_together(rollout: Rollout) -> None:
    status, _ = rollout.play({"h3": {"fails": "check new"}})
    assert status
    assert sorted(rollout.way_back()[:3]) == ["h1 back may stop", "h2 back may stop", "h3 back may stop"]
    assert "edge drain" not in "\n".join(rollout.log())


def test_hosts_go_back_although_their_requests_have_nowhere_to_go(rollout: Rollout) -> None:
    rollout.refused = "drain h1"
    _, text = rollout.play({"h1": STOPS, "h2": {"fails": "switch"}}, rollout_serial=[1])
    assert rollout.way_back() == [
        "h2 back may stop", "h2 check old", "edge drain h1", "h1 back may stop", "h1 check old", "edge undrain h1",
    ]  # fmt: skip
    assert "Nothing took its requests while it went back: h1 was not drained: e1: fleet-edge: nowhere to go" in text

    _, text = rollout.play({"h1": STOPS, "h2": {"fails": "switch"}}, edges=0, rollout_serial=[1])
    assert rollout.way_back() == ["h2 back may stop", "h2 check old", "h1 back may stop", "h1 check old"]
    assert "Nothing took its requests while it went back: the inventory has no edge" in text


def test_one_that_does_not_get_back_does_not_keep_the_others(rollout: Rollout) -> None:
    _, text = rollout.play({"h1": {**STOPS, "fails": "back"}, "h2": STOPS, "h3": {"fails": "switch"}})
    assert "edge undrain h1" not in rollout.log()
    assert rollout.way_back()[-4:] == ["edge drain h2", "h2 back may stop", "h2 check old", "edge undrain h2"]
    assert "- h1 did not get back to its former deployment: Go back to the former deployment: back failed" in text
    assert "- h2 went back to its former release old" in text

    _, text = rollout.play({"h1": {"fails": "plan back"}, "h2": {"fails": "switch"}}, rollout_serial=[1])
    assert "- h1 did not get back to its former deployment: See what would change on the way back: plan back" in text
    assert "- h2 went back to its former release old" in text


def test_one_that_a_person_has_drained_stays_out(rollout: Rollout) -> None:
    rollout.members = {"h1": {**MEMBER, "drained": {"by": "somebody", "verb": "drain"}}}
    rollout.play({"h1": STOPS, "h2": {"fails": "switch"}}, rollout_serial=[1])
    assert not [line for line in rollout.log() if line.startswith("edge") and line.endswith("drain h1")]


def test_a_mixed_fleet_when_that_is_asked_for(rollout: Rollout) -> None:
    status, text = rollout.play({"h1": STOPS, "h3": {"fails": "check new"}}, rollout_keep_mixed=True)
    assert status
    assert [line for line in rollout.log() if " back" in line] == ["h3 plan back", "h3 back may stop"]
    for line in ("h1 keeps the new release", "h2 keeps the new release", "h3 went back to its former release old"):
        assert f"- {line}" in text


def test_one_that_was_lost_after_its_switch_is_kept_out(rollout: Rollout) -> None:
    _, text = rollout.play({"h2": {"lost": "check new"}})
    assert rollout.log().index("edge drain h2") < rollout.log().index("h1 back may stop")
    assert "lost while new was rolled out" in (rollout.folder / "why").read_text()
    assert "./fleet deploy" in (rollout.folder / "why").read_text()
    assert "- h2 cannot be reached any more; what it serves is not known" in text
    assert "It is drained, lest it come back with what was withdrawn" in text
    # The only one that was changed may be the one that is lost.
    rollout.play({"h1": {"lost": "settle"}})
    assert "edge drain h1" in rollout.log()

    rollout.refused = "drain h2"
    _, text = rollout.play({"h2": {"lost": "switch"}})
    assert "(e1: fleet-edge: nowhere to go). To keep it out: ./fleet drain h2" in text
    assert "- h1 went back to its former release old" in text


def test_one_that_is_lost_stays_in_where_a_mixed_fleet_is_asked_for(rollout: Rollout) -> None:
    rollout.play({"h2": {"lost": "check new"}}, rollout_keep_mixed=True)
    assert not [line for line in rollout.log() if line.startswith("edge drain")]


def test_the_next_deploy_takes_in_what_was_kept_out(rollout: Rollout) -> None:
    rollout.members = {"h2": {**MEMBER, "drained": {"by": "me", "verb": "deploy"}}}
    status, text = rollout.play({})
    assert not status, text
    assert rollout.log().index("h2 check new") < rollout.log().index("edge undrain h2")


def test_a_host_that_never_served_leaves_the_edges(rollout: Rollout) -> None:
    new = {"plan": {"former": ""}}
    _, text = rollout.play({"h1": new, "h2": {**new, "fails": "check new"}}, rollout_serial=[1])
    log = rollout.log()
    assert sorted(line for line in log if "leave" in line or " back" in line) == ["edge leave h1", "edge leave h2"]
    # It failed its checks before the edges heard of it.
    assert "edge join h2" not in log
    assert "- h2 had nothing to go back to" in text


def test_hosts_that_were_replaced_leave_when_all_have_joined(rollout: Rollout) -> None:
    rollout.held = ["h0"]
    status, text = rollout.play({})
    assert not status, text
    log = rollout.log()
    assert log.index("edge retain --run") > max(log.index(f"edge join h{number}") for number in (1, 2, 3))

    rollout.held_later = ["h0"]
    status, text = rollout.play({})
    assert status
    assert "h0: not in the inventory any more, but nothing else serves what they serve" in " ".join(text.split())
    assert "unlocked" in text

    _, text = rollout.play({"h2": {"fails": "switch"}})
    assert "edge retain --run" not in rollout.log(), "those that should replace it went back"
    assert "- h0 is not in the inventory any more; it goes on serving until others have taken its place" in text
