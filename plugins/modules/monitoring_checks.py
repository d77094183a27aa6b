#!/usr/bin/python
"""Check from a monitoring host itself that it watches the fleet as the inventory says."""

from __future__ import annotations

DOCUMENTATION = r"""
module: monitoring_checks
short_description: Check services, targets and rules of a monitoring host
description:
  - Never fails because of what it finds; gives a list of checks, each with C(name), C(ok), C(detail) and C(mend).
options:
  prometheus: {description: URL of Prometheus on this machine., type: str, required: true}
  alertmanager: {description: URL of Alertmanager on this machine., type: str, required: true}
  units: {description: Units that must run., type: list, elements: str, required: true}
  targets: {description: "What must be asked, each with C(job) and C(instance).", type: list, elements: dict, required: true}
  alerts: {description: Names of the alerts that must be loaded., type: list, elements: str, required: true}
  timeout_seconds: {description: Longest time until all targets have answered., type: int, default: 40}
"""

import functools
import json
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.units import Systemd


class Failed(Exception):
    """A check found something wrong; the text says what and which value was seen."""


def read(url: str) -> str:
    """What a service answers.

    Raises:
        Failed: it does not.
    """
    try:
        # The URL is the role's own, http to a listening address of this machine.
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            return answer.read().decode()
    except (OSError, ValueError) as error:
        raise Failed(f"{url}: {error}") from error


def ask(url: str) -> Any:
    """JSON that a service answers.

    Raises:
        Failed: it does not answer, or with something else.
    """
    try:
        return json.loads(read(url))
    except ValueError as error:
        raise Failed(f"{url}: {error}") from error


class Checks:
    """All checks of one monitoring host, each run even when an earlier one failed."""

    def __init__(self, options: Mapping[str, Any], manager: Systemd) -> None:
        self.options = options
        self.manager = manager
        self.results: list[dict] = []

    def check(self, name: str, what: Callable[[], str], mend: str) -> None:
        """Run one check and note its result."""
        try:
            self.results.append({"name": name, "ok": True, "detail": what(), "mend": ""})
        except (Failed, LookupError, TypeError) as error:
            self.results.append({"name": name, "ok": False, "detail": str(error), "mend": mend})

    def unit(self, name: str) -> str:
        """A unit runs and starts with the machine."""
        words = [self.manager.ask(verb, name)[1] for verb in ("is-active", "is-enabled")]
        if words != ["active", "enabled"]:
            raise Failed(f"{name} is {' and '.join(words)}")
        return "active, enabled"

    def configuration(self) -> str:
        """Both services go by the configuration in their files."""
        for name in ("prometheus", "alertmanager"):
            text = read(f"{self.options[name]}/metrics")
            if f"\n{name}_config_last_reload_successful 1\n" not in text:
                raise Failed(f"{name} has refused its configuration")
        return "loaded by both"

    def targets(self) -> str:
        """Every machine of the inventory is asked and answers."""
        wanted = {(one["job"], one["instance"]) for one in self.options["targets"]}
        deadline = time.monotonic() + self.options["timeout_seconds"]
        while True:
            found = {
                (one["labels"]["job"], one["labels"]["instance"]): one
                for one in ask(f"{self.options['prometheus']}/api/v1/targets?state=active")["data"]["activeTargets"]
            }
            missing = sorted(wanted - set(found))
            down = sorted(key for key in wanted & set(found) if found[key]["health"] != "up")
            if not missing and not down:
                return f"{len(wanted)} targets answer"
            # After a change of its configuration Prometheus takes some seconds to ask others.
            if time.monotonic() > deadline:
                break
            time.sleep(1)
        if missing:
            raise Failed(f"not asked: {', '.join(' of '.join(key) for key in missing)}")
        raise Failed(
            "no answer: "
            + "; ".join(f"{job} of {host}: {found[job, host]['lastError'] or 'not asked yet'}" for job, host in down)
        )

    def rules(self) -> str:
        """All alerts are loaded and can be worked out."""
        groups = ask(f"{self.options['prometheus']}/api/v1/rules")["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        missing = sorted(set(self.options["alerts"]) - {rule["name"] for rule in rules if rule["type"] == "alerting"})
        if missing:
            raise Failed(f"not loaded: {', '.join(missing)}")
        bad = [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule["health"] == "err"]
        if bad:
            raise Failed("; ".join(bad))
        return f"{len(rules)} rules, {len(self.options['alerts'])} alerts"

    def way_out(self) -> str:
        """Prometheus knows its Alertmanager, and that one answers."""
        known = ask(f"{self.options['prometheus']}/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
        if not known:
            raise Failed("Prometheus knows no Alertmanager")
        ask(f"{self.options['alertmanager']}/api/v2/status")
        return known[0]["url"]

    def firing(self) -> str:
        """Which alerts fire; a report, and nothing that is wrong with the monitoring."""
        alerts = ask(f"{self.options['prometheus']}/api/v1/alerts")["data"]["alerts"]
        names = sorted({one["labels"]["alertname"] for one in alerts if one["state"] == "firing"} - {"Watchdog"})
        return ", ".join(names) or "none"

    def run(self) -> list[dict]:
        """Run all checks."""
        for name in self.options["units"]:
            self.check(name, functools.partial(self.unit, name), f"journalctl -u {name} -n 50")
        self.check("configuration", self.configuration, "journalctl -u prometheus -n 50; then ./fleet deploy")
        self.check("targets", self.targets, "./fleet verify; on the monitoring host: curl the URL of the target")
        self.check("rules", self.rules, "./fleet deploy")
        self.check("alertmanager", self.way_out, "journalctl -u prometheus-alertmanager -n 50")
        self.check("firing alerts", self.firing, "journalctl -u prometheus -n 50")
        return self.results


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "prometheus": {"type": "str", "required": True},
            "alertmanager": {"type": "str", "required": True},
            "units": {"type": "list", "elements": "str", "required": True},
            "targets": {"type": "list", "elements": "dict", "required": True},
            "alerts": {"type": "list", "elements": "str", "required": True},
            "timeout_seconds": {"type": "int", "default": 40},
        },
        supports_check_mode=True,
    )
    results = Checks(module.params, Systemd()).run()
    module.exit_json(changed=False, checks=results, passed=all(one["ok"] for one in results))


if __name__ == "__main__":
    main()
