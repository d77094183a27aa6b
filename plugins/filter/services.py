"""Filters that turn the service definitions of an inventory into vassals."""

from __future__ import annotations

import base64
import copy
import difflib
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError

ROLES = Path(__file__).resolve().parents[2] / "roles"
MODELS = Path(__file__).resolve().parents[2] / "app" / "src" / "inference" / "models"
#: TCP ports of a second vassal of the same service on the same device lie this far above those of the first.
PORT_STRIDE = 50

#: Options that only one mode reads.
MODE_OPTIONS: dict[str, tuple[str, ...]] = {
    "process": ("workers", "threads"),
    "batch": ("batch_max_items", "batch_max_cost", "batch_delay_ms", "queue_max_items", "web_workers", "web_threads"),
}
#: More web workers than this gain nothing: what they do for a request is short.
WEB_WORKERS = 4
#: Threads of a vassal in mode batch beyond those that wait for the model: they answer health checks and say that the queue is full.
SPARE_THREADS = 16

#: What the built-in models need and answer; a service may override any of it.
BUILT_IN: dict[str, dict[str, Any]] = {
    "inference.models.ocr:OcrModel": {
        "extras": ["ocr", "torch"],
        "sample": {
            "file": str(MODELS / "ocr" / "sample.png"),
            "content_type": "image/png",
            "expect_file": str(MODELS / "ocr" / "sample.json"),
        },
    },
    "inference.models.echo:EchoModel": {
        "extras": [],
        "sample": {"text": "hello", "content_type": "text/plain", "expect": {"echo": "hello"}},
    },
    "inference.models.program:ProgramModel": {"extras": ["torch"]},
}


@functools.cache
def service_options() -> dict[str, Any]:
    """Options of one service, from the role's own argument spec: the one place where defaults stand."""
    spec = yaml.safe_load((ROLES / "services" / "meta" / "argument_specs.yml").read_text())
    options: dict[str, Any] = spec["argument_specs"]["main"]["options"]["services"]["options"]
    return options


def services_resolve(services: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Fill every service with the spec's defaults and with what its model brings.

    Raises:
        AnsibleFilterError: two services share a name, a route on one port, or TCP ports.
    """
    resolved = []
    for given in services:
        service = {name: copy.deepcopy(option.get("default")) for name, option in service_options().items()}
        service.update(given)
        check_mode(service, given)
        if service["program"] and not service["model"]:
            service["model"] = "inference.models.program:ProgramModel"
        built_in = copy.deepcopy(BUILT_IN.get(service["model"], {}))
        if service["extras"] is None:
            service["extras"] = built_in.get("extras", ["torch"])
        service["sample"] = service["sample"] or built_in.get("sample") or {}
        service["options"] = dict(service["options"])
        if service["program"]:
            service["options"].setdefault("program", Path(service["program"]).name)
        resolved.append(service)
    check_clashes(resolved)
    return resolved


def services_unknown(services: Any) -> list[str]:
    """Complaints about options that no service has, in words for people; Ansible's own would print the whole specification."""
    known = list(service_options())
    complaints = []
    for service in services if isinstance(services, list) else []:
        # What else may be wrong with it is told by the types.
        for name in service if isinstance(service, Mapping) else []:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
                hint = f" Did you mean {close[0]}?" if close else " They stand in roles/services/README.md."
                complaints.append(f"services: {service.get('name', '?')}: there is no option {name!r}.{hint}")
    return complaints


def check_mode(service: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse options that the service's mode does not read.

    Raises:
        AnsibleFilterError: with the option and the mode that reads it.
    """
    for mode, names in MODE_OPTIONS.items():
        unread = [name for name in names if name in given]
        # Another value of mode is refused by the role's spec, which names the choices.
        if unread and mode != service["mode"] and service["mode"] in MODE_OPTIONS:
            instead = ", ".join(MODE_OPTIONS[service["mode"]])
            raise AnsibleFilterError(
                f"services: {service.get('name', '?')}: {', '.join(unread)} is for mode {mode}, and the mode is "
                f"{service['mode']}, which reads {instead}. Remove it, or set mode: {mode}."
            )


def check_clashes(services: list[dict[str, Any]]) -> None:
    """Refuse services that would take each other's name, route or ports."""
    seen: dict[tuple[Any, ...], str] = {}
    for service in services:
        keys: list[tuple[Any, ...]] = [("name", service["name"]), ("port and route", service["port"], service["route"])]
        if service["transport"] == "tcp":
            keys.append(("base_port", service["base_port"]))
        for key in keys:
            if key in seen:
                raise AnsibleFilterError(
                    f"services: {service['name']!r} and {seen[key]!r} have the same {key[0]}: {', '.join(map(str, key[1:]))}. "
                    "Give one of them another."
                )
            seen[key] = service["name"]


def services_extras(services: Iterable[Mapping[str, Any]]) -> list[str]:
    """Extras of the app's package that the services need together."""
    return sorted({extra for service in services for extra in service["extras"]})


def workers_auto(
    service: Mapping[str, Any], device: Mapping[str, Any], host: Mapping[str, Any], device_count: int
) -> int:
    """Workers that fit: (device memory - reserve) / memory per worker, capped by the host's memory, at least 1.

    A card's memory counts in whole GiB as it is sold: a 16 GiB card shows between 15,900 and 16,384 MiB, and four
    workers of 4 GiB are meant for it. On a CPU device there are no more workers than cores: they would only take turns.
    """
    memory = int(device["memory_mib"])
    if device["kind"] != "cpu":
        memory = max(memory, (memory + 512) // 1024 * 1024)
    fit = (memory - int(service["device_reserve_mib"])) // int(service["memory_per_worker_mib"])
    host_share = (int(host["memory_mib"]) - int(service["host_reserve_mib"])) // device_count
    fit = min(fit, host_share // int(service["host_memory_per_worker_mib"]))
    if device["kind"] == "cpu":
        fit = min(fit, int(device["cores"]) // int(service["threads"]))
    return max(1, fit)


def services_workers(
    service: Mapping[str, Any], device: Mapping[str, Any], host: Mapping[str, Any], device_count: int
) -> int:
    """Number of worker processes of a service on a device.

    Raises:
        AnsibleFilterError: ``workers`` is neither ``auto`` nor a whole number above 0.
    """
    return number(service, "workers") or workers_auto(service, device, host, device_count)


def number(service: Mapping[str, Any], option: str) -> int:
    """Value of an option that is ``auto``, here 0, or a whole number above 0.

    Raises:
        AnsibleFilterError: it is neither.
    """
    wanted = str(service[option])
    if wanted == "auto":
        return 0
    if not wanted.isdigit() or int(wanted) < 1:
        raise AnsibleFilterError(
            f"services: {service['name']}: {option} is {wanted!r}; it takes 'auto' or a whole number above 0."
        )
    return int(wanted)


def web_layout(service: Mapping[str, Any], device: Mapping[str, Any]) -> tuple[int, int]:
    """Web workers of a service in mode batch, and the threads of each.

    Each request holds a thread while it waits, so a full queue and a full batch need one each. What is beyond has to be
    told at once that the queue is full, and not to wait unseen in the socket's own queue.
    """
    workers = number(service, "web_workers") or max(1, min(WEB_WORKERS, int(device["cores"])))
    waiting = int(service["queue_max_items"]) + int(service["batch_max_items"]) + SPARE_THREADS
    return workers, number(service, "web_threads") or math.ceil(waiting / workers)


def layout(
    service: Mapping[str, Any], device: Mapping[str, Any], host: Mapping[str, Any], device_count: int
) -> dict[str, Any]:
    """Processes and threads of a vassal.

    Returns:
        ``workers`` and ``threads`` of uWSGI, ``models`` (processes that hold the model) and ``compute_threads`` of each of
        these; ``fit``, when the host may settle the number of workers by what it measures, else empty.
    """
    cores = int(device["cores"])
    if service["mode"] == "batch":
        workers, threads = web_layout(service, device)
        return {"workers": workers, "threads": threads, "models": 1, "compute_threads": max(1, cores), "fit": {}}
    workers, threads = services_workers(service, device, host, device_count), int(service["threads"])
    auto = number(service, "workers") == 0
    return {
        "workers": workers,
        "threads": threads,
        "models": workers,
        "compute_threads": max(1, cores // (workers * threads)),
        "fit": fit(service, device, host, device_count) if auto else {},
    }


def fit(
    service: Mapping[str, Any], device: Mapping[str, Any], host: Mapping[str, Any], device_count: int
) -> dict[str, Any]:
    """What the host needs to work out the number of workers once it has measured what one takes.

    Returns:
        ``key`` (what the measured numbers are true for), ``device_mib`` and ``host_mib`` that are to be had, ``most``
        workers of use, ``cores``, ``threads``.
    """
    # What makes a process larger or smaller; the release is known apart from it.
    settings = [
        service[name] for name in ("model", "options", "program", "module", "wsgi_file", "environment", "threads")
    ]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
    kind = "cpu" if device["kind"] == "cpu" else device.get("model") or device["kind"]
    cores, threads = int(device["cores"]), int(service["threads"])
    return {
        "key": f"{service['name']} {digest} {kind}",
        "device_mib": int(device["memory_mib"]) - int(service["device_reserve_mib"]),
        "host_mib": (int(host["memory_mib"]) - int(service["host_reserve_mib"])) // device_count,
        # A worker that gets no core to decode on only takes memory.
        "most": max(1, cores // threads),
        "cores": cores,
        "threads": threads,
    }


def services_plan(
    services: Iterable[Mapping[str, Any]], devices: list[Mapping[str, Any]], host: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One entry for each vassal of a host: every service on every device, with workers, threads and ports worked out."""
    plan = []
    for service in services:
        for position, device in enumerate(devices):
            port = int(service["base_port"]) + position
            plan.append(
                {
                    "service": service,
                    "device": device,
                    **layout(service, device, host, len(devices)),
                    "ports": [port, port + PORT_STRIDE] if service["transport"] == "tcp" else [],
                }
            )
    check_ports(plan)
    return plan


def check_ports(plan: Iterable[Mapping[str, Any]]) -> None:
    """Refuse TCP ports that vassals of several services or devices, or nginx, would take from each other.

    Raises:
        AnsibleFilterError: with the port and both who want it.
    """
    plan = list(plan)
    taken = {int(vassal["service"]["port"]): "nginx" for vassal in plan}
    for vassal in plan:
        owner = f"{vassal['service']['name']} on {vassal['device']['name']}"
        for port in vassal["ports"]:
            if port in taken:
                raise AnsibleFilterError(
                    f"services: {owner} and {taken[port]} would both listen on port {port}. Each service takes the ports "
                    f"from base_port on, one for each device, and as many from base_port + {PORT_STRIDE} on. "
                    "Give one of them another base_port."
                )
            taken[port] = owner


def services_environment(vassal: Mapping[str, Any], release: Mapping[str, Any]) -> dict[str, str]:
    """Environment of a vassal: what the app reads, thread counts, then the service's own."""
    service, device = vassal["service"], vassal["device"]
    threads = "@THREADS@" if vassal["fit"] else str(vassal["compute_threads"])
    return {
        "INFERENCE_SERVICE": service["name"],
        "INFERENCE_ROUTE": service["route"],
        "INFERENCE_MODEL": service["model"],
        "INFERENCE_OPTIONS": json.dumps(service["options"], sort_keys=True, ensure_ascii=True),
        "INFERENCE_ARTIFACTS": f"{release['dir']}/models",
        "INFERENCE_RELEASE": release["id"],
        "INFERENCE_DEVICE": device["name"],
        "INFERENCE_ACCELERATOR": "cpu" if device["kind"] == "cpu" else "cuda",
        "INFERENCE_THREADS": threads,
        "INFERENCE_MAX_BODY_BYTES": str(int(service["max_body_mib"]) * 2**20),
        "INFERENCE_MAX_PIXELS": str(service["max_pixels"]),
        "INFERENCE_TIMEOUT_SECONDS": str(service["timeout_seconds"]),
        "INFERENCE_LOG_LEVEL": service["log_level"],
        # The processes of a vassal count there, and the exporter reads it.
        "INFERENCE_METRICS": f"/run/fleet/{device['name']}/@NAME@.metrics",
        **batch_environment(vassal),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        **{str(name): str(value) for name, value in service["environment"].items()},
    }


def batch_environment(vassal: Mapping[str, Any]) -> dict[str, str]:
    """What the app reads in mode batch only; empty in another, so that an app without that mode takes it too."""
    service = vassal["service"]
    if service["mode"] != "batch":
        return {}
    return {
        "INFERENCE_MODE": "batch",
        "INFERENCE_CHANNEL": f"/run/fleet/{vassal['device']['name']}/@NAME@.model",
        **{f"INFERENCE_{name.upper()}": str(service[name]) for name in MODE_OPTIONS["batch"] if "web_" not in name},
    }


def uwsgi_value(value: Any) -> str:
    """A value as uWSGI's ini wants it: booleans in words, percent signs doubled.

    Raises:
        AnsibleFilterError: it holds a line break, or one of uWSGI's own placeholders.
    """
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if "\n" in text or "$(" in text or "@(" in text:
        raise AnsibleFilterError(f"a value for uWSGI may not hold a line break, '$(' or '@(': {text!r}")
    return text.replace("%", "%%")


def services_sample(service: Mapping[str, Any]) -> dict[str, Any]:
    """The request with a known answer: ``body_b64``, ``content_type`` and ``expect``; empty when there is none.

    Raises:
        AnsibleFilterError: a file that it names is not there.
    """
    sample = service["sample"]
    if not sample:
        return {}
    try:
        body = Path(sample["file"]).read_bytes() if sample.get("file") else str(sample.get("text", "")).encode()
        expect = (
            json.loads(Path(sample["expect_file"]).read_text())
            if sample.get("expect_file")
            else sample.get("expect", {})
        )
    except OSError as error:
        raise AnsibleFilterError(f"services: {service['name']}: sample: {error}") from error
    except ValueError as error:
        raise AnsibleFilterError(
            f"services: {service['name']}: sample: {sample['expect_file']} is no JSON: {error}"
        ) from error
    return {
        "body_b64": base64.b64encode(body).decode(),
        "content_type": sample.get("content_type") or "application/octet-stream",
        "expect": expect,
    }


def services_checks(services: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the checks of a host have to know of each service."""
    return [
        {
            **{name: service[name] for name in ("name", "port", "route", "max_body_mib", "timeout_seconds")},
            "sample": services_sample(service),
            # The project's own app answers errors in its own form; the built-in OCR takes nothing but images.
            "app": service["module"] == "inference.wsgi" and not service["wsgi_file"],
            "images": service["model"] == "inference.models.ocr:OcrModel",
        }
        for service in services
    ]


#: What hosts have to agree on, because an edge has one site for all of them.
EDGE_AGREED = ("port", "route")
#: Of these an edge takes the largest, so that it is never the edge that cuts a request.
EDGE_LARGEST = ("timeout_seconds", "max_body_mib")


@functools.cache
def services_default() -> list[dict[str, Any]]:
    """The services of a host whose inventory names none."""
    spec = yaml.safe_load((ROLES / "services" / "meta" / "argument_specs.yml").read_text())
    default: list[dict[str, Any]] = spec["argument_specs"]["main"]["options"]["services"]["default"]
    return default


def edge_services(hostvars: Mapping[str, Mapping[str, Any]], hosts: Iterable[str]) -> list[dict[str, Any]]:
    """Services that any of the hosts has, each once, as an edge in front of them needs them.

    Raises:
        AnsibleFilterError: hosts differ in a service's port or route, or services clash.
    """
    found: dict[str, dict[str, Any]] = {}
    first: dict[str, str] = {}
    for host in hosts:
        variables = hostvars[host]
        given = variables["services"] if "services" in variables else services_default()
        for service in services_resolve(given):
            name = service["name"]
            known = found.setdefault(name, service)
            first.setdefault(name, host)
            for key in EDGE_AGREED:
                if service[key] != known[key]:
                    raise AnsibleFilterError(
                        f"services: {name} has {key} {known[key]} on {first[name]} and {service[key]} on {host}. "
                        "An edge sends its requests to both, so give it the same on all hosts, or another name."
                    )
            for key in EDGE_LARGEST:
                known[key] = max(int(known[key]), int(service[key]))
    merged = list(found.values())
    check_clashes([{**service, "transport": "unix"} for service in merged])
    return merged


class FilterModule:
    """Filters of the roles services, site, release, verify and edge."""

    def filters(self) -> dict[str, Any]:
        """Names that templates use."""
        return {
            "services_resolve": services_resolve,
            "services_checks": services_checks,
            "services_extras": services_extras,
            "services_plan": services_plan,
            "services_unknown": services_unknown,
            "services_environment": services_environment,
            "services_sample": services_sample,
            "uwsgi_value": uwsgi_value,
            "edge_services": edge_services,
        }
