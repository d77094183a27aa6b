"""Filters of the role monitoring: what Prometheus asks, and which alerts there are."""

from __future__ import annotations

import contextlib
import copy
import difflib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

#: As Prometheus writes durations, without the parts that nobody needs here.
DURATION = re.compile(r"\d+(s|m|h|d)")
#: Keys of a receiver whose values are no secret, and are words that messages need.
OPEN_KEYS = {"name", "send_resolved", "channel", "to", "from"}


def address_of(variables: Mapping[str, Any], host: str) -> str:
    """Address under which the monitoring finds a machine."""
    own = variables.get("monitoring_address") or variables.get("edge_host_address") or variables.get("ansible_host")
    local = variables.get("ansible_connection") == "local"
    return str(own or ("127.0.0.1" if local else host))


def with_port(address: str, port: int) -> str:
    """Address and port as a target; an IPv6 address stands in brackets."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(address).version == 6:
            return f"[{address}]:{port}"
    return f"{address}:{port}"


def monitoring_targets(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Iterable[str]], here: str
) -> dict[str, list[dict[str, Any]]]:
    """What Prometheus asks, by job, each with ``target``, ``instance`` and ``role``.

    Hosts without systemd have no node exporter; one whose facts are not known counts as one with.

    Args:
        hostvars: variables of all hosts.
        groups: the hosts of each group, as in the variable ``groups``.
        here: the monitoring host, which asks itself by the loopback: it has no right to ask from its address.
    """
    found: dict[str, list[dict[str, Any]]] = {"fleet": [], "node": []}
    seen: set[str] = set()
    for role in ("inference", "edge", "monitoring"):
        for host in groups.get(role) or []:
            variables = hostvars[host]
            address = "127.0.0.1" if host == here else address_of(variables, host)
            entry = {"instance": host, "role": role}
            if role == "inference":
                port = int(variables.get("exporter_port") or 9180)
                found["fleet"].append({**entry, "target": with_port(address, port)})
            manager = (variables.get("ansible_facts") or {}).get("service_mgr", "systemd")
            # A machine may be in two groups, and has one node exporter then.
            if host not in seen and manager == "systemd":
                found["node"].append(
                    {**entry, "target": with_port(address, int(variables.get("monitoring_node_port") or 9100))}
                )
            seen.add(host)
    return found


def monitoring_addresses(hostvars: Mapping[str, Mapping[str, Any]], hosts: Iterable[str]) -> dict[str, str]:
    """Address of each machine."""
    return {host: address_of(hostvars[host], host) for host in hosts}


def monitoring_clients(hostvars: Mapping[str, Mapping[str, Any]], hosts: Iterable[str]) -> list[str]:
    """Addresses from which monitoring hosts ask; names are left out, which a firewall cannot go by."""
    found = []
    for address in monitoring_addresses(hostvars, hosts).values():
        with contextlib.suppress(ValueError):
            found.append(str(ipaddress.ip_address(address)))
    return sorted(set(found))


def alert_names(rules: Mapping[str, Any]) -> list[str]:
    """Names of the alerts of a file of rules, as parsed."""
    return [rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule]


def monitoring_alerts(
    rules: Mapping[str, Any], durations: Mapping[str, str], off: Iterable[str], runbook: str
) -> dict[str, Any]:
    """The project's alerts as a fleet wants them.

    Args:
        rules: the file of alerts, as parsed.
        durations: for how long a condition must hold, by alert, where it is another time than in the file.
        off: alerts that are left out.
        runbook: page with a heading for each alert.
    """
    off = set(off)
    made = copy.deepcopy(dict(rules))
    for group in made["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule["alert"] not in off]
        for rule in group["rules"]:
            rule["for"] = durations.get(rule["alert"], rule.get("for", "0s"))
            rule["annotations"]["runbook"] = f"{runbook}#{rule['alert'].lower()}"
    made["groups"] = [group for group in made["groups"] if group["rules"]]
    return made


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested values, with the key under which it stands."""
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from leaves(below, str(name))
    elif isinstance(value, list | tuple):
        for below in value:
            yield from leaves(below, key)
    elif isinstance(value, str):
        yield key, value


def monitoring_secrets(settings: Any) -> list[str]:
    """Texts of Alertmanager's settings that may be secret, so that no message shows them."""
    return sorted({text for key, text in leaves(settings) if key not in OPEN_KEYS and len(text) >= 6})


def receivers_of(route: Mapping[str, Any]) -> Iterator[str]:
    """Receivers that a route and those below it name."""
    if route.get("receiver"):
        yield str(route["receiver"])
    for below in route.get("routes") or []:
        yield from receivers_of(below)


def slips(names: Iterable[str], known: list[str], what: str) -> list[str]:
    """Complaints about names that do not exist, with the one that was meant."""
    complaints = []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            complaints.append(
                f"{what} names {name!r}."
                + (f" Did you mean {close[0]}?" if close else f" There are {', '.join(known)}.")
            )
    return complaints


def monitoring_complaints(
    settings: Mapping[str, Any], rules: Mapping[str, Any], addresses: Mapping[str, str]
) -> list[str]:
    """What in the variables of the role cannot be meant.

    Args:
        settings: the variables, by their names.
        rules: the file of alerts, as parsed.
        addresses: address of each monitoring host.
    """
    known = alert_names(rules)
    receivers = [str(one.get("name", "")) for one in settings["monitoring_receivers"]]
    complaints = slips(settings["monitoring_alert_for"], known, "monitoring_alert_for")
    complaints += slips(settings["monitoring_alerts_off"], known, "monitoring_alerts_off")
    complaints += [
        f"monitoring_alert_for: {name} is {duration!r}; it takes a number with s, m, h or d, for example 10m."
        for name, duration in settings["monitoring_alert_for"].items()
        if not DURATION.fullmatch(str(duration))
    ]
    if not settings["monitoring_route"].get("receiver"):
        complaints.append(
            "monitoring_route has no receiver; the outermost route needs one, for example receiver: nobody."
        )
    complaints += slips(receivers_of(settings["monitoring_route"]), receivers, "monitoring_route")
    for name in ("monitoring_error_ratio", "monitoring_rejected_ratio", "monitoring_disk_free_ratio"):
        if not 0 < float(settings[name]) < 1:
            complaints.append(f"{name} is {settings[name]}; it takes a share between 0 and 1, for example 0.05.")
    for name in (
        "monitoring_scrape_seconds", "monitoring_retention_days", "monitoring_retention_gib", "monitoring_p99_seconds",
        "monitoring_certificate_days", "monitoring_temperature_celsius",
    ):  # fmt: skip
        if float(settings[name]) <= 0:
            complaints.append(f"{name} is {settings[name]}; it must be above 0.")
    for host, address in addresses.items():
        try:
            ipaddress.ip_address(address)
        except ValueError:
            complaints.append(
                f"{host} is known as {address!r}: hosts and edges answer only addresses of the group monitoring. "
                f"Give its IP address, in the inventory: monitoring_address of {host}."
            )
    return complaints


class FilterModule:
    """Filters of the role monitoring."""

    def filters(self) -> dict[str, Any]:
        """Names that templates use."""
        return {
            "monitoring_addresses": monitoring_addresses,
            "monitoring_alerts": monitoring_alerts,
            "monitoring_clients": monitoring_clients,
            "monitoring_complaints": monitoring_complaints,
            "monitoring_secrets": monitoring_secrets,
            "monitoring_targets": monitoring_targets,
        }
