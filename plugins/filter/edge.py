"""Filters of what edges know of the hosts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def edges_that_know(edges: Iterable[Mapping[str, Any]], host: str, member: Mapping[str, Any]) -> list[str]:
    """Edges that have a host as a member with just these settings.

    Args:
        edges: answers of the action ``edge_status``: ``edge`` and ``members``.
        member: ``address``, ``weight`` and ``services`` of the host.
    """

    def settings(found: Mapping[str, Any]) -> tuple[str, int, dict[str, int]]:
        services = {str(name): int(port) for name, port in found["services"].items()}
        return str(found["address"]), int(found["weight"]), services

    return [
        str(one["edge"])
        for one in edges
        if host in (one.get("members") or {}) and settings(one["members"][host]) == settings(member)
    ]


def drained_at_edges(edges: Iterable[Mapping[str, Any]], host: str) -> bool:
    """Whether a person has drained a host at one of the edges."""
    return any(((one.get("members") or {}).get(host) or {}).get("drained") for one in edges)


class FilterModule:
    """Filters of the roles edge and rollout."""

    def filters(self) -> dict[str, Any]:
        """Names that templates use."""
        return {"edges_that_know": edges_that_know, "drained_at_edges": drained_at_edges}
