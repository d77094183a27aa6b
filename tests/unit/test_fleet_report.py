"""The callback that prints a playbook's report, run by the real Ansible."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tree

PLAYBOOK = """
- name: Check
  hosts: all
  gather_facts: false
  tasks:
    - name: Break
      ansible.builtin.fail:
        msg: broken
      when: toy_break | default(false) | bool
- name: Report
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Hand over
      ansible.builtin.set_stats:
        data:
          fleet_report:
            lines: ["ok {{ inventory_hostname }}", "é"]
            data: "{{ toy_data | default({'hosts': groups['all'], 'share': 0.5, 'exit': toy_exit | int}) }}"
            notes: "{{ toy_notes | default([]) }}"
            failures: []
            exit: "{{ toy_exit }}"
    - name: End
      ansible.builtin.fail:
        msg: told already
      when: toy_exit | int > 0
"""


class Report:
    """What a run left behind."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        playbook, exit_file = folder / "toy.yml", folder / "exit"
        playbook.write_text(PLAYBOOK)
        exit_file.write_text("")
        env = os.environ | {
            "ANSIBLE_CONFIG": str(tree.ROOT / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "fleet_report",
            "ANSIBLE_VERBOSE_TO_STDERR": "true",
            "FLEET_EXIT_FILE": str(exit_file),
        }
        command: list[str | Path] = [
            Path(sys.executable).parent / "ansible-playbook",
            "-i",
            "localhost,",
            "-c",
            "local",
            playbook,
            *arguments,
        ]
        done = subprocess.run(command, env=env | environment, capture_output=True, text=True, check=False)
        self.out, self.err, self.exit = done.stdout, done.stderr, exit_file.read_text()


def test_lines_for_people(tmp_path: Path) -> None:
    report = Report(tmp_path, "-e", "toy_exit=0")
    assert (report.out, report.exit) == ("ok localhost\né\n", "0")


@pytest.mark.parametrize("code", [0, 1])
def test_json_alone_on_standard_output(tmp_path: Path, code: int) -> None:
    report = Report(tmp_path, "-v", "-e", f"toy_exit={code}", FLEET_FORMAT="json")
    assert json.loads(report.out) == {"hosts": ["localhost"], "share": 0.5, "exit": code}
    assert report.exit == str(code)
    assert "told already" not in report.err


def test_without_report_nothing_was_checked(tmp_path: Path) -> None:
    report = Report(tmp_path, "-e", "toy_exit=0 toy_break=true", FLEET_FORMAT="json")
    assert json.loads(report.out) == {"failures": ["localhost: Break: broken"], "exit": 2}
    assert report.exit == "2"
    assert "localhost: Break: broken" in report.err


def test_lines_that_are_for_programs_too_and_notes_beside_them(tmp_path: Path) -> None:
    given = json.dumps({"toy_exit": 0, "toy_data": None, "toy_notes": ["one host was slow"]})
    report = Report(tmp_path, "-e", given, FLEET_FORMAT="json")
    assert (report.out, report.exit) == ("ok localhost\né\n", "0")
    assert "one host was slow\n" in report.err
