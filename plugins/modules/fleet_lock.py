#!/usr/bin/python
"""The lock of the fleet, as it lies on one host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_lock
short_description: Take, release or break the lock file on a host
description:
  - A file that another run wrote is never replaced unless its id is given with C(replace), so that of two that find a
    stale lock only one takes it.
  - The action plugin of the same name adds what only the controller can know, which is whether the holder still runs.
options:
  state: {description: What to do; C(shown) only reads., type: str, choices: [taken, released, broken, shown], required: true}
  run: {description: The run that asks, as in C(fleet_run)., type: dict, required: true}
  replace: {description: "Id of the run whose lock may be replaced, or removed by C(broken).", type: str, default: ""}
  reason: {description: Why it may be, for the audit log., type: str, default: ""}
  path: {description: The lock., type: path, default: /var/lib/fleet/lock.json}
  audit_log: {description: The host's audit log., type: path, default: /var/log/fleet/audit.log}
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.audit import note, now
from ansible.module_utils.basic import AnsibleModule

#: Stands for the run of a lock that cannot be read.
UNREADABLE = "unreadable"


class Lock:
    """The lock file of one host."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Keep all others that would change the lock out; the kernel ends it with the process, however that ends."""
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def holder(self) -> dict | None:
        """Who holds the lock; ``None`` when nobody does."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return None
        with contextlib.suppress(ValueError):
            found = json.loads(text)
            if isinstance(found, dict) and found.get("id"):
                return found
        return {"id": UNREADABLE, "text": text[:200]}

    def write(self, run: dict) -> bool:
        """Make the lock, whole or not at all; says whether it was free."""
        temporary = self.path.with_name(f".{self.path.name}.{run['id']}")
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(handle, (json.dumps({**run, "time": now()}, indent=2) + "\n").encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        try:
            # Unlike a rename it fails when the name is taken.
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def clean(self) -> None:
        """Remove what takers that were killed left beside the lock; to be called with all others kept out."""
        for left in self.path.parent.glob(f".{self.path.name}.*"):
            left.unlink(missing_ok=True)


def take(lock: Lock, run: dict, replace: str, dry: bool) -> tuple[bool, dict | None, dict | None]:
    """Take the lock: whether something changed, who holds it instead, and whose was replaced."""
    if dry:
        holder = lock.holder()
        ours = holder is not None and holder["id"] == run["id"]
        return not ours, None if ours else holder, None
    with lock.guarded():
        lock.clean()
        holder = lock.holder()
        if holder is not None and holder["id"] == run["id"]:
            return False, None, None
        if holder is not None and holder["id"] not in {replace, UNREADABLE}:
            return False, holder, None
        if holder is not None:
            lock.path.unlink()
        if not lock.write(run):
            return False, lock.holder(), None
        return True, None, holder


def remove(lock: Lock, run_id: str, dry: bool) -> dict | None:
    """Remove the lock of a run; gives what was removed."""
    # Where nothing is, nothing is made either: a torn down host stays bare.
    if not lock.path.exists():
        return None
    with lock.guarded():
        holder = lock.holder()
        if holder is None or holder["id"] != run_id:
            return None
        if not dry:
            lock.path.unlink()
        return holder


def warn(module: AnsibleModule, text: str) -> None:
    """Show why the audit log could not be written, if so."""
    if text:
        module.warn(text)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["taken", "released", "broken", "shown"], "required": True},
            "run": {"type": "dict", "required": True},
            "replace": {"type": "str", "default": ""},
            "reason": {"type": "str", "default": ""},
            "path": {"type": "path", "default": "/var/lib/fleet/lock.json"},
            "audit_log": {"type": "path", "default": "/var/log/fleet/audit.log"},
        },
        supports_check_mode=True,
    )
    options = module.params
    lock, run, log, dry = Lock(Path(options["path"])), options["run"], Path(options["audit_log"]), module.check_mode
    try:
        if options["state"] == "shown":
            module.exit_json(changed=False, holder=lock.holder())
        if options["state"] == "taken":
            changed, holder, replaced = take(lock, run, options["replace"], dry)
            if replaced is not None:
                why = options["reason"] or f"{lock.path} could not be read; a full disk or a crash may have cut it off"
                module.warn(why)
                warn(module, note(run, "lock_broken", log, holder=replaced, why=why))
            if changed and not dry:
                warn(module, note(run, "lock_taken", log, why=run.get("why")))
            module.exit_json(changed=changed, holder=holder, replaced=replaced)
        removed = remove(lock, run["id"] if options["state"] == "released" else options["replace"], dry)
        if removed is not None and options["state"] == "broken" and not dry:
            warn(module, note(run, "lock_broken", log, holder=removed, why=options["reason"] or run.get("why")))
        module.exit_json(changed=removed is not None, holder=removed)
    except OSError as error:
        module.fail_json(msg=f"The lock {lock.path}: {error}. Is the disk full? (df -h {lock.path.parent})")


if __name__ == "__main__":
    main()
