"""Specification = defaults = README, for every role, and the rules of naming."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tree
import variables
import yaml

ROLES = variables.roles()
# Written down, so that these tests cannot pass by finding nothing.
EXPECTED = {"preflight", "devices", "release", "emperor", "services", "nginx", "site", "verify", "edge", "monitoring"}


def load(path: Path) -> Any:
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def defaults(role: Path) -> dict[str, Any]:
    return dict(load(role / "defaults" / "main.yml"))


def options(role: Path) -> dict[str, Any]:
    return dict(variables.main_entry(role).get("options") or {})


def yaml_files(role: Path) -> list[Path]:
    return [path for path in tree.files(role) if path.suffix == ".yml" and path.parent.name in {"tasks", "handlers"}]


def tasks(items: Any) -> Iterator[dict[str, Any]]:
    """Every task of a file, those within blocks too."""
    for item in items or []:
        yield item
        for key in ("block", "rescue", "always"):
            yield from tasks(item.get(key))


@pytest.fixture(params=ROLES, ids=lambda role: role.name)
def role(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


def test_all_roles_are_there() -> None:
    assert {role.name for role in ROLES} >= EXPECTED


def test_role_has_a_specification(role: Path) -> None:
    entry = variables.main_entry(role)
    assert entry.get("short_description"), f"{role.name}: meta/argument_specs.yml lacks main or its short_description"


def test_every_option_is_typed_and_described(role: Path) -> None:
    def check(where: str, found: dict[str, Any]) -> Iterator[str]:
        for name, option in found.items():
            yield from (f"{where}{name} lacks `{key}`" for key in ("type", "description") if not option.get(key))
            if option.get("type") == "list" and "elements" not in option:
                yield f"{where}{name} is a list and lacks `elements`"
            yield from check(f"{where}{name}.", option.get("options") or {})

    entries = load(role / "meta" / "argument_specs.yml")["argument_specs"]
    assert not [line for name, entry in entries.items() for line in check(f"{name}: ", entry.get("options") or {})]


def test_defaults_of_specification_and_role_are_equal(role: Path) -> None:
    specified = {name: option["default"] for name, option in options(role).items() if "default" in option}
    # As text, because Python holds True and 1 for equal.
    as_text = [
        {name: json.dumps(value, sort_keys=True) for name, value in found.items()}
        for found in (specified, defaults(role))
    ]
    assert as_text[0] == as_text[1]


def test_an_option_without_default_is_required(role: Path) -> None:
    """Else nobody could tell what happens when it is left out."""
    assert not [
        name for name, option in options(role).items() if "default" not in option and not option.get("required")
    ]


def test_every_default_has_a_sentence_above_it(role: Path) -> None:
    path = role / "defaults" / "main.yml"
    lines = path.read_text().splitlines() if path.exists() else []
    assert not [
        line for before, line in zip(["", *lines], lines, strict=False) if re.match(r"\w+:", line) and before[:1] != "#"
    ]


def test_variables_start_with_the_name_of_the_role(role: Path) -> None:
    public, internal = f"{role.name}_", f"__{role.name}_"
    names = [*defaults(role), *options(role)]
    assert not [name for name in names if name != role.name and not name.startswith(public)], "defaults and options"
    found = [name for path in (role / "vars").rglob("*.yml") for name in load(path)]
    assert not [name for name in found if not name.startswith(internal)], "vars"


def test_what_tasks_set_is_internal(role: Path) -> None:
    """`register`, `set_fact` and `vars` of tasks. Roles share facts named `fleet_`, and hand on public variables."""
    handed_on = {name for other in ROLES for name in options(other)}
    bad: list[str] = []
    for path in yaml_files(role):
        for task in tasks(load(path)):
            names = [task["register"]] if "register" in task else []
            names += [name for name in task.get("ansible.builtin.set_fact", {}) if name != "cacheable"]
            names += [
                name for name in task.get("vars", {}) if name not in handed_on and not name.startswith("ansible_")
            ]
            bad += [
                f"{path.name}: {task.get('name')}: {name}" for name in names if not name.startswith(("__", "fleet_"))
            ]
    assert not bad


def test_templates_say_where_they_come_from(role: Path) -> None:
    """First line: managed by Ansible. Second: role and variable to edit. Scripts have their `#!` before both."""
    bad: list[str] = []
    for path in (path for path in tree.files(role) if path.suffix == ".j2"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#jinja2:")]
        first, second = (lines[1:] if lines[0].startswith("#!") else lines)[:2]
        name = path.relative_to(role)
        if not re.match(r"\{\{ ansible_managed \| comment(\(.*\))? \}\}$", first):
            bad.append(f"{name}: {first!r} is not `{{{{ ansible_managed | comment }}}}`")
        if f"Role {role.name}:" not in second:
            bad.append(f"{name}: {second!r} does not say `Role {role.name}: VARIABLES`")
        named = re.findall(rf"\b{role.name}_\w+", second)
        bad += [f"{name}: {variable} is no variable of the role" for variable in named if variable not in options(role)]
    assert not bad


def test_readme_has_its_table(role: Path) -> None:
    text = (role / "README.md").read_text()
    assert variables.table(role) in text


def test_tables_are_those_of_the_specification() -> None:
    found = variables.differences()
    assert not found, "run `.venv/bin/python tools/variables.py`:\n" + "\n".join(found)
