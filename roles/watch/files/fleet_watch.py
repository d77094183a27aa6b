#!/usr/bin/python3
"""Takes an ill device of this host out of nginx's upstreams, and back in when it is well.

Installed in /usr/local/lib/fleet/watch by the role watch, with the code by which `./fleet drain` does the same beside
it in `ansible/module_utils`, so that nothing but Python's standard library is needed. What it does about which fault
stands in classes.ini; docs/gpus.md explains it.

What it knows outlives it: which device is out, and why, in drained.json; what else it has seen in watch.json beside it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

# With -I Python looks nowhere else but in its own folders, which may hold an Ansible of the system's.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import watch_policy as policy
import watch_sources as sources
from ansible.module_utils import memory
from ansible.module_utils.audit import AUDIT_LOG, note, now
from ansible.module_utils.deployments import write_json
from ansible.module_utils.fleet_socket import SocketError, request, stats, stats_path
from ansible.module_utils.in_force import InForce
from ansible.module_utils.nginx_configuration import Change, Configuration, NginxError
from ansible.module_utils.units import started_at
from ansible.module_utils.upstreams import PLACES, WATCH, Drained, Upstreams
from ansible.module_utils.vassal_files import NotReady, Vassal

SETTINGS = Path("/etc/fleet/watch.json")
BOOT = Path("/proc/sys/kernel/random/boot_id")
RUN = {"id": None, "by": WATCH, "verb": "watch"}
#: Where a deployment does not say how long a request may take.
LONGEST_SECONDS = 60
#: A place in the kernel's log alone is no reason to write the state more often.
SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Settings:
    """What the role wrote to /etc/fleet/watch.json."""

    interval_seconds: float = 2.0
    failures: int = 2
    good_seconds: float = 20.0
    nvml_seconds: float = 5.0
    classes_file: str = str(Path(__file__).with_name("classes.ini"))
    state_file: str = "/var/lib/fleet/watch.json"
    status_file: str = "/run/fleet-watch/state.json"
    places: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Those of a file."""
        found = json.loads(path.read_text())
        return cls(**{name: value for name, value in found.items() if name in cls.__dataclass_fields__})


def say(text: str) -> None:
    """Write a line to the log."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def tell_systemd(text: str) -> None:
    """Tell systemd that the watch is ready or alive, where systemd started it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.sendto(text.encode(), "\0" + address[1:] if address.startswith("@") else address)


@dataclass
class Health:
    """What the known answers of a device say."""

    #: Answers in a row that were bad, by vassal.
    bad: dict[str, int] = field(default_factory=dict)
    #: Since when all are good, by the whole check that a device with a fault gets.
    good_since: float | None = None
    oldest: float | None = None
    said: str = "not asked yet"
    #: Answers to questions of an earlier state of things do not count.
    generation: int = 0

    def begin_anew(self) -> None:
        """What was answered until now says nothing any more."""
        self.bad, self.good_since, self.oldest = {}, None, None
        self.generation += 1


@dataclass(frozen=True)
class Source:
    """How the driver's faults are seen; tests put others in its place."""

    log: Callable[[], tuple[str, str]] = sources.kernel_log
    journal: Callable[..., Any] = sources.journal
    kmsg: Callable[..., Any] = sources.kmsg
    nvml: tuple[str, ...] = ()


class Watch:
    """The watch of a host.

    Args:
        settings: what the role wrote.
        source: where faults of the driver are seen.
        boot: the kernel's id of this boot.
    """

    def __init__(self, settings: Settings, source: Source | None = None, boot: str = "") -> None:
        self.settings = settings
        self.source = source or Source()
        self.boot = boot or BOOT.read_text().strip()
        self.table = policy.Table(Path(settings.classes_file))
        # It may not start nginx's program: what nginx does not take, nginx itself refuses.
        self.places = {**PLACES, **settings.places, "nginx_program": ""}
        self.in_force = InForce(self.places)
        self.drained = Drained(Path(self.places["drained_file"]))
        # Simple: the handler of a signal may put something in, whatever is done to it at that moment.
        self.events: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self.health: dict[str, Health] = {}
        self.asking: set[tuple[str, str, int]] = set()
        self.changes: list[tuple[Configuration, Change]] = []
        self.counts, self.outs = policy.Counts(), policy.Counts()
        self.seen: dict[str, dict[str, int]] = {}
        self.xids: dict[str, dict[str, int]] = {}
        self.gpus: dict[str, str] = {}
        self.cards: dict[str, tuple[int, ...]] = {}
        self.nvml: dict[str, dict[str, Any]] = {}
        self.nvml_error, self.nvml_at = "", float("-inf")
        self.nvml_process: sources.NvmlProcess | None = None
        self.log: sources.KernelLog | None = None
        self.log_kind, self.log_error = "", ""
        self.cursor = ""
        self.cases: dict[str, policy.Case] = {}
        self.written, self.written_at = "", float("-inf")
        self.known_boot = ""
        self.ended = threading.Event()
        self.restore()

    # ---- what outlives it

    def restore(self) -> None:
        """Take up what was known when the watch ended."""
        try:
            found = json.loads(Path(self.settings.state_file).read_text())
            self.known_boot = found["boot"]
            if self.known_boot == self.boot:
                self.cursor, self.nvml = found["cursor"], found["nvml"]
            self.cases = {name: policy.Case.from_json(one) for name, one in found["cases"].items()}
            self.outs.times = {name: deque(times) for name, times in found["outs"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # The first start, or nothing that can be read: drained.json has what counts.
            return

    def save(self) -> None:
        """Keep what has changed."""
        content = {
            "boot": self.boot,
            "nvml": self.nvml,
            "cases": {name: one.as_json() for name, one in self.cases.items()},
            "outs": {name: list(times) for name, times in self.outs.times.items()},
        }
        text = json.dumps([content, bool(self.cursor)])
        elapsed = time.monotonic() - self.written_at
        if text != self.written or elapsed > SAVE_SECONDS:
            write_json(Path(self.settings.state_file), {**content, "cursor": self.cursor})
            self.written, self.written_at = text, time.monotonic()

    # ---- what is seen

    def take(self, kind: str, what: dict[str, Any]) -> None:
        """Take something in, from whichever thread; it is worked on in the order in which it came."""
        self.events.put((kind, what))

    def work_on(self, kind: str, what: dict[str, Any]) -> None:
        """What has come in."""
        if kind == "line":
            self.cursor = what["cursor"]
            self.log_error = ""
            if not what["old"]:
                for seen in policy.in_kernel_log(what["text"], self.cards, self.table, what["at"] or time.time()):
                    self.fault(seen)
        elif kind == "log":
            self.log_error = what["error"]
        elif kind == "nvml":
            self.look_at_nvml(what)
        elif kind == "answer":
            self.answered(**what)

    def look_at_nvml(self, what: dict[str, Any]) -> None:
        """A line of fleet_nvml.py."""
        if "error" in what:
            self.nvml_error = what["error"]
            return
        self.nvml_error = ""
        if "xid" in what and not self.log_kind:
            # Where the kernel's log can be read, it says the same and more.
            fault = self.table.of_xid(what["xid"])
            for device in what["devices"]:
                self.fault(policy.Seen(device, fault, f"Xid {what['xid']}", time.time(), what["xid"]))
        for device, state in what.get("state", {}).items():
            self.nvml_at = time.monotonic()
            former = self.nvml.get(device, {})
            self.nvml[device] = state
            for seen in policy.transitions(device, former, state, self.table, time.time()):
                self.fault(seen)

    def fault(self, seen: policy.Seen) -> None:
        """A fault of a device."""
        device, fault = seen.device, seen.fault
        count = self.counts.add(f"{device} {fault.name}", seen.at)
        of_device = self.seen.setdefault(device, {})
        of_device[fault.name] = of_device.get(fault.name, 0) + 1
        if seen.xid:
            xids = self.xids.setdefault(device, {})
            xids[str(seen.xid)] = xids.get(str(seen.xid), 0) + 1
        say(f"{device}: {seen.why()}; {fault.severity}, {count} of {fault.after} within ten minutes")
        # The next save() moves the place in the log past it.
        self.written = ""
        if fault.severity == "none" or count < fault.after:
            return
        entry = self.drained.read().get(device)
        if entry and entry.get("by") != WATCH:
            return
        case = self.cases.get(device)
        if case and not policy.worse(self.class_of(case), fault):
            if case.fault == fault.name:
                case.at = seen.at
            return
        out = case is not None and case.out
        case = policy.Case(fault.name, seen.text, seen.why(), seen.at, self.boot, out)
        self.cases[device] = case
        self.health_of(device).begin_anew()
        if out:
            self.turn(device, case)
        self.settle(device)

    def class_of(self, case: policy.Case) -> policy.FaultClass:
        """The class of a case; of a class that the table has no more, one that only a person ends."""
        return self.table.classes.get(case.fault) or policy.FaultClass(case.fault, case.why, "soft", 1, "person", "")

    # ---- known answers

    def health_of(self, device: str) -> Health:
        """What is known of a device's answers."""
        return self.health.setdefault(device, Health())

    def longest_seconds(self) -> float:
        """How long an answer may take: as long as a request, since it waits behind those that came before."""
        services = self.in_force.record().get("services") or []
        return 5 + max(
            (float(one.get("timeout_seconds") or LONGEST_SECONDS) for one in services), default=LONGEST_SECONDS
        )

    def ask(self, host: Upstreams, drained: dict[str, dict]) -> None:
        """Ask what is to be asked now, each in a thread of its own."""
        for device in {one["device"] for one in self.in_force.record().get("vassals", [])}:
            entry = drained.get(device)
            if entry and entry.get("by") != WATCH:
                # A person has it in hand.
                self.health_of(device).begin_anew()
                continue
            if device in self.cases:
                self.start(device, "", partial(self.check, device))
            if entry:
                continue
            leads = {one.name: one for one in self.in_force.vassals(device).vassals if self.leads(host, one)}
            bad = self.health_of(device).bad
            # One that nginx leads to no more, as in a deploy, has nothing to answer for.
            for name in bad.keys() - leads.keys():
                del bad[name]
            for name, vassal in leads.items():
                self.start(device, name, partial(self.ask_vassal, vassal, self.longest_seconds()))

    def leads(self, host: Upstreams, vassal: Vassal) -> bool:
        """Whether nginx leads requests to a vassal that has a known answer."""
        if not vassal.wanted.get("ready_path"):
            return False
        try:
            return host.leads_to(vassal.address())
        except (NotReady, OSError):
            return False

    def start(self, device: str, name: str, question: Callable[[], dict[str, Any]]) -> None:
        """Ask one question, unless it is on its way already."""
        key = (device, name, self.health_of(device).generation)
        if key in self.asking:
            return
        self.asking.add(key)

        def run() -> None:
            try:
                found = question()
            except (OSError, ValueError, KeyError) as error:
                found = {"good": False, "said": str(error)}
            self.take("answer", {"key": key, "late": False, "nobody": False, "oldest": None, **found})

        threading.Thread(target=run, name=f"ask-{device}-{name}", daemon=True).start()

    def ask_vassal(self, vassal: Vassal, seconds: float) -> dict[str, Any]:
        """Ask a vassal for its known answer; ``good`` is ``None`` when it is too busy to be asked."""
        # uWSGI listens while its workers load their models, and then requests wait.
        if self.loads(vassal):
            return {"good": False, "nobody": True, "said": f"no worker of {vassal.name} takes requests"}
        try:
            answer = request(vassal.address(), vassal.wanted["protocol"], vassal.wanted["ready_path"], timeout=seconds)
        except SocketError as error:
            cause = error.__cause__
            good = None if isinstance(cause, BlockingIOError) else False
            nobody = isinstance(cause, ConnectionRefusedError | FileNotFoundError)
            late = isinstance(cause, TimeoutError)
            return {"good": good, "said": f"{vassal.name}: {error}", "nobody": nobody, "late": late}
        text = answer.body[:200].decode(errors="replace").strip()
        said = f"{vassal.wanted['ready_path']} of {vassal.name} answers {answer.status}"
        return {"good": answer.status == 200, "said": said if answer.status == 200 else f"{said}: {text}"}

    def loads(self, vassal: Vassal) -> bool:
        """Whether uWSGI says that none of a vassal's workers takes requests."""
        if not vassal.wanted.get("stats"):
            return False
        try:
            workers = stats(stats_path(self.places["run_dir"], vassal.device, vassal.name)).get("workers", [])
        except SocketError:
            return False
        return not any(one.get("accepting") and one.get("pid") for one in workers)

    def check(self, device: str) -> dict[str, Any]:
        """All that undrain asks of a device, and since when its processes run."""
        wrong = self.in_force.what_is_wrong(device)
        starts: list[float | None] = []
        for vassal in self.in_force.vassals(device).vassals:
            with contextlib.suppress(SocketError, KeyError, ValueError):
                pid = int(stats(stats_path(self.places["run_dir"], device, vassal.name))["pid"])
                starts += [started_at(one) for one in memory.process_tree(pid) if one != pid]
        known = [one for one in starts if one is not None]
        return {"good": not wrong, "said": wrong or "answers", "oldest": min(known) if known else None}

    def answered(
        self, key: tuple[str, str, int], good: bool | None, said: str, late: bool, nobody: bool, oldest: float | None
    ) -> None:
        """An answer has come."""
        self.asking.discard(key)
        device, name, generation = key
        health = self.health_of(device)
        if generation != health.generation or good is None:
            return
        health.said = said
        if not name:
            health.oldest = oldest
            health.good_since = (health.good_since or time.monotonic()) if good else None
            return
        former = health.bad.get(name, 0)
        # One that came too late has been waited for longer than many short ones.
        health.bad[name] = 0 if good else max(former + 1, self.settings.failures if late else 0)
        fault = self.table.of_answer("nobody" if nobody else "wrong")
        if fault and former < self.settings.failures <= health.bad[name]:
            vassals = [one for one in self.in_force.vassals(device).vassals if one.name == name]
            # A deploy may have led past it while it was asked.
            if any(self.leads(self.upstreams(), one) for one in vassals):
                self.fault(policy.Seen(device, fault, said, time.time()))

    # ---- out and in

    def upstreams(self) -> Upstreams:
        """nginx of this host."""
        return Upstreams(self.places, self.in_force.wait_seconds())

    def evidence(self, device: str) -> policy.Evidence:
        """What is known of a device now."""
        health = self.health_of(device)
        good = 0.0 if health.good_since is None else time.monotonic() - health.good_since
        # A process that has ended tells nothing of the card of now.
        fresh = not self.nvml_error and time.monotonic() - self.nvml_at < 3 * self.settings.nvml_seconds + 10
        state = self.nvml.get(device, {}) if fresh else {}
        return policy.Evidence(good, self.boot, health.oldest, bool(state.get("lost")), state.get("action"))

    def settle(self, device: str) -> None:
        """Take a device with a fault out, or back in when its class says so."""
        case = self.cases[device]
        fault = self.class_of(case)
        good = self.settings.good_seconds if fault.good is None else min(fault.good, self.settings.good_seconds)
        hold = policy.hold_seconds(good, self.outs.lately(device, time.time()))
        if policy.is_back(case, fault, self.evidence(device), hold):
            if not case.out or self.turn(device, None):
                say(f"{device}: over: {case.why}")
                del self.cases[device]
                self.health_of(device).begin_anew()
        # An ill device that answers is better than none; one that is broken is not.
        elif not case.out and (fault.severity == "fatal" or self.upstreams().others(device)):
            case.out = True
            if not self.turn(device, case):
                case.out = False
                return
            self.outs.add(device, time.time())
            self.health_of(device).begin_anew()
        else:
            return
        self.save()

    def turn(self, device: str, case: policy.Case | None) -> bool:
        """Have nginx lead to a device no more, or again; gives whether it does."""
        # It may wait for a deploy, and then for nginx.
        tell_systemd("WATCHDOG=1")
        host = self.upstreams()
        former = self.drained.read().get(device, {})
        entry = None
        if case:
            entry = {"by": WATCH, "since": former.get("since") or now(), "why": case.why, "case": case.as_json()}
        try:
            self.changes.append(host.turn(self.drained, device, entry, only_of=WATCH))
        except (NginxError, OSError) as error:
            say(f"{device}: {'stays in' if case else 'stays out'}: {error}")
            return False
        say(
            f"{device} is {'out' if case else 'in'}"
            + (f": {case.why}; back: {self.class_of(case).back}" if case else "")
        )
        event, why = ("drained", case.why) if case else ("undrained", former.get("why", ""))
        if refused := note(RUN, event, Path(self.places["log_dir"]) / AUDIT_LOG, device=device, why=why):
            say(refused)
        return True

    def finish_changes(self) -> None:
        """Note what nginx has loaded once the requests of its former workers are answered."""
        left = []
        for configuration, change in self.changes:
            if configuration.busy(change) and time.monotonic() - change.began < configuration.wait_seconds:
                left.append((configuration, change))
                continue
            try:
                configuration.finish(change)
            except (NginxError, OSError) as error:
                # The next deploy loads it again and waits for them.
                say(str(error))
        self.changes = left

    def follow(self, drained: dict[str, dict]) -> None:
        """Take over what persons have done to devices, and what an earlier watch has."""
        for device, case in list(self.cases.items()):
            entry = drained.get(device)
            # A person who has put it back, or out of the watch's hands.
            if (case.out and not entry) or (entry and entry.get("by") != WATCH):
                say(f"{device}: a person has {'drained' if entry else 'undrained'} it: {case.why}")
                del self.cases[device]
                self.health_of(device).begin_anew()
        for device, entry in drained.items():
            if entry.get("by") == WATCH and not (device in self.cases and self.cases[device].out):
                try:
                    self.cases[device] = policy.Case.from_json(entry["case"])
                except (KeyError, TypeError):
                    self.cases[device] = policy.Case(
                        "unknown", "", str(entry.get("why", "")), time.time(), self.boot, True
                    )

    # ---- devices with a card

    def follow_devices(self) -> None:
        """Watch the cards of the devices that the deployment in force has."""
        devices = self.in_force.record().get("devices") or []
        gpus = {one["name"]: str(one.get("uuid") or "") for one in devices if one.get("kind") in {"gpu", "mig"}}
        cards = {
            one["name"]: policy.card_of(str(one.get("pci_bus_id") or "")) for one in devices if one["name"] in gpus
        }
        self.cards = {name: card for name, card in cards.items() if card}
        if gpus and self.log is None:
            self.log_kind, self.log_error = self.source.log()
            reader = {"journal": self.source.journal, "kmsg": self.source.kmsg}.get(self.log_kind)
            if reader:
                # Without anything known the watch is new here, and what happened before it is not its concern.
                new_boot = bool(self.known_boot) and self.known_boot != self.boot
                self.log = sources.KernelLog(reader, self.take, self.cursor, new_boot)
                self.log.start()
        if gpus != self.gpus:
            self.gpus = gpus
            if self.nvml_process:
                self.nvml_process.stop()
                self.nvml_process = None
            by_uuid = {name: uuid for name, uuid in gpus.items() if uuid}
            if by_uuid:
                seconds = self.settings.nvml_seconds
                self.nvml_process = sources.NvmlProcess(by_uuid, seconds, self.take, self.source.nvml)
                self.nvml_process.start()

    # ---- what it says

    def status(self, drained: dict[str, dict]) -> dict[str, Any]:
        """What there is to say, for ``./fleet status``."""
        amiss = []
        if self.gpus and (not self.log_kind or self.log_error):
            amiss.append(f"the kernel's log is not read: {self.log_error or 'it cannot be opened'}")
        if self.gpus and self.nvml_error:
            amiss.append(f"NVML is not read: {self.nvml_error}")
        devices = {}
        for device in sorted({*self.health, *self.cases, *drained}):
            case = self.cases.get(device)
            devices[device] = {
                "answer": self.health_of(device).said,
                "fault": case.fault if case else None,
                "why": case.why if case else None,
                "out": bool(case and case.out),
                "seen": self.seen.get(device, {}),
            }
            if case:
                fault = self.class_of(case)
                command = fault.command.replace("DEVICE", device).replace("UUID", self.gpus.get(device, "UUID"))
                devices[device] |= {"severity": fault.severity, "back": fault.back, "command": command}
        return {
            "kernel_log": self.log_kind,
            "nvml": bool(self.gpus) and not self.nvml_error,
            "amiss": amiss,
            # For the exporter, which counts them.
            "xids": self.xids,
            "devices": devices,
        }

    def publish(self, drained: dict[str, dict]) -> None:
        """Write it down."""
        at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        write_json(Path(self.settings.status_file), {"time": at, **self.status(drained)})

    # ---- on and on

    def tick(self) -> None:
        """All that is to be done now and then."""
        drained = self.drained.read()
        self.follow(drained)
        self.follow_devices()
        self.ask(self.upstreams(), drained)
        for device in list(self.cases):
            self.settle(device)
        self.finish_changes()
        self.save()
        self.publish(self.drained.read())
        tell_systemd("READY=1\nWATCHDOG=1")

    def run(self) -> None:
        """Watch until it is told to end."""
        while not self.ended.is_set():
            try:
                self.tick()
            except OSError as error:
                # A full disk, a folder that a deploy is just making: the next tick may do better.
                say(f"{error}")
            end = time.monotonic() + self.settings.interval_seconds
            while (left := end - time.monotonic()) > 0 and not self.ended.is_set():
                with contextlib.suppress(queue.Empty):
                    kind, what = self.events.get(timeout=left)
                    try:
                        self.work_on(kind, what)
                    except OSError as error:
                        say(f"{error}")


def main() -> None:
    """Watch this host."""
    try:
        watch = Watch(Settings.read(Path(sys.argv[1]) if len(sys.argv) > 1 else SETTINGS))
    except (OSError, ValueError, policy.TableError) as error:
        say(f"fleet-watch: {error}. ./fleet deploy writes its files anew")
        sys.exit(1)

    def end(*_: object) -> None:
        watch.ended.set()
        watch.take("end", {})

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    watch.run()


if __name__ == "__main__":
    main()
