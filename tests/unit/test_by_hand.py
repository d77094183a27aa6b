"""docs/by-hand.md stays true: its blocks are run in order, and what they print is compared with what the page shows."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import documents
import environments
import pytest
import tree

PAGE = tree.ROOT / "docs" / "by-hand.md"
PORTS = ("8111", "8112", "8113", "8114")
#: Debian packages of the programs that the page uses.
PROGRAMS = {"curl": "curl", "lsof": "lsof", "nc": "netcat-openbsd", "ss": "iproute2"}


def install_programs() -> None:
    """Install what the page uses and this machine lacks.

    Raises:
        Unavailable: this is no root, or no Debian.
    """
    packages = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if not packages:
        return
    command = ["apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise environments.Unavailable(f"docs/by-hand.md needs some programs; mend it with: sudo {' '.join(command)}")
    environments.run(*command)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder that a worker of nginx, which is another user, may enter."""
    folder = Path(tempfile.mkdtemp(prefix="by-hand-"))
    folder.chmod(0o755)
    yield folder
    # nginx leaves the process group of whoever starts it; where the page worked, it is gone by now.
    for name in ("nginx.pid", "app.pid"):
        with suppress(OSError, ValueError):
            os.kill(int((folder / name).read_text()), signal.SIGKILL)
    shutil.rmtree(folder)


def test_every_line_of_the_page_does_what_it_shows(scratch: Path) -> None:
    install_programs()
    assert len(documents.blocks(PAGE)) > 5, "the page has lost its marks"
    programs = [environments.app().parent, environments.nginx().parent]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("INFERENCE_")}
    environment["PATH"] = os.pathsep.join([*map(str, programs), environment["PATH"]])
    environment["PYTHONPATH"] = str(tree.ROOT / "app" / "src")
    documents.check(PAGE, scratch, environment, PORTS)


def test_a_line_that_is_not_printed_is_found() -> None:
    assert documents.lacking("a … c\nnever\n", "a  b c\nalways\n") == ["never"]
    assert documents.lacking("b\na\n", "a\nb\n") == ["a"]
