#!/usr/bin/python
"""Take everything of the fleet off a host or an edge again."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_teardown
short_description: Stop and remove all that a deploy brought to a machine
description:
  - What was there before is put back (nginx.conf), and only packages that a deploy installed are purged, unless something
    else needs them by now.
  - It can be run again after it was cut off; the records it goes by are removed last.
options:
  user: {description: User of the emperors., type: str, default: fleet}
"""

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.units import Supervisor, Systemd

#: All of it is ours.
FOLDERS = (
    "/opt/fleet", "/etc/fleet", "/run/fleet", "/run/fleet-edge", "/run/fleet-exporter", "/run/private/fleet-edge",
    "/var/cache/fleet", "/var/log/fleet", "/usr/local/lib/fleet",
)  # fmt: skip
#: In the second line of a unit that a role of ours has placed.
ROLE = re.compile(r"\bRole (?:edge|exporter|monitoring|watch):")
#: The records by which the rest is done; they go last.
STATE = "/var/lib/fleet"
#: Home of the user that the role emperor makes; another user of that name was there before.
HOME = "/var/cache/fleet"
UNITS = Path("/etc/systemd/system")
PROGRAMS = Path("/etc/supervisor/conf.d")
NGINX = Path("/etc/nginx")
PRIVATE = Path("/run/private")
KEEPALIVED = Path("/etc/keepalived/keepalived.conf")
WWW = Path("/var/www")
LOGS = Path("/var/log")
#: A recommendation of something that was here before is no need.
ONLY_DEPENDENCIES = (
    "-o",
    "APT::AutoRemove::RecommendsImportant=false",
    "-o",
    "APT::AutoRemove::SuggestsImportant=false",
)


class TeardownError(Exception):
    """Something could not be removed; the text says what, and where to look."""


def read_json(path: str) -> dict:
    """A JSON object; empty when there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(Path(path).read_text())
        if isinstance(found, dict):
            return found
    return {}


class Teardown:
    """The removal from one machine; without ``really`` it only lists what would be done."""

    def __init__(self, user: str, *, really: bool) -> None:
        self.user = user
        self.really = really
        self.did: list[str] = []
        self.kept: list[str] = []
        self.systemd = Path("/run/systemd/system").is_dir()
        self.manager = Systemd() if self.systemd else Supervisor()
        #: Packages of ours that are still there.
        recorded = read_json(f"{STATE}/packages.json").get("installed", [])
        self.packages = [name for name in recorded if self.state(name) not in {"", "not-installed"}]

    # ---- what all steps use

    def command(self, *words: str) -> str:
        """Run a command; gives its output.

        Raises:
            TeardownError: it failed.
        """
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=quiet)
        if done.returncode:
            raise TeardownError(f"{' '.join(words)} failed: {(done.stdout + done.stderr)[-2000:].strip()}")
        return done.stdout

    def state(self, package: str) -> str:
        """What dpkg has of a package: ``installed``, ``config-files``, and so on; empty or ``not-installed`` for nothing."""
        words = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout

    def remove(self, path: Path) -> None:
        """Remove a file, a link or a folder with all that is in it."""
        if not (path.exists() or path.is_symlink()):
            return
        self.did.append(f"removed {path}")
        if not self.really:
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    def remove_empty(self, folder: Path) -> None:
        """Remove a folder that only we may have needed."""
        if folder.is_dir() and not any(folder.iterdir()):
            self.remove(folder)

    # ---- the steps, in their order

    def names_of_units(self) -> list[str]:
        """Units of ours that run or start with the machine: emperors, and what stands beside them or makes an edge."""
        if not self.systemd:
            return [
                *(path.stem for path in self.own_units()),
                *(path.stem for path in sorted(PROGRAMS.glob("uwsgi-emperor@*.conf"))),
            ]
        instances = {path.name for path in UNITS.glob("*.wants/uwsgi-emperor@*.service")}
        instances |= {path.name.removesuffix(".d") for path in UNITS.glob("uwsgi-emperor@*.service.d")}
        # The path first: it would start the service of its name.
        return [*(path.name for path in self.own_units()), *sorted(instances)]

    def own_units(self) -> list[Path]:
        """Units that our roles placed; other software has units of such names too."""
        folder, pattern = (UNITS, "fleet-*.*") if self.systemd else (PROGRAMS, "fleet-*.conf")
        return sorted(path for path in folder.glob(pattern) if path.is_file() and ROLE.search(path.read_text()))

    def stop_units(self) -> None:
        """Stop emperors and the programs of an edge; running requests are finished."""
        for name in self.names_of_units():
            self.did.append(f"stopped {name}")
            if self.really:
                self.manager.remove(name)

    def stop_keepalived(self) -> None:
        """Give up the address that edges share, where its configuration is ours."""
        if KEEPALIVED.is_file() and "Role edge:" in KEEPALIVED.read_text():
            self.did.append("stopped keepalived")
            if self.really and self.systemd:
                self.manager.remove("keepalived.service")
            self.remove(KEEPALIVED)

    def remove_units(self) -> None:
        """Remove the files of our units."""
        for unit in self.own_units():
            links = [folder / unit.name for folder in UNITS.glob("*.wants")]
            for path in (*links, UNITS / f"{unit.name}.d", unit):
                self.remove(path)
        drop_ins = [f"nginx.service.d/{name}.conf" for name in ("fleet", "fleet-sandbox")]
        for pattern in ("*.wants/uwsgi-emperor@*", "uwsgi-emperor@*", *drop_ins):
            for path in sorted(UNITS.glob(pattern)):
                self.remove(path)
        self.remove_empty(UNITS / "nginx.service.d")
        for pattern in ("uwsgi-emperor@*.conf", "nginx.conf"):
            for path in sorted(PROGRAMS.glob(pattern)):
                if "Role " in path.read_text():
                    self.remove(path)
        if self.really:
            self.manager.reread()
            if self.systemd:
                self.manager.ask("reset-failed")

    def leftovers(self) -> Iterator[int]:
        """Processes of the user, but not those in containers on this machine, whose users may have the same number."""
        try:
            uid = pwd.getpwnam(self.user).pw_uid
        except KeyError:
            return
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                lines = (entry / "status").read_text().splitlines()
            except OSError:
                continue
            fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
            if fields["Uid"][0] == str(uid) and len(fields.get("NSpid", [""])) == 1 and fields["State"][0] != "Z":
                yield int(entry.name)

    def kill_leftovers(self) -> None:
        """End what no unit stopped."""
        if not self.really:
            return
        for sent in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.leftovers():
                self.did.append(f"ended process {pid}")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sent)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and any(self.leftovers()):
                time.sleep(0.1)

    def clear_nginx(self) -> None:
        """Remove what was placed in nginx's folder, and put its own configuration back."""
        if not self.systemd and self.really:
            self.manager.remove("nginx")
        placed = read_json(f"{STATE}/nginx.json").get("placed", [])
        kept = NGINX / "nginx.conf.before-fleet"
        # nginx.conf names the others, so it changes first.
        if kept.is_file():
            self.did.append(f"put back {NGINX / 'nginx.conf'}")
            if self.really:
                kept.rename(NGINX / "nginx.conf")
        elif "nginx.conf" in placed and "nginx" not in self.packages:
            self.kept.append(f"{NGINX / 'nginx.conf'}: what was there before is not known")
        for name in placed:
            if name != "nginx.conf":
                self.remove(NGINX / name)
        self.remove_empty(NGINX / "upstreams")
        for path in NGINX.parent.glob(".nginx-test-*"):
            self.remove(path)

    def settle_nginx(self) -> None:
        """Have an nginx that was here before us serve what it served then."""
        touched = any(str(NGINX) in one or "nginx.service.d" in one for one in self.did)
        if not touched or "nginx" in self.packages or not self.really or not shutil.which("nginx"):
            return
        if not self.systemd:
            self.kept.append("nginx does not run now; if it did before: service nginx start")
            return
        self.command("nginx", "-t", "-q")
        if self.manager.ask("is-active", "nginx.service")[0] == 0:
            self.manager.ask("restart", "nginx.service")
            self.did.append("restarted nginx with its own configuration")

    def removable(self) -> list[str]:
        """Those of our packages that nothing else on this machine needs."""
        manual = self.command("apt-mark", "showmanual", *self.packages).split()
        if manual:
            self.command("apt-mark", "auto", *manual)
        try:
            said = self.command("apt-get", "--simulate", *ONLY_DEPENDENCIES, "autoremove")
        finally:
            if manual:
                self.command("apt-mark", "manual", *manual)
        plain = {line.split()[1].partition(":")[0] for line in said.splitlines() if line.startswith(("Remv ", "Purg "))}
        # What is only configuration by now is not in the simulation.
        return [name for name in self.packages if name.partition(":")[0] in plain or self.state(name) != "installed"]

    def purge_packages(self) -> None:
        """Purge the packages that a deploy installed."""
        if not self.packages:
            return
        if not self.really:
            self.did.append(f"purged {' '.join(self.packages)}")
            return
        if isinstance(self.manager, Supervisor) and "supervisor" in self.packages and self.manager.alive():
            self.command("service", "supervisor", "stop")
        doomed = self.removable()
        if doomed:
            self.command("apt-get", "--yes", "-o", "DPkg::Lock::Timeout=120", "purge", *doomed)
            self.did.append(f"purged {' '.join(doomed)}")
        self.remove_left_by_packages(doomed)
        needed = sorted(set(self.packages) - set(doomed))
        if needed:
            self.kept.append(f"packages that something else needs by now: {' '.join(needed)}")

    def remove_left_by_packages(self, purged: list[str]) -> None:
        """Remove what Debian's packages make when they are installed and leave there when they are purged."""
        if "nginx-common" in purged:
            self.remove(WWW / "html" / "index.nginx-debian.html")
            self.remove_empty(WWW / "html")
            self.remove_empty(WWW)
            self.remove(LOGS / "nginx")
        if "supervisor" in purged:
            self.remove(LOGS / "supervisor")

    def remove_user(self) -> None:
        """Remove the user that a deploy made."""
        try:
            home = pwd.getpwnam(self.user).pw_dir
        except KeyError:
            return
        if home != HOME:
            self.kept.append(f"user {self.user}, whose home {home} says that it was there before")
            return
        self.did.append(f"removed user {self.user}")
        if self.really:
            self.command("userdel", self.user)

    def run(self) -> None:
        """All steps."""
        self.stop_keepalived()
        self.stop_units()
        self.kill_leftovers()
        self.clear_nginx()
        self.remove_units()
        self.settle_nginx()
        self.purge_packages()
        self.remove_user()
        for folder in FOLDERS:
            self.remove(Path(folder))
        # systemd's, for the users that it makes up; it makes it anew when it needs it.
        self.remove_empty(PRIVATE)
        self.remove(Path(STATE))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "default": "fleet"},
        },
        supports_check_mode=True,
    )
    teardown = Teardown(module.params["user"], really=not module.check_mode)
    try:
        teardown.run()
    except (TeardownError, OSError) as error:
        module.fail_json(
            msg=f"{error}\nDone until then: {', '.join(teardown.did) or 'nothing'}. When that is mended, run teardown again.",
            did=teardown.did,
        )
    module.exit_json(changed=bool(teardown.did), did=teardown.did, kept=teardown.kept)


if __name__ == "__main__":
    main()
