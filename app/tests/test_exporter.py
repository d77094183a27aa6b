"""The exporter over a host's folder, with real vassals, and with a driver and an nginx that the test controls."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from inference.errors import ConfigError
from inference.exporter.gpus import RETRY_SECONDS, Gpus
from inference.exporter.live import status
from inference.exporter.settings import Settings
from inference.exporter.state import look
from inference.exporter.text import Families
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from servers import MODEL_PROCESS, batching, running, uwsgi, wait_for

GROUP = os.getegid()
TEXT = {"Content-Type": "text/plain"}
STUB_STATUS = (
    b"Active connections: 7 \nserver accepts handled requests\n 30 30 45 \nReading: 1 Writing: 2 Waiting: 4 \n"
)


class Nginx(BaseHTTPRequestHandler):
    """The page of nginx's own numbers."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(STUB_STATUS)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Host:
    """A host below a folder."""

    folder: Path
    settings: Settings

    def vassal(self, device: str, name: str, release: str, **lines: str) -> None:
        folder = self.folder / "devices" / device / "vassals"
        folder.mkdir(parents=True, exist_ok=True)
        text = {"chdir": f"/opt/fleet/releases/{release}", **lines}
        (folder / f"{name}.ini").write_text("[uwsgi]\n" + "".join(f"{key} = {value}\n" for key, value in text.items()))

    def samples(self, gpus: Gpus | None = None) -> dict[tuple[Any, ...], float]:
        """What Prometheus reads, by name and values of labels in their alphabetical order."""
        registry = CollectorRegistry()
        registry.register(Families(lambda: look(self.settings, gpus or Gpus(nvml=NoDriver))))
        text = generate_latest(registry).decode()
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


class NvmlError(Exception):
    """As pynvml raises it."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class NoDriver:
    """NVML on a host without a GPU."""

    NVMLError = NvmlError
    asked = 0

    @classmethod
    def nvmlInit(cls) -> None:  # noqa: N802
        cls.asked += 1
        raise NvmlError(12)


class Driver:
    """NVML with one GPU, which has no ECC."""

    NVMLError = NvmlError
    NVML_ERROR_UNINITIALIZED, NVML_ERROR_DRIVER_NOT_LOADED, NVML_ERROR_NOT_SUPPORTED = 1, 9, 3
    NVML_TEMPERATURE_GPU = NVML_MEMORY_ERROR_TYPE_CORRECTED = 0
    NVML_AGGREGATE_ECC = NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1

    def __init__(self) -> None:
        self.lost = False
        self.ecc = {0: 4, 1: 1}

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if self.lost or uuid != "GPU-1":
            raise NvmlError(6)
        return uuid

    def nvmlDeviceGetMemoryInfo(self, _: str) -> Any:  # noqa: N802
        return type("Memory", (), {"used": 3 * 2**30, "total": 16 * 2**30})

    def nvmlDeviceGetUtilizationRates(self, _: str) -> Any:  # noqa: N802
        return type("Rates", (), {"gpu": 75})

    def nvmlDeviceGetTemperature(self, _: str, kind: int) -> int:  # noqa: N802
        return 61

    def nvmlDeviceGetTotalEccErrors(self, _: str, kind: int, counter: int) -> int:  # noqa: N802
        if kind not in self.ecc:
            raise NvmlError(self.NVML_ERROR_NOT_SUPPORTED)
        return self.ecc[kind]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    server = HTTPServer(("127.0.0.1", 0), Nginx)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("devices", "nginx/upstreams", "nginx/sites-enabled"):
        (tmp_path / name).mkdir(parents=True)
    devices = [
        {"name": "gpu0", "kind": "gpu", "uuid": "GPU-1", "model": "NVIDIA Test"},
        {"name": "cpu0", "kind": "cpu", "uuid": "", "model": "Test CPU"},
    ]
    settings = Settings(
        host="host1",
        socket=tmp_path / "http.sock",
        socket_group=str(GROUP),
        devices=devices,
        routes={"echo": "/v1/parse"},
        nginx_status=f"http://127.0.0.1:{server.server_port}/nginx",
        nginx_dir=tmp_path / "nginx",
        devices_dir=tmp_path / "devices",
        drained_file=tmp_path / "drained.json",
        deployed_file=tmp_path / "deployed.json",
        watch_file=tmp_path / "watch.json",
        disks=(tmp_path, tmp_path / "not there"),
    )
    yield Host(tmp_path, settings)
    server.shutdown()
    server.server_close()


def test_a_vassal_of_mode_batch_under_uwsgi(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "vassal"
    folder.mkdir()
    variables = {**batching(folder), "INFERENCE_METRICS": str(folder / "counts")}
    with uwsgi(folder, 2, variables, **{"threads": "4", "attach-daemon2": MODEL_PROCESS}) as server:
        address = f"127.0.0.1:{server.port}"
        host.vassal(
            "cpu0", "echo--1", "r1",
            **{"env": f"INFERENCE_METRICS={folder}/counts", "http-socket": address, "stats": f"{folder}/stats.sock"},
        )  # fmt: skip
        upstream = host.folder / "nginx/upstreams/echo.conf"
        upstream.write_text(f"upstream fleet_echo {{\n    server {address} weight=1 max_fails=3;\n}}\n")
        statuses = [server.ask("POST", "/v1/parse", b"hello", TEXT).status for _ in range(20)]
        assert statuses == [200] * 20
        assert server.ask("POST", "/v1/parse", b"x", {**TEXT, "X-Request-Deadline-Ms": "0"}).status == 504
        found = host.samples()
        assert found["fleet_requests_total", "cpu0", "r1", "/v1/parse", "echo", "200"] == 20
        assert found["fleet_requests_rejected_total", "cpu0", "over-time", "r1", "echo"] == 1
        assert found["fleet_request_duration_seconds_count", "cpu0", "r1", "echo", "total"] == 20
        assert found["fleet_batch_items_count", "cpu0", "r1", "echo"] >= 1
        assert (
            found["fleet_queue_items", "cpu0", "r1", "echo"],
            found["fleet_queue_items_max", "cpu0", "r1", "echo"],
        ) == (0, 64)
        assert found["fleet_vassal_up", "cpu0", "r1", "echo"] == 1
        assert sum(found["fleet_workers", "cpu0", "r1", "echo", state] for state in ("idle", "busy", "other")) == 2
        assert found["fleet_worker_respawns_total", "cpu0", "r1", "echo"] == 0
        assert (found["fleet_device_in_rotation", "cpu0"], found["fleet_device_in_rotation", "gpu0"]) == (1, 0)
        upstream.write_text(upstream.read_text().replace(";\n}", " down;\n}"))
        assert host.samples()["fleet_device_in_rotation", "cpu0"] == 0

        live = status(host.settings, look(host.settings, Gpus(nvml=NoDriver)))
        device = next(one for one in live["devices"] if one["name"] == "cpu0")
        assert (device["memory"], device["in_rotation"]) == (None, False)
        service = device["services"][0]
        assert (service["name"], service["route"], service["workers"], service["queue_max"]) == (
            "echo", "/v1/parse", 2, 64,
        )  # fmt: skip
        assert service["requests"] == 21


def test_a_vassal_that_does_not_answer_is_down(host: Host) -> None:
    host.vassal("cpu0", "echo--1", "r1", socket="/nowhere.sock", stats=str(host.folder / "nobody.stats"))
    found = host.samples()
    assert found["fleet_vassal_up", "cpu0", "r1", "echo"] == 0
    assert not [name for name in found if name[0] == "fleet_workers"]


def test_what_the_host_says(host: Host) -> None:
    host.settings.drained_file.write_text(
        json.dumps({"gpu0": {"by": "ann", "since": "2026-01-01T00:00:00Z", "why": "fan"}})
    )
    host.settings.deployed_file.write_text(
        json.dumps({"id": "1.2", "record": "20260101T000000Z", "by": "ann", "at": "2026-01-01T00:00:00Z"})
    )
    found = host.samples()
    assert found["fleet_device_out", "ann", "gpu0", "fan"] == 1
    assert found["fleet_nginx_connections", "waiting"] == 4
    assert found["fleet_nginx_requests_total",] == 45
    assert found["fleet_deploy_info", "ann", "20260101T000000Z", "1.2"] == 1
    assert found["fleet_deploy_timestamp_seconds",] == 1767225600
    assert 0 < found["fleet_disk_free_bytes", str(host.folder)] <= found["fleet_disk_size_bytes", str(host.folder)]
    assert 0 < found["fleet_scrape_duration_seconds",] < 5
    assert not [name for name in found if name[0].startswith(("fleet_device_memory", "fleet_device_ecc"))]


def test_a_bare_host_has_metrics_too(host: Host) -> None:
    shutil.rmtree(host.folder / "devices")
    found = host.samples()
    assert found["fleet_device_in_rotation", "gpu0"] == 0
    assert not [name for name in found if name[0].startswith("fleet_deploy")]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_certificates_of_sites(host: Host) -> None:
    certificate = host.folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "30"]
    subprocess.run([*command, "-keyout", host.folder / "key.pem", "-out", certificate], check=True, capture_output=True)
    (host.folder / "nginx/sites-enabled/x.conf").write_text(f"server {{\n  ssl_certificate {certificate};\n}}\n")
    left = host.samples()["fleet_certificate_expiry_timestamp_seconds", str(certificate)] - certificate.stat().st_mtime
    assert left == pytest.approx(30 * 86400, abs=60)


def test_what_the_driver_says(host: Host) -> None:
    host.settings.watch_file.write_text(json.dumps({"xids": {"gpu0": {"79": 2}}}))
    driver = Driver()
    gpus = Gpus(nvml=driver)
    found = host.samples(gpus)
    assert found["fleet_device_memory_used_bytes", "gpu0"] == 3 * 2**30
    assert found["fleet_device_utilization_ratio", "gpu0"] == 0.75
    assert found["fleet_device_temperature_celsius", "gpu0"] == 61
    assert found["fleet_device_ecc_errors_total", "gpu0", "corrected"] == 4
    assert found["fleet_device_xid_errors_total", "gpu0", "79"] == 2
    driver.ecc = {}
    assert not [name for name in host.samples(gpus) if name[0].startswith("fleet_device_ecc")]
    driver.lost = True
    assert not [name for name in host.samples(gpus) if name[0].startswith("fleet_device_memory")]


def test_a_driver_that_is_not_there_is_not_asked_each_time() -> None:
    now = [0.0]
    NoDriver.asked = 0
    gpus = Gpus(nvml=NoDriver, clock=lambda: now[0])
    assert [gpus.ask("GPU-1") for _ in range(3)] == [None] * 3
    assert NoDriver.asked == 1
    now[0] = RETRY_SECONDS
    gpus.ask("GPU-1")
    assert NoDriver.asked == 2


def fetch(path: Path, target: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("exporter", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(str(path))
    connection.request("GET", target)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_it_serves_on_its_socket_for_the_group_alone(host: Host) -> None:
    file = host.folder / "exporter.json"
    facts = {name: getattr(host.settings, name) for name in Settings.__slots__}
    # A group by its name, as in the settings of a host.
    facts["socket_group"] = subprocess.run(["id", "-gn"], check=True, capture_output=True, text=True).stdout.strip()
    file.write_text(
        json.dumps(facts, default=lambda value: list(map(str, value)) if isinstance(value, tuple) else str(value))
    )
    command = [sys.executable, "-m", "inference.exporter", str(file)]
    with running(command, host.folder / "log", {}) as server:
        wait_for(lambda: server.lines("started") or server.process.poll() is not None, server.text())
        path = host.settings.socket
        assert path.stat().st_mode & 0o777 == 0o660
        code, text = fetch(path, "/metrics")
        assert (code, b"fleet_device_in_rotation" in text) == (200, True)
        code, text = fetch(path, "/status.json")
        assert (code, json.loads(text)["host"]) == (200, "host1")
        assert fetch(path, "/else")[0] == 404
        server.process.terminate()
        assert server.process.wait(10) == 0


@pytest.mark.parametrize(
    ("text", "said"), [("{", "not readable"), ("[]", "JSON object"), ('{"hots": 1}', "hots"), ("{}", "host")]
)
def test_wrong_settings_are_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "exporter.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        Settings.read(file)
