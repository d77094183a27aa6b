#!/usr/bin/python
"""Find the devices of a host: GPUs, MIG slices, or shares of the CPU cores."""

from __future__ import annotations

DOCUMENTATION = r"""
module: device_facts
short_description: Find GPUs, MIG slices or CPU shares and publish them as C(fleet_devices)
description:
  - Reads C(nvidia-smi), C(/proc/meminfo) and the CPU affinity of PID 1.
  - Without a GPU the cores are shared out over C(cpu_count) CPU devices.
options:
  nvidia_smi: {description: Program to ask., type: str, default: nvidia-smi}
  gpu:
    description: C(auto) uses GPUs when there are any, C(required) fails without one, C(off) never looks.
    type: str
    choices: [auto, required, "off"]
    default: auto
  cpu_count: {description: CPU devices to make when no GPU is used., type: int, default: 1}
  override: {description: Devices by hand; discovery is skipped when not empty., type: list, elements: dict, default: []}
"""

import os
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

QUERY = "index,uuid,name,memory.total,pci.bus_id,mig.mode.current,driver_version"
MIG_LINE = re.compile(r"^\s+MIG\s+(?P<profile>\S+)\s+Device\s+(?P<slot>\d+):\s+\(UUID:\s+(?P<uuid>MIG-[^)]+)\)")
GPU_LINE = re.compile(r"^GPU\s+(?P<index>\d+):")
PROFILE_MEMORY = re.compile(r"\.(?P<gib>\d+)gb")
#: Not there when IPv6 is switched off.
IPV6 = Path("/proc/net/if_inet6")
#: A slice named 5gb has a little less than 5 GiB for programs (4864 MiB on an A100 40GB).
MIG_USABLE = 0.95


class DriverError(Exception):
    """nvidia-smi is installed but cannot speak with its driver."""


def parse_gpus(text: str) -> list[dict]:
    """Read ``nvidia-smi --query-gpu`` CSV lines into one dict a GPU (memory in MiB, ``None`` where the driver has none)."""
    gpus = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 7 or not fields[0].isdigit():
            raise DriverError(f"nvidia-smi printed a line that is not understood: {line!r}")
        index, uuid, name, memory, bus, mig, driver = fields
        if not (memory.isdigit() or "N/A" in memory or "Not Supported" in memory):
            raise DriverError(f"nvidia-smi gives {memory!r} as the memory of GPU {index} ({name}).")
        gpus.append(
            {
                "index": int(index),
                "uuid": uuid,
                "model": name,
                "memory_mib": int(memory) if memory.isdigit() else None,
                "pci_bus_id": bus,
                "mig": mig == "Enabled",
                "driver_version": driver,
            }
        )
    return gpus


def parse_mig_slices(text: str) -> dict[int, list[dict]]:
    """Read ``nvidia-smi -L`` into MIG slices by GPU index; memory comes from the profile's name."""
    slices: dict[int, list[dict]] = {}
    index = -1
    for line in text.splitlines():
        if gpu := GPU_LINE.match(line):
            index = int(gpu["index"])
        elif mig := MIG_LINE.match(line):
            size = PROFILE_MEMORY.search(mig["profile"])
            memory = int(int(size["gib"]) * 1024 * MIG_USABLE) if size else None
            slices.setdefault(index, []).append(
                {"slot": int(mig["slot"]), "uuid": mig["uuid"], "profile": mig["profile"], "memory_mib": memory}
            )
    return slices


def gpu_devices(gpus: list[dict], slices: dict[int, list[dict]], host_memory_mib: int) -> list[dict]:
    """One device a GPU, or one a slice where MIG is on.

    Raises:
        DriverError: MIG is on, but no slice was made.
    """
    devices = []
    for gpu in gpus:
        common = {"index": gpu["index"], "model": gpu["model"], "pci_bus_id": gpu["pci_bus_id"]}
        if not gpu["mig"]:
            # Chips that share the host's memory report none of their own.
            memory = gpu["memory_mib"] or host_memory_mib
            devices.append(
                {"name": f"gpu{gpu['index']}", "kind": "gpu", "uuid": gpu["uuid"], "memory_mib": memory, **common}
            )
            continue
        if not slices.get(gpu["index"]):
            raise DriverError(
                f"GPU {gpu['index']} ({gpu['model']}) has MIG mode on but no slices. "
                f"Make some (nvidia-smi mig -i {gpu['index']} -cgi PROFILE -C) or turn it off (nvidia-smi -i {gpu['index']} -mig 0)."
            )
        for part in slices[gpu["index"]]:
            devices.append(
                {
                    "name": f"gpu{gpu['index']}mig{part['slot']}",
                    "kind": "mig",
                    "uuid": part["uuid"],
                    "memory_mib": part["memory_mib"] or gpu["memory_mib"],
                    **common,
                    "model": f"{gpu['model']} {part['profile']}",
                }
            )
    return devices


def share_cpus(devices: list[dict], cpus: list[int]) -> None:
    """Give every device its own CPUs; with fewer CPUs than devices they are shared. Changes ``devices``."""
    for position, device in enumerate(devices):
        own = cpus[position * len(cpus) // len(devices) : (position + 1) * len(cpus) // len(devices)]
        device["cpus"] = own or [cpus[position % len(cpus)]]
        device["cores"] = len(device["cpus"])


def cpu_devices(count: int, host_memory_mib: int) -> list[dict]:
    """``count`` CPU devices that share the host's memory evenly."""
    return [
        {
            "name": f"cpu{i}",
            "kind": "cpu",
            "uuid": "",
            "memory_mib": host_memory_mib // count,
            "model": "CPU",
            "index": i,
        }
        for i in range(count)
    ]


def host_memory_mib() -> int:
    """MiB this host may use: MemTotal, or the cgroup's limit where that is lower (rented containers)."""
    total = int(re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) // 1024  # type: ignore[index]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(name)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            total = min(total, int(text) // 2**20)
    return total


def nvidia_pci_seen() -> bool:
    """Whether a display or 3D controller of NVIDIA (vendor 0x10de, class 0x03) is on the PCI bus."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def discover_gpus(module: AnsibleModule, memory_mib: int) -> tuple[list[dict], str]:
    """Devices made of GPUs and the driver's version; empty without ``nvidia-smi`` or without cards.

    Raises:
        DriverError: nvidia-smi is there and fails.
    """
    program = module.get_bin_path(module.params["nvidia_smi"])
    if program is None:
        if nvidia_pci_seen():
            module.warn(
                "An NVIDIA card is on the PCI bus, but nvidia-smi is not installed, so the CPU serves. "
                "Install the driver (Debian: apt-get install nvidia-driver; then reboot) and deploy again."
            )
        return [], ""
    rc, out, err = module.run_command([program, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"])
    if "No devices were found" in out + err:
        return [], ""
    if rc != 0:
        raise DriverError(f"{program} failed with exit code {rc}: {(out + err).strip()}")
    gpus = parse_gpus(out)
    slices = {}
    if any(gpu["mig"] for gpu in gpus):
        rc, out, err = module.run_command([program, "-L"])
        if rc != 0:
            raise DriverError(f"{program} -L failed with exit code {rc}: {(out + err).strip()}")
        slices = parse_mig_slices(out)
    return gpu_devices(gpus, slices, memory_mib), gpus[0]["driver_version"] if gpus else ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "nvidia_smi": {"type": "str", "default": "nvidia-smi"},
            "gpu": {"type": "str", "choices": ["auto", "required", "off"], "default": "auto"},
            "cpu_count": {"type": "int", "default": 1},
            "override": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    memory = host_memory_mib()
    cpus = sorted(os.sched_getaffinity(0))
    driver = ""
    devices: list[dict] = []
    if module.params["override"]:
        devices = [dict(device) for device in module.params["override"]]
        for index, device in enumerate(devices):
            device.setdefault("kind", "cpu" if device["name"].startswith("cpu") else "gpu")
            device.setdefault("uuid", "")
            device.setdefault("index", index)
            device.setdefault("model", device["kind"].upper())
            if not device.get("memory_mib"):
                device["memory_mib"] = memory // len(devices)
    elif module.params["gpu"] != "off":
        try:
            devices, driver = discover_gpus(module, memory)
        except DriverError as error:
            module.fail_json(
                msg=f"{error} Mend the driver (try: dmesg | grep -i nvidia; after a driver upgrade, reboot), "
                "or serve from the CPU on this host: devices_gpu: 'off' in its host_vars."
            )
        if not devices and module.params["gpu"] == "required":
            module.fail_json(
                msg="devices_gpu is 'required', but this host has no usable GPU: nvidia-smi is missing or lists no device. "
                "Install the driver, or set devices_gpu: auto to serve from the CPU."
            )
    if not devices:
        if module.params["cpu_count"] < 1:
            module.fail_json(msg=f"devices_cpu_count is {module.params['cpu_count']}; it must be at least 1.")
        devices = cpu_devices(module.params["cpu_count"], memory)
    share_cpus(devices, cpus)
    module.exit_json(
        changed=False,
        ansible_facts={
            "fleet_devices": devices,
            "fleet_host": {"memory_mib": memory, "cores": len(cpus), "driver_version": driver, "ipv6": IPV6.exists()},
        },
    )


if __name__ == "__main__":
    main()
