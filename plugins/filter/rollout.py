"""Filters of the role rollout."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError


def size_of(entry: Any, total: int) -> int:
    """Number of hosts of one entry of ``rollout_serial``: a number, or a percentage of all, at least 1.

    Raises:
        AnsibleFilterError: it is neither.
    """
    text = str(entry).strip()
    number = text.removesuffix("%")
    if not number.isdigit() or int(number) < 1:
        raise AnsibleFilterError(f"rollout_serial: {entry!r} is neither a number of hosts above 0 nor a percentage.")
    return max(1, total * int(number) // 100) if text.endswith("%") else int(number)


def rollout_batches(
    hosts: Collection[str], serial: Collection[Any], alone: Collection[str] = (), unchanged: Collection[str] = ()
) -> list[list[str]]:
    """Hosts in batches, as Ansible's own ``serial`` would make them.

    Args:
        hosts: all hosts, in order.
        serial: sizes; the last one repeats.
        alone: hosts that are taken out of service meanwhile; each gets a batch of its own, so that the others can
            take its requests.
        unchanged: hosts that are only checked, all of them with the first batch; sizes count the others.

    Raises:
        AnsibleFilterError: a size is neither a number nor a percentage, or there is none.
    """
    checked = [host for host in hosts if host in unchanged]
    left = [host for host in hosts if host not in unchanged]
    total = len(left)
    if not serial:
        raise AnsibleFilterError("rollout_serial is empty; it takes sizes of batches, for example [1, 25%, 100%].")
    sizes = [size_of(entry, total) for entry in serial]
    batches: list[list[str]] = []
    while left:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        batch, left = left[:size], left[size:]
        together = [host for host in batch if host not in alone]
        batches += [together] if together else []
        batches += [[host] for host in batch if host in alone]
    if checked:
        batches[:1] = [checked + (batches[0] if batches else [])]
    return batches


def rollout_way_back(hostvars: Mapping[str, Any], reached: Collection[str]) -> list[list[str]]:
    """Hosts that go back to their former deployment, in batches.

    Those that failed come first, since they bring back what the others have to rely on; a host that something has to stop
    on is alone, as on the way forth.

    Args:
        hostvars: facts of all hosts.
        reached: those that can be reached still, in their order.
    """
    going = [host for host in reached if _fact(hostvars, host, "goes_back") and not _fact(hostvars, host, "stuck")]
    order = sorted(going, key=lambda host: not _fact(hostvars, host, "failed"))
    alone = [host for host in order if (_fact(hostvars, host, "back") or {}).get("stops")]
    return rollout_batches(order, ["100%"], alone)


def _fact(hostvars: Mapping[str, Any], host: str, name: str) -> Any:
    """What this role has noted of a host; None when it has not."""
    return hostvars[host].get(f"__rollout_{name}")


def rollout_held(hostvars: Mapping[str, Any], edges: Iterable[str]) -> dict[str, list[str]]:
    """Hosts that edges have kept although the inventory has them no more, because nothing else served yet.

    Args:
        hostvars: facts of all hosts, those of edges with the answer to `retain` where they were set up in this run.
        edges: names of the edges.
    """
    found = {}
    for edge in edges:
        answer = (hostvars[edge].get("__edge_retained") or {}).get("stdout")
        if held := json.loads(answer).get("held") if answer else None:
            found[edge] = held
    return found


def rollout_needed(results: Iterable[Mapping[str, Any]]) -> str:
    """What is said when hosts have to go on serving that the inventory has no more; empty when there are none.

    Args:
        results: answers of edges to `retain`, after all hosts of the inventory have joined.
    """
    held = sorted({host for one in results if one.get("rc") == 0 for host in json.loads(one["stdout"]).get("held", [])})
    if not held:
        return ""
    return (
        f"{', '.join(held)}: not in the inventory any more, but nothing else serves what they serve, so the edges go on "
        "sending them requests. Look at the other hosts (./fleet status), undrain or mend one, and deploy again; "
        "or lose these requests: -e allow_outage=true"
    )


def _lost(results: Iterable[Mapping[str, Any]], host: str) -> str:
    """What has become of a lost host at the edges."""
    asked = {one["__edge_one"][0]: one for one in results if one["__edge_one"][1] == host}
    # 2: it has not joined that edge. 4: it is drained, and requests that it took were not waited for.
    refused = [
        f"{edge}: {' '.join(str(one.get('stderr') or one.get('msg', '')).split())}"
        for edge, one in asked.items()
        if one.get("unreachable") or one.get("rc") not in {0, 2, 4}
    ]
    if refused:
        return (
            f"\n  The edges may send it requests when it is back, with what was withdrawn ({'; '.join(refused)}). "
            f"To keep it out: ./fleet drain {host}"
        )
    if any(one.get("rc") in {0, 4} for one in asked.values()):
        return "\n  It is drained, lest it come back with what was withdrawn; the next deploy takes it in again"
    return ""


def rollout_report(
    hostvars: Mapping[str, Any],
    everyone: Iterable[str],
    reached: Collection[str],
    batches: Iterable[Collection[str]],
    held: Mapping[str, Collection[str]] | None = None,
) -> str:
    """Why a rollout stopped, and what each host has now.

    Args:
        hostvars: facts of all hosts.
        everyone: hosts of the rollout.
        reached: those that could be reached until the end.
        batches: the batches in their order.
        held: hosts that left the inventory and that edges have kept, by edge.
    """
    order = [host for batch in batches for host in batch]
    lines = ["The rollout stopped."]
    answers = [hostvars[host].get("__edge_lost") or {} for host in reached]
    drains: list[Mapping[str, Any]] = next((one["results"] for one in answers if "results" in one), [])
    for host in sorted(everyone, key=order.index):
        facts = hostvars[host]
        plan = facts.get("__rollout_plan") or {}
        failed, stuck = facts.get("__rollout_failed") or "", facts.get("__rollout_stuck") or ""
        walked = facts.get("__rollout_walked") or {}
        if host not in reached:
            state = "cannot be reached any more; what it serves is not known" + _lost(drains, host)
        elif stuck:
            state = f"did not get back to its former deployment: {stuck}"
        elif walked and not walked.get("skipped"):
            state = f"went back to its former release {walked['serving']['release']['id']}"
        elif not facts.get("__rollout_touched"):
            state = "was not touched"
        elif failed:
            state = "had nothing to go back to" if not plan.get("former") else "serves as before"
        else:
            state = "keeps the new release"
        lines.append(f"- {host} {state}" + (f"\n  It failed at: {failed}" if failed else ""))
        if nowhere := facts.get("__rollout_nowhere"):
            lines.append(f"  Nothing took its requests while it went back: {' '.join(nowhere.split())}")
    for host in sorted({host for hosts in (held or {}).values() for host in hosts}):
        lines.append(f"- {host} is not in the inventory any more; it goes on serving until others have taken its place")
    lines.append("When the reason is mended: ./fleet deploy")
    return "\n".join(lines)


def rollback_choice(known: Mapping[str, Any], release: str) -> dict[str, Any]:
    """The deployment that a host goes back to.

    Args:
        known: answer of the module ``deployment_list``.
        release: id that was asked for; empty for the former one.

    Returns:
        ``record``, ``release``, ``devices`` (uuid by name), and ``error``, which is empty when there is such a deployment.
    """
    deployments: list[dict[str, Any]] = known["deployments"]
    current = known["current"].get("record", "")
    choices = ", ".join(
        dict.fromkeys(one["release"] + (" (now)" if one["record"] == current else "") for one in deployments)
    )
    if release:
        found = [one for one in deployments if one["release"] == release]
        error = f"no deployment of release {release!r} can be gone back to; there are: {choices or 'none'}."
    else:
        found = [one for one in deployments if one["record"] == known["former"]]
        error = f"there is no former deployment to go back to; there are: {choices or 'none'}."
    if not found:
        return {"record": "", "release": "", "devices": {}, "error": error}
    return {**found[0], "error": ""}


class FilterModule:
    """Filters of the role rollout."""

    def filters(self) -> dict[str, Any]:
        """Names that templates use."""
        return {
            "rollback_choice": rollback_choice,
            "rollout_batches": rollout_batches,
            "rollout_held": rollout_held,
            "rollout_needed": rollout_needed,
            "rollout_report": rollout_report,
            "rollout_way_back": rollout_way_back,
        }
