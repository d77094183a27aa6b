"""Filters of the role exporter."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError


def exporter_devices(devices: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What the exporter has to know of the devices."""
    return [{name: str(one.get(name) or "") for name in ("name", "kind", "uuid", "model")} for one in devices]


def exporter_askers(
    hostvars: Mapping[str, Mapping[str, Any]], hosts: Iterable[str], others: Iterable[str]
) -> list[str]:
    """Addresses from which the hosts of the group monitoring ask, behind those of others who may.

    Raises:
        AnsibleFilterError: the inventory has only a name of one, and nginx allows addresses.
    """
    found = list(others)
    for host in hosts:
        address = str(hostvars[host].get("monitoring_address") or hostvars[host].get("ansible_host") or host)
        try:
            found.append(str(ipaddress.ip_address(address)))
        except ValueError:
            raise AnsibleFilterError(
                f"monitoring_address: {host} of the group monitoring is known as {address!r}, and nginx of the inference hosts "
                f"allows addresses only. Set monitoring_address of {host} to the address from which it asks."
            ) from None
    return found


def exporter_free(port: int, services: Iterable[Mapping[str, Any]]) -> int:
    """The port of the metrics.

    Raises:
        AnsibleFilterError: a service has it.
    """
    taken = [service["name"] for service in services if int(service["port"]) == int(port)]
    if taken:
        raise AnsibleFilterError(
            f"exporter_port: {port} is the port of the service {taken[0]}. Set another one, such as exporter_port: 9181"
        )
    return int(port)


class FilterModule:
    """Filters of the role exporter."""

    def filters(self) -> dict[str, Any]:
        """Names that templates use."""
        return {
            "exporter_devices": exporter_devices,
            "exporter_askers": exporter_askers,
            "exporter_free": exporter_free,
        }
