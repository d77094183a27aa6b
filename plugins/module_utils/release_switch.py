"""The walk of one host from what runs to what is wanted, without losing a request.

Where memory allows it, new vassals start beside the old ones, nginx is led to them, and the old ones go when nobody asks
them any more. Where it does not, and where an emperor must restart, one device after the other is taken out of nginx's
upstream first. What would stop the last device that serves is refused, unless the host's requests go elsewhere.
"""

from __future__ import annotations

import grp
import shutil
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from ansible.module_utils import memory
from ansible.module_utils.audit import AUDIT_LOG, note, now
from ansible.module_utils.deployments import Deployments
from ansible.module_utils.fleet_socket import SocketError, stats, stats_path
from ansible.module_utils.nginx_configuration import Configuration, NginxError, fill, program_changed
from ansible.module_utils.placed_files import PlacedFiles, place
from ansible.module_utils.units import UnitError, manager
from ansible.module_utils.upstreams import Drained, Upstreams
from ansible.module_utils.vassal_files import (
    ADDRESS,
    NotReady,
    Vassal,
    VassalError,
    Vassals,
    has_model_process,
    workers_of,
)

POLL_SECONDS = 0.3
#: Options that make a deployment: with them it can be gone back to without the inventory of that day.
RECORDED = (
    "release", "services", "vassals", "nginx", "files", "folders", "devices", "units", "nginx_unit", "manager",
    "group", "stop_seconds",
)  # fmt: skip
#: Where units of either service manager lie.
UNITS = {"systemd": (Path("/etc/systemd/system"), ".service"), "supervisor": (Path("/etc/supervisor/conf.d"), ".conf")}
#: Units beside the service that a host need not have.
OPTIONAL = ("fleet-watch",)
#: Longest time for vassals to come back when their emperor was restarted, where no record says it better.
LOAD_SECONDS = 300


class SwitchError(Exception):
    """The host could not be brought to what is wanted; the text says why, what serves now, and what mends it."""


class Outage(SwitchError):
    """Going on would lose requests."""


class Switch:
    """What is wanted of a host, and the way there.

    Args:
        options: as in the module ``host_switch``.
    """

    def __init__(self, options: Mapping) -> None:
        self.options = options
        self.vassals = Vassals(options)
        self.manager = manager(options["manager"])
        self.devices: dict[str, dict] = {one["name"]: one for one in options["devices"]}
        self.units: list[dict] = options["units"]
        self.run: dict = options["run"]
        self.audit_log = Path(options["log_dir"]) / AUDIT_LOG
        self.files = PlacedFiles(options["files"], options["folders"])
        self.pending: list[str] = []
        self.nginx: dict = options["nginx"]
        self.upstreams = Upstreams(options, self.nginx["wait_seconds"])
        self.was_ours = bool(self.upstreams.folder([], []).state.get("placed"))
        self.deployments = Deployments(Path(options["deployed_file"]), Path(options["deployments_dir"]))
        self.did: list[str] = []
        self.started: list[str] = []
        self.diff: list[dict] = []

    # ---- what is there

    @property
    def drained(self) -> set[str]:
        """Devices that are out: read each time, since the watch may take one out while this works."""
        return set(Drained(Path(self.options["drained_file"])).read())

    def present(self, service: str, device: str) -> list[Path]:
        """Files of the vassals of a service on a device, the wanted one first."""
        found = [path for path in self.upstreams.vassals_on(device) if path.stem.split("--")[0] == service]
        wanted = {one.path for one in self.vassals.vassals}
        return sorted(found, key=lambda path: path not in wanted)

    def target(self, former_on: Collection[str] = ()) -> Configuration:
        """The wanted configuration.

        Args:
            former_on: devices that are not switched yet, where nginx goes on leading to the former vassals.
        """
        addresses = self.vassals.addresses()
        for key in list(addresses):
            service, _, device = key.partition("/")
            if device in former_on:
                asked = [path for path in self.present(service, device) if self.vassals.asked(path)]
                if asked and (match := ADDRESS.search(asked[0].read_text())):
                    addresses[key] = match[1]
        former = {} if self.options["settle"] else self.former(former_on)
        drained = self.drained
        files = [{**one, "content": fill(one["content"], addresses, drained, former)} for one in self.nginx["files"]]
        return self.upstreams.folder(files, self.nginx["links"], self.nginx["ports"])

    def former(self, former_on: Collection[str]) -> dict[str, str]:
        """Where former vassals listen beside the wanted ones, by ``SERVICE/DEVICE``."""
        found: dict[str, str] = {}
        for vassal in self.vassals.vassals:
            others = [path for path in self.present(vassal.wanted["service"], vassal.device) if path != vassal.path]
            if others and vassal.device not in former_on and (match := ADDRESS.search(others[0].read_text())):
                found[f"{vassal.wanted['service']}/{vassal.device}"] = match[1]
        return found

    def gone(self) -> list[str]:
        """Devices that have a folder and are not wanted any more."""
        return [name for name in self.upstreams.known_devices() if name not in self.devices]

    def unwanted_units(self) -> dict[str, Path]:
        """Files of units that the host has and the inventory wants no more; going back leaves them as they are."""
        if self.options["state"] != "present":
            return {}
        folder, ending = UNITS[self.options["manager"]]
        wanted = {one["name"].partition(".")[0] for one in self.units}
        found = {name: folder / f"{name}{ending}" for name in OPTIONAL if name not in wanted}
        return {name: path for name, path in found.items() if path.exists()}

    def stale_units(self) -> dict[str, list[str]]:
        """Emperors that run with older files, with these files."""
        found = {one["name"]: self.manager.stale(one["name"], one["files"], self.pending) for one in self.units}
        return {name: files for name, files in found.items() if files}

    def stale_nginx(self) -> list[str]:
        """Files of nginx's unit that the running nginx has not read, and its program when that was upgraded."""
        unit = self.options["nginx_unit"]
        changed = program_changed(self.upstreams.folder([], []).master())
        return [*self.manager.stale(unit["name"], unit["files"], self.pending), *changed]

    def replaceable(self, files: Collection[str]) -> bool:
        """Whether a new nginx may take the place of the running one because of these files, with no port closed.

        Where the role says so. What a process keeps from its start, as its sandbox, takes a stop and a start.
        """
        unit = self.options["nginx_unit"]
        return self.was_ours and "in_place" in unit and not set(files) & (set(unit["files"]) - set(unit["in_place"]))

    # ---- memory

    def displaced(self) -> list[str]:
        """Devices where new vassals must start while old ones run."""
        missing = {vassal.device for vassal in self.vassals.missing()}
        unwanted = {path.parent.parent.name for path in self.vassals.unwanted()}
        return [name for name in self.devices if name in missing & unwanted]

    def lacks(self, devices: Collection[str]) -> str:
        """Why old and new vassals do not fit beside each other on some devices; empty when they do.

        A process that holds the model is reckoned to take what one of the former release takes now (in mode batch with the
        web workers around it), and what is configured where none runs. Free is what the driver and the kernel say.
        """
        mode = self.options["switch"]
        if mode != "auto":
            return "rollout_switch is in_place" if mode == "in_place" else ""
        host_need, reserve = 0, 0
        device_need: dict[str, int] = {}
        for vassal in self.vassals.missing():
            if vassal.device not in devices:
                continue
            wanted = vassal.wanted
            pid, models = self.running(wanted["service"], vassal.device)
            count = wanted["models"] if not vassal.fit else vassal.workers()
            measured = memory.host_mib_of(pid) // models if pid else 0
            host_need += count * (measured or wanted["host_memory_per_worker_mib"])
            reserve = max(reserve, wanted["host_reserve_mib"])
            measured = (memory.device_mib_of(pid) or 0) // models if pid else 0
            need = count * (measured or wanted["memory_per_worker_mib"])
            device_need[vassal.device] = device_need.get(vassal.device, 0) + need
        free = memory.free_host_mib() - reserve
        if host_need > free:
            return f"the new vassals need about {host_need} MiB of host memory, and {max(0, free)} MiB are free"
        for name, need in device_need.items():
            if self.devices[name]["kind"] == "cpu":
                continue
            room = memory.free_device_mib(self.devices[name]["uuid"])
            if room is None:
                room = int(self.devices[name]["memory_mib"]) - self.configured_need(name)
            if need > room:
                return f"{name}: the new vassals need about {need} MiB of device memory, and {room} MiB are free"
        return ""

    def running(self, service: str, device: str) -> tuple[int, int]:
        """Process id, and processes with the model, of the running vassal of a service on a device; 0 and 1 when there is none."""
        for path in self.present(service, device):
            try:
                state = stats(stats_path(self.options["run_dir"], device, path.stem))
            except SocketError:
                continue
            if has_model_process(path):
                return int(state["pid"]), 1
            return int(state["pid"]), max(1, sum(1 for one in state.get("workers", []) if one["pid"]))
        return 0, 1

    def configured_need(self, device: str) -> int:
        """MiB that the vassals on a device are configured to take, where nothing can be measured."""
        total = 0
        for vassal in self.vassals.vassals:
            for path in self.present(vassal.wanted["service"], device):
                if vassal.device == device:
                    models = 1 if has_model_process(path) else workers_of(path)
                    total += models * vassal.wanted["memory_per_worker_mib"]
        return total

    # ---- plan

    def plan(self) -> dict:
        """What would change, and what of it would stop requests unless they go to another host.

        Returns:
            ``changed``, ``steps`` (for people), ``stops`` (reasons why the host has to be drained first), ``diff``.
        """
        steps, stops = [], []
        serving = {name for name in self.upstreams.known_devices() if self.upstreams.serves(name)}
        files, folders = self.files.wrong_files(), self.files.wrong_folders()
        self.pending = [one["path"] for one in files]
        steps += [f"place {one['path']}" for one in [*folders, *files]]
        wrong = [
            one["name"] for one in [*self.units, self.options["nginx_unit"]] if not self.manager.is_right(one["name"])
        ]
        steps += [f"start {name}" for name in wrong]
        devices = {one["name"]: one.get("device") for one in self.units}
        for name, changed in self.stale_units().items():
            reason = f"restart {name}, since {', '.join(changed)} changed"
            steps.append(reason)
            if serving == {devices[name]}:
                stops.append(f"{reason}; no other device of this host serves")
        if unread := self.stale_nginx():
            in_place = self.replaceable(unread)
            steps.append(f"{'replace' if in_place else 'restart'} nginx, since {', '.join(unread)} changed")
            # An edge has no devices, and is asked as soon as its nginx is ours.
            if not in_place and (serving if self.devices else self.was_ours):
                stops.append(steps[-1])
        steps += [f"start vassal {vassal.full_name}" for vassal in self.vassals.missing()]
        for device in self.displaced():
            if serving == {device} and (reason := self.lacks([device])):
                stops.append(f"{device}: {reason}; no other device of this host serves meanwhile")
        target = self.target()
        differences = target.differences()
        if differences or target.stale():
            steps.append("load another configuration of nginx")
        steps += [f"stop vassal {name}" for name in self.vassals.names(self.vassals.unwanted())]
        steps += [f"remove the device {name}" for name in self.gone()]
        steps += [f"remove {name}" for name in self.unwanted_units()]
        # All may be there but this, on a host that failed its checks after its first switch.
        release = self.options["release"]
        if release and not steps and self.deployments.current().get("id") != release["id"]:
            steps.append("note the deployment")
        diff = [*map(self.files.difference, files), *differences]
        return {"changed": bool(steps), "steps": steps, "stops": stops, "diff": diff}

    # ---- the walk

    def apply(self) -> None:
        """Bring the host to what is wanted.

        Raises:
            SwitchError: it could not; new vassals were removed and the former ones serve.
        """
        try:
            self.clear()
            self.place()
            for unit in self.units:
                if not self.manager.is_right(unit["name"]):
                    self.manager.start(unit["name"])
                    self.did.append(f"started {unit['name']}")
            if self.options["nginx_test"]:
                # Before anything is started: a configuration that nginx refuses is known at once.
                target = self.target()
                if target.differences():
                    target.test()
            self.move()
            self.serve()
            self.remove_gone()
        except (VassalError, NginxError, UnitError, NotReady) as error:
            raise SwitchError(str(error)) from error

    def place(self) -> None:
        """Place the files of emperors, units and helpers."""
        files, folders = self.files.wrong_files(), self.files.wrong_folders()
        self.diff += [self.files.difference(one) for one in files]
        self.files.apply()
        if files:
            self.manager.reread()
        self.did += [f"placed {one['path']}" for one in [*folders, *files]]

    def clear(self) -> None:
        """Remove what a run that was cut off left behind."""
        self.vassals.clear_partials()
        self.vassals.remove(self.vassals.forgotten())

    def lead_past(self, *devices: str) -> None:
        """Have nginx lead to no drained device and to none of these, and wait until no request is on its way there."""
        self.upstreams.load(lambda: self.upstreams.configuration({*self.drained, *devices}))

    def restart_emperors(self) -> None:
        """Restart emperors that run with older files, each with its device out of the upstream."""
        units = {one["name"]: one for one in self.units}
        for name, files in self.stale_units().items():
            device = units[name].get("device", "")
            asked = [path for path in self.upstreams.vassals_on(device) if self.vassals.asked(path)]
            leads = self.upstreams.serves(device)
            if leads:
                self.need_others(device, f"{name} must restart, since {', '.join(files)} changed")
                self.lead_past(device)
            self.manager.restart(name)
            for path in asked:
                self.wait_back(path)
            if leads:
                self.lead_past()
            self.did.append(f"restarted {name}")
            note(self.run, "restarted", self.audit_log, unit=name, files=files)

    def need_others(self, device: str, why: str) -> None:
        """Refuse to stop the last device that serves.

        Raises:
            Outage: no other device serves, and nobody said that the requests go elsewhere.
        """
        if self.upstreams.others(device) or self.options["may_stop"]:
            return
        services = sorted({path.stem.split("--")[0] for path in self.upstreams.vassals_on(device)})
        raise Outage(
            f"{why}. No other device of this host serves, so requests for {', '.join(services)} would be lost "
            "until the model is loaded again. Nothing was stopped. To accept that: -e allow_outage=true"
        )

    def wait_back(self, path: Path) -> None:
        """Wait until a vassal whose emperor was restarted serves again.

        Raises:
            NotReady: it does not.
        """
        device = path.parent.parent.name
        record = self.deployments.current().get("record", "")
        known = self.deployments.read(record)["vassals"] if self.deployments.is_whole(record) else []
        wanted = [one for one in known if (one["device"], one["name"]) == (device, path.stem)]
        if wanted:
            vassals = Vassals({**self.options, "vassals": wanted})
            self.vassals_ready(vassals)
            return
        deadline = time.monotonic() + LOAD_SECONDS
        workers = workers_of(path)
        while True:
            try:
                state = stats(stats_path(self.options["run_dir"], device, path.stem))
                accepting = sum(1 for one in state["workers"] if one["accepting"] and one["pid"])
                if accepting >= workers:
                    return
                seen = f"{accepting} of {workers} workers accept requests"
            except SocketError as error:
                seen = str(error)
            if time.monotonic() > deadline:
                raise NotReady(f"Vassal {device}/{path.stem} does not come back after {LOAD_SECONDS} s: {seen}")
            time.sleep(POLL_SECONDS)

    def move(self) -> None:
        """Restart emperors and switch vassals, in the order that loses less."""
        if self.options["state"] == "restored":
            # What serves now may be failing: the former vassals first, which may even run still.
            try:
                self.switch()
            except VassalError:
                # They may need the former settings of their emperors.
                self.restart_emperors()
                self.switch()
        # New vassals may need the new settings of their emperors.
        self.restart_emperors()
        self.switch()

    def vassals_ready(self, vassals: Vassals) -> None:
        """Wait until vassals serve."""
        for one in vassals.vassals:
            vassals.wait_ready(one)

    def switch(self) -> None:
        """Lead nginx from the old vassals to the new ones."""
        displaced = self.displaced()
        if not displaced or not self.lacks(displaced):
            self.beside(list(self.devices), ())
            return
        for position, device in enumerate(displaced):
            waiting = displaced[position + 1 :]
            if self.lacks([device]):
                self.in_place(device, waiting)
            else:
                # The next device needs the memory of the old ones at once.
                self.beside([device], waiting, keep=False)
        # What no old vassal was in the way of.
        self.beside(list(self.devices), ())

    def beside(self, devices: Collection[str], waiting: Collection[str], *, keep: bool = True) -> None:
        """New vassals start beside the old ones of some devices; then the old ones go.

        Args:
            devices: those that are switched.
            waiting: those that are not switched yet.
            keep: whether the old ones run on until the new ones have settled.
        """
        wanted = [one for one in self.vassals.vassals if one.device in devices and one.device not in waiting]
        started = self.vassals.start(wanted)
        try:
            self.configure(waiting)
        except NginxError:
            self.vassals.remove([one.path for one in started if not self.vassals.asked(one.path)])
            raise
        if self.options["settle"] or not keep:
            self.retire(devices)
        self.say_switched(started)

    def in_place(self, device: str, waiting: Collection[str]) -> None:
        """The device's old vassals go before its new ones start, while other devices serve.

        Raises:
            VassalError: the new ones do not serve; the old ones were started again and serve.
        """
        self.need_others(device, f"{device}: {self.lacks([device])}")
        self.lead_past(device)
        former = {path: path.read_text() for path in self.vassals.unwanted() if path.parent.parent.name == device}
        self.vassals.remove(list(former))
        wanted = [one for one in self.vassals.vassals if one.device == device]
        try:
            started = self.vassals.start(wanted)
        except VassalError:
            # nginx names a vassal that is out, too; so start() may have left the new one.
            self.vassals.remove([one.path for one in wanted])
            group = grp.getgrnam(self.options["group"]).gr_gid
            for path, text in former.items():
                place(path, text, 0o640, group=group)
            for path in former:
                self.wait_back(path)
            self.lead_past()
            raise
        self.configure(waiting)
        self.say_switched(started)

    def configure(self, waiting: Collection[str]) -> None:
        """Place the wanted configuration of nginx and have it loaded."""
        result = self.upstreams.load(lambda: self.target(waiting))
        self.diff += result["diff"]
        if result["changed"]:
            self.did.append("loaded another configuration of nginx")

    def retire(self, devices: Collection[str]) -> None:
        """Stop the vassals of some devices that nothing asks any more."""
        doomed = [path for path in self.vassals.unwanted() if path.parent.parent.name in devices]
        self.vassals.remove(doomed)
        self.did += [f"stopped vassal {name}" for name in self.vassals.names(doomed)]

    def say_switched(self, started: list[Vassal]) -> None:
        """Note which vassals took over."""
        self.started += [one.full_name for one in started]
        self.did += [f"started vassal {one.full_name}" for one in started]
        for one in started:
            note(
                self.run,
                "switched",
                self.audit_log,
                device=one.device,
                service=one.wanted["service"],
                release=one.wanted["release"],
            )

    def serve(self) -> None:
        """Have nginx run, with its unit's files as they are.

        Raises:
            Outage: it must restart, and nobody said that the requests go elsewhere.
        """
        unit = self.options["nginx_unit"]
        files = self.stale_nginx()
        if files and self.replaceable(files):
            self.manager.follow(unit["name"], self.upstreams.folder([], []).take_over())
            self.did.append("replaced nginx")
            note(self.run, "replaced", self.audit_log, unit="nginx", files=files)
        elif files:
            # An nginx that was there before the first deploy had none of our requests.
            if self.was_ours and not self.options["may_stop"]:
                raise Outage(
                    f"nginx must restart, since {', '.join(files)} changed; requests would be refused meanwhile. "
                    "It was not restarted. To accept that: -e allow_outage=true"
                )
            self.manager.restart(unit["name"])
            self.did.append("restarted nginx")
            note(self.run, "restarted", self.audit_log, unit="nginx", files=files)
        elif not self.manager.is_right(unit["name"]):
            self.manager.start(unit["name"])
            self.did.append("started nginx")

    def remove_gone(self) -> None:
        """Stop the emperors of devices that are gone, and remove what belongs to them; nginx does not lead there any more."""
        for device in self.gone():
            name = f"uwsgi-emperor@{device}"
            self.vassals.remove(self.upstreams.vassals_on(device))
            self.manager.remove(name)
            folders = [Path(self.options["devices_dir"], device), Path(f"/etc/systemd/system/{name}.service.d")]
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            Path(f"/etc/supervisor/conf.d/{name}.conf").unlink(missing_ok=True)
            self.manager.reread()
            self.did.append(f"removed the device {device}")
        for name, path in self.unwanted_units().items():
            self.manager.remove(path.name if path.suffix == ".service" else name)
            path.unlink()
            self.manager.reread()
            self.did.append(f"removed {name}")

    def record(self, *, forget: bool = False) -> None:
        """Note what is in force now, so that it can be gone back to."""
        content = {name: self.options[name] for name in RECORDED}
        at = now()
        restored = self.options["record"] if self.options["state"] == "restored" else ""
        name = restored or self.deployments.add(content, at)
        changed = name != self.deployments.current().get("record")
        if changed:
            self.deployments.enforce(name, at, self.run, forget=forget)
            self.did.append(f"noted the deployment {name}")
        if changed or (restored and self.did):
            event = "deployed" if not restored else "walked_back" if forget else "rolled_back"
            note(self.run, event, self.audit_log, record=name, release=self.options["release"]["id"])
