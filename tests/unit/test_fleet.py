"""./fleet: verbs, the default inventory, exit codes. Ansible is replaced by a script that prints how it was called."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tree

STAND_IN = """#!/bin/sh
[ -z "$STAND_IN_REPORT" ] || printf '%s' "$STAND_IN_REPORT" >"$FLEET_EXIT_FILE"
printf '%s\\n' "$@"
exit "${STAND_IN_EXIT:-0}"
"""
# The environment of the person who runs the tests must not decide them.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "FLEET_"))}


class Project:
    """A folder with ./fleet, three verbs and a ready .venv."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "playbooks").mkdir()
        for verb in ("deploy", "verify", "status"):
            (folder / "playbooks" / f"{verb}.yml").write_text(f"---\n# verb: Does {verb}\n[]\n")
        (folder / "tools").mkdir()
        (folder / "tools" / "bootstrap.py").write_text("")
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
        ansible = folder / ".venv" / "bin" / "ansible-playbook"
        ansible.write_text(STAND_IN)
        ansible.chmod(0o755)
        self.fleet = Path(shutil.copy(tree.ROOT / "fleet", folder))

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.fleet, *arguments], cwd="/", env=CLEAN | environment, capture_output=True, text=True, check=False
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_without_verb_it_lists_the_verbs_and_what_they_do(project: Project) -> None:
    done = project.run()
    assert done.returncode == 0
    assert [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  ")][:3] == [
        ["deploy", "Does deploy"],
        ["status", "Does status"],
        [
            "test",
            next(line.split("'")[1] for line in project.fleet.read_text().splitlines() if "test_summary='" in line),
        ],
    ]


def test_an_unknown_verb_is_refused_with_the_nearest_one(project: Project) -> None:
    done = project.run("deplyo")
    assert done.returncode == 2
    assert "unknown verb 'deplyo'; did you mean 'deploy'?" in done.stderr
    assert done.stdout == ""


def test_a_path_is_no_verb(project: Project) -> None:
    assert project.run("../playbooks/deploy").returncode == 2


@pytest.mark.parametrize(
    "given",
    [["-i", "x"], ["-ix"], ["--inventory", "x"], ["--inventory=x"], ["-Ki", "x"]],
    ids=" ".join,
)
def test_an_inventory_of_the_user_replaces_the_default(project: Project, given: list[str]) -> None:
    called = project.run("deploy", *given).stdout.splitlines()
    assert called == [str(project.folder / "playbooks" / "deploy.yml"), *given]


def test_the_default_inventory_is_this_machine(project: Project) -> None:
    # -K, so that the test does not depend on the sudo rights of whoever runs it.
    called = project.run("deploy", "-K", "-e", "a=i").stdout.splitlines()
    playbook = str(project.folder / "playbooks" / "deploy.yml")
    assert called == ["-i", str(project.folder / "inventory" / "local"), playbook, "-K", "-e", "a=i"]


def test_an_inventory_of_the_environment_replaces_the_default(project: Project) -> None:
    called = project.run("deploy", ANSIBLE_INVENTORY="x").stdout.splitlines()
    assert called == [str(project.folder / "playbooks" / "deploy.yml")]


def test_it_works_through_a_link(project: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("bin") / "fleet"
    link.symlink_to(project.fleet)
    project.fleet = link
    assert "deploy.yml" in project.run("deploy", "-i", "x").stdout


def test_it_works_without_home(project: Project) -> None:
    environment = {name: value for name, value in CLEAN.items() if name != "HOME"}
    command: list[str | Path] = [project.fleet, "deploy", "-i", "x"]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("report", "ansible", "expected"),
    [("0", "0", 0), ("1", "0", 1), ("1", "2", 1), ("2", "0", 2), ("", "0", 2), ("", "4", 2), ("0", "4", 2)],
)
def test_exit_code_is_that_of_the_report(project: Project, report: str, ansible: str, expected: int) -> None:
    done = project.run("verify", "-i", "x", STAND_IN_REPORT=report, STAND_IN_EXIT=ansible)
    assert done.returncode == expected


def test_exit_code_of_other_verbs_is_that_of_ansible(project: Project) -> None:
    assert project.run("deploy", "-i", "x", STAND_IN_EXIT="4").returncode == 4


def test_json_is_handed_on_as_a_variable(project: Project) -> None:
    called = project.run("status", "-i", "x", "--json").stdout.splitlines()
    assert called == [str(project.folder / "playbooks" / "status.yml"), "-i", "x", "-e", "fleet_format=json"]
