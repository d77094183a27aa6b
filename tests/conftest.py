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
