"""Prints all that a host has, a line each: files with kind, rights and owner, packages, users, and what listens."""

import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

#: Where a host writes by itself, or the tools that look at it and install something do.
PASSING = re.compile(
    r"/(?:proc|sys|dev|tmp|var/tmp"
    r"|root/\.ansible|root/\.cache"
    r"|var/lib/apt|var/cache/(?:apt|debconf|ldconfig)|var/log/(?:apt|journal|dpkg\.log|alternatives\.log|[bw]tmp|lastlog)"
    r"|var/lib/dpkg/(?:[a-z]+-old|triggers|lock.*|status|diversions|statoverride|alternatives)"
    r"|var/lib/systemd/(?:catalog|random-seed|timers|linger)|var/lib/(?:private|ucf)"
    r"|run/(?:systemd|log|user|lock|dbus|sudo|utmp|udev|sshd)|etc/ld\.so\.cache|etc/(?:passwd|shadow|group|gshadow|subuid|subgid)-)(?:/.*)?"
    r"|.*/__pycache__(?:/.*)?|/var/lib/dpkg/lock"
)


def below(folder: Path) -> Iterator[Path]:
    """All that is in a folder, but not what passes."""
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        path = Path(entry.path)
        if PASSING.fullmatch(entry.path):
            continue
        yield path
        if entry.is_dir(follow_symlinks=False):
            yield from below(path)


def line(path: Path) -> str:
    """A path with all that a person would notice a change of."""
    found = path.lstat()
    text = f"{path} {stat.filemode(found.st_mode)} {found.st_uid}:{found.st_gid}"
    if path.is_symlink():
        text += f" -> {path.readlink()}"
    elif stat.S_ISREG(found.st_mode) and str(path).startswith("/etc/"):
        text += " " + hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return text


def said(*command: str) -> list[str]:
    """Lines of a command's output."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


for path in below(Path("/")):
    print(line(path))
for package in said("dpkg-query", "--show", "--showformat=package ${Package} ${db:Status-Status}\n"):
    print(package)
for listener in said("ss", "--no-header", "--listening", "--tcp", "--numeric"):
    print("listens on", listener.split()[3])
