"""Fixtures of the controller's tests: the project's files, a role's templates, nginx."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tree

# Read by Ansible when it is imported: paths of roles and plugins.
os.environ["ANSIBLE_CONFIG"] = str(tree.ROOT / "ansible.cfg")

import environments
from ansible._internal._templating import _template_vars
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

Render = Callable[..., str]


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return tree.ROOT


@pytest.fixture(scope="session")
def role_variables() -> Callable[[str], dict[str, Any]]:
    """The variables a role sees when nothing is set: the defaults of all roles, and its own vars/main.yml."""
    init_plugin_loader()
    loader = DataLoader()

    def load(path: Path) -> dict[str, Any]:
        return (loader.load_from_file(str(path), trusted_as_template=True) or {}) if path.exists() else {}

    def variables(role: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for folder in sorted((tree.ROOT / "roles").iterdir()):
            found |= load(folder / "defaults" / "main.yml")
        return found | load(tree.ROOT / "roles" / role / "vars" / "main.yml")

    return variables


def trusted(value: Any) -> Any:
    """Let strings given by a test be templates, as strings of an inventory are."""
    if isinstance(value, dict):
        return {key: trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


@pytest.fixture(scope="session")
def render(role_variables: Callable[[str], dict[str, Any]]) -> Render:
    """Render a role's template as the `template` module does, with Ansible's own Templar.

    render("nginx", "etc/nginx/nginx.conf.j2", nginx_port=8100) takes the role's defaults and vars, and over them
    what is given by name. Facts are given as ansible_facts={...}. An undefined variable is an error.
    """

    def run(role: str, template: str, **overrides: Any) -> str:
        folder = tree.ROOT / "roles" / role
        source = folder / "templates" / template
        variables = role_variables(role) | {"role_name": role, "role_path": str(folder)} | trusted(overrides)
        variables |= _template_vars.generate_ansible_template_vars(
            path=template,
            fullpath=str(source),
            dest_path=None,
            include_ansible_managed="ansible_managed" not in overrides,
        )
        templar = Templar(loader=DataLoader(), variables=variables).copy_with_new_env(
            searchpath=[str(folder / "templates"), str(source.parent)], available_variables=variables
        )
        text = templar.template(
            trust_as_template(source.read_text()),
            escape_backslashes=False,
            overrides={"trim_blocks": True, "lstrip_blocks": False},
        )
        return str(text)

    return run


@pytest.fixture(scope="session")
def nginx_test() -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """Run `nginx -t` on a whole configuration: nginx_test(path of nginx.conf), its folder being the prefix."""
    program = environments.nginx()

    def check(config: Path) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [program, "-t", "-e", "stderr", "-p", config.parent, "-c", config]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return check
