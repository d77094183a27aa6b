"""Filters of what edges know of the hosts."""

from __future__ import annotations

import contextlib
import ipaddress
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


#: Verbs that drain a host only for a while, and put it back in themselves unless they are cut off.
PASSING = {"deploy", "rollback"}


def drains(edges: Iterable[Mapping[str, Any]], host: str) -> list[Mapping[str, Any]]:
    """Who drained a host, at each edge where somebody did."""
    members = [(one.get("members") or {}).get(host) or {} for one in edges]
    return [member["drained"] for member in members if member.get("drained")]


def drained_by_person(edges: Iterable[Mapping[str, Any]], host: str) -> bool:
    """Whether a person has drained a host at one of the edges, and will put it back in."""
    return any(one.get("verb") not in PASSING for one in drains(edges, host))


def drained_in_passing(edges: Iterable[Mapping[str, Any]], host: str) -> bool:
    """Whether a run that was cut off has left a host drained."""
    return any(one.get("verb") in PASSING for one in drains(edges, host))


def edge_addresses(hostvars: Mapping[str, Mapping[str, Any]], edges: Iterable[str]) -> list[str]:
    """Addresses from which edges ask, as far as the inventory tells them; names are left out, which nginx would look up."""
    found = []
    for edge in edges:
        variables = hostvars[edge]
        for key in ("edge_peer_address", "ansible_host"):
            with contextlib.suppress(KeyError, ValueError):
                found.append(str(ipaddress.ip_address(variables[key])))
    return found


def edges_unreachable(results: Iterable[Mapping[str, Any]]) -> str:
    """Which edges a loop of tasks could not reach, and what to do; empty when all answered."""
    lost = [one for one in results if one.get("unreachable")]
    if not lost:
        return ""
    names = [str(one["__edge_one"]) for one in lost]
    reasons = "; ".join(" ".join(str(one.get("msg", "")).split()) for one in lost)
    skipped = ", ".join(f'"{name}"' for name in names)
    return (
        f"{', '.join(names)} cannot be reached ({reasons}). An edge that is dead leads no requests; go on without it: "
        f"-e '{{\"edge_skip\": [{skipped}]}}' --limit '{':'.join(['all', *(f'!{name}' for name in names)])}'"
    )


class FilterModule:
    """Filters of the roles edge and rollout."""

    def filters(self) -> dict[str, Any]:
        """Names that templates use."""
        return {
            "edges_that_know": edges_that_know,
            "edges_unreachable": edges_unreachable,
            "edge_addresses": edge_addresses,
            "drained_by_person": drained_by_person,
            "drained_in_passing": drained_in_passing,
        }
