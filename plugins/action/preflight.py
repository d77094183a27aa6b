"""Checks the inventory of a host before anything is changed; runs on the controller and asks no host."""

from __future__ import annotations

import difflib
import functools
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

ROLES = Path(__file__).resolve().parents[2] / "roles"
SERVICE_NAME = re.compile(r"^(?=.{1,31}$)[a-z][a-z0-9]*(-[a-z0-9]+)*$")
DEVICE_NAME = re.compile(r"^[a-z][a-z0-9]{0,15}$")
#: As in the app's own settings.
ROUTE = re.compile(r"(/[A-Za-z0-9._~-]+)+")
#: Paths that nginx's sites have for themselves; as in the app's own settings.
TAKEN = re.compile(r"/(status|status\.json|docs|openapi\.json)|/(assets|openapi|\.fleet|\.problem)(/.*)?")
ENVIRONMENT_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
MODEL = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
#: Options that the vassal's template sets itself; given twice, uWSGI would take both.
OWNED = {
    "attach-daemon2": "mode", "buffer-size": "buffer_size", "callable": "callable", "chdir": "", "http-socket": "protocol", "lazy-apps": "lazy_apps",
    "listen": "listen", "master": "master", "module": "module", "processes": "workers", "pythonpath": "", "socket": "transport",
    "stats": "stats", "threads": "threads", "workers": "workers", "wsgi-file": "wsgi_file", "env": "environment",
}  # fmt: skip
#: What verbs take with ``-e`` and no role owns.
COMMAND_LINE = {
    "all", "allow_outage", "edge_skip", "release", "rollout_keep_mixed", "teardown_confirm", "why",
}  # fmt: skip
#: What ``only`` can ask for: the names of variables, of a part of them or of all that a host has.
PARTS = {"command line": "on the command line", "names": "in the inventory"}
#: How alike a name must be to one of ours to be taken for a slip.
LIKENESS = 0.86


@functools.cache
def known_variables() -> dict[str, str]:
    """Every public variable and the role it belongs to."""
    found = {}
    for spec in sorted(ROLES.glob("*/meta/argument_specs.yml")):
        for entry in yaml.safe_load(spec.read_text())["argument_specs"].values():
            found.update(dict.fromkeys(entry.get("options", {}), spec.parent.parent.name))
    return found


@functools.cache
def uwsgi_options() -> frozenset[str]:
    """Long options of the uWSGI that hosts run, asked from the same version on the controller.

    Raises:
        FileNotFoundError: the controller's environment is not complete.
    """
    program = Path(sys.executable).parent / "uwsgi"
    text = subprocess.run([str(program), "--help"], capture_output=True, text=True, check=False).stdout
    return frozenset(re.findall(r"^\s+(?:-\S\|)?--([a-z0-9][\w-]*)", text, re.MULTILINE))


def misspelt(names: list[str]) -> list[str]:
    """Complaints about variables that look like ours and are none."""
    known = {**known_variables(), **dict.fromkeys(COMMAND_LINE, "")}
    roles = {path.parent.name for path in ROLES.glob("*/meta")}
    complaints = []
    for name in sorted(names):
        if name in known or name.startswith(("_", "ansible_", "fleet_", "molecule_")):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=LIKENESS)
        role = next((role for role in roles if name.startswith(f"{role}_")), None)
        if role is None and not close:
            continue
        close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else f" The role's variables stand in roles/{role}/README.md."
        complaints.append(f"no role has a variable {name}.{hint}")
    return complaints


def unknown_uwsgi_options(service: Mapping[str, Any]) -> list[str]:
    """Complaints about ``uwsgi_options`` of one service."""
    complaints = []
    for option in service.get("uwsgi_options") or {}:
        if option in OWNED:
            instead = f"use the service's option {OWNED[option]}" if OWNED[option] else "it is set by the role"
            complaints.append(f"service {service['name']}: uwsgi_options: {option} cannot be given here; {instead}.")
        elif option not in uwsgi_options():
            close = difflib.get_close_matches(option, uwsgi_options(), n=1, cutoff=0.6)
            hint = f" Did you mean {close[0]}?" if close else ""
            complaints.append(f"service {service['name']}: uwsgi_options: uWSGI has no option {option!r}.{hint}")
    return complaints


def batch_complaints(service: Mapping[str, Any], custom: bool) -> list[str]:
    """Complaints about a service of mode batch.

    Args:
        service: its options.
        custom: whether it runs a WSGI app of its own.
    """
    name = service["name"]
    complaints = []
    if custom:
        complaints.append(
            f"service {name}: mode is batch, and module or wsgi_file name a WSGI app of your own: only the project's app "
            "gathers batches. Give it a model (module: inference.wsgi), or mode: process."
        )
    for option, low in (("batch_max_items", 1), ("batch_max_cost", 0), ("batch_delay_ms", 0), ("queue_max_items", 1)):
        if int(service[option]) < low:
            complaints.append(f"service {name}: {option} is {service[option]}; it takes a whole number from {low} up.")
    return complaints


def service_complaints(services: list[Mapping[str, Any]], stop_seconds: int, nginx_seconds: int) -> list[str]:
    """Complaints about the services of a host, as resolved with their defaults."""
    complaints = [] if services else ["services is empty; a host needs at least one."]
    for service in services:
        name = service["name"]
        if not SERVICE_NAME.match(name):
            complaints.append(
                f"service name {name!r}: it takes up to 31 lower-case letters, digits and dashes, a letter first."
            )
        if not ROUTE.fullmatch(service["route"]):
            complaints.append(
                f"service {name}: route is {service['route']!r}; it takes a path such as /v1/parse, without a slash at its end."
            )
        if service["route"] in {"/healthz", "/readyz", "/version"}:
            complaints.append(f"service {name}: route {service['route']} is taken by the health checks.")
        if TAKEN.fullmatch(service["route"]):
            complaints.append(
                f"service {name}: route {service['route']} is taken by the site's own pages (/status, /docs, /openapi.json, "
                f"and what is below /assets/, /openapi/ and /.fleet/). Take another, for example /v1{service['route']}."
            )
        custom = service["wsgi_file"] or service["module"] != "inference.wsgi"
        if not custom and not MODEL.match(service["model"]):
            complaints.append(
                f"service {name}: model is {service['model']!r}; it takes MODULE:CLASS, for example my_models.cats:Cats."
            )
        if not 1 <= int(service["port"]) <= 65535:
            complaints.append(f"service {name}: port is {service['port']}; it takes 1 to 65535.")
        if not service["master"]:
            complaints.append(
                f"service {name}: master is false: an emperor cannot stop a vassal without a master, so it would be killed "
                "with its requests at each release switch. Leave it true."
            )
        if service["mode"] == "batch":
            complaints += batch_complaints(service, custom)
        if not 1024 <= int(service["base_port"]) <= 65000:
            complaints.append(f"service {name}: base_port is {service['base_port']}; it takes 1024 to 65000.")
        complaints += [
            f"service {name}: environment: {variable!r} is no name that a shell can export."
            for variable in service["environment"]
            if not ENVIRONMENT_NAME.match(str(variable))
        ]
        if not 1024 <= int(service["buffer_size"]) <= 65536:
            complaints.append(f"service {name}: buffer_size is {service['buffer_size']}; it takes 1024 to 65536 bytes.")
        if int(service["memory_per_worker_mib"]) < 1 or int(service["host_memory_per_worker_mib"]) < 1:
            complaints.append(f"service {name}: memory_per_worker_mib and host_memory_per_worker_mib must be above 0.")
        for limit, seconds in (("emperor_stop_seconds", stop_seconds), ("nginx_shutdown_seconds", nginx_seconds)):
            if int(service["timeout_seconds"]) >= seconds:
                complaints.append(
                    f"service {name}: timeout_seconds is {service['timeout_seconds']}, but {limit} is {seconds}: "
                    f"a release switch would cut its longest requests. Raise {limit}."
                )
        complaints += unknown_uwsgi_options(service)
    return complaints


def cors_complaints(origins: list[str], credentials: bool) -> list[str]:
    """Complaints about the CORS settings of the site."""
    complaints = []
    if credentials and "*" in origins:
        complaints.append(
            "site_cors_credentials is true and site_cors_origins holds '*': browsers refuse that, and any page could act "
            "in a visitor's name. List the origins."
        )
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:\d+)?", origin):
            complaints.append(
                f"site_cors_origins: {origin!r} is not an origin; it takes SCHEME://HOST[:PORT], without a path."
            )
    return complaints


def environment_complaints(environment: Mapping[str, Any]) -> list[str]:
    """Complaints about the environment of all emperors."""
    return [
        f"emperor_environment: {name!r} is no name that a shell can export."
        for name in environment
        if not ENVIRONMENT_NAME.match(str(name))
    ]


def device_complaints(devices: list[Mapping[str, Any]]) -> list[str]:
    """Complaints about devices given by hand."""
    names = [device.get("name", "") for device in devices]
    complaints = [
        f"devices_list: name {name!r} takes up to 16 lower-case letters and digits, a letter first."
        for name in names
        if not DEVICE_NAME.match(name)
    ]
    complaints += [
        f"devices_list: {name!r} stands there {names.count(name)} times."
        for name in sorted({n for n in names if names.count(n) > 1})
    ]
    return complaints


class ActionModule(ActionBase):
    """``preflight: {services, ...}``: fails with every complaint at once; ``only`` asks about a part."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(
        {
            "services",
            "devices",
            "stop_seconds",
            "nginx_seconds",
            "cors_origins",
            "cors_credentials",
            "environment",
            "only",
        }
    )

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check and report."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        given = self._task.args
        if only := given.get("only"):
            names = list(load_extra_vars(self._loader)) if only == "command line" else map(str, task_vars or {})
            if complaints := misspelt(list(names)):
                result.update(
                    failed=True, msg=f"Nothing was changed. Mend {PARTS[only]}:\n- " + "\n- ".join(complaints)
                )
            return result
        complaints = misspelt([str(name) for name in task_vars or {}])
        complaints += service_complaints(given["services"], int(given["stop_seconds"]), int(given["nginx_seconds"]))
        complaints += cors_complaints(given["cors_origins"], bool(given["cors_credentials"]))
        complaints += device_complaints(given["devices"])
        complaints += environment_complaints(given["environment"])
        if complaints:
            result.update(
                failed=True,
                complaints=complaints,
                msg="Nothing was changed. Mend in the inventory:\n- " + "\n- ".join(complaints),
            )
        result["changed"] = False
        return result
