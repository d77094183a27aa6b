#!/usr/bin/env python3
"""Writes the tables of variables from the roles' meta/argument_specs.yml, so that no text is kept by hand.

.venv/bin/python tools/variables.py           writes roles/*/README.md (between markers) and docs/variables.md
.venv/bin/python tools/variables.py --check   writes nothing; prints what differs, and fails if something does
"""

import argparse
import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- variables:start -->", "<!-- variables:end -->"
HEAD = ["| Variable | Type | Default | What it is |", "|---|---|---|---|"]
NOTE = "<!-- Made by tools/variables.py from the roles' meta/argument_specs.yml: edit those. -->"


def roles(root: Path = ROOT) -> list[Path]:
    """The folders of the roles."""
    return sorted(path for path in (root / "roles").iterdir() if path.is_dir())


def main_entry(role: Path) -> dict[str, Any]:
    """The specification of a role's public variables; empty when it has none."""
    path = role / "meta" / "argument_specs.yml"
    spec = yaml.safe_load(path.read_text()) if path.exists() else None
    return dict((spec or {}).get("argument_specs", {}).get("main", {}))


def prose(value: str | list[str]) -> str:
    """A description as Markdown that fits into a table's cell."""
    text = " ".join(value) if isinstance(value, list) else value
    text = re.sub(r"\b[BCEIMOVP]\(([^)]*)\)", r"`\1`", " ".join(text.split()))
    return text.replace("|", "\\|")


def literal(value: Any) -> str:
    """A value as it would stand in an inventory."""
    if isinstance(value, str) and value and "\n" not in value.strip():
        text = value
    else:
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    return "`" + " ".join(text.split()).replace("|", "\\|") + "`"


def kind(option: dict[str, Any]) -> str:
    """The type of an option, with the elements of a list and the choices."""
    text = str(option["type"])
    if elements := option.get("elements"):
        text += f" of {elements}"
    if choices := option.get("choices"):
        text += ": " + ", ".join(literal(choice) for choice in choices)
    return text


def rows(options: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """One row for an option, then those of its sub-options (`list[].name`, `dict.name`)."""
    for name, option in options.items():
        default = literal(option["default"]) if "default" in option else ("required" if option.get("required") else "–")
        yield f"| `{prefix}{name}` | {kind(option)} | {default} | {prose(option['description'])} |"
        if sub := option.get("options"):
            yield from rows(sub, f"{prefix}{name}{'[]' if option['type'] == 'list' else ''}.")


def table(role: Path) -> str:
    """The table of a role, or a sentence when it has nothing to set."""
    options = main_entry(role).get("options") or {}
    return "\n".join([*HEAD, *rows(options)]) if options else "Nothing to set."


def readme(role: Path) -> str:
    """The README of a role with its table renewed; a new one when there is none."""
    path = role / "README.md"
    entry = main_entry(role)
    if path.exists():
        old = path.read_text()
    else:
        paragraphs = entry.get("description", [])
        paragraphs = [paragraphs] if isinstance(paragraphs, str) else paragraphs
        lines = [f"# {role.name}", f"{entry.get('short_description', '')}.", *map(prose, paragraphs), "## Variables"]
        old = "\n\n".join([*lines, f"{START}\n{END}"]) + "\n"
    before, start, rest = old.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        sys.exit(
            f"{path.relative_to(ROOT)} lacks the markers; add these two lines where the table belongs:\n{START}\n{END}"
        )
    return f"{before}{START}\n{NOTE}\n\n{table(role)}\n\n{END}{after}"


def overview() -> str:
    """docs/variables.md: the tables of all roles."""
    parts = [
        "# Variables",
        NOTE,
        "Every variable that can be set, by role. Set them in the inventory (`group_vars`, `host_vars`) or with `-e`. "
        "A misspelt name is refused before anything is changed.",
    ]
    for role in roles():
        summary = prose(str(main_entry(role).get("short_description", "")))
        parts += [
            f"## {role.name}",
            f"{summary}. See [roles/{role.name}](../roles/{role.name}/README.md).",
            table(role),
        ]
    return "\n\n".join(parts) + "\n"


def wanted() -> dict[Path, str]:
    """The files this program makes, with the text they should have."""
    return {**{role / "README.md": readme(role) for role in roles()}, ROOT / "docs" / "variables.md": overview()}


def differences() -> list[str]:
    """A unified diff for each file that is not as it should be."""
    found: list[str] = []
    for path, text in wanted().items():
        name = str(path.relative_to(ROOT))
        old = path.read_text() if path.exists() else ""
        found += difflib.unified_diff(old.splitlines(), text.splitlines(), name, f"{name} (from the spec)", lineterm="")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the tables of variables from the roles' argument specs.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; print what differs, and fail if something does"
    )
    if parser.parse_args().check:
        found = differences()
        print(*found, sep="\n", end="\n" if found else "")
        return 1 if found else 0
    for path, text in wanted().items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            print(f"written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
