"""The watch of a host below a folder, as a process of its own, with doubles of the kernel's log and of NVML."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ansible_modules
import processes
from processes import Server, running
from stack import CPU, Json
from switch_host import Host

#: Cards of the two devices.
CARDS = {"one": "00000000:65:00.0", "two": "00000000:CA:00.0"}
#: Says what stands in a file, as fleet_nvml.py says what NVML shows, whenever it has changed.
NVML = """
import sys, time
from pathlib import Path
while True:
    text = Path(sys.argv[1]).read_text()
    if text == "hang":
        time.sleep(3600)
    print(text, flush=True)
    time.sleep(float(sys.argv[3]))
"""
#: Starts the watch as its unit does, with doubles where the driver would be seen.
START = """
import sys, functools
from pathlib import Path
folder, log, nvml = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
sys.path.insert(0, folder)
import fleet_watch, watch_sources
def none():
    return "", "this test has none"
source = fleet_watch.Source(
    log=(lambda: ("kmsg", "")) if log.exists() else none,
    kmsg=functools.partial(watch_sources.kmsg, path=log),
    nvml=(sys.executable, str(nvml.with_suffix(".py")), str(nvml)),
)
fleet_watch.sources.AGAIN_SECONDS = 0.1
watch_sources.SILENT_SECONDS = 0.5
settings = fleet_watch.Settings.read(Path(sys.argv[4]))
watch = fleet_watch.Watch(settings, source, sys.argv[5])
watch.run()
"""
WELL = {"lost": "", "uncorrected": 0, "action": "none", "unmapped": False}


class Watched:
    """A host with two devices that count as GPUs where that is wanted, and its watch."""

    def __init__(self, host: Host, *, gpus: bool = True, kernel_log: bool = True, **settings: Any) -> None:
        self.host = host
        self.folder = host.fleet.folder / "watch"
        for one in ansible_modules.load("filter", "watch").watch_program(str(self.folder)):
            path = Path(one["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(one["content"])
        self.ill = host.fleet.folder / "ill"
        self.ill.mkdir()
        kind = {"kind": "gpu", "uuid": "GPU-", "memory_mib": 65536} if gpus else {}
        self.devices = [
            {"name": name, **CPU, **kind, **({"uuid": f"GPU-{name}", "pci_bus_id": card} if gpus else {})}
            for name, card in CARDS.items()
        ]
        self.log = host.fleet.folder / "kmsg"
        self.sequence = 0
        if kernel_log:
            self.kernel("Linux has started")
        self.nvml = host.fleet.folder / "nvml"
        self.nvml.with_suffix(".py").write_text(NVML)
        self.show()
        places = host.places()
        self.settings = {
            "interval_seconds": 0.2, "failures": 2, "good_seconds": 0.6, "nvml_seconds": 0.3,
            "state_file": str(host.fleet.folder / "state" / "watch.json"),
            "status_file": str(host.fleet.folder / "status.json"),
            "places": {name: value for name, value in places.items() if name != "nginx_program"},
            **settings,
        }  # fmt: skip
        self.boot = "boot-1"

    def wanted(self, release: str = "r1", devices: list[Json] | None = None) -> Json:
        """What is deployed: with a service that is ill where a file says so."""
        found = self.host.wanted(release, environment={"TINY_ILL": str(self.ill)})
        return {**found, "devices": devices or self.devices, "services": [{"name": "tell", "timeout_seconds": 3}]}

    @contextmanager
    def run(self) -> Iterator[Server]:
        """Run the watch until the end of the block."""
        file = self.host.fleet.folder / "watch.json"
        file.write_text(json.dumps(self.settings))
        # With no more rights than its unit gives it.
        rights = ["setpriv", "--no-new-privs", "--bounding-set=-all,+dac_override", "--inh-caps=-all"]
        command: list[str | Path] = [*(rights if os.geteuid() == 0 else []), sys.executable, "-I", "-B", "-c", START]
        command += [self.folder, self.log, self.nvml, file, self.boot]
        with running(command, self.host.fleet.log_dir / "fleet-watch.log") as server:
            processes.wait_for(lambda: self.status() or server.process.poll() is not None, server.text)
            assert server.process.poll() is None, server.text()
            # What is in the log until now is not its concern, and it has to see where that ends.
            time.sleep(0.3)
            yield server

    # ---- what is seen

    def kernel(self, text: str) -> None:
        """A message of the kernel."""
        self.sequence += 1
        with self.log.open("a") as stream:
            stream.write(f"4,{self.sequence},1234567,-;{text}\n")

    def xid(self, device: str, number: int, text: str = "pid=1, name=uwsgi") -> None:
        """A message of the driver."""
        card = CARDS[device].lower().removeprefix("0000").rpartition(".")[0]
        self.kernel(f"NVRM: Xid (PCI:{card}): {number}, {text}")

    def show(self, **devices: Json) -> None:
        """What NVML shows of devices."""
        state = {name: {**WELL, **devices.get(name, {})} for name in CARDS}
        partial = self.nvml.with_suffix(".partial")
        partial.write_text(json.dumps({"state": state}))
        partial.rename(self.nvml)

    def make_ill(self, device: str) -> None:
        """Have a device fail its known answer."""
        (self.ill / device).touch()

    def make_well(self, device: str) -> None:
        (self.ill / device).unlink()

    def reboot(self) -> None:
        """Another boot of the kernel, whose log begins anew."""
        self.boot += "+"
        if self.log.exists():
            self.sequence = 0
            self.log.write_text("")
            self.kernel("Linux has started again")

    # ---- what it does

    def drained(self) -> dict[str, Json]:
        path = Path(self.host.places()["drained_file"])
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def status(self) -> Json:
        path = Path(self.settings["status_file"])
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def down(self) -> list[str]:
        """Devices that nginx's configuration has out."""
        return sorted(
            name for name in CARDS if any(f"/{name}/" in line and " down;" in line for line in self.host.upstream())
        )

    def wait_out(self, *devices: str) -> None:
        """Wait until just these are out, and the watch has said so, which it does when nginx works with it."""

        def out() -> bool:
            of_status = self.status().get("devices", {})
            said = sorted(name for name, one in of_status.items() if one["out"])
            noted = sorted(name for name, one in self.drained().items() if one["by"] == "fleet-watch")
            return self.down() == sorted(devices) and said == noted

        processes.wait_for(out, lambda: f"{devices} to be out: {self.drained()}")

    def audit(self) -> list[Json]:
        path = self.host.fleet.log_dir / "audit.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def seconds_until(condition: Callable[[], Any], pause: float = 0.005, patience: float = 60.0) -> float:
    """How long it takes until something is so."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > patience:
            raise AssertionError("waited in vain")
        time.sleep(pause)
    return time.monotonic() - began
