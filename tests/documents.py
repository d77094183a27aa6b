"""Pages of the documents whose blocks are run: `<!-- run -->` above a block of commands, what they print below it."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"^<!-- run -->\n```(?P<language>sh|python)\n(?P<script>.*?)^```\n"
    r"(?:\n```text\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
#: The pages load torch several times, which takes long on a busy machine.
TIMEOUT_SECONDS = 240


@dataclass(frozen=True)
class Block:
    """A block of a page: its commands, and what it says they print."""

    script: str
    shown: str
    language: str = "sh"


def blocks(page: Path) -> list[Block]:
    return [
        Block(found["script"], found["shown"] or "", found["language"]) for found in BLOCK.finditer(page.read_text())
    ]


def pattern(line: str) -> re.Pattern[str]:
    """A shown line as a pattern: `…` stands for anything, and any run of spaces for another."""
    words = [re.escape(word) for word in line.split()]
    return re.compile(r"\s+".join(words).replace("…", ".*"))


def lacking(shown: str, output: str) -> list[str]:
    """Lines that are shown and were not printed, in this order."""
    printed = iter(output.splitlines())
    return [line for line in shown.splitlines() if not any(pattern(line).search(other) for other in printed)]


def compare(block: Block, printed: str, told: str = "") -> None:
    """Hold what a block printed against what the page shows; `told` is said besides when that is something else."""
    missing = lacking(block.shown, printed)
    assert not missing, f"the page shows\n{missing[0]}\nbut\n{block.script}\nprinted\n{printed}{told}"


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


def check(page: Path, folder: Path, environment: Mapping[str, str], ports: Sequence[str], logs: str = "*.log") -> None:
    """Run the blocks of a page in their order, and compare what they print with what it shows.

    Args:
        page: the page.
        folder: where they are run.
        environment: in which they are run.
        ports: those that the page uses; free ones are put in their places.
        logs: files below the folder that tell what went wrong.
    """
    found = blocks(page)
    ends = [f"--- end of block {number} ---" for number in range(len(found))]
    script = "".join(f"{block.script}\necho '{end}'\n" for block, end in zip(found, ends, strict=True))
    replace = dict(zip(ports, free_ports(len(ports)), strict=True))
    script = re.sub("|".join(ports), lambda port: replace[port[0]], script)
    bash = subprocess.Popen(
        ["bash", "-euc", script],
        cwd=folder,
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
        raise AssertionError(
            f"the page, or a server that it leaves running, takes over {TIMEOUT_SECONDS} s:\n{bash.communicate()[0]}"
        ) from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(bash.pid, signal.SIGKILL)
    told = "".join(f"\n--- {log.name}\n{log.read_text()[-2000:]}" for log in sorted(folder.glob(logs)))
    assert bash.returncode == 0, output + told
    back = {value: key for key, value in replace.items()}
    output = re.sub("|".join(back), lambda port: back[port[0]], output)
    for block, end in zip(found, ends, strict=True):
        printed, _, output = output.partition(f"{end}\n")
        compare(block, printed, told)
