"""Filters about what a run is limited to."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.inventory.manager import split_host_pattern

#: How alike a name must be to one of the inventory to be taken for a slip.
LIKENESS = 0.6


def matches(pattern: str, names: Iterable[str]) -> bool:
    """Whether a pattern of ``--limit`` names something: a name, a glob, ``~`` and an expression, or a part of a group."""
    if pattern.startswith("~"):
        return any(re.match(pattern[1:], name) for name in names)
    base = re.sub(r"\[[-:\d]+\]$", "", pattern)
    return any(fnmatch.fnmatchcase(name, base) for name in names)


def limit_complaints(limit: str, groups: Mapping[str, Iterable[str]]) -> list[str]:
    """What in ``--limit`` names no host; Ansible itself only warns, and goes on with the others.

    Args:
        limit: as it was given; empty when it was not.
        groups: the hosts of each group, as in the variable ``groups``.
    """
    hosts = sorted({host for members in groups.values() for host in members})
    names = [*hosts, *groups]
    complaints = []
    for given in split_host_pattern(limit):
        pattern = given.lstrip("!&")
        # A file with names; Ansible reads it.
        if pattern.startswith("@") or matches(pattern, names):
            continue
        close = difflib.get_close_matches(pattern, names, n=1, cutoff=LIKENESS)
        hint = f" Did you mean {close[0]}?" if close else ""
        complaints.append(f"the inventory has no host {pattern}.{hint} Its hosts are {', '.join(hosts)}.")
    return complaints


class FilterModule:
    """Filters of the role preflight."""

    def filters(self) -> dict[str, Any]:
        """Names that templates use."""
        return {"limit_complaints": limit_complaints}
