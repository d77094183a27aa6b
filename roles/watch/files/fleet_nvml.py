#!/usr/bin/python3
"""Reads the state of a host's cards from NVIDIA's library NVML, and says each as a line of JSON.

Installed beside fleet_watch.py by the role watch, which runs it as a process of its own: a card that is lost may let a
question hang in the driver for ever, and then the watch goes on without this process.

The few functions that are needed are called by ctypes. Their symbols carry the version of what they take, so that they
work with any driver from R450 on; the tests hold the structures against those of NVIDIA's own nvidia-ml-py.

    fleet_nvml.py '{"gpu0": "GPU-..."}' 2     the devices with their UUIDs, and seconds between two looks
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
#: nvmlReturn_t
NOT_SUPPORTED, NOT_FOUND, TIMEOUT, GPU_IS_LOST, RESET_REQUIRED = 3, 6, 10, 15, 16
#: nvmlMemoryErrorType_t, nvmlEccCounterType_t, nvmlTemperatureSensors_t
UNCORRECTED, SINCE_RESET, ON_CHIP = 1, 0, 0
EVENT_XID = 8
FIELD_RECOVERY_ACTION = 230
#: nvmlDeviceGpuRecoveryAction_t in the words of classes.ini.
ACTIONS = {0: "none", 1: "reset", 2: "reboot", 3: "peers", 4: "reset", 5: "peers", 6: "reset", 7: "reboot"}


class EventData(ctypes.Structure):
    """nvmlEventData_t."""

    _fields_ = (
        ("device", ctypes.c_void_p),
        ("event_type", ctypes.c_ulonglong),
        ("event_data", ctypes.c_ulonglong),
        ("gpu_instance_id", ctypes.c_uint),
        ("compute_instance_id", ctypes.c_uint),
    )


class Value(ctypes.Union):
    """nvmlValue_t, as far as it is read here."""

    _fields_ = (("unsigned_int", ctypes.c_uint), ("unsigned_long_long", ctypes.c_ulonglong))


class FieldValue(ctypes.Structure):
    """nvmlFieldValue_t."""

    _fields_ = (
        ("field_id", ctypes.c_uint),
        ("scope_id", ctypes.c_uint),
        ("timestamp", ctypes.c_longlong),
        ("latency", ctypes.c_longlong),
        ("value_type", ctypes.c_uint),
        ("result", ctypes.c_uint),
        ("value", Value),
    )


class NvmlError(Exception):
    """NVML has refused something."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Nvml:
    """NVML, started.

    Args:
        library: the loaded library, or what stands in for it.
    """

    def __init__(self, library: Any) -> None:
        self.library = library
        self.call("nvmlInit_v2")

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises:
            NvmlError: it gave something else than success.
        """
        function = getattr(self.library, name, None)
        code = function(*arguments) if function else NOT_SUPPORTED
        if code:
            describe = self.library.nvmlErrorString
            describe.restype = ctypes.c_char_p
            raise NvmlError(code, f"{name}: {(describe(code) or b'').decode(errors='replace')} ({code})")

    def card(self, uuid: str) -> ctypes.c_void_p:
        """The card of a UUID; of a MIG slice the card that it is part of."""
        found = ctypes.c_void_p()
        self.call("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(found))
        if uuid.startswith("MIG-"):
            part, found = found, ctypes.c_void_p()
            self.call("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", part, ctypes.byref(found))
        return found

    def number(self, name: str, card: ctypes.c_void_p, *arguments: int, kind: Any = ctypes.c_uint) -> int | None:
        """The number that a function gives of a card; ``None`` where the card has none."""
        found = kind()
        try:
            self.call(name, card, *arguments, ctypes.byref(found))
        except NvmlError as error:
            if error.code == NOT_SUPPORTED:
                return None
            raise
        return int(found.value)

    def action(self, card: ctypes.c_void_p) -> str | None:
        """What must be done about a card; ``None`` when the driver does not tell (older than R565)."""
        field = FieldValue(field_id=FIELD_RECOVERY_ACTION)
        try:
            self.call("nvmlDeviceGetFieldValues", card, 1, ctypes.byref(field))
        except NvmlError as error:
            if error.code == NOT_SUPPORTED:
                return None
            raise
        # A number that came later than this table asks for something, too.
        return ACTIONS.get(field.value.unsigned_int, "reset") if field.result == 0 else None

    def unmapped(self, card: ctypes.c_void_p) -> bool:
        """Whether bad memory could not be mapped out."""
        rows = [ctypes.c_uint() for _ in range(4)]
        try:
            self.call("nvmlDeviceGetRemappedRows", card, *map(ctypes.byref, rows))
        except NvmlError as error:
            if error.code == NOT_SUPPORTED:
                return False
            raise
        return bool(rows[3].value)

    def state(self, uuid: str) -> dict[str, Any]:
        """``lost`` (why), ``uncorrected`` (errors since the last reset), ``action`` and ``unmapped`` of a card.

        Raises:
            NvmlError: something that says nothing of the card.
        """
        found: dict[str, Any] = {"lost": "", "uncorrected": None, "action": None, "unmapped": False}
        try:
            card = self.card(uuid)
            # Asks the card itself, also one that has nothing else to tell.
            self.number("nvmlDeviceGetTemperature", card, ON_CHIP)
            found["uncorrected"] = self.number(
                "nvmlDeviceGetTotalEccErrors", card, UNCORRECTED, SINCE_RESET, kind=ctypes.c_ulonglong
            )
            found["action"] = self.action(card)
            found["unmapped"] = self.unmapped(card)
        except NvmlError as error:
            if error.code == RESET_REQUIRED:
                found["action"] = "reset"
            elif error.code in {GPU_IS_LOST, NOT_FOUND}:
                found["lost"] = str(error)
            else:
                raise
        return found

    def events(self, uuids: list[str]) -> ctypes.c_void_p | None:
        """A set of events with the Xids of some cards; ``None`` where cards have no events."""
        found, registered = ctypes.c_void_p(), 0
        try:
            self.call("nvmlEventSetCreate", ctypes.byref(found))
        except NvmlError:
            return None
        for uuid in uuids:
            try:
                self.call("nvmlDeviceRegisterEvents", self.card(uuid), ctypes.c_ulonglong(EVENT_XID), found)
                registered += 1
            except NvmlError:
                # One that is lost already, or has none: looks at it tell.
                continue
        return found if registered else None

    def wait(self, events: ctypes.c_void_p, seconds: float) -> tuple[int, int] | None:
        """Card and number of the next Xid; ``None`` when none came in time."""
        data = EventData()
        try:
            self.call("nvmlEventSetWait_v2", events, ctypes.byref(data), ctypes.c_uint(int(seconds * 1000)))
        except NvmlError as error:
            if error.code == TIMEOUT:
                return None
            raise
        return (int(data.device or 0), int(data.event_data)) if data.event_type & EVENT_XID else None


def say(**what: Any) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def look(nvml: Nvml, devices: dict[str, str], seconds: float, rounds: int = sys.maxsize) -> None:
    """Say the state of devices over and over, and each Xid as it comes.

    Raises:
        NvmlError: NVML does not work any more; a new process may do better.
    """
    events = nvml.events(list(devices.values()))
    cards: dict[str, int | None] = {}
    for _ in range(rounds):
        say(state={name: nvml.state(uuid) for name, uuid in devices.items()})
        for name, uuid in devices.items():
            if name not in cards:
                try:
                    cards[name] = nvml.card(uuid).value
                except NvmlError:
                    continue
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if events is None:
                time.sleep(left)
                continue
            try:
                event = nvml.wait(events, left)
            except NvmlError as error:
                if error.code != GPU_IS_LOST:
                    raise
                # From then on no set gives anything that has this card in it; looks go on.
                events = None
                break
            if event:
                say(xid=event[1], devices=[name for name, card in cards.items() if card == event[0]])


def main() -> None:
    """Look until something fails."""
    try:
        nvml = Nvml(ctypes.CDLL(LIBRARY))
        look(nvml, json.loads(sys.argv[1]), float(sys.argv[2]))
    except (OSError, NvmlError) as error:
        say(error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
