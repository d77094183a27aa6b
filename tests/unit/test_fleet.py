"""./fleet: verbs, the default inventory, exit codes. Ansible is replaced by a script that prints how it was called."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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
    """A folder with ./fleet, four verbs and a ready .venv."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "playbooks").mkdir()
        for verb in ("deploy", "verify", "status", "logs"):
            (folder / "playbooks" / f"{verb}.yml").write_text(f"---\n# verb: Does {verb}\n[]\n")
        (folder / "tools").mkdir()
        (folder / "tools" / "bootstrap.py").write_text("")
        for tool in ("hosts.py", "logs.py"):
            shutil.copy(tree.ROOT / "tools" / tool, folder / "tools")
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
    assert [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  ")][:6] == [
        ["bench", summaries["bench"]],
        ["deploy", "Does deploy"],
        ["docs", summaries["docs"]],
        ["logs", "Does logs"],
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


# ---- logs


def query(lines: list[str]) -> dict[str, Any]:
    found = json.loads(lines[lines.index("-e") + 1])
    assert list(found) == ["fleet_logs_query"]
    result: dict[str, Any] = found["fleet_logs_query"]
    return result


def test_options_of_logs_become_one_variable(project: Project, fleet_of_three: Path) -> None:
    words: list[str | Path] = [
        "gpu-host-1",
        "-i",
        fleet_of_three,
        "--request-id",
        "a/b=c",
        "--level",
        "warning",
        "--service=ocr",
        "--lines",
        "5",
        "-v",
    ]
    found = called(project, "logs", *words)
    assert found[:5] == ["--limit", "gpu-host-1", "-i", str(fleet_of_three), "-v"]
    wanted = query(found)
    assert {name: wanted[name] for name in ("request_id", "level", "service", "lines", "follow", "until")} == {
        "request_id": "a/b=c", "level": "warning", "service": "ocr", "lines": 5, "follow": False, "until": 0,
    }  # fmt: skip
    assert "request-id a/b=c, service ocr, level warning" in wanted["asked"]


def test_a_device_of_logs(project: Project, fleet_of_three: Path) -> None:
    assert "fleet_device=gpu0" in called(project, "logs", "gpu-host-1/gpu0", "-i", fleet_of_three)


@pytest.mark.parametrize(
    ("options", "seconds", "lines", "level"),
    [
        ([], 3600, 2000, "info"),
        (["--request-id", "a"], 86400, 2000, "debug"),
        (["--since", "30s"], 30, 2000, "info"),
        (["--since", "10m"], 600, 2000, "info"),
        (["--since=2h"], 7200, 2000, "info"),
        (["--since", "3d"], 259200, 2000, "info"),
        (["--since", "1w"], 604800, 2000, "info"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_where_logs_begin(project: Project, options: list[str], seconds: int, lines: int, level: str) -> None:
    wanted = query(called(project, "logs", "-i", "x", *options))
    assert time.time() - wanted["since"] / 1e6 == pytest.approx(seconds, abs=30)
    assert (wanted["lines"], wanted["level"]) == (lines, level)


def test_logs_take_times_of_rfc_3339(project: Project) -> None:
    wanted = query(
        called(project, "logs", "-i", "x", "--since", "2026-11-25T22:00:00.5+02:00", "--until", "2026-11-25t21:00:00z")
    )
    assert (wanted["since"], wanted["until"]) == (1795636800500000, 1795640400000000)
    assert wanted["asked"] == "since 2026-11-25T20:00:00Z, until 2026-11-25T21:00:00Z"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--since", "yesterday"],
            "--since takes how long ago, such as 30s, 10m, 2h or 3d, or a time with its zone, such as",
        ),
        (["--since", "2026-11-25T22:00:00"], "not '2026-11-25T22:00:00'"),
        (["--since", "2026-13-25T22:00:00Z"], "--since 2026-13-25T22:00:00Z: month must be in 1..12"),
        (["--since", ""], "not ''"),
        (["--until", "10 minutes"], "--until takes how long ago"),
        (["--since", "10m", "--until", "1h"], "--until 1h is not after --since 10m"),
        (["--since", "2999-01-01T00:00:00Z"], "is in the future; it is"),
        (["--follow", "--until", "1m"], "--follow goes on until Ctrl-C; leave --until out"),
        (["--request-id", "a b"], "no request has such an id"),
        (["--request-id", ""], "no request has such an id"),
        (["--request-id"], "argument --request-id: expected one argument. See ./fleet logs --help"),
        (["--level", "loud"], "argument --level: invalid choice: 'loud'"),
        (["--service", "OCR"], "--service 'OCR': it takes the name of a service"),
        (["--lines", "0"], "--lines takes a number from 1 to 100000; not '0'"),
        (["--lines", "many"], "not 'many'"),
        (["--follow", "gpu-host-1"], "hosts stand right behind the verb, and not behind '--follow'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_of_logs_that_make_no_sense_are_refused(project: Project, options: list[str], said: str) -> None:
    done = project.run("logs", "-i", "x", *options)
    assert (done.returncode, done.stdout) == (2, ""), "no host was asked"
    assert done.stderr.startswith("fleet: ") and said in done.stderr


def test_logs_as_json_are_asked_for_as_other_reports_are(project: Project) -> None:
    (project.folder / ".venv" / "bin" / "ansible-playbook").write_text(
        '#!/bin/sh\nprintf 0 >"$FLEET_EXIT_FILE"\nprintf "%s\\n" "$FLEET_FORMAT" "$@"\n'
    )
    done = project.run("logs", "-i", "x", "--json")
    assert done.stdout.splitlines()[0] == "json"
    assert "fleet_format=json" in done.stdout.splitlines()


def test_logs_has_a_help_of_its_own(project: Project) -> None:
    done = project.run("logs", "--help")
    assert done.returncode == 0
    for option in ("--request-id", "--since", "--until", "--follow", "--level", "--service", "--lines", "--json"):
        assert option in done.stdout


def test_who_follows_logs_is_given_what_comes(project: Project) -> None:
    (project.folder / "tools" / "follow.py").write_text("import sys\nprint(*sys.argv[1:], sep='\\n')\n")
    found = project.run("logs", "-i", "x", "--follow").stdout.splitlines()
    assert found[:2] == [
        str(project.folder / ".venv" / "bin" / "ansible-playbook"),
        str(project.folder / "playbooks" / "logs.yml"),
    ]
    wanted = query(found)
    assert (wanted["follow"], wanted["lines"]) == (True, 10)
    wanted = query(project.run("logs", "-i", "x", "--follow", "--since", "5m").stdout.splitlines())
    assert wanted["lines"] == 2000, "somebody who names a time wants all since then"
