#!/usr/bin/python
"""Place the configuration of monitoring once it was checked as a whole, and have the services go by it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: monitoring_apply
short_description: Check, place and load the configuration of Prometheus, Alertmanager and the node exporter
description:
  - What a check refuses is never placed. A service whose files are younger than its process is restarted; one whose
    configuration is younger than the one it has loaded is reloaded. So a run that was cut off is finished by the next one.
  - A service that refuses what its check has let pass gets its former files back.
options:
  folder: {description: Folder of the configuration; files in it that are not wanted are removed., type: path, default: ""}
  files: {description: "Files, as for the module C(host_files).", type: list, elements: dict, required: true}
  secret_files: {description: "The same for files with secrets: their content, by path. Mode and owner as C(secret_mode) says.", type: dict, default: {}}
  secret_group: {description: Group that may read files with secrets., type: str, default: root}
  secrets: {description: Texts that no message may show., type: list, elements: str, default: []}
  checks: {description: Commands that must succeed in a copy of the folder., type: list, elements: list, default: []}
  units:
    description: Units, each with C(name), C(restart) (files that it reads only when it starts) and, if need be, C(reload)
      (files that it can load anew), C(metrics) (URL) and C(prefix) (of the metrics that tell what it has loaded).
    type: list
    elements: dict
    required: true
  timeout_seconds: {description: Longest time until a service answers., type: int, default: 60}
"""

import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.placed_files import PlacedFiles
from ansible.module_utils.units import Systemd, UnitError

#: A file's time and a service's clock are the same clock, read a moment apart.
TOLERANCE_SECONDS = 0.05


class Refused(Exception):
    """Nothing was placed, or what was placed is taken back; the text says why."""


def metric(text: str, name: str) -> float | None:
    """Value of a metric without labels."""
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


def ask(url: str) -> str:
    """Answer of a service on this machine; empty when it gives none."""
    try:
        # The URL is the role's own, http to a listening address of this machine.
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            return answer.read().decode()
    except (OSError, urllib.error.URLError, ValueError):
        return ""


class Monitoring:
    """Configuration and services of one machine."""

    def __init__(self, options: Mapping, manager: Systemd) -> None:
        secrets = [
            {"path": path, "content": text, "mode": "0640", "group": options["secret_group"], "secret": True}
            for path, text in options["secret_files"].items()
        ]
        self.options = options
        self.manager = manager
        self.folder = Path(options["folder"]) if options["folder"] else None
        self.wanted = PlacedFiles([*options["files"], *secrets], [])
        self.did: list[str] = []

    def surplus(self) -> list[Path]:
        """Files in the folder that are not wanted any more."""
        if not self.folder or not self.folder.is_dir():
            return []
        wanted = {one["path"] for one in self.wanted.files}
        return sorted(path for path in self.folder.rglob("*") if path.is_file() and str(path) not in wanted)

    def missing_programs(self) -> list[str]:
        """Programs of the checks that are not installed."""
        return sorted({words[0] for words in self.options["checks"] if not shutil.which(words[0])})

    def check(self) -> None:
        """Run the checks in a copy of the folder as it will be.

        Raises:
            Refused: one of them failed; carries what it said.
        """
        if not self.folder:
            return
        with tempfile.TemporaryDirectory(prefix="fleet-monitoring-") as name:
            for one in self.wanted.files:
                path = Path(one["path"])
                if self.folder in path.parents:
                    copy = Path(name, path.relative_to(self.folder))
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_text(one["content"])
            for words in self.options["checks"]:
                done = subprocess.run(words, cwd=name, capture_output=True, text=True, check=False)
                if done.returncode:
                    said = (done.stdout + done.stderr).replace(f"{name}/", "").strip()
                    raise Refused(
                        f"{' '.join(words)} refuses the configuration, so nothing was changed:\n{said}\n"
                        "Mend the variables of the role monitoring in the inventory, then: ./fleet deploy"
                    )

    def place(self) -> dict[Path, str | None]:
        """Place what differs and remove what is not wanted; gives what was there before."""
        former: dict[Path, str | None] = {}
        for one in self.wanted.wrong_files():
            path = Path(one["path"])
            former[path] = path.read_text() if path.is_file() else None
        self.wanted.apply()
        for path in self.surplus():
            former[path] = path.read_text()
            path.unlink()
        self.did += [f"placed {path}" for path in former]
        return former

    def put_back(self, former: Mapping[Path, str | None]) -> None:
        """Have the files as they were before; rights stay, since each of them was written by this module."""
        for path, text in former.items():
            if text is None:
                path.unlink(missing_ok=True)
            else:
                path.write_text(text)

    def newest(self, paths: list[str]) -> float:
        """When the files, or the folders that list them, were last changed."""
        return max((Path(path).stat().st_mtime for path in paths if Path(path).exists()), default=0.0)

    def loaded(self, unit: Mapping) -> str:
        """Empty when a service has loaded what its files say, else what keeps it from it."""
        if not unit.get("metrics"):
            return ""
        text = ask(unit["metrics"])
        when = metric(text, f"{unit['prefix']}_config_last_reload_success_timestamp_seconds")
        if when is None:
            return f"{unit['metrics']} gives no answer"
        if metric(text, f"{unit['prefix']}_config_last_reload_successful") != 1:
            return "it has refused its configuration"
        if when + TOLERANCE_SECONDS < self.newest(unit.get("reload") or []):
            return "it goes by a former configuration"
        return ""

    def wait(self, unit: Mapping) -> None:
        """Wait until a service has loaded its configuration.

        Raises:
            Refused: it has not.
        """
        deadline = time.monotonic() + self.options["timeout_seconds"]
        while why := self.loaded(unit):
            if time.monotonic() > deadline or "refused" in why:
                raise Refused(f"{unit['name']}: {why}. Look: journalctl -u {unit['name']} -n 50")
            time.sleep(0.2)

    def settle(self, unit: Mapping) -> None:
        """Start, restart or reload one service, as far as it is needed."""
        name = unit["name"]
        if self.manager.stale(name, unit["restart"]):
            self.manager.restart(name)
            self.did.append(f"restarted {name}")
        if not self.manager.is_right(name):
            self.manager.start(name)
            self.did.append(f"started {name}")
        elif unit.get("metrics") and self.loaded(unit):
            self.manager.call("reload", name)
            self.did.append(f"reloaded {name}")
        self.wait(unit)

    def run(self, *, really: bool) -> None:
        """Check, place, load.

        Raises:
            Refused: the configuration is refused; the former one is in its place.
            UnitError: a service does not run; the former files are in their place.
        """
        missing = self.missing_programs()
        if missing and really:
            raise Refused(f"{', '.join(missing)} is not installed. Mend: ./fleet deploy")
        if not missing:
            self.check()
        if not really:
            self.did += [f"would place {one['path']}" for one in self.wanted.wrong_files()]
            self.did += [f"would remove {path}" for path in self.surplus()]
            return
        former = self.place()
        try:
            for unit in self.options["units"]:
                self.settle(unit)
        except (Refused, UnitError) as error:
            self.put_back(former)
            for unit in self.options["units"]:
                self.manager.ask("daemon-reload")
                self.manager.ask("reload-or-restart", unit["name"])
            raise Refused(f"{error}\nThe former configuration was put back.") from error


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "str", "default": ""},
            "files": {"type": "list", "elements": "dict", "required": True},
            "secret_files": {"type": "dict", "default": {}, "no_log": True},
            "secret_group": {"type": "str", "default": "root", "no_log": False},
            "secrets": {"type": "list", "elements": "str", "default": [], "no_log": True},
            "checks": {"type": "list", "elements": "list", "default": []},
            "units": {"type": "list", "elements": "dict", "required": True},
            "timeout_seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    one = Monitoring(module.params, Systemd())
    differences = [one.wanted.difference(file) for file in one.wanted.wrong_files()]
    try:
        one.run(really=not module.check_mode)
    except (Refused, UnitError, OSError) as error:
        module.fail_json(msg=str(error), did=one.did)
    module.exit_json(changed=bool(one.did), did=one.did, diff=differences)


if __name__ == "__main__":
    main()
