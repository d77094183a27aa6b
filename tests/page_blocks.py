"""Pages whose blocks the tests run: each is marked with `<!-- run -->`, and what it prints may stand below it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"^<!-- run -->\n```(?P<language>sh|python)\n(?P<script>.*?)^```\n(?:\n```text\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of a page: its commands, and what the page says they print."""

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
    printed: Iterable[str] = iter(output.splitlines())
    return [line for line in shown.splitlines() if not any(pattern(line).search(other) for other in printed)]
