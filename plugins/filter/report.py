"""Filters that turn what hosts answered into the reports of `verify` and `status`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def verify_failures(checks: Iterable[Mapping[str, Any]]) -> str:
    """The failed checks of a host with what mends them, as text."""
    return "\n".join(f"{one['name']}: {one['detail']}\n  mend: {one['mend']}" for one in checks if not one["ok"])


def verify_report(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> dict[str, Any]:
    """One line a check and the exit code: 0 all well, 1 a check failed, 2 a host could not be checked."""
    lines: list[str] = []
    failures: list[str] = []
    data: dict[str, Any] = {"hosts": {}}
    unchecked = []
    for host in hosts:
        checks = (hostvars[host].get("__verify") or {}).get("checks")
        if checks is None:
            unchecked.append(host)
            failures.append(f"{host}: could not be checked")
            lines.append(f"FAILED  {host}  could not be checked; the reason stands above")
            continue
        data["hosts"][host] = checks
        for check in checks:
            lines.append(f"{'ok    ' if check['ok'] else 'FAILED'}  {host}  {check['name']}: {check['detail']}")
            if not check["ok"]:
                lines.append(f"        mend: {check['mend']}")
                failures.append(f"{host}: {check['name']}: {check['detail']}")
    code = 2 if unchecked else 1 if failures else 0
    passed = sum(one["ok"] for checks in data["hosts"].values() for one in checks)
    total = sum(len(checks) for checks in data["hosts"].values())
    lines.append(
        f"{passed} of {total} checks passed"
        + (
            f", {len(unchecked)} of {len(unchecked) + len(data['hosts'])} hosts could not be checked"
            if unchecked
            else ""
        )
    )
    data.update(failures=failures, exit=code)
    return {"lines": lines, "data": data, "failures": failures, "exit": code}


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Rows as text in columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]


def status_report(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> dict[str, Any]:
    """A table of hosts, devices and vassals; exit code 2 when a host could not be asked."""
    header = ["HOST", "DEVICE", "MEMORY", "SERVICE", "RELEASE", "WORKERS", "BUSY", "STATE", "SINCE"]
    rows: list[list[str]] = []
    failures: list[str] = []
    data: dict[str, Any] = {"hosts": {}}
    for host in hosts:
        status = (hostvars[host].get("__status") or {}).get("status")
        if status is None:
            failures.append(f"{host}: could not be asked")
            rows.append([host, *["-"] * 6, "UNKNOWN", "-"])
            continue
        data["hosts"][host] = status
        for device in status["devices"]:
            memory = f"{device['memory_mib'] / 1024:.1f} GiB"
            for vassal in device["vassals"] or [{}]:
                rows.append(
                    [
                        host, device["name"], memory, vassal.get("service", "-"), vassal.get("release", "-"),
                        f"{vassal['accepting']}/{vassal['workers']}" if vassal else "-",
                        str(vassal.get("busy", "-")), vassal.get("state", "NO VASSAL"), vassal.get("since", "-"),
                    ]
                )  # fmt: skip
    code = 2 if failures else 0
    data.update(failures=failures, exit=code)
    return {"lines": [*table(header, rows), *failures], "data": data, "failures": failures, "exit": code}


class FilterModule:
    """Filters of the playbooks that report."""

    def filters(self) -> dict[str, Any]:
        """Names that templates use."""
        return {"verify_failures": verify_failures, "verify_report": verify_report, "status_report": status_report}
