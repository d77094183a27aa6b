"""The state of the host in the words of Prometheus (https://prometheus.io/docs/practices/naming/)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from inference.exporter.state import Device, State
from inference.exporter.vassals import Vassal

VASSAL = ["service", "device", "release"]


class Families(Collector):
    """Collects the host anew for each scrape.

    Args:
        look: gives the state.
    """

    def __init__(self, look: Callable[[], State]) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        """Give all metrics."""
        began = perf_counter()
        state = self._look()
        running = [vassal for device in state.devices for vassal in device.vassals]
        yield from _counts(running)
        yield from _uwsgi(running)
        yield from _devices(state.devices)
        yield from _gpus(state.devices)
        yield from _host(state)
        took = GaugeMetricFamily("fleet_scrape_duration_seconds", "Time that the exporter took for this answer")
        took.add_metric([], perf_counter() - began)
        yield took


def _counts(running: list[Vassal]) -> Iterator[Metric]:
    """What the vassals count themselves, with the labels of each vassal."""
    families: dict[str, Metric] = {}
    for vassal in running:
        for metric in vassal.counts:
            family = families.get(metric.name)
            if family is None:
                family = families[metric.name] = Metric(metric.name, metric.documentation, metric.type)
            for sample in metric.samples:
                family.add_sample(sample.name, {**vassal.labels, **sample.labels}, sample.value)
    yield from families.values()


def _uwsgi(running: list[Vassal]) -> Iterator[Metric]:
    up = GaugeMetricFamily("fleet_vassal_up", "Whether the vassal's uWSGI answers", labels=VASSAL)
    workers = GaugeMetricFamily("fleet_workers", "Workers of a vassal", labels=[*VASSAL, "state"])
    respawns = CounterMetricFamily("fleet_worker_respawns", "Workers started in place of one that ended", labels=VASSAL)
    queue = GaugeMetricFamily("fleet_listen_queue", "Connections that wait for a worker", labels=VASSAL)
    for vassal in running:
        values = list(vassal.labels.values())
        up.add_metric(values, vassal.stats is not None)
        if vassal.stats is None:
            continue
        for name, number in vassal.workers().items():
            workers.add_metric([*values, name], number)
        # The first start of a worker counts as one, too.
        respawns.add_metric(values, sum(max(0, one["respawn_count"] - 1) for one in vassal.stats["workers"]))
        queue.add_metric(values, vassal.stats["listen_queue"])
    yield from (up, workers, respawns, queue)


def _devices(devices: list[Device]) -> Iterator[Metric]:
    rotation = GaugeMetricFamily(
        "fleet_device_in_rotation", "Whether nginx leads requests to the device", labels=["device"]
    )
    out = GaugeMetricFamily("fleet_device_out", "A device that was taken out", labels=["device", "by", "reason"])
    for device in devices:
        rotation.add_metric([device.name], device.in_rotation)
        if device.out is not None:
            out.add_metric([device.name, str(device.out.get("by", "")), str(device.out.get("why", ""))], 1)
    yield from (rotation, out)


def _gpus(devices: list[Device]) -> Iterator[Metric]:
    gauges = {
        "memory_used": ("memory_used_bytes", "Memory in use"),
        "memory_total": ("memory_total_bytes", "Memory of the device"),
        "utilization": ("utilization_ratio", "Share of the time in which the device computed"),
        "temperature": ("temperature_celsius", "Temperature"),
    }
    for name, (unit, text) in gauges.items():
        family = GaugeMetricFamily(f"fleet_device_{unit}", text, labels=["device"])
        for device in devices:
            value = getattr(device.gpu, name, None)
            if value is not None:
                family.add_metric([device.name], value)
        if family.samples:
            yield family
    ecc = CounterMetricFamily(
        "fleet_device_ecc_errors", "Memory errors over the life of the card", labels=["device", "kind"]
    )
    xids = CounterMetricFamily("fleet_device_xid_errors", "Errors that the driver reported", labels=["device", "xid"])
    for device in devices:
        for kind in ("corrected", "uncorrected"):
            number = getattr(device.gpu, f"ecc_{kind}", None)
            if number is not None:
                ecc.add_metric([device.name, kind], number)
        for xid, number in device.xids.items():
            xids.add_metric([device.name, xid], number)
    yield from (family for family in (ecc, xids) if family.samples)


def _host(state: State) -> Iterator[Metric]:
    if state.nginx:
        connections = GaugeMetricFamily("fleet_nginx_connections", "Connections of clients to nginx", labels=["state"])
        for name in ("active", "reading", "writing", "waiting"):
            connections.add_metric([name], state.nginx[name])
        yield connections
        yield CounterMetricFamily("fleet_nginx_requests", "Requests to nginx", value=state.nginx["requests"])
    if state.deployed:
        info = GaugeMetricFamily("fleet_deploy_info", "What is deployed", labels=["release", "deployment", "by"])
        info.add_metric([str(state.deployed.get(name, "")) for name in ("id", "record", "by")], 1)
        yield info
    if state.since is not None:
        yield GaugeMetricFamily("fleet_deploy_timestamp_seconds", "When it was deployed", value=state.since)
    ends = GaugeMetricFamily("fleet_certificate_expiry_timestamp_seconds", "When a certificate ends", labels=["path"])
    for path, end in state.certificates.items():
        ends.add_metric([path], end)
    free = GaugeMetricFamily("fleet_disk_free_bytes", "What is free on the file system of a folder", labels=["path"])
    size = GaugeMetricFamily("fleet_disk_size_bytes", "Size of the file system of a folder", labels=["path"])
    for path, (left, total) in state.disks.items():
        free.add_metric([path], left)
        size.add_metric([path], total)
    yield from (family for family in (ends, free, size) if family.samples)
