"""The roles' variables and templates, worked out by Ansible's own Templar; for tests and for benchmarks."""

import functools
import os
from pathlib import Path
from typing import Any

import tree

# Read by Ansible when it is imported: paths of roles and plugins.
os.environ["ANSIBLE_CONFIG"] = str(tree.ROOT / "ansible.cfg")

from ansible._internal._templating import _template_vars
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template


def trusted(value: Any) -> Any:
    """Let strings given by a test be templates, as strings of an inventory are."""
    if isinstance(value, dict):
        return {key: trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


@functools.cache
def _find_plugins() -> None:
    init_plugin_loader()


def variables(role: str) -> dict[str, Any]:
    """The variables a role sees when nothing is set: the defaults of all roles, and its own vars/main.yml."""
    _find_plugins()
    loader = DataLoader()

    def load(path: Path) -> dict[str, Any]:
        return (loader.load_from_file(str(path), trusted_as_template=True) or {}) if path.exists() else {}

    found: dict[str, Any] = {}
    for folder in sorted((tree.ROOT / "roles").iterdir()):
        found |= load(folder / "defaults" / "main.yml")
    return found | load(tree.ROOT / "roles" / role / "vars" / "main.yml")


def render(role: str, template: str, **overrides: Any) -> str:
    """Render a role's template as the `template` module does.

    render("nginx", "etc/nginx/nginx.conf.j2", nginx_port=8100) takes the role's defaults and vars, and over them
    what is given by name. Facts are given as ansible_facts={...}. An undefined variable is an error.
    """
    folder = tree.ROOT / "roles" / role
    source = folder / "templates" / template
    found = variables(role) | {"role_name": role, "role_path": str(folder)} | trusted(overrides)
    found |= _template_vars.generate_ansible_template_vars(
        path=template,
        fullpath=str(source),
        dest_path=None,
        include_ansible_managed="ansible_managed" not in overrides,
    )
    templar = Templar(loader=DataLoader(), variables=found).copy_with_new_env(
        searchpath=[str(folder / "templates"), str(source.parent)], available_variables=found
    )
    text = templar.template(
        trust_as_template(source.read_text()),
        escape_backslashes=False,
        overrides={"trim_blocks": True, "lstrip_blocks": False},
    )
    return str(text)
