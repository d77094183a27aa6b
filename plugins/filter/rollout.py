"""Filters of the role rollout."""

from __future__ import annotations

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


def rollout_report(
    hostvars: Mapping[str, Any], everyone: Iterable[str], reached: Collection[str], batches: Iterable[Collection[str]]
) -> str:
    """Why a rollout stopped, and what each host has now.

    Args:
        hostvars: facts of all hosts.
        everyone: hosts of the rollout.
        reached: those that could be reached until the end.
        batches: the batches in their order.
    """
    order = [host for batch in batches for host in batch]
    lines = ["The rollout stopped."]
    for host in sorted(everyone, key=order.index):
        facts = hostvars[host]
        plan = facts.get("__rollout_plan") or {}
        failed, stuck = facts.get("__rollout_failed") or "", facts.get("__rollout_stuck") or ""
        walked = facts.get("__rollout_walked") or {}
        if host not in reached:
            state = "cannot be reached any more; what it serves is not known"
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
            "rollout_report": rollout_report,
        }
