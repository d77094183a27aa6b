"""Files and folders of a host with owner and mode: compare, place in one step, say what changed."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path


def numbers(owner: str, group: str) -> tuple[int, int]:
    """User and group id by their names; -1 for one that is not there yet, as on a bare host in check mode."""
    try:
        user = pwd.getpwnam(owner).pw_uid
    except KeyError:
        user = -1
    try:
        return user, grp.getgrnam(group).gr_gid
    except KeyError:
        return user, -1


def has_rights(path: Path, mode: int, owner: str, group: str) -> bool:
    """Whether a file or folder has owner, group and mode."""
    found = path.stat()
    return (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, *numbers(owner, group))


def place(path: Path, content: str, mode: int, user: int = -1, group: int = -1) -> None:
    """Write a file in one step, complete or not at all; -1 leaves the owner or the group as they come."""
    partial = path.with_name(f".{path.name}.partial")
    # What another run left may have other rights.
    partial.unlink(missing_ok=True)
    # Made for its owner alone: what is in it may be a secret.
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(content)
    os.chown(partial, user, group)
    partial.chmod(mode)
    partial.rename(path)


class PlacedFiles:
    """Wanted files and folders.

    Args:
        files: each with ``path``, ``content``, ``mode`` (octal text) and, if need be, ``owner``, ``group``, ``secret``.
        folders: each with ``path`` and, if need be, ``mode``, ``owner``, ``group``.
    """

    def __init__(self, files: Iterable[Mapping], folders: Iterable[Mapping]) -> None:
        self.files = [{"owner": "root", "group": "root", "secret": False, **one} for one in files]
        self.folders = [{"owner": "root", "group": "root", "mode": "0755", **one} for one in folders]

    def wrong_folders(self) -> list[dict]:
        """Folders that are missing or have other rights."""
        return [one for one in self.folders if not self.is_right(one) or not Path(one["path"]).is_dir()]

    def is_right(self, one: Mapping) -> bool:
        """Whether a path is there with its rights."""
        path = Path(one["path"])
        return path.exists() and has_rights(path, int(one["mode"], 8), one["owner"], one["group"])

    def wrong_files(self) -> list[dict]:
        """Files that are missing, or differ in content or rights."""
        return [one for one in self.files if not self.is_right(one) or Path(one["path"]).read_text() != one["content"]]

    def difference(self, one: Mapping) -> dict:
        """What placing one file would change, as Ansible's diff wants it; nothing of a file that may hold secrets."""
        path = Path(one["path"])
        if one["secret"]:
            return {"before_header": str(path), "after_header": str(path), "before": "", "after": "(not shown)\n"}
        before = path.read_text() if path.is_file() else ""
        return {"before_header": str(path), "after_header": str(path), "before": before, "after": one["content"]}

    def apply(self) -> None:
        """Make the folders, then place the files, each in one step."""
        for one in self.wrong_folders():
            path = Path(one["path"])
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, *numbers(one["owner"], one["group"]))
            path.chmod(int(one["mode"], 8))
        for one in self.wrong_files():
            path = Path(one["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            place(path, one["content"], int(one["mode"], 8), *numbers(one["owner"], one["group"]))
