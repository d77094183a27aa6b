"""./fleet: verbs, the default inventory, exit codes. Ansible is replaced by a script that prints how it was called."""

import json
import os
import re
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
        shutil.copy(tree.ROOT / "tools" / "hosts.py", folder / "tools")
        (folder / "plugins" / "filter").mkdir(parents=True)
        shutil.copy(tree.ROOT / "plugins" / "filter" / "limit.py", folder / "plugins" / "filter")
        shutil.copy(tree.ROOT / "ansible.cfg", folder)
        (folder / ".venv" / "bin").mkdir(parents=True)
        # Not a link: the packages of an environment are found beside the name that its Python was called by.
        python = folder / ".venv" / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
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
    summaries = dict(re.findall(r"^(test|bench|docs)_summary='(.*)'$", project.fleet.read_text(), re.MULTILINE))
    assert [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  ")][:5] == [
        ["bench", summaries["bench"]],
        ["deploy", "Does deploy"],
        ["docs", summaries["docs"]],
        ["status", "Does status"],
        ["test", summaries["test"]],
    ]


def test_bench_runs_the_program_and_lists_those_that_there_are(project: Project) -> None:
    (project.folder / "bench").mkdir()
    (project.folder / "bench" / "helper.py").write_text("no program\n")
    program = project.folder / "bench" / "speed"
    program.write_text("#!/bin/sh\n# Measures speed\nprintf '%s\\n' \"$@\"\nexit 3\n")
    program.chmod(0o755)
    listed = project.run("bench")
    assert listed.returncode == 0
    assert [line.split(maxsplit=1) for line in listed.stdout.splitlines()[2:]] == [["speed", "Measures speed"]]
    done = project.run("bench", "speed", "--hosts", "1,5")
    assert (done.returncode, done.stdout.split()) == (3, ["--hosts", "1,5"])
    for name in ("helper.py", "../fleet", "slow"):
        refused = project.run("bench", name)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"there is no benchmark '{name}'" in refused.stderr


def test_docs_builds_the_site_and_hands_on_its_options(project: Project) -> None:
    mkdocs = project.folder / ".venv" / "bin" / "mkdocs"
    mkdocs.write_text(STAND_IN)
    mkdocs.chmod(0o755)
    done = project.run("docs", "--site-dir", "public", STAND_IN_EXIT="1")
    configuration = str(project.folder / "mkdocs.yml")
    assert done.stdout.split() == ["build", "--strict", "--config-file", configuration, "--site-dir", "public"]
    assert done.returncode == 1


def test_mitogen_is_used_when_it_is_asked_for(project: Project) -> None:
    folder = project.folder / ".venv" / "lib" / "python3.11" / "site-packages" / "ansible_mitogen"
    strategies = folder / "plugins" / "strategy"
    strategies.mkdir(parents=True)
    ansible = project.folder / ".venv" / "bin" / "ansible-playbook"
    ansible.write_text('#!/bin/sh\necho "$ANSIBLE_STRATEGY" "$ANSIBLE_STRATEGY_PLUGINS"\n')
    assert project.run("deploy", "-i", "x").stdout.split() == []
    assert project.run("deploy", "-i", "x", FLEET_MITOGEN="1").stdout.split() == ["mitogen_linear", str(strategies)]


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


# ---- hosts behind the verb


@pytest.fixture
def fleet_of_three(project: Project) -> Path:
    inventory = project.folder / "hosts.yml"
    hosts: dict[str, dict[str, dict[str, dict[str, str]]]] = {
        "inference": {"hosts": {"gpu-host-1": {}, "gpu-host-2": {}}},
        "edge": {"hosts": {"edge-1": {}}},
    }
    inventory.write_text(json.dumps(hosts))
    return inventory


def test_hosts_are_those_of_the_inventory_that_the_environment_names(project: Project, fleet_of_three: Path) -> None:
    done = project.run("status", "gpu-hots-1", ANSIBLE_INVENTORY=str(fleet_of_three))
    assert done.returncode == 2
    assert "Did you mean gpu-host-1?" in done.stderr


def called(project: Project, *arguments: str | Path) -> list[str]:
    done = project.run(*map(str, arguments), STAND_IN_REPORT="0")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[1:]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["gpu-host-1"], ["--limit", "gpu-host-1"]),
        (["gpu-host-1", "edge-1"], ["--limit", "gpu-host-1,edge-1"]),
        (["gpu-host-1/cpu0"], ["--limit", "gpu-host-1", "-e", "fleet_device=cpu0"]),
        (["gpu-host-1/gpu0", "gpu-host-2/gpu0"], ["--limit", "gpu-host-1,gpu-host-2", "-e", "fleet_device=gpu0"]),
        (["gpu-host-*"], ["--limit", "gpu-host-*"]),
        (["inference", "!gpu-host-2"], ["--limit", "inference,!gpu-host-2"]),
        (["inference[0]"], ["--limit", "inference[0]"]),
        (["~gpu-.*-2"], ["--limit", "~gpu-.*-2"]),
        (["all"], ["--limit", "all"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_words_are_hosts(project: Project, fleet_of_three: Path, words: list[str], options: list[str]) -> None:
    given = ["-i", str(fleet_of_three), "-e", "why=a b"]
    assert called(project, "deploy", *words, *given) == [*options, *given]


def test_words_are_hosts_of_a_report_too(project: Project, fleet_of_three: Path) -> None:
    found = called(project, "status", "gpu-host-1", "-i", fleet_of_three, "--json")
    assert found == ["--limit", "gpu-host-1", "-i", str(fleet_of_three), "-e", "fleet_format=json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gpu-hst-1"], "no host gpu-hst-1. Did you mean gpu-host-1? Its hosts are edge-1, gpu-host-1, gpu-host-2."),
        (["gpu-host-1", "edge-2"], "no host edge-2. Did you mean edge-1?"),
        (["qqqq"], "no host qqqq. Its hosts are edge-1, gpu-host-1, gpu-host-2."),
        (["inference", "!gpu-host-3"], "no host gpu-host-3. Did you mean gpu-host-2?"),
        (["gpu-hst-1/cpu0"], "no host gpu-hst-1. Did you mean gpu-host-1?"),
        (["--limit", "gpu-hst-1"], "no host gpu-hst-1. Did you mean gpu-host-1?"),
        (["-lgpu-hst-1"], "no host gpu-hst-1. Did you mean gpu-host-1?"),
        (
            ["gpu-host-1/gpu0", "gpu-host-2/gpu1"],
            "one call takes one device, the same on each host; these name gpu0 and gpu1",
        ),
        (["gpu-host-1/gpu0", "gpu-host-2"], "these name gpu0 and none"),
        (["gpu-host-1/"], "a target is HOST or HOST/DEVICE"),
        (["/gpu0"], "a target is HOST or HOST/DEVICE"),
        (["gpu-host-1", "--limit", "gpu-host-2"], "hosts are given twice: as gpu-host-1 and as --limit gpu-host-2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_that_are_no_hosts(project: Project, fleet_of_three: Path, arguments: list[str], said: str) -> None:
    done = project.run("deploy", *arguments, "-i", str(fleet_of_three))
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_what_ansible_says_better_is_left_to_it(project: Project, tmp_path: Path) -> None:
    """An inventory that is not there, and an option that does not exist."""
    assert called(project, "deploy", "x", "-i", tmp_path / "none.yml", "--no-such")[:2] == ["--limit", "x"]


@pytest.mark.parametrize(
    "options",
    [
        ["-i", "x", "gpu-host-1"],
        ["-e", "why=x", "gpu-host-1", "--check"],
        ["-i", "--json", "gpu-host-1"],
        ["-ix", "-K", "gpu-host-1"],
    ],
    ids=" ".join,
)
def test_hosts_in_the_wrong_place_are_refused(project: Project, options: list[str]) -> None:
    """Ansible's own answer to that has eighty lines."""
    done = project.run("deploy", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"hosts stand right behind the verb, and not behind '{options[1]}'" in done.stderr
    assert "./fleet deploy gpu-host-1 ..." in done.stderr
