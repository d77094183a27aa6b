"""Promises of the project as a whole: commands, verbs, locks, and what no file may hold."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible_collections
import tree
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = tree.ROOT
#: What ./fleet runs without a playbook.
WITHOUT_PLAYBOOK = ["test", "bench", "docs"]
VERBS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))


def texts() -> Iterator[tuple[Path, str]]:
    """Name and text of every file but the locks, which are made by uv, and pictures."""
    for path in tree.files():
        if path.suffix not in {".lock", ".png", ".jpg", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".pt2", ".npz"}:
            yield path.relative_to(ROOT), path.read_text(errors="replace")


def lines_with(pattern: str) -> list[str]:
    found = re.compile(pattern)
    return [
        f"{name}:{n}: {line}"
        for name, text in texts()
        for n, line in enumerate(text.splitlines(), 1)
        if found.search(line)
    ]


def versions(lock: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for package in tomllib.loads(lock.read_text())["package"]:
        found.setdefault(package["name"], set()).add(package.get("version", ""))
    return found


def test_readme_has_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert re.search(r"^\./fleet deploy$", readme, re.MULTILINE)
    assert re.search(r"^\./fleet test$", readme, re.MULTILINE)


def test_ci_runs_the_readmes_test_command() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec ./fleet test"


def test_documents_name_only_verbs_that_exist() -> None:
    known = {*VERBS, *WITHOUT_PLAYBOOK, "help", "VERB"}
    bad = [
        f"{name}: ./fleet {verb}"
        for name, text in texts()
        if name.suffix == ".md"
        for verb in re.findall(r"\./fleet +([a-zA-Z_-]+)", text)
        if verb not in known
    ]
    assert not bad


def test_there_are_verbs() -> None:
    assert {"deploy", "verify", "status"} <= set(VERBS)


def test_every_verb_says_what_it_does() -> None:
    heads = {verb: (ROOT / "playbooks" / f"{verb}.yml").read_text().splitlines()[:3] for verb in VERBS}
    assert not [verb for verb, head in heads.items() if not any(re.match(r"# verb: \S", line) for line in head)]


def test_every_verb_stands_in_the_readmes_table() -> None:
    rows = re.findall(r"^\|\s*`(?:\./fleet )?([a-z_-]+)[^|]*\|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {*VERBS, *WITHOUT_PLAYBOOK} <= set(rows)


def test_fleet_lists_every_verb() -> None:
    listed = subprocess.run([ROOT / "fleet"], capture_output=True, text=True, check=True).stdout
    assert not [verb for verb in [*VERBS, *WITHOUT_PLAYBOOK] if not re.search(rf"^  {verb} +\S", listed, re.MULTILINE)]


def test_every_benchmark_says_what_it_measures() -> None:
    programs = [path for path in sorted((ROOT / "bench").iterdir()) if path.is_file() and os.access(path, os.X_OK)]
    listed = subprocess.run([ROOT / "fleet", "bench"], capture_output=True, text=True, check=True).stdout
    assert programs
    assert not [path.name for path in programs if not re.search(rf"^  {path.name} +\S", listed, re.MULTILINE)]


def test_no_task_ignores_errors() -> None:
    assert not lines_with(r"^\s*(- )?ignore_errors\s*:")


def test_no_check_is_made_harmless() -> None:
    assert not lines_with(r"\|\|\s*tru[e]\b")


def test_no_file_names_a_path_of_one_machine() -> None:
    # Put together here, so that this file does not hold what it looks for. Every host has a /root/.ssh.
    places = "|".join(["wor" + "k", "opt/whe" + "els", "opt/py" + "pi", "roo" + "t(?!/[.]ssh)"])
    assert not lines_with(rf"(?<![\w.}}$*-])/({places})(?![\w.-])")


def test_locks_fit_their_projects() -> None:
    uv = Path(sys.executable).parent / "uv"
    for folder in (ROOT, ROOT / "app"):
        command: list[str | Path] = [uv, "lock", "--check", "--offline", "--project", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{folder.name}/uv.lock: run `uv lock` there\n{done.stderr}"


def test_controller_and_app_share_versions() -> None:
    """What converts a model, and what checks uWSGI's options, is the version that the app is tested with."""
    controller, app = versions(ROOT / "uv.lock"), versions(ROOT / "app" / "uv.lock")
    shared = ("pyuwsgi", "onnx", "safetensors", "numpy")
    assert {name: controller[name] - app[name] for name in shared} == {name: set() for name in shared}


def collections() -> dict[str, str]:
    listed: list[dict[str, Any]] = yaml.safe_load((ROOT / "requirements.yml").read_text())["collections"]
    return {entry["name"]: entry["version"] for entry in listed}


def test_requirements_name_the_collections_in_use() -> None:
    used = set()
    for path in tree.files():
        if path.suffix == ".yml" and path.relative_to(ROOT).parts[0] in {"roles", "playbooks", "molecule", "tests"}:
            used |= set(re.findall(r"^[\s-]+([a-z_]+\.[a-z_]+)\.[a-z_0-9]+:", path.read_text(), re.MULTILINE))
    assert used - {"ansible.builtin"} == set(collections())


def test_ansible_bundles_the_collections_of_requirements() -> None:
    """So that neither ./fleet nor a plain ansible-playbook needs ansible-galaxy."""
    (folder,) = ansible_collections.__path__
    for name, wanted in collections().items():
        manifest = json.loads((Path(folder, *name.split(".")) / "MANIFEST.json").read_text())
        assert Version(manifest["collection_info"]["version"]) in SpecifierSet(wanted), name
