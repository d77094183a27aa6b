"""How hosts are put into batches, which deployment they go back to, and what is said when a rollout stops."""

import json
from typing import Any

import ansible_modules
import pytest
from ansible.errors import AnsibleFilterError

rollout = ansible_modules.load("filter", "rollout")
edge = ansible_modules.load("filter", "edge")
HOSTS = [f"h{number}" for number in range(1, 11)]


@pytest.mark.parametrize(
    ("serial", "sizes"),
    [
        pytest.param([1, "25%", "100%"], [1, 2, 7], id="default"),
        pytest.param([3], [3, 3, 3, 1], id="the last one repeats"),
        pytest.param(["100%"], [10], id="all"),
        pytest.param(["1%"], [1] * 10, id="at least one"),
        pytest.param([99], [10], id="more than there are"),
    ],
)
def test_batches_are_as_serial_would_make_them(serial: list[Any], sizes: list[int]) -> None:
    batches = rollout.rollout_batches(HOSTS, serial)
    assert [len(batch) for batch in batches] == sizes
    assert [host for batch in batches for host in batch] == HOSTS


def test_a_host_that_leaves_service_has_a_batch_of_its_own() -> None:
    batches = rollout.rollout_batches(HOSTS[:5], [1, "100%"], alone=["h2", "h4"])
    assert batches == [["h1"], ["h3", "h5"], ["h2"], ["h4"]]
    assert rollout.rollout_batches([], [1]) == []


def test_hosts_without_a_change_are_only_checked_at_the_start() -> None:
    batches = rollout.rollout_batches(HOSTS[:6], [1, "100%"], alone=["h5"], unchanged=["h1", "h4"])
    assert batches == [["h1", "h4", "h2"], ["h3", "h6"], ["h5"]]
    assert rollout.rollout_batches(HOSTS[:3], [1, "100%"], unchanged=HOSTS) == [HOSTS[:3]]


@pytest.mark.parametrize("serial", [[0], ["x"], ["-5%"], [], [1.5]])
def test_a_size_that_is_none_is_refused(serial: list[Any]) -> None:
    with pytest.raises(AnsibleFilterError, match="rollout_serial"):
        rollout.rollout_batches(HOSTS, serial)


KNOWN = {
    "deployments": [
        {"record": "3", "release": "r2", "devices": {}},
        {"record": "2", "release": "r2", "devices": {}},
        {"record": "1", "release": "r1", "devices": {}},
    ],
    "current": {"record": "3"},
    "former": "2",
}


def test_rollback_goes_to_the_former_deployment_or_to_a_release() -> None:
    assert rollout.rollback_choice(KNOWN, "")["record"] == "2"
    assert rollout.rollback_choice(KNOWN, "r1")["record"] == "1"
    assert rollout.rollback_choice(KNOWN, "r2")["record"] == "3", "the newest one of that release"


def test_rollback_prints_the_choices() -> None:
    unknown = rollout.rollback_choice(KNOWN, "r9")
    assert unknown["record"] == ""
    assert unknown["error"] == ("no deployment of release 'r9' can be gone back to; there are: r2 (now), r2, r1.")
    bare: dict[str, Any] = {"deployments": [], "current": {}, "former": ""}
    assert "there are: none" in rollout.rollback_choice(bare, "")["error"]


def test_the_report_says_what_each_host_has_now() -> None:
    had = {"__rollout_touched": True, "__rollout_plan": {"former": "1"}}
    hostvars = {
        "h1": {**had, "__rollout_walked": {"serving": {"release": {"id": "r1"}}}},
        "h2": {**had, "__rollout_failed": "Check the host: no answer", "__rollout_stuck": "Go back: disk full"},
        "h3": {"__rollout_touched": False},
        "h4": {},
        "h5": {**had, "__rollout_plan": {"former": ""}, "__rollout_failed": "Switch the host: crash"},
        "h6": {**had, "__rollout_walked": {"skipped": True}},
    }
    batches = [list(hostvars)]
    text = rollout.rollout_report(hostvars, ["h6", "h4", "h3", "h2", "h1", "h5"], set(hostvars) - {"h4"}, batches)
    assert text.splitlines() == [
        "The rollout stopped.",
        "- h1 went back to its former release r1",
        "- h2 did not get back to its former deployment: Go back: disk full",
        "  It failed at: Check the host: no answer",
        "- h3 was not touched",
        "- h4 cannot be reached any more; what it serves is not known",
        "- h5 had nothing to go back to",
        "  It failed at: Switch the host: crash",
        "- h6 keeps the new release",
        "When the reason is mended: ./fleet deploy",
    ]


def test_the_way_back_takes_hosts_that_must_stop_one_by_one_and_the_failed_ones_first() -> None:
    back = {"__rollout_goes_back": True, "__rollout_failed": ""}
    stops = {"stops": ["cpu0: too little memory"]}
    hostvars = {
        "h1": {**back, "__rollout_back": stops},
        "h2": {**back, "__rollout_back": stops},
        "h3": {**back, "__rollout_back": {"stops": []}},
        "h4": {**back, "__rollout_back": stops, "__rollout_failed": "Switch the host: crash"},
        "h5": {**back, "__rollout_back": {"stops": []}, "__rollout_failed": "Switch the host: crash"},
        "h6": {"__rollout_goes_back": False},
        "h7": {**back, "__rollout_stuck": "no such deployment"},
        # Nothing to go back to; it is only taken out of the edges.
        "h8": back,
        "h9": {},
    }
    assert rollout.rollout_way_back(hostvars, list(hostvars)) == [["h5", "h3", "h8"], ["h4"], ["h1"], ["h2"]]
    assert rollout.rollout_way_back(hostvars, ["h1", "h6"]) == [["h1"]]
    assert rollout.rollout_way_back(hostvars, ["h6", "h9"]) == []


def asked(edge: str, host: str, **answer: Any) -> dict[str, Any]:
    """The answer of an edge that was told to drain a lost host."""
    return {"__edge_one": [edge, host], **answer}


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        pytest.param([asked("e1", "h1", rc=0), asked("e2", "h1", rc=4)], "  It is drained, lest it come", id="drained"),
        pytest.param([asked("e1", "h1", rc=2)], "", id="never joined"),
        pytest.param(
            [asked("e1", "h1", rc=3, stderr="fleet-edge: without h1"), asked("e2", "h1", unreachable=True, msg="gone")],
            "  The edges may send it requests when it is back, with what was withdrawn (e1: fleet-edge: without h1; "
            "e2: gone). To keep it out: ./fleet drain h1",
            id="refused",
        ),
        pytest.param([], "", id="without edges"),
    ],
)
def test_the_report_says_whether_a_lost_host_may_come_back(answers: list[dict[str, Any]], said: str) -> None:
    hostvars = {
        "h1": {"__rollout_touched": True},
        "h2": {"__rollout_touched": False, "__edge_lost": {"results": answers}},
    }
    lines = rollout.rollout_report(hostvars, ["h1", "h2"], ["h2"], [["h1"], ["h2"]]).splitlines()
    assert lines[1] == "- h1 cannot be reached any more; what it serves is not known"
    assert lines[2].startswith(said or "- h2 was not touched")


def test_the_report_says_what_was_lost_on_the_way_back_and_who_goes_on_serving() -> None:
    walked = {"serving": {"release": {"id": "r1"}}}
    hostvars = {"h1": {"__rollout_walked": walked, "__rollout_nowhere": "h1 was not drained:\n e1: nowhere"}}
    text = rollout.rollout_report(hostvars, ["h1"], ["h1"], [["h1"]], {"e1": ["h0"], "e2": ["h0"]})
    assert text.splitlines() == [
        "The rollout stopped.",
        "- h1 went back to its former release r1",
        "  Nothing took its requests while it went back: h1 was not drained: e1: nowhere",
        "- h0 is not in the inventory any more; it goes on serving until others have taken its place",
        "When the reason is mended: ./fleet deploy",
    ]


def test_hosts_that_edges_have_kept() -> None:
    hostvars = {
        "e1": {"__edge_retained": {"stdout": json.dumps({"changed": False, "left": [], "held": ["h0"]})}},
        "e2": {"__edge_retained": {"stdout": json.dumps({"changed": True, "left": ["h0"], "held": []})}},
        # Not in this run.
        "e3": {},
        # As in --check.
        "e4": {"__edge_retained": {"skipped": True}},
    }
    assert rollout.rollout_held(hostvars, hostvars) == {"e1": ["h0"]}
    answers = [{"rc": 0, "stdout": json.dumps({"held": held})} for held in (["h0", "h9"], [], ["h0"])]
    assert rollout.rollout_needed(answers).startswith("h0, h9: not in the inventory any more, but nothing else serves")
    assert rollout.rollout_needed([answers[1], {"unreachable": True}]) == ""


MEMBER = {"address": "10.0.0.1", "weight": 2, "services": {"ocr": 8100}}


def test_edges_that_know_a_host_are_not_asked_again() -> None:
    edges = [
        {"edge": "e1", "members": {"h1": {**MEMBER, "weight": "2", "drained": None}}},
        {"edge": "e2", "members": {"h1": {**MEMBER, "address": "10.0.0.9"}}},
        {"edge": "e3", "members": {}},
        {"edge": "e4", "members": None, "msg": "cannot be reached"},
    ]
    assert edge.edges_that_know(edges, "h1", MEMBER) == ["e1"]


def test_a_persons_drain_stays_and_that_of_a_run_that_was_cut_off_does_not() -> None:
    def asked(**drained: str) -> list[dict[str, Any]]:
        first = {"edge": "e1", "members": {"h1": {**MEMBER, "drained": None}}}
        second = {"edge": "e2", "members": {"h1": {**MEMBER, "drained": drained or None}}}
        return [first, second, {"edge": "e3", "members": None}]

    seen = [
        (edge.drained_by_person(edges, "h1"), edge.drained_in_passing(edges, "h1"))
        for edges in (asked(), asked(by="somebody", verb="drain"), asked(by="somebody", verb="deploy"))
    ]
    assert seen == [(False, False), (True, False), (False, True)]


def test_an_edge_that_cannot_be_reached_is_named_with_what_to_do() -> None:
    results = [{"__edge_one": "e1", "rc": 0}, {"__edge_one": "e2", "unreachable": True, "msg": "No route\n to host"}]
    text = edge.edges_unreachable(results)
    assert text.startswith("e2 cannot be reached (No route to host).")
    assert """-e '{"edge_skip": ["e2"]}' --limit 'all:!e2'""" in text
    assert edge.edges_unreachable(results[:1]) == ""
