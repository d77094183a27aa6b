"""Fixtures of the controller's tests: the project's files, a role's templates, nginx."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environments
import pytest
import rendering
import tree

Render = Callable[..., str]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also the tests that are marked as long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is long, unless all was asked for; as for the scenarios, that is no skip."""
    if config.getoption("--all"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return tree.ROOT


@pytest.fixture(scope="session")
def role_variables() -> Callable[[str], dict[str, Any]]:
    """The variables a role sees when nothing is set: the defaults of all roles, and its own vars/main.yml."""
    return rendering.variables


@pytest.fixture(scope="session")
def render() -> Render:
    """Render a role's template as the `template` module does, with Ansible's own Templar: rendering.render."""
    return rendering.render


@pytest.fixture(scope="session")
def nginx_test() -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """Run `nginx -t` on a whole configuration: nginx_test(path of nginx.conf), its folder being the prefix."""
    program = environments.nginx()

    def check(config: Path) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [program, "-t", "-e", "stderr", "-p", config.parent, "-c", config]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return check
