#!/usr/bin/python
"""Lay a release and its environment on a host, from archives that lie there already."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_install
short_description: Ask for, install or prune releases on a host
description:
  - C(query) says which archives the host lacks; C(present) installs from them; C(pruned) deletes what nothing uses.
  - A release is complete once it has its final name, an environment once it has the file C(.complete).
options:
  state: {description: What to do., type: str, choices: [query, present, pruned], required: true}
  root: {description: Folder of all releases., type: path, default: /opt/fleet}
  id: {description: Release id., type: str, required: true}
  environment: {description: Id of the environment., type: str, required: true}
  uwsgi: {description: Version of uWSGI that emperors run., type: str, required: true}
  incoming: {description: Folder with the copied archives., type: path, default: /opt/fleet/incoming}
  run: {description: "Who does this, for the audit log.", type: dict, default: {}}
  audit_log: {description: The host's audit log., type: path, default: /var/log/fleet/audit.log}
  keep: {description: Releases to keep., type: int, default: 3}
  devices_dir: {description: Folder of devices; releases named by vassals there are kept., type: path, default: /etc/fleet/devices}
  deployed_file: {description: Which deployment is in force., type: path, default: /etc/fleet/deployed.json}
  deployments_dir: {description: "Records of deployments; the release of the former one is kept.", type: path, default: /etc/fleet/deployments}
"""

import json
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path

from ansible.module_utils.audit import note
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.deployments import Deployments


class Host:
    """The folders of releases of one host."""

    def __init__(self, module: AnsibleModule) -> None:
        options = module.params
        self.module = module
        self.root = Path(options["root"])
        self.incoming = Path(options["incoming"])
        self.id = options["id"]
        self.release = self.root / "releases" / self.id
        self.environment = self.root / "environments" / options["environment"]
        self.uwsgi = self.root / "uwsgi" / f"{options['uwsgi']}-{options['environment'].split('-')[0]}"

    def missing(self) -> dict[str, bool]:
        """What is not there or not complete."""
        link = self.release / "venv"
        return {
            "release": not (self.release / "REVISION.json").is_file() or link.resolve() != self.environment.resolve(),
            "environment": not (self.environment / ".complete").is_file(),
            "uwsgi": not (self.uwsgi / ".complete").is_file(),
        }

    def need_space(self, archive: Path, factor: float) -> None:
        """Refuse to begin what would fill the disk."""
        free = shutil.disk_usage(self.root).free
        need = int(archive.stat().st_size * factor)
        if free < need:
            self.module.fail_json(
                msg=f"{self.root} has {free // 2**20} MiB free; installing {archive.name} takes about {need // 2**20} MiB. "
                f"Make room (du -xh {self.root} | sort -h | tail) or lower release_keep, then deploy again."
            )

    def run(self, *command: str, say: str) -> None:
        """Run a command; fail the module with the end of its output."""
        rc, out, err = self.module.run_command(
            list(command), environ_update={"PIP_NO_INPUT": "1", "PIP_CONFIG_FILE": os.devnull}
        )
        if rc != 0:
            self.module.fail_json(msg=f"{say} failed: {' '.join(command)}\n{(out + err)[-3000:]}")

    def make_venv(self, target: Path, wheels: Path, only: str | None = None) -> None:
        """Make a virtual environment of hashed wheels; without its ``.complete`` it is made anew next time."""
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.run(sys.executable, "-m", "venv", str(target), say="making the virtual environment")
        listing = wheels / "requirements.txt"
        if only:
            lines = [line for line in listing.read_text().splitlines() if line.startswith(f"{only}==")]
            listing = wheels / f"{only}.txt"
            listing.write_text("\n".join(lines) + "\n")
        pip = [
            str(target / "bin/python"),
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--no-cache-dir",
            "install",
            "-q",
        ]
        pip += [
            "--no-index",
            "--no-deps",
            "--require-hashes",
            "--no-compile",
            "--find-links",
            str(wheels),
            "-r",
            str(listing),
        ]
        self.run(*pip, say="installing the packages")
        # Workers may not write here, so the byte code is made now; a few test files of packages are not meant to compile.
        self.module.run_command([str(target / "bin/python"), "-m", "compileall", "-q", "-j", "0", str(target / "lib")])
        (target / ".complete").touch()

    def install(self) -> bool:
        """Install what is missing; says whether anything was."""
        missing = self.missing()
        wheels = self.incoming / f"{self.environment.name}.wheels"
        if missing["environment"] or missing["uwsgi"]:
            archive = self.incoming / f"{self.environment.name}.tar"
            self.need_space(archive, 5)
            unpack(archive, wheels)
            if missing["uwsgi"]:
                self.make_venv(self.uwsgi, wheels, only="pyuwsgi")
            if missing["environment"]:
                self.make_venv(self.environment, wheels)
        if missing["release"]:
            self.place_release()
        shutil.rmtree(self.incoming, ignore_errors=True)
        return any(missing.values())

    def place_release(self) -> None:
        """Unpack the release beside its place and rename it into it.

        A release that is there and only wants another environment (a new Python, a card was added) keeps its files:
        processes run from them.
        """
        target = os.path.relpath(self.environment, self.release)
        if (self.release / "REVISION.json").is_file():
            fresh = self.release / ".venv.new"
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(target)
            fresh.rename(self.release / "venv")
            return
        partial = self.release.with_name(f".{self.id}.partial")
        unpack(self.incoming / f"{self.id}.tar", partial)
        (partial / "venv").symlink_to(target)
        self.module.run_command([str(self.environment / "bin/python"), "-m", "compileall", "-q", str(partial / "app")])
        shutil.rmtree(self.release, ignore_errors=True)
        partial.rename(self.release)

    def prune(self) -> list[str]:
        """Delete the oldest releases beyond ``keep`` and the environments that no release uses.

        A release that a vassal names is kept whatever its age: it runs, or ran until a moment ago.
        """
        folder = self.root / "releases"
        if not folder.is_dir():
            return []
        if self.release.is_dir() and not self.module.check_mode:
            # Age is counted from the last deploy of a release, so that one which was gone back to is not the oldest.
            os.utime(self.release)
        running = {
            match[1]
            for ini in Path(self.module.params["devices_dir"]).glob("*/vassals/*.ini")
            if (match := re.search(r"^chdir = .*/([^/\n]+)$", ini.read_text(), re.MULTILINE))
        }
        releases = sorted(
            (path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime, reverse=True
        )
        # The way back must stay open, however many releases were laid out since.
        history = Deployments(Path(self.module.params["deployed_file"]), Path(self.module.params["deployments_dir"]))
        former = history.former()
        running |= {history.read(former)["release"]["id"]} if former else set()
        kept = [path for path in releases if path.name in running | {self.id}]
        for path in releases:
            if len(kept) < max(self.module.params["keep"], 2) and path not in kept and not path.name.startswith("."):
                kept.append(path)
        used = {(path / "venv").resolve() for path in kept}
        doomed = [path for path in releases if path not in kept]
        environments = self.root / "environments"
        doomed += (
            [path for path in environments.iterdir() if path.resolve() not in used] if environments.is_dir() else []
        )
        if not self.module.check_mode:
            for path in doomed:
                shutil.rmtree(path)
        return [str(path) for path in doomed]


def unpack(archive: Path, into: Path) -> None:
    """Unpack a tar into a fresh folder."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(into, filter="data")
        else:
            tar.extractall(into)  # noqa: S202 - our own archive; this Python has no filters yet


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["query", "present", "pruned"], "required": True},
            "root": {"type": "path", "default": "/opt/fleet"},
            "id": {"type": "str", "required": True},
            "environment": {"type": "str", "required": True},
            "uwsgi": {"type": "str", "required": True},
            "incoming": {"type": "path", "default": "/opt/fleet/incoming"},
            "run": {"type": "dict", "default": {}},
            "audit_log": {"type": "path", "default": "/var/log/fleet/audit.log"},
            "keep": {"type": "int", "default": 3},
            "devices_dir": {"type": "path", "default": "/etc/fleet/devices"},
            "deployed_file": {"type": "path", "default": "/etc/fleet/deployed.json"},
            "deployments_dir": {"type": "path", "default": "/etc/fleet/deployments"},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    host = Host(module)
    state = module.params["state"]
    try:
        if state == "query":
            missing = host.missing()
            module.exit_json(changed=False, missing=missing, uwsgi_home=str(host.uwsgi), release_dir=str(host.release))
        if state == "pruned":
            doomed = host.prune()
            module.exit_json(changed=bool(doomed), removed=doomed)
        if module.check_mode:
            module.exit_json(changed=any(host.missing().values()))
        changed = host.install()
    except (OSError, tarfile.TarError) as error:
        module.fail_json(
            msg=f"{error}. Is the disk full? (df -h {host.root}) A deploy that was cut off may simply be run again."
        )
    if changed:
        note(
            module.params["run"],
            "release_installed",
            Path(module.params["audit_log"]),
            release=host.id,
            environment=host.environment.name,
        )
    revision = json.loads((host.release / "REVISION.json").read_text())
    module.exit_json(changed=changed, revision={key: revision[key] for key in ("id", "version", "created")})


if __name__ == "__main__":
    main()
