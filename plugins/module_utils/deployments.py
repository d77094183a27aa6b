"""What was deployed on a host: one record for each deployment, and which of them is in force."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

#: Records that are kept; the oldest go first.
KEEP = 10


def write_json(path: Path, content: object, mode: int = 0o644) -> None:
    """Write a JSON file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(json.dumps(content, indent=1) + "\n")
    partial.chmod(mode)
    partial.rename(path)


class Deployments:
    """The deployments of one host.

    A record holds all that is needed to go back to it without the inventory of that day: ``release``, ``vassals``,
    ``nginx`` (with places for addresses), and ``services`` for the checks. ``deployed.json`` says which is in force, and
    ``history`` names the records from the newest to the oldest.
    """

    def __init__(self, state_file: Path, folder: Path) -> None:
        self.state_file = state_file
        self.folder = folder

    def current(self) -> dict:
        """What is in force: the release's ``id``, ``dir``, ``environment``, ``uwsgi_home``; ``at``, ``by``, ``record``,
        ``former``, ``history``. Empty before the first deploy.
        """
        try:
            found: dict = json.loads(self.state_file.read_text())
        except (OSError, ValueError):
            return {}
        return found

    def read(self, name: str) -> dict:
        """A record.

        Raises:
            LookupError: there is none of that name, or it cannot be read.
        """
        try:
            found: dict = json.loads((self.folder / f"{name}.json").read_text())
        except (OSError, ValueError) as error:
            raise LookupError(f"the deployment {name} cannot be read: {error}") from error
        return found

    def names(self) -> list[str]:
        """All records that can be gone back to, the newest first: their releases are still there."""
        known = {path.stem for path in self.folder.glob("[0-9]*.json")}
        history = [name for name in self.current().get("history", []) if name in known]
        found = dict.fromkeys([*history, *sorted(known, reverse=True)])
        return [name for name in found if self.is_whole(name)]

    def is_whole(self, name: str) -> bool:
        """Whether a record can be read and its release lies on the disk."""
        try:
            return Path(self.read(name)["release"]["dir"], "REVISION.json").is_file()
        except (LookupError, KeyError, TypeError):
            return False

    def former(self) -> str | None:
        """The deployment that was in force before the current one."""
        current = self.current().get("record")
        return next((name for name in self.names() if name != current), None)

    def enforce(self, name: str, at: str, run: dict, *, forget: bool = False) -> None:
        """Note which record is in force.

        Args:
            name: the record.
            at: when.
            run: who did it.
            forget: the deployment that was in force until now failed, and is not to be gone back to.
        """
        former = self.current()
        history = [one for one in former.get("history", []) if one != name]
        if forget and former.get("record") in history:
            history.remove(former["record"])
        history.insert(0, name)
        release = self.read(name)["release"]
        write_json(
            self.state_file,
            {
                **release,
                "at": at,
                "by": run.get("by", ""),
                "run": run.get("id", ""),
                "record": name,
                "former": history[1] if len(history) > 1 else "",
                "history": history[:KEEP],
            },
        )
        for path in self.folder.glob("[0-9]*.json"):
            if path.stem not in history[:KEEP]:
                path.unlink()

    def add(self, content: dict, at: str) -> str:
        """Write a record, readable by root only: environments of services may hold secrets. Gives its name.

        The name begins with the time, so that names sort by age; the same content in force keeps its name.
        """
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
        current = str(self.current().get("record", ""))
        if current.endswith(f"-{digest}") and (self.folder / f"{current}.json").is_file():
            return current
        name = f"{at.replace('-', '').replace(':', '').partition('+')[0]}Z-{digest}"
        write_json(self.folder / f"{name}.json", content, 0o600)
        return name
