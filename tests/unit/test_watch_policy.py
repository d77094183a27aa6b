"""What the watch makes of what it sees: the table of classes, the driver's messages, what NVML shows, the way back."""

import ctypes
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible_modules
import fleet_nvml
import pytest
import tree
import watch_policy
import watch_sources
from fleet_nvml import Nvml, NvmlError
from watch_policy import Case, Counts, Evidence, FaultClass, Table, TableError, is_back

FILE = tree.ROOT / "roles" / "watch" / "files" / "classes.ini"
CARDS: dict[str, tuple[int, ...]] = {
    "gpu0": (0, 0x65, 0),
    "gpu1": (0, 0xCA, 0),
    "gpu2mig0": (1, 0x17, 0),
    "gpu2mig1": (1, 0x17, 0),
}


@pytest.fixture(scope="module")
def table() -> Table:
    return Table(FILE)


# ---- the table


def test_no_xid_is_of_two_classes(table: Table) -> None:
    numbers = [number for one in table.classes.values() for number in one.xids]
    assert sorted(numbers) == sorted(set(numbers))
    assert len(numbers) > 80


def test_what_nvml_shows_and_a_wrong_answer_have_a_class(table: Table) -> None:
    for seen in ("lost", "uncorrected", "unmapped"):
        assert table.of_nvml(seen), seen
    for action in set(fleet_nvml.ACTIONS.values()) - {"none"}:
        assert table.of_action(action), action
    assert table.of_answer("wrong")
    assert table.of_answer("nobody")


def test_every_class_has_a_command_and_fatal_ones_come_back_by_more_than_an_answer(table: Table) -> None:
    for one in table.classes.values():
        assert one.command, one.name
        assert one.what, one.name
        if one.severity == "fatal":
            assert one.back in {"reset", "reboot", "person"}, one.name


@pytest.mark.parametrize(
    ("former", "given", "said"),
    [
        ("severity = fatal", "severity = fatl", r"\[lost\]: severity is 'fatl'; it takes none, soft, fatal"),
        ("back = reboot", "back = never", r"\[lost\]: back is 'never'"),
        ("nvml = lost", "nvnl = lost", r"\[lost\]: nvnl: known are action"),
        ("xid = 79", "xid = seventy-nine", "seventy-nine"),
        ("[unknown]", "[not-known]", "there is no class `unknown`"),
        ("[lost]", "", "no section headers"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, former: str, given: str, said: str) -> None:
    file = tmp_path / "classes.ini"
    file.write_text(FILE.read_text().replace(former, given, 1))
    with pytest.raises(TableError, match=said):
        Table(file)


# ---- the kernel's log


@pytest.mark.parametrize(
    ("line", "devices", "name"),
    [
        ("NVRM: Xid (PCI:0000:65:00): 79, pid=1234, GPU has fallen off the bus.", ["gpu0"], "lost"),
        ("NVRM: Xid (PCI:0000:ca:00): 48, pid=77, name=uwsgi, DBE at partition 2", ["gpu1"], "memory"),
        ("NVRM: Xid (PCI:0001:17:00): 94, Contained: LTC (0x2,0x2)", ["gpu2mig0", "gpu2mig1"], "contained"),
        ("NVRM: Xid (0000:65:00): 31, Ch 0000000b", ["gpu0"], "application"),
        ("NVRM: Xid (PCI:0000:65:00): 9999, something new", ["gpu0"], "unknown"),
        (
            "NVRM: Xid (PCI:0000:65:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
            ["gpu0"],
            "reset-required",
        ),
        (
            "NVRM: Xid (PCI:0000:65:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Req.)",
            ["gpu0"],
            "reboot-required",
        ),
        (
            "NVRM: Xid (PCI:0000:65:00): 154, GPU recovery action changed from 0x0 (None) to 0x3 (Drain P2P)",
            ["gpu0"],
            "link",
        ),
        (
            "NVRM: Xid (PCI:0000:65:00): 154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)",
            [],
            "",
        ),
        # Another card of the machine, and messages that are none.
        ("NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.", [], ""),
        ("NVRM: GPU at PCI:0000:65:00: GPU-bc0fa0b9-cac2-f507-b715-9bebdb69c71e", [], ""),
        ("usb 1-1: new high-speed USB device", [], ""),
    ],
)
def test_messages_of_the_driver(table: Table, line: str, devices: list[str], name: str) -> None:
    found = watch_policy.in_kernel_log(line, CARDS, table, 1.0)
    assert [one.device for one in found] == devices
    assert {one.fault.name for one in found} == ({name} if name else set())


@pytest.mark.parametrize("text", ["00000000:65:00.0", "0000:65:00", "PCI:0000:65:00.0", "0000:65:00.7"])
def test_the_ways_to_write_a_card(text: str) -> None:
    assert watch_policy.card_of(text) == (0, 0x65, 0)


def test_a_card_without_an_address() -> None:
    assert watch_policy.card_of("") is None


# ---- NVML

Json = dict[str, Any]
WELL: Json = {"lost": "", "uncorrected": 0, "action": "none", "unmapped": False}


@pytest.mark.parametrize(
    ("former", "now", "names"),
    [
        ({}, {}, []),
        (WELL, {}, []),
        (WELL, {"lost": "GPU is lost"}, ["lost"]),
        ({}, {"lost": "GPU is lost"}, ["lost"]),
        ({**WELL, "lost": "GPU is lost"}, {"lost": "GPU is lost"}, []),
        (WELL, {"action": "reset"}, ["reset-required"]),
        (WELL, {"action": "reboot"}, ["reboot-required"]),
        ({**WELL, "action": "reset"}, {"action": "reset"}, []),
        (WELL, {"action": None}, []),
        (WELL, {"uncorrected": 1}, ["memory"]),
        # What was there before the first look has been served with.
        ({}, {"uncorrected": 3}, []),
        ({}, {"unmapped": True}, []),
        ({**WELL, "uncorrected": 3}, {"uncorrected": 0}, []),
        (WELL, {"uncorrected": None}, []),
        (WELL, {"unmapped": True}, ["memory-worn"]),
    ],
)
def test_what_is_new_in_what_nvml_shows(table: Table, former: Json, now: Json, names: list[str]) -> None:
    found = watch_policy.transitions("gpu0", former, {**WELL, **now}, table, 1.0)
    assert [one.fault.name for one in found] == names


class Describe:
    """nvmlErrorString."""

    def __call__(self, code: int) -> bytes:
        return {15: b"GPU is lost", 6: b"Not Found"}.get(code, b"something")


class Library:
    """Stands in for libnvidia-ml.so.1: cards by UUID, each with the codes and numbers that its functions give."""

    def __init__(self, cards: dict[str, Json]) -> None:
        self.cards = cards
        self.handles = {uuid: 100 + number for number, uuid in enumerate(cards)}
        self.events: list[tuple[str, int]] = []
        self.registered: list[int] = []
        self.nvmlErrorString = Describe()

    def card(self, handle: ctypes.c_void_p) -> Json:
        return self.cards[next(uuid for uuid, number in self.handles.items() if number == handle.value)]

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, into: Any) -> int:  # noqa: N802
        if uuid.decode() not in self.handles:
            return 6
        into._obj.value = self.handles[uuid.decode()]
        return 0

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, part: ctypes.c_void_p, into: Any) -> int:  # noqa: N802
        into._obj.value = self.handles[self.card(part)["parent"]]
        return 0

    def number(self, name: str, card: ctypes.c_void_p, into: Any) -> int:
        found = self.card(card).get(name, 3)
        if isinstance(found, int):
            return found
        into._obj.value = found[0]
        return 0

    def nvmlDeviceGetTemperature(self, card: ctypes.c_void_p, _: int, into: Any) -> int:  # noqa: N802
        return self.number("temperature", card, into)

    def nvmlDeviceGetTotalEccErrors(self, card: ctypes.c_void_p, kind: int, counter: int, into: Any) -> int:  # noqa: N802
        assert (kind, counter) == (1, 0)
        return self.number("uncorrected", card, into)

    def nvmlDeviceGetFieldValues(self, card: ctypes.c_void_p, count: int, into: Any) -> int:  # noqa: N802
        assert (count, into._obj.field_id) == (1, 230)
        into._obj.result = 0 if "action" in self.card(card) else 3
        into._obj.value.unsigned_int = self.card(card).get("action", 0)
        return 0

    def nvmlDeviceGetRemappedRows(self, card: ctypes.c_void_p, *into: Any) -> int:  # noqa: N802
        into[3]._obj.value = int(self.card(card).get("unmapped", False))
        return 0

    def nvmlEventSetCreate(self, into: Any) -> int:  # noqa: N802
        into._obj.value = 7
        return 0

    def nvmlDeviceRegisterEvents(self, card: ctypes.c_void_p, kinds: ctypes.c_ulonglong, _: Any) -> int:  # noqa: N802
        assert kinds.value == 8
        self.registered.append(card.value or 0)
        return 0

    def nvmlEventSetWait_v2(self, _: Any, into: Any, milliseconds: ctypes.c_uint) -> int:  # noqa: N802
        if not self.events:
            return 10
        uuid, number = self.events.pop(0)
        into._obj.device, into._obj.event_type, into._obj.event_data = self.handles[uuid], 8, number
        return 0


def test_a_card_in_nvml() -> None:
    cards: dict[str, Json] = {
        "GPU-a": {"temperature": [40], "uncorrected": [2], "action": 1},
        # Without ECC, and with a driver that does not tell what must be done.
        "GPU-b": {"temperature": [40]},
        "GPU-c": {"temperature": 15},
        "GPU-d": {"temperature": 16},
        "GPU-e": {"temperature": 999},
        "MIG-1": {"parent": "GPU-a"},
    }
    nvml = Nvml(Library(cards))
    assert nvml.state("GPU-a") == {"lost": "", "uncorrected": 2, "action": "reset", "unmapped": False}
    assert nvml.state("MIG-1") == nvml.state("GPU-a")
    assert nvml.state("GPU-b") == {"lost": "", "uncorrected": None, "action": None, "unmapped": False}
    assert nvml.state("GPU-c")["lost"] == "nvmlDeviceGetTemperature: GPU is lost (15)"
    assert nvml.state("GPU-d")["action"] == "reset"
    assert "Not Found" in nvml.state("GPU-gone")["lost"]
    with pytest.raises(NvmlError, match="something"):
        nvml.state("GPU-e")


def test_what_its_process_says(capsys: pytest.CaptureFixture[str]) -> None:
    library = Library({"GPU-a": {"temperature": [40], "uncorrected": [0], "action": 0}, "MIG-1": {"parent": "GPU-a"}})
    library.events = [("GPU-a", 31)]
    fleet_nvml.look(Nvml(library), {"gpu0mig0": "MIG-1", "gpu0mig1": "MIG-1"}, 0.05, rounds=2)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == {"xid": 31, "devices": ["gpu0mig0", "gpu0mig1"]}
    assert [next(iter(one)) for one in lines] == ["state", "xid", "state"]
    assert lines[0]["state"]["gpu0mig0"]["uncorrected"] == 0


def test_a_card_that_is_lost_while_events_are_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library({"GPU-a": {"temperature": [40]}})

    def lose(*_: object) -> int:
        library.cards["GPU-a"]["temperature"] = 15
        return 15

    monkeypatch.setattr(library, "nvmlEventSetWait_v2", lose)
    fleet_nvml.look(Nvml(library), {"gpu0": "GPU-a"}, 0.02, rounds=3)
    lost = [json.loads(line)["state"]["gpu0"]["lost"] for line in capsys.readouterr().out.splitlines()]
    assert [bool(one) for one in lost] == [False, True, True]


def test_structures_are_those_of_nvidias_own_binding() -> None:
    pynvml = pytest.importorskip("pynvml")
    for ours, theirs in (
        (fleet_nvml.EventData, pynvml.c_nvmlEventData_t),
        (fleet_nvml.FieldValue, pynvml.c_nvmlFieldValue_t),
    ):
        assert ctypes.sizeof(ours) == ctypes.sizeof(theirs)
        offsets = [[getattr(kind, name).offset for name, *_ in kind._fields_] for kind in (ours, theirs)]
        assert offsets[0] == offsets[1]
    assert fleet_nvml.FIELD_RECOVERY_ACTION == pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
    assert pynvml.nvmlEventTypeXidCriticalError == fleet_nvml.EVENT_XID
    codes = ("NOT_SUPPORTED", "NOT_FOUND", "TIMEOUT", "GPU_IS_LOST", "RESET_REQUIRED")
    assert [getattr(fleet_nvml, name) for name in codes] == [getattr(pynvml, f"NVML_ERROR_{name}") for name in codes]
    assert fleet_nvml.UNCORRECTED == pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    assert fleet_nvml.SINCE_RESET == pynvml.NVML_VOLATILE_ECC
    actions = {name: getattr(pynvml, name) for name in dir(pynvml) if name.startswith("NVML_GPU_RECOVERY_ACTION_")}
    for name, number in actions.items():
        word = fleet_nvml.ACTIONS[number]
        assert word in name.lower() or (word, name.rpartition("_")[2]) in {("peers", "P2P"), ("peers", "DOMAIN")}, name


# ---- the way back


def fault(back: str) -> FaultClass:
    return FaultClass("a", "something", "fatal", 1, back, "do something")


@pytest.mark.parametrize(
    ("back", "evidence", "expected"),
    [
        ("answers", Evidence(20, "b1"), True),
        ("answers", Evidence(19, "b1"), False),
        ("answers", Evidence(60, "b1", lost=True), False),
        ("answers", Evidence(60, "b1", action="reset"), False),
        ("restarted", Evidence(60, "b1"), False),
        ("restarted", Evidence(60, "b1", oldest=99.0), False),
        ("restarted", Evidence(60, "b1", oldest=101.0), True),
        # A driver that does not tell: a restart alone is no reset.
        ("reset", Evidence(60, "b1", oldest=101.0), False),
        ("reset", Evidence(60, "b1", oldest=101.0, action="none"), True),
        ("reset", Evidence(60, "b1", oldest=99.0, action="none"), False),
        ("reset", Evidence(60, "b2"), True),
        ("reboot", Evidence(60, "b1", oldest=101.0, action="none"), False),
        ("reboot", Evidence(60, "b2"), True),
        ("reboot", Evidence(60, "b2", lost=True), False),
        ("reboot", Evidence(0, "b2"), False),
        ("person", Evidence(9999, "b2", oldest=101.0, action="none"), False),
    ],
)
def test_when_a_device_is_back(back: str, evidence: Evidence, expected: bool) -> None:
    case = Case("a", "", "", 100.0, "b1", True)
    assert is_back(case, fault(back), evidence, 20) is expected


def test_which_of_two_faults_counts() -> None:
    soft, fatal = FaultClass("a", "", "soft", 1, "person", ""), FaultClass("b", "", "fatal", 1, "reboot", "")
    more = FaultClass("c", "", "fatal", 1, "person", "")
    assert watch_policy.worse(soft, fatal)
    assert not watch_policy.worse(fatal, soft)
    assert watch_policy.worse(fatal, more)
    assert not watch_policy.worse(more, fatal)
    assert not watch_policy.worse(fatal, fatal)


def test_flapping_is_bounded() -> None:
    counts = Counts()
    assert [watch_policy.hold_seconds(20, counts.add("one", at)) for at in (0, 100, 200, 300)] == [20, 40, 80, 160]
    assert watch_policy.hold_seconds(20, 99) == 600
    assert counts.lately("one", 1000.0) == 0


def test_a_case_outlives_the_watch() -> None:
    case = Case("lost", "Xid 79", "the card is lost", 5.0, "b1", True)
    assert Case.from_json(json.loads(json.dumps(case.as_json()))) == case


# ---- what is placed on a host


def test_the_shared_code_is_complete() -> None:
    """The watch runs without Ansible, so whatever a shared file imports is placed as well."""
    contents = ansible_modules.load("filter", "watch").contents()
    for name, text in contents.items():
        for module, names in re.findall(r"^\s*from ansible\.module_utils(?:\.(\w+))? import (.*)$", text, re.MULTILINE):
            for one in [module] if module else names.split(", "):
                assert f"ansible/module_utils/{one}.py" in contents, f"{name} needs {one}"
    assert {"fleet_watch.py", "fleet_nvml.py", "classes.ini"} <= set(contents)


# ---- reading the kernel's log

JOURNALCTL = """#!/usr/bin/env python3
import json, sys
print(json.dumps({"__CURSOR": "c1", "__REALTIME_TIMESTAMP": "1700000000500000", "MESSAGE": "first"}))
print("no JSON")
print(json.dumps({"__CURSOR": "c2", "MESSAGE": list(b"caf\\xc3\\xa9"), "ARGUMENTS": sys.argv[1:]}), flush=True)
sys.exit(3 if "--after-cursor=bad" in sys.argv else 0)
"""


@pytest.fixture
def journalctl(tmp_path: Path) -> tuple[str, ...]:
    program = tmp_path / "journalctl"
    program.write_text(JOURNALCTL)
    return (sys.executable, str(program))


def test_messages_of_journald(journalctl: tuple[str, ...]) -> None:
    first, second = watch_sources.journal("", False, journalctl)
    assert first == {"text": "first", "cursor": "c1", "old": True, "at": 1700000000.5}
    assert second == {"text": "caf\u00e9", "cursor": "c2", "old": False, "at": 0.0}
    # What is known, or that nothing of this boot is, makes all that comes new.
    assert not any(one["old"] for one in watch_sources.journal("c0", False, journalctl))
    assert not any(one["old"] for one in watch_sources.journal("", True, journalctl))
    with pytest.raises(OSError, match="exit code 3"):
        list(watch_sources.journal("bad", False, journalctl))


def test_messages_of_the_kernels_own_buffer(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_text("6,1,5,-;one\n SUBSYSTEM=pci\n4,2,6,-,caller=T1;two; with more\n")
    found = list(watch_sources.kmsg("", True, path))
    assert [(one["cursor"], one["text"]) for one in found] == [("1", "one"), ("2", "two; with more")]
    assert [one["text"] for one in watch_sources.kmsg("1", False, path)] == ["two; with more"]
    assert all(one["old"] for one in watch_sources.kmsg("", False, path))


def test_a_place_that_the_log_has_no_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    said: list[tuple[str, Any]] = []

    class End(Exception):
        pass

    def messages(cursor: str, new_boot: bool) -> Iterator[dict[str, Any]]:
        asked.append((cursor, new_boot))
        if cursor == "bad":
            raise OSError("no such place")
        if len(asked) > 2:
            raise End
        yield {"text": "x", "cursor": "c1", "old": True, "at": 0.0}

    monkeypatch.setattr(watch_sources, "AGAIN_SECONDS", 0)
    with pytest.raises(End):
        watch_sources.KernelLog(messages, lambda kind, what: said.append((kind, what)), "bad", False).run()
    assert asked == [("bad", False), ("", False), ("c1", False)]
    assert said[0] == ("log", {"error": "no such place"})
