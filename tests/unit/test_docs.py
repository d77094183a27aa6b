"""What the documents point at exists: files, headings, variables; the example inventory is one that deploy takes."""

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import deploy_page
import docs_site
import pytest
import tree
import variables
import yaml

EXAMPLE = tree.ROOT / "inventory" / "example"
PAGES = [path for path in tree.files() if path.suffix == ".md"]
# Commands and their output are no text of the page.
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    return {docs_site.anchor(found) for found in re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text()), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(tree.ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    bad = []
    for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text())):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        if re.match(r"https?:", link):
            continue
        if not target.exists() or (heading and heading not in anchors(target)):
            bad.append(link)
    assert not bad


def test_readme_leads_to_every_document() -> None:
    readme = (tree.ROOT / "README.md").read_text()
    pages = [path.relative_to(tree.ROOT) for path in PAGES if path.parent == tree.ROOT / "docs"]
    assert pages
    assert not [str(page) for page in pages if f"({page})" not in readme]


def test_pictures_say_what_they_show() -> None:
    pictures = sorted((tree.ROOT / "docs").rglob("*.svg"))
    assert pictures
    # Our own files: nothing to guard against.
    roots = [ElementTree.parse(path).getroot() for path in pictures]  # noqa: S314
    assert not [root for root in roots if root.find("{http://www.w3.org/2000/svg}title") is None]


def test_numbers_of_the_performance_page_are_those_of_the_last_run() -> None:
    text = deploy_page.PAGE.read_text()
    assert deploy_page.page(text) == text, "mend it with: .venv/bin/python bench/deploy_page.py"


def names(value: object) -> set[str]:
    """Keys of the variables of groups and hosts of a parsed inventory file."""
    found: set[str] = set()
    if isinstance(value, dict):
        for key, below in value.items():
            if key in {"vars", "hosts"} and isinstance(below, dict):
                hosts = [one for one in below.values() if isinstance(one, dict)] if key == "hosts" else [below]
                found |= {name for host in hosts for name in host}
            found |= names(below)
    return found


def test_every_variable_of_the_example_exists() -> None:
    """Those that are commented out too: they are there to be uncommented."""
    known = {name for role in variables.roles() for name in variables.main_entry(role).get("options") or {}}
    used = names(yaml.safe_load((EXAMPLE / "hosts.yml").read_text()))
    for path in [*EXAMPLE.glob("group_vars/**/*.yml"), *EXAMPLE.glob("host_vars/*.yml")]:
        used |= set(re.findall(r"^(?:# )?([a-z_]+):(?: |$)", path.read_text(), re.MULTILINE))
    assert {"services", "ansible_host", "ansible_user", "emperor_environment", "edge_virtual_address"} <= used
    assert not {name for name in used if not name.startswith("ansible_")} - known


def inventory_of(folder: Path, *more: str | Path) -> dict[str, Any]:
    program = Path(sys.executable).parent / "ansible-inventory"
    done = subprocess.run([program, "-i", folder, "--list", *more], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_example_is_an_inventory_of_two_edges_and_three_hosts() -> None:
    inventory = inventory_of(EXAMPLE)
    assert inventory["edge"]["hosts"] == ["edge-1", "edge-2"]
    assert inventory["inference"]["hosts"] == ["gpu-host-1", "gpu-host-2", "gpu-host-3"]
    assert inventory["_meta"]["hostvars"]["gpu-host-2"]["site_device_weights"] == {"gpu0": 2}
    assert inventory["_meta"]["hostvars"]["edge-1"]["ansible_user"] == "admin"


def test_the_vault_of_the_example_holds_what_the_other_files_name(tmp_path: Path) -> None:
    copy = tmp_path / "mysite"
    shutil.copytree(EXAMPLE, copy)
    vault = copy / "group_vars" / "all" / "vault.yml"
    shutil.copy(vault.with_name("vault.yml.example"), vault)
    password = tmp_path / "password"
    password.write_text("a password\n")
    program = Path(sys.executable).parent / "ansible-vault"
    subprocess.run([program, "encrypt", vault, "--vault-password-file", password], capture_output=True, check=True)
    found = inventory_of(copy, "--vault-password-file", password)["_meta"]["hostvars"]["gpu-host-1"]
    used = {name for path in copy.rglob("*.yml") for name in re.findall(r"\{\{ (vault_\w+) \}\}", path.read_text())}
    assert used
    assert used == {name for name in found if name.startswith("vault_")}


def test_deploy_takes_the_example() -> None:
    command: list[str | Path] = [tree.ROOT / "fleet", "deploy", "-i", EXAMPLE, "--list-tasks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rollout : Walk back" in done.stdout
