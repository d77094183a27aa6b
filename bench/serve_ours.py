"""Starts ours as a host has it: nginx and a vassal under uWSGI, laid out below a folder by the roles' own templates."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ansible_modules  # noqa: F401 - lets the files of plugins/module_utils import each other
import environments
import nginx_configuration
import processes
import rendering
import tree
from stack import Fleet, Roles

PEERS = Path(__file__).resolve().parent / "peers"
CORES = 2
DEVICE = {
    "name": "cpu0",
    "kind": "cpu",
    "uuid": "",
    "memory_mib": 16384,
    "cores": CORES,
    "cpus": [0, 1],
    "model": "CPU",
}

#: Services as an inventory has them. Whatever is not said is the role's default.
SERVICES: dict[str, dict[str, Any]] = {
    "echo": {"name": "echo", "route": "/v1/echo", "model": "inference.models.echo:EchoModel", "workers": 2},
    "mlp": {
        "name": "mlp",
        "route": "/v1/mlp",
        "model": "fleet_mlp:MlpModel",
        "environment": {"PYTHONPATH": str(PEERS)},
        "sample": {},
    },
    "ocr": {"name": "ocr", "route": "/v1/parse", "model": "inference.models.ocr:OcrModel"},
}


@dataclass
class Ours:
    """The running servers."""

    port: int
    route: str
    vassal: processes.Server
    nginx: processes.Server
    fleet: Fleet

    def processes(self) -> dict[int, str]:
        """Ids of all its processes, and what each is."""
        found: dict[int, str] = {}
        for master, name, worker in (
            (self.vassal.process.pid, "uWSGI master", "web worker"),
            (self.nginx.process.pid, "nginx master", "nginx worker"),
        ):
            found[master] = name
            # By parent and not by environment, over which nginx writes its title.
            children = sorted(nginx_configuration.children(master))
            for number, pid in enumerate(children, 1):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                found[pid] = "model process" if b"inference.model_process" in words else f"{worker} {number}"
        return found

    def kinds(self) -> dict[int, str]:
        """The same, without a name of its own for each of a kind, and masters with their workers."""
        kinds = {"nginx": "nginx", "model": "model process"}
        return {pid: kinds.get(name.split()[0], "web workers") for pid, name in self.processes().items()}


@contextmanager
def ours(name: str, port: int, **options: Any) -> Iterator[Ours]:
    """Run a service behind nginx until the end of the block; `options` are further ones of the service."""
    service = {**SERVICES[name], "port": port, **options}
    folder = Path(tempfile.mkdtemp(prefix="fleet-"))
    folder.chmod(0o755)
    try:
        fleet = Fleet(folder, Roles(rendering.variables, rendering.render))
        python = environments.app()
        release = fleet.release("bench", tree.ROOT / "app" / "src", python.parent.parent)
        if name == "ocr":
            convert(python, Path(release["dir"]) / "models")
        (vassal,) = fleet.vassals([service], release, [DEVICE])
        with fleet.vassal(vassal) as server:
            fleet.lay([service], fleet.upstreams([vassal]), site_listen_addresses=["127.0.0.1"])
            with fleet.nginx([port]) as nginx:
                # The master may have respawned nothing yet: all that is counted later is there now.
                time.sleep(0.2)
                yield Ours(port, service["route"], server, nginx, fleet)
    finally:
        shutil.rmtree(folder)


def convert(python: Path, folder: Path) -> None:
    """Make the artifacts of the built-in model as a release has them; kept between runs."""
    kept = environments.CACHE / "bench" / "ocr"
    if not kept.exists():
        text = "import rapidocr; from pathlib import Path; print(Path(rapidocr.__file__).parent)"
        wheel = environments.run(python, "-c", text, output=True).strip().splitlines()[-1]
        made = kept.with_suffix(".new")
        shutil.rmtree(made, ignore_errors=True)
        environments.run(python, "-m", "inference.models.ocr.convert", "--wheel", wheel, "--out", made)
        made.rename(kept)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
