"""Filters that turn what hosts answered into the reports of `verify` and `status`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def verify_failures(checks: Iterable[Mapping[str, Any]]) -> str:
    """The failed checks of a host with what mends them, as text."""
    return "\n".join(f"{one['name']}: {one['detail']}\n  mend: {one['mend']}" for one in checks if not one["ok"])


def by_release(releases: Mapping[str, str]) -> dict[str, list[str]]:
    """Hosts of each release, the release that most of them have first.

    Args:
        releases: release that was deployed, by host.
    """
    found: dict[str, list[str]] = {}
    for host, release in releases.items():
        found.setdefault(release, []).append(host)
    return dict(sorted(found.items(), key=lambda one: (-len(one[1]), one[0])))


def mixture(releases: Mapping[str, list[str]]) -> str:
    """Which hosts have which release, in words; empty when all have the same."""
    return "" if len(releases) < 2 else "; ".join(f"{release} on {', '.join(on)}" for release, on in releases.items())


#: A run that was killed leaves some hosts on the new release and some on the old one.
MEND_MIXTURE = (
    "./fleet deploy, or back to one that all have: ./fleet rollback -e release=ID (./fleet releases lists them)"
)


def fleet_checks(releases: Mapping[str, str], keep_mixed: bool) -> list[dict[str, Any]]:
    """Checks of what no host can know by itself.

    Args:
        releases: release that was deployed, by host.
        keep_mixed: whether the fleet is mixed on purpose.
    """
    if len(releases) < 2:
        return []
    found = by_release(releases)
    mixed = mixture(found)
    detail = f"{next(iter(found))} on all {len(releases)} hosts"
    if mixed:
        detail = f"the hosts have {len(found)} releases{', as asked' if keep_mixed else ''}: {mixed}"
    ok = not mixed or keep_mixed
    return [{"name": "one release", "ok": ok, "detail": detail, "mend": "" if ok else MEND_MIXTURE}]


def verify_report(hostvars: Mapping[str, Any], hosts: Iterable[str], keep_mixed: bool = False) -> dict[str, Any]:
    """One line a check and the exit code: 0 all well, 1 a check failed, 2 a host could not be checked.

    Args:
        hostvars: what the hosts answered.
        hosts: hosts and edges of the run.
        keep_mixed: whether the fleet is mixed on purpose.
    """
    lines: list[str] = []
    failures: list[str] = []
    data: dict[str, Any] = {"hosts": {}}
    unchecked = []
    releases = {}

    def tell(where: str, checks: Iterable[Mapping[str, Any]]) -> None:
        for check in checks:
            lines.append(f"{'ok    ' if check['ok'] else 'FAILED'}  {where}  {check['name']}: {check['detail']}")
            if not check["ok"]:
                lines.append(f"        mend: {check['mend']}")
                failures.append(f"{where}: {check['name']}: {check['detail']}")

    for host in hosts:
        if release := (hostvars[host].get("fleet_release") or {}).get("id"):
            releases[host] = release
        # A machine that also monitors has checks of both kinds.
        kinds = [hostvars[host].get(name) for name in ("__verify", "__verify_monitoring")]
        answers = [answer for answer in kinds if answer]
        checks = [check for answer in answers for check in answer.get("checks", [])]
        if not answers or not all("checks" in answer for answer in answers):
            unchecked.append(host)
            failures.append(f"{host}: could not be checked")
            lines.append(f"FAILED  {host}  could not be checked; the reason stands above")
            continue
        data["hosts"][host] = checks
        tell(host, checks)
    data["fleet"] = fleet_checks(releases, keep_mixed)
    tell("fleet", data["fleet"])
    code = 2 if unchecked else 1 if failures else 0
    done = [*(one for checks in data["hosts"].values() for one in checks), *data["fleet"]]
    passed, total = sum(one["ok"] for one in done), len(done)
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


def unanswered(facts: Mapping[str, Any], register: str) -> str:
    """Why a host gave no answer, in one line: that it could not be reached, or what it failed with."""
    reached = facts.get("__reached") or {}
    said = reached.get("msg") if not reached.get("reached") else (facts.get(register) or {}).get("msg")
    return " ".join(str(said or "the reason stands above").split())


def when(text: str | None) -> str:
    """A time as tables show it: UTC, to the minute."""
    return str(text)[:16].replace("T", " ") if text else "-"


def member_state(member: Mapping[str, Any]) -> tuple[str, str, str]:
    """State of a host at an edge, since when, and why."""
    drained, probe = member.get("drained"), member.get("probe") or {}
    if drained:
        return "drained", when(drained.get("since")), f"{drained.get('by')}: {drained.get('why') or 'no reason given'}"
    if member.get("in_service"):
        return "in service", when(probe.get("since")), "-"
    return "ejected", when(probe.get("since")), str(probe.get("reason") or "-")


def edge_rows(edges: Iterable[Mapping[str, Any]], hosts: Iterable[str]) -> list[list[str]]:
    """A row for each member of each edge, and for each host of the inventory that is none."""
    rows = []
    for edge in edges:
        if edge["members"] is None:
            rows.append([edge["name"], "-", "-", "-", "UNKNOWN", "-", edge["msg"]])
            continue
        for name, member in sorted(edge["members"].items()):
            state, since, why = member_state(member)
            rows.append([edge["name"], name, str(member["address"]), str(member["weight"]), state, since, why])
        for name in hosts:
            if name not in edge["members"]:
                rows.append(
                    [edge["name"], name, "-", "-", "not joined", "-", "./fleet deploy lets it join when it is well"]
                )
    return rows


def drain_state(device: Mapping[str, Any], host: str, edges: Iterable[Mapping[str, Any]]) -> str:
    """What is drained: the device on its host, or the host at all edges or some."""
    known = [edge for edge in edges if edge["members"] is not None]
    at = [edge["name"] for edge in known if (edge["members"].get(host) or {}).get("drained")]
    found = ["device"] if device.get("drained") else []
    if at:
        found.append("host" if len(at) == len(known) else f"host at {', '.join(at)} only")
    return " and ".join(found) or "-"


def out_lines(statuses: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which devices are out or ill, with who, why and what mends it, and what the watches of hosts cannot see."""
    rows: list[list[str]] = []
    for host, status in statuses.items():
        watched = (status.get("watch") or {}).get("devices") or {}
        for device in status["devices"]:
            name, entry, ill = f"{host}/{device['name']}", device.get("drained"), watched.get(device["name"]) or {}
            if entry:
                rows.append(
                    [name, when(entry.get("since")), entry.get("by") or "?", entry.get("why") or "no reason given"]
                )
            elif ill.get("fault"):
                rows.append([name, "-", "fleet-watch", f"ill, and stays in: {ill['why']}"])
            else:
                continue
            if ill.get("command"):
                rows.append(["", "", "", f"mend: {ill['command'].replace('HOST', host)}"])
    lines = ["", *table(["OUT", "SINCE", "BY", "WHY"], rows)] if rows else []
    amiss = [
        f"{host}: {one}" for host, status in statuses.items() for one in (status.get("watch") or {}).get("amiss", [])
    ]
    return [*lines, *([""] if amiss else []), *amiss]


def status_report(
    hostvars: Mapping[str, Any], hosts: Iterable[str], asked: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """A table of hosts, devices and vassals, one of devices that are out, and one of the edges.

    Args:
        hostvars: what the hosts answered.
        hosts: hosts of the run.
        asked: results of ``edge_status``, one for each edge.

    Returns:
        The report; its exit code is 2 when a host could not be asked.
    """
    header = ["HOST", "DEVICE", "MEMORY", "SERVICE", "RELEASE", "WORKERS", "IN FLIGHT", "STATE", "DRAINED", "DEPLOYED"]
    hosts = list(hosts)
    edges = [{"name": one["edge"], "members": one.get("members"), "msg": one.get("msg", "")} for one in asked]
    rows: list[list[str]] = []
    failures: list[str] = []
    data: dict[str, Any] = {"hosts": {}, "edges": {edge["name"]: edge["members"] for edge in edges}}
    releases = {}
    for host in hosts:
        status = (hostvars[host].get("__status") or {}).get("status")
        if status is None:
            failures.append(f"{host}: could not be asked: {unanswered(hostvars[host], '__status')}")
            rows.append([host, *["-"] * 6, "UNKNOWN", "-", "-"])
            continue
        data["hosts"][host] = status
        deployed = status.get("deployed")
        if deployed:
            releases[host] = str(deployed.get("id"))
        last = f"{when(deployed.get('at'))} by {deployed.get('by') or '?'}" if deployed else "never"
        for device in status["devices"]:
            memory = f"{device['memory_mib'] / 1024:.1f} GiB"
            for vassal in device["vassals"] or [{}]:
                rows.append(
                    [
                        host, device["name"], memory, vassal.get("service", "-"), vassal.get("release", "-"),
                        f"{vassal['accepting']}/{vassal['workers']}" if vassal else "-",
                        str(vassal.get("busy", "-")), vassal.get("state", "NO VASSAL"), drain_state(device, host, edges), last,
                    ]
                )  # fmt: skip
    failures += [f"{edge['name']}: could not be asked: {edge['msg']}" for edge in edges if edge["members"] is None]
    lines = table(header, rows) if rows else []
    data["releases"] = by_release(releases)
    if mixed := mixture(data["releases"]):
        lines += ["", f"The hosts have {len(data['releases'])} releases: {mixed}.", f"  mend: {MEND_MIXTURE}"]
    lines += out_lines(data["hosts"])
    if edges:
        members = edge_rows(edges, hosts)
        lines += [
            *([""] if rows else []),
            *table(["EDGE", "MEMBER", "ADDRESS", "WEIGHT", "STATE", "SINCE", "WHY"], members),
        ]
    code = 2 if failures else 0
    data.update(failures=failures, exit=code)
    return {"lines": [*lines, *failures], "data": data, "failures": failures, "exit": code}


def releases_report(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> dict[str, Any]:
    """A table of the releases on each host; exit code 2 when a host could not be asked."""
    header = ["HOST", "RELEASE", "CREATED", "DEPLOYED", "STATE", "SIZE", "SERVICES"]
    rows: list[list[str]] = []
    failures: list[str] = []
    data: dict[str, Any] = {"hosts": {}}
    for host in hosts:
        found = hostvars[host].get("__releases") or {}
        if found.get("releases") is None:
            failures.append(f"{host}: could not be asked: {unanswered(hostvars[host], '__releases')}")
            rows.append([host, *["-"] * 3, "UNKNOWN", "-", "-"])
            continue
        data["hosts"][host] = {"releases": found["releases"], "environments_mib": found["environments_mib"]}
        for one in found["releases"]:
            state = " ".join(one["state"]) if one["whole"] else "INCOMPLETE"
            size = f"{one['size_mib']:.1f} MiB"
            times = [when(one["created"]), when(one["deployed"])]
            rows.append([host, one["id"], *times, state or "-", size, " ".join(one["services"]) or "-"])
        if not found["releases"]:
            rows.append([host, "none", *["-"] * 5])
    code = 2 if failures else 0
    data.update(failures=failures, exit=code)
    return {"lines": [*table(header, rows), *failures], "data": data, "failures": failures, "exit": code}


class FilterModule:
    """Filters of the playbooks that report."""

    def filters(self) -> dict[str, Any]:
        """Names that templates use."""
        return {
            "verify_failures": verify_failures,
            "verify_report": verify_report,
            "status_report": status_report,
            "releases_report": releases_report,
        }
