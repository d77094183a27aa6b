#!/usr/bin/env python3
"""Turns the words of `./fleet VERB HOST[/DEVICE]... [OPTION...]` into options of ansible-playbook, one a line.

hosts.py [WORD...] -- [OPTION...]     exit 2 with the reason on standard error when a word or --limit names no host

Ansible ends without a word about the hosts that there are when --limit leaves none of them, before a playbook could.
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from ansible import constants
from ansible.cli.playbook import PlaybookCLI
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader

ROOT = Path(__file__).resolve().parent.parent


class Refused(Exception):
    """What was asked cannot be done; the text says why."""


def split(words: Sequence[str]) -> tuple[list[str], str]:
    """Hosts, and the device that all of them are followed by or none is.

    Raises:
        Refused: the words do not name one device.
    """
    parts = [word.partition("/") for word in words]
    if any(not host or (slash and not device) for host, slash, device in parts):
        raise Refused(f"{' '.join(words)}: a target is HOST or HOST/DEVICE")
    devices = list(dict.fromkeys(device for _, _, device in parts))
    if len(devices) > 1:
        named = " and ".join(device or "none" for device in devices)
        raise Refused(
            f"{' '.join(words)}: one call takes one device, the same on each host; these name {named}. Call it for each"
        )
    return [host for host, _, _ in parts], devices[0] if devices else ""


def groups(sources: Sequence[str]) -> dict[str, list[str]]:
    """The hosts of each group of an inventory; none when it cannot be read, which Ansible says better."""
    inventory = InventoryManager(loader=DataLoader(), sources=list(sources))
    return {name: [host.name for host in group.get_hosts()] for name, group in inventory.groups.items()}


def options(words: Sequence[str], given: Sequence[str]) -> list[str]:
    """Options for ansible-playbook that stand for the words.

    Raises:
        Refused: they are no valid targets, or no host of the inventory.
    """
    cli = PlaybookCLI(["ansible-playbook", *given])
    cli.init_parser()
    # Its own errors are left to ansible-playbook, which is given the same options.
    known, _ = cli.parser.parse_known_args([*given, "playbook"])
    hosts, device = split(words)
    if hosts and known.subset:
        raise Refused(f"hosts are given twice: as {' '.join(words)} and as --limit {known.subset}. Use one of both")
    limit = ",".join(hosts) or known.subset or ""
    # Without -i Ansible goes by ANSIBLE_INVENTORY.
    found = groups(known.inventory or constants.DEFAULT_HOST_LIST)
    if any(found.values()):
        # The filter that the playbooks use for the same question.
        questions = runpy.run_path(str(ROOT / "plugins" / "filter" / "limit.py"))
        for complaint in questions["limit_complaints"](limit, found):
            raise Refused(complaint)
    return [*(["--limit", limit] if hosts else []), *(["-e", f"fleet_device={device}"] if device else [])]


def main(arguments: Sequence[str]) -> int:
    split_at = arguments.index("--")
    try:
        print(*options(arguments[:split_at], arguments[split_at + 1 :]), sep="\n")
    except Refused as refused:
        print(f"fleet: {refused}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
