"""Which files belong to the project. Asked without git, so that a copy of the tree without its history works too."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What the tools make; see .gitignore.
MADE = {
    ".git",
    ".venv",
    ".cache",
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
    ".ansible",
    "node_modules",
}


def files(folder: Path = ROOT) -> Iterator[Path]:
    """Every file of the project below a folder, sorted."""
    for path in sorted(folder.iterdir()):
        # In a second work tree of git `.git` is a file, which names the first one.
        if path.name in MADE:
            continue
        if path.is_dir() and not path.is_symlink():
            yield from files(path)
        elif path.is_file():
            yield path


def first_line(path: Path) -> str:
    """The first line of a file, empty when it is not text."""
    with path.open("rb") as file:
        return file.readline(200).decode("utf-8", "ignore").strip()


def shell_scripts() -> list[Path]:
    """Shell scripts, by their first line or suffix. Templates are not among them: they are not yet scripts."""
    shebang = re.compile(r"#!.*\b(ba|da)?sh$")
    return [
        path for path in files() if path.suffix != ".j2" and (path.suffix == ".sh" or shebang.match(first_line(path)))
    ]
