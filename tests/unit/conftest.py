"""Fixtures for tests that run the servers of a host as processes of this machine."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_site import Site, StandIn, Tab, browsing
from stack import Fleet, Roles


@pytest.fixture(scope="session")
def roles(role_variables: Callable[[str], dict[str, Any]], render: Callable[..., str]) -> Roles:
    """The roles' variables, expressions and templates."""
    return Roles(role_variables, render)


@pytest.fixture(scope="session")
def new_fleet(roles: Roles) -> Iterator[Callable[[], Fleet]]:
    """Make a host below a folder of its own."""
    folders: list[Path] = []

    def make() -> Fleet:
        # Not pytest's own folder: the path of a Unix socket has at most 107 bytes.
        folders.append(Path(tempfile.mkdtemp(prefix="fleet-")))
        # The workers of a server may run as another user than its master.
        folders[-1].chmod(0o755)
        return Fleet(folders[-1], roles)

    yield make
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture
def fleet(new_fleet: Callable[[], Fleet]) -> Fleet:
    """A host for one test."""
    return new_fleet()


@pytest.fixture(scope="module")
def shared_fleet(new_fleet: Callable[[], Fleet]) -> Fleet:
    """A host for the tests of one file."""
    return new_fleet()


@pytest.fixture(scope="session")
def browser() -> Iterator[Tab]:
    """One window of a real browser."""
    with browsing() as tab:
        yield tab


@pytest.fixture(scope="module")
def site(new_fleet: Callable[[], Fleet]) -> Iterator[Site]:
    """A host whose nginx serves the page, in front of a stand-in for the app."""
    made = Site(new_fleet(), StandIn())
    with made.serving():
        yield made
