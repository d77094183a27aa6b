"""docs/by-hand.md stays true: its blocks are run in order, and what they print is compared with what the page shows."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import environments
import pytest
import tree
from page_blocks import blocks, lacking

PAGE = tree.ROOT / "docs" / "by-hand.md"
#: Ports that the page uses; the test puts free ones in their places.
PORTS = ("8111", "8112", "8113", "8114")
#: Debian packages of the programs that the page uses.
PROGRAMS = {"curl": "curl", "lsof": "lsof", "nc": "netcat-openbsd", "ss": "iproute2"}
TIMEOUT_SECONDS = 60


def free_ports(count: int) -> list[str]:
    """Ports nobody listens on; all are held while they are chosen, so that no two are the same."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


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
    page = blocks(PAGE)
    assert len(page) > 5, "the page has lost its marks"
    ends = [f"--- end of block {number} ---" for number in range(len(page))]
    script = "".join(f"{block.script}\necho '{end}'\n" for block, end in zip(page, ends, strict=True))
    replace = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    ports = re.compile("|".join(PORTS))
    script = ports.sub(lambda found: replace[found[0]], script)
    programs = [environments.app().parent, environments.nginx().parent]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("INFERENCE_")}
    environment["PATH"] = os.pathsep.join([*map(str, programs), environment["PATH"]])
    environment["PYTHONPATH"] = str(tree.ROOT / "app" / "src")
    bash = subprocess.Popen(
        ["bash", "-euc", script],
        cwd=scratch,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = bash.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(bash.pid, signal.SIGKILL)
        pytest.fail(
            f"the page, or a server that it leaves running, takes over {TIMEOUT_SECONDS} s:\n{bash.communicate()[0]}"
        )
    finally:
        with suppress(ProcessLookupError):
            os.killpg(bash.pid, signal.SIGKILL)
    logs = "".join(f"\n--- {log.name}\n{log.read_text()[-2000:]}" for log in sorted(scratch.glob("*.log")))
    assert bash.returncode == 0, output + logs
    back = {value: key for key, value in replace.items()}
    output = re.sub("|".join(back), lambda found: back[found[0]], output)
    for block, end in zip(page, ends, strict=True):
        printed, _, output = output.partition(f"{end}\n")
        missing = lacking(block.shown, printed)
        assert not missing, f"the page shows\n{missing[0]}\nbut\n{block.script}\nprinted\n{printed}{logs}"


def test_a_line_that_is_not_printed_is_found() -> None:
    assert lacking("a … c\nnever\n", "a  b c\nalways\n") == ["never"]
    assert lacking("b\na\n", "a\nb\n") == ["a"]
