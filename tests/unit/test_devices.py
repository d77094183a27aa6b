"""Devices of a host, found by the real module; a script answers as nvidia-smi does on real machines."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import ansible_modules
import pytest
import tree

NVIDIA_SMI = Path(__file__).parent / "data" / "nvidia-smi" / "nvidia_smi.py"
CPUS = sorted(os.sched_getaffinity(0))
device_facts = ansible_modules.load("modules", "device_facts")


def facts(case: str = "", **arguments: Any) -> dict[str, Any]:
    program = str(NVIDIA_SMI) if case else "no-such-nvidia-smi"
    with mock.patch.dict(os.environ, NVIDIA_SMI_CASE=case):
        return ansible_modules.run("device_facts", {"nvidia_smi": program, **arguments})


def devices(case: str = "", **arguments: Any) -> list[dict[str, Any]]:
    result = facts(case, **arguments)
    assert not result["failed"], result
    assert not result["changed"]
    found: list[dict[str, Any]] = result["ansible_facts"]["fleet_devices"]
    return found


def only(found: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(device[name] for name in names) for device in found]


def test_two_cards() -> None:
    result = facts("two-p100")["ansible_facts"]
    assert only(result["fleet_devices"], "name", "kind", "uuid", "memory_mib", "model", "index", "pci_bus_id") == [
        (
            *("gpu0", "gpu", "GPU-2f0a9d3e-6b1c-5f42-8c0d-9a4e7b1d6e35", 16280),
            *("Tesla P100-PCIE-16GB", 0, "00000000:04:00.0"),
        ),
        (
            *("gpu1", "gpu", "GPU-c81e0b57-93d4-1a66-f2b8-5d7c3e9f0a12", 16280),
            *("Tesla P100-PCIE-16GB", 1, "00000000:82:00.0"),
        ),
    ]
    assert result["fleet_host"]["driver_version"] == "535.183.01"


def test_mig_slices_stand_beside_a_whole_card() -> None:
    found = devices("a100-mig")
    assert only(found, "name", "kind", "uuid", "memory_mib") == [
        ("gpu0", "gpu", "GPU-9d1b7a3f-2e48-c5d0-7f69-b03a8e5c14d2", 40960),
        ("gpu1mig0", "mig", "MIG-c7384736-a75d-5afc-978f-d2f1294409fd", 19456),
        ("gpu1mig1", "mig", "MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d", 9728),
        ("gpu1mig2", "mig", "MIG-4200bccd-dfd5-5d3b-a0f8-6c2bf1e94d7c", 4864),
    ]
    assert found[3]["model"] == "NVIDIA A100-SXM4-40GB 1g.5gb"


def test_older_drivers_write_mig_slices_without_columns() -> None:
    text = "GPU 0: A100 (UUID: GPU-1)\n  MIG 1g.5gb+me Device 0: (UUID: MIG-GPU-e86cb44c-6756-fd30/7/0)\n"
    assert device_facts.parse_mig_slices(text) == {
        0: [{"slot": 0, "uuid": "MIG-GPU-e86cb44c-6756-fd30/7/0", "profile": "1g.5gb+me", "memory_mib": 4864}]
    }


def test_a_chip_without_memory_of_its_own_has_the_hosts() -> None:
    result = facts("gb10")["ansible_facts"]
    assert only(result["fleet_devices"], "name", "memory_mib") == [("gpu0", result["fleet_host"]["memory_mib"])]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("no-driver", "exit code 9: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."),
        ("driver-mismatch", "exit code 18: Failed to initialize NVML: Driver/library version mismatch"),
        ("a100-mig-without-slices", "nvidia-smi mig -i 0 -cgi PROFILE -C"),
        ("sick-card", "gives '[Unknown Error]' as the memory of GPU 0 (Tesla P100-PCIE-16GB)"),
    ],
)
def test_a_broken_driver_is_no_cpu_host(case: str, said: str) -> None:
    result = facts(case)
    assert result["failed"]
    assert said in result["msg"]
    assert "devices_gpu: 'off'" in result["msg"]
    assert only(devices(case, gpu="off"), "name", "kind") == [("cpu0", "cpu")]


@pytest.mark.parametrize("case", ["", "no-devices"])
def test_without_a_card_the_cpu_serves_unless_one_is_required(case: str) -> None:
    (device,) = devices(case)
    assert (device["name"], device["kind"], device["uuid"]) == ("cpu0", "cpu", "")
    assert (device["cpus"], device["cores"]) == (CPUS, len(CPUS))
    refused = facts(case, gpu="required")
    assert refused["failed"]
    assert "devices_gpu is 'required', but this host has no usable GPU" in refused["msg"]


def test_a_required_card_that_is_there_is_used() -> None:
    assert only(devices("two-t4", gpu="required"), "name", "memory_mib") == [("gpu0", 15360), ("gpu1", 15360)]


@pytest.mark.parametrize(
    ("vendor", "kind", "told"), [("10de", "030200", 1), ("10de", "0403", 0), ("8086", "030000", 0)]
)
def test_without_nvidia_smi_a_card_on_the_bus_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, kind: str, told: int
) -> None:
    (tmp_path / "0000:04:00.0").mkdir()
    (tmp_path / "0000:04:00.0" / "vendor").write_text(f"0x{vendor}\n")
    (tmp_path / "0000:04:00.0" / "class").write_text(f"0x{kind}\n")
    monkeypatch.setattr(device_facts, "Path", lambda name: tmp_path if name == "/sys/bus/pci/devices" else Path(name))
    said: list[str] = []
    monkeypatch.setattr(device_facts.AnsibleModule, "warn", lambda module, text: said.append(text))
    result = ansible_modules.call(device_facts, {"nvidia_smi": "no-such-nvidia-smi"})
    assert only(result["ansible_facts"]["fleet_devices"], "name") == [("cpu0",)]
    assert len([text for text in said if "apt-get install nvidia-driver" in text]) == told


@pytest.mark.parametrize("count", [1, 2, len(CPUS) + 1])
def test_cpu_devices_share_cores_and_memory(count: int) -> None:
    result = facts(cpu_count=count)["ansible_facts"]
    found, memory = result["fleet_devices"], result["fleet_host"]["memory_mib"]
    assert only(found, "name", "memory_mib") == [(f"cpu{number}", memory // count) for number in range(count)]
    assert {cpu for device in found for cpu in device["cpus"]} == set(CPUS)
    assert all(device["cores"] == len(device["cpus"]) >= 1 for device in found)
    if count <= len(CPUS):
        assert sum(device["cores"] for device in found) == len(CPUS), "no core belongs to two devices"


@pytest.mark.parametrize(
    ("count", "cpus", "expected"),
    [
        (2, [0, 1, 2, 3], [[0, 1], [2, 3]]),
        (3, [0, 1, 2, 3, 4, 5, 6, 7], [[0, 1], [2, 3, 4], [5, 6, 7]]),
        (2, [4, 6, 9], [[4], [6, 9]]),
        (5, [0, 1], [[0], [1], [0], [1], [1]]),
    ],
)
def test_shares_of_the_cores(count: int, cpus: list[int], expected: list[list[int]]) -> None:
    found: list[dict[str, Any]] = [{} for _ in range(count)]
    device_facts.share_cpus(found, cpus)
    assert [device["cpus"] for device in found] == expected


def test_no_device_at_all_is_refused() -> None:
    result = facts(cpu_count=0)
    assert result["failed"]
    assert "devices_cpu_count is 0; it must be at least 1" in result["msg"]


def test_devices_by_hand_replace_discovery() -> None:
    result = facts(
        "no-driver",
        override=[{"name": "gpu1", "uuid": "GPU-c81e", "memory_mib": 16280}, {"name": "cpu7"}],
    )
    assert not result["failed"], "nvidia-smi is not even asked"
    memory = result["ansible_facts"]["fleet_host"]["memory_mib"]
    found = result["ansible_facts"]["fleet_devices"]
    assert only(found, "name", "kind", "uuid", "memory_mib", "index", "model") == [
        ("gpu1", "gpu", "GPU-c81e", 16280, 0, "GPU"),
        ("cpu7", "cpu", "", memory // 2, 1, "CPU"),
    ]
    assert set(found[0]["cpus"]) | set(found[1]["cpus"]) == set(CPUS)


def test_memory_is_what_the_host_has() -> None:
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:")]
    assert 0 < facts()["ansible_facts"]["fleet_host"]["memory_mib"] <= int(line.split()[1]) // 1024


def test_ansible_itself_runs_it_and_publishes_the_facts() -> None:
    """The one test with Ansible around: module, arguments from JSON, check mode."""
    arguments = json.dumps({"nvidia_smi": str(NVIDIA_SMI)})
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible", "localhost", "--check", "-m", "device_facts", "-a", arguments],
        env=os.environ
        | {
            "ANSIBLE_CONFIG": str(tree.ROOT / "ansible.cfg"),
            "ANSIBLE_LOAD_CALLBACK_PLUGINS": "true",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "NVIDIA_SMI_CASE": "two-t4",
        },
        cwd=tree.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.partition("=>")[2])
    assert only(result["ansible_facts"]["fleet_devices"], "name", "model", "memory_mib") == [
        ("gpu0", "Tesla T4", 15360),
        ("gpu1", "Tesla T4", 15360),
    ]
