"""The watch of a host: devices go out and come back, with real emperors, vassals and nginx, under load."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ansible_modules
import nginx_configuration
import pytest
import release_switch
from nginx_configuration import NginxError, alone
from processes import wait_for
from stack import Fleet, Json
from switch_host import RUN, Client, Host
from upstreams import Drained, Upstreams
from watched import Watched


@pytest.fixture
def host(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(fleet)
    monkeypatch.setattr(release_switch, "manager", lambda kind: host.units)
    monkeypatch.setattr(release_switch, "note", lambda *arguments, **fields: "")
    return host


@contextmanager
def serving(watched: Watched) -> Iterator[None]:
    """Have the host serve on both devices."""
    host = watched.host
    with host.fleet.emperor("one"), host.fleet.emperor("two"):
        host.go(watched.wanted())
        with host.fleet.nginx([host.port]):
            host.go(watched.wanted())
            yield


def devices_that_answer(host: Host, count: int = 12) -> set[str]:
    """Who answers; nginx's former workers take requests for a moment after a reload."""
    return {Client(host.port).ask()[2] for _ in range(count)}


def drain(host: Host, monkeypatch: pytest.MonkeyPatch, device: str, state: str, **options: str) -> Json:
    module = ansible_modules.load("modules", "device_drain")
    monkeypatch.setattr(module, "note", lambda *arguments, **fields: "")
    return ansible_modules.call(module, {"device": device, "run": RUN, "state": state, **host.places(), **options})


def test_a_fatal_fault_takes_a_device_out_and_a_boot_brings_it_back(host: Host) -> None:
    """With clients that ask all the while, and none of them fails."""
    watched = Watched(host)
    with serving(watched):
        with host.load(), watched.run():
            watched.xid("one", 79, "GPU has fallen off the bus.")
            watched.wait_out("one")
            wait_for(lambda: devices_that_answer(host) == {"two"}, "nginx to lead there")
            entry = watched.drained()["one"]
            assert entry["by"] == "fleet-watch"
            assert entry["why"] == "lost: the card has fallen off the bus (Xid 79: GPU has fallen off the bus.)"
            # It answers all the while; of this class only a boot brings it back.
            time.sleep(1.5)
            assert watched.down() == ["one"]
            of_status = watched.status()["devices"]["one"]
            assert (of_status["fault"], of_status["out"], of_status["back"]) == ("lost", True, "reboot")
            assert of_status["command"].startswith("./fleet reboot HOST")
        watched.reboot()
        with host.load(), watched.run():
            watched.wait_out()
            wait_for(lambda: not watched.drained(), "the note to go")
        wait_for(lambda: devices_that_answer(host) == {"one", "two"}, "nginx to lead there")
        events = [(one["event"], one["device"], one["by"]) for one in watched.audit()]
        assert events == [("drained", "one", "fleet-watch"), ("undrained", "one", "fleet-watch")]


def test_a_known_answer_that_fails_twice_takes_a_device_out_and_good_ones_bring_it_back(host: Host) -> None:
    """On a host without a GPU nothing else is looked at."""
    watched = Watched(host, gpus=False)
    with serving(watched), watched.run():
        time.sleep(0.7)
        assert watched.down() == []
        watched.make_ill("two")
        watched.wait_out("two")
        assert "known-answer" in watched.drained()["two"]["why"]
        assert "answers 503: the known answer is wrong" in watched.drained()["two"]["why"]
        wait_for(lambda: devices_that_answer(host) == {"one"}, "nginx to lead there")
        assert watched.status()["amiss"] == []
        watched.make_well("two")
        watched.wait_out()
        wait_for(lambda: devices_that_answer(host) == {"one", "two"}, "nginx to lead there")


def test_one_bad_answer_is_none(host: Host) -> None:
    watched = Watched(host, gpus=False, failures=1000)
    with serving(watched), watched.run():
        watched.make_ill("two")
        time.sleep(1)
        assert watched.down() == []
        assert "503" in watched.status()["devices"]["two"]["answer"]


def test_a_device_whose_model_is_loaded_gets_no_requests_meanwhile(host: Host) -> None:
    """uWSGI listens while its workers load, so that requests would wait for them."""
    watched = Watched(host, gpus=False, good_seconds=60)
    with serving(watched), watched.run():
        (ini,) = (host.fleet.devices_dir / "one" / "vassals").glob("*.ini")
        ini.write_text(ini.read_text().replace("workers = 1\n", "workers = 1\nexec-pre-app = sleep 4\n"))
        watched.wait_out("one")
        assert watched.drained()["one"]["why"].startswith("starting: no worker of a service takes requests")
        # As soon as it is loaded, and long before the minute that a wrong answer would cost.
        watched.wait_out()
        wait_for(lambda: devices_that_answer(host) == {"one", "two"}, "both to answer")


def test_the_last_device_stays_when_it_is_ill_and_goes_when_it_is_broken(host: Host) -> None:
    watched = Watched(host)
    with serving(watched), watched.run() as server:
        watched.make_ill("one")
        watched.wait_out("one")
        watched.make_ill("two")
        wait_for(lambda: watched.status()["devices"]["two"]["fault"] == "known-answer", "the fault to be seen")
        time.sleep(0.5)
        assert watched.down() == ["one"]
        # The other one can take over again.
        watched.make_well("one")
        watched.wait_out("two")
        watched.xid("one", 95, "Uncontained ECC error")
        watched.wait_out("one", "two")
        wait_for(lambda: Client(host.port).ask()[0] == 503, "nginx to say so")
        assert server.process.poll() is None


def test_a_lost_card_and_errors_of_its_memory_are_seen_by_nvml(host: Host) -> None:
    watched = Watched(host, kernel_log=False)
    with serving(watched), watched.run():
        wait_for(lambda: watched.status()["nvml"], "a first look")
        assert watched.status()["amiss"] == ["the kernel's log is not read: this test has none"]
        watched.show(one={"uncorrected": 1})
        watched.wait_out("one")
        assert "1 uncorrectable ECC errors" in watched.drained()["one"]["why"]
        watched.show(one={"uncorrected": 1}, two={"lost": "GPU is lost (15)"})
        watched.wait_out("one", "two")
        # The driver says that nothing must be done, and the process that hit the error is another one by now.
        (worker,) = [w["pid"] for w in host.fleet.stats(watched.wanted()["vassals"][0])["workers"]]
        time.sleep(1.1)
        os.kill(worker, signal.SIGKILL)
        watched.wait_out("two")


def test_without_a_kernel_log_nvml_hands_on_the_xids(host: Host) -> None:
    watched = Watched(host, kernel_log=False)
    with serving(watched), watched.run():
        partial = watched.nvml.with_suffix(".partial")
        partial.write_text(json.dumps({"xid": 119, "devices": ["two"]}))
        partial.rename(watched.nvml)
        watched.wait_out("two")
        assert watched.drained()["two"]["why"].endswith("(Xid 119)")


def test_faults_of_programs_do_not_condemn_a_card(host: Host) -> None:
    watched = Watched(host)
    with serving(watched), watched.run():
        for number in (13, 31, 43, 45, 63, 9999):
            watched.xid("one", number)
        wait_for(lambda: watched.status()["devices"].get("one", {}).get("seen", {}).get("unknown"), "the last of them")
        assert watched.status()["devices"]["one"]["seen"] == {"application": 4, "memory-worn-a-little": 1, "unknown": 1}
        assert watched.down() == []
        # A link is out of order only when it fails again and again.
        for _ in range(2):
            watched.xid("one", 74)
        time.sleep(0.3)
        assert watched.down() == []
        watched.xid("one", 74)
        watched.wait_out("one")


def test_a_driver_that_hangs_does_not_hang_the_watch(host: Host) -> None:
    watched = Watched(host)
    with serving(watched), watched.run():
        watched.nvml.write_text("hang")
        wait_for(lambda: watched.status()["amiss"], "the silence to be seen")
        assert watched.status()["amiss"][0].startswith("NVML is not read: NVML does not answer for")
        watched.xid("one", 119, "Timeout waiting for RPC from GSP!")
        watched.wait_out("one")


def test_a_restart_of_the_watch_loses_nothing(host: Host) -> None:
    watched = Watched(host)
    with serving(watched):
        with watched.run() as server:
            watched.xid("one", 48, "DBE")
            watched.wait_out("one")
            wait_for(lambda: "boot-1" in Path(watched.settings["state_file"]).read_text(), "its state")
            os.kill(server.process.pid, signal.SIGKILL)
            server.process.wait()
        # Nobody looked while this happened.
        watched.xid("two", 79, "GPU has fallen off the bus.")
        with watched.run():
            watched.wait_out("one", "two")
            assert watched.drained()["one"]["case"]["fault"] == "memory"
        # Without its own state, what stands in drained.json is enough to go on.
        Path(watched.settings["state_file"]).unlink()
        watched.reboot()
        with watched.run():
            watched.wait_out()


def test_what_a_person_took_out_is_a_persons_and_so_is_an_undrain(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(host)
    with serving(watched), watched.run():
        assert drain(host, monkeypatch, "one", "drained", why="a new fan")["changed"]
        watched.xid("one", 79)
        time.sleep(1)
        assert watched.drained()["one"]["by"] == RUN["by"]
        assert drain(host, monkeypatch, "one", "undrained")["changed"]
        time.sleep(0.5)
        assert watched.down() == []
        # One that the watch took out comes back by the word of a person, whatever its class says.
        watched.xid("one", 79)
        watched.wait_out("one")
        assert drain(host, monkeypatch, "one", "undrained")["changed"]
        time.sleep(0.7)
        assert watched.down() == []
        # And a person can make it theirs.
        watched.xid("one", 79)
        watched.wait_out("one")
        assert drain(host, monkeypatch, "one", "drained", why="it goes back to the vendor")["changed"]
        time.sleep(0.7)
        assert watched.drained()["one"]["why"] == "it goes back to the vendor"


def test_a_deploy_leaves_out_what_the_watch_took_out(host: Host) -> None:
    watched = Watched(host)
    with serving(watched), watched.run():
        watched.xid("one", 79)
        watched.wait_out("one")
        wait_for(lambda: devices_that_answer(host) == {"two"}, "nginx to lead past it")
        with host.load() as answers:
            host.go(watched.wanted("r2"))
        assert {device for _, _, device in answers} == {"two"}
        assert watched.down() == ["one"]
        assert not host.switch(watched.wanted("r2")).plan()["changed"]


def test_a_device_that_goes_out_in_the_middle_of_a_deploy_stays_out(host: Host) -> None:
    """The deploy has begun with both devices in, and loads nginx's configuration after the watch has."""
    watched = Watched(host)
    with serving(watched), watched.run():
        switch = host.switch(watched.wanted("r2"))
        began = switch.vassals.start

        def start(vassals: list) -> list:
            found = began(vassals)
            watched.xid("one", 79)
            watched.wait_out("one")
            return found

        switch.vassals.start = start
        switch.apply()
        assert watched.down() == ["one"]
        wait_for(lambda: devices_that_answer(host) == {"two"}, "nginx to lead there")


def test_a_device_that_a_deploy_works_on_is_left_to_it(host: Host) -> None:
    """Nobody judges a device that nginx leads past, and turning another one does not lead there again."""
    watched = Watched(host)
    with serving(watched), watched.run():
        switch = host.switch(watched.wanted())
        switch.lead_past("one")
        watched.make_ill("one")
        time.sleep(1)
        assert "one" not in watched.drained()
        watched.xid("two", 79)
        watched.wait_out("one", "two")
        assert list(watched.drained()) == ["two"]


def test_reading_goes_on_beside_requests_that_take_long(host: Host) -> None:
    """A device goes out at once for new requests; the one that is on its way gets its answer."""
    watched = Watched(host)
    with serving(watched), watched.run():
        slow = [Client(host.port, "/tell?seconds=3") for _ in range(2)]
        asked = [threading.Thread(target=lambda client=one: client.answers.append(client.ask())) for one in slow]
        for one in asked:
            one.start()
        time.sleep(0.3)
        watched.xid("one", 79)
        began = time.monotonic()
        watched.wait_out("one")
        assert time.monotonic() - began < 2
        for one in asked:
            one.join()
        assert sorted(client.answers[0][::2] for client in slow) == [(200, "one"), (200, "two")]
        # Once they are answered, what is loaded is noted, and the next deploy has nothing to do.
        state = Path(host.places()["nginx_state_file"])
        wait_for(lambda: json.loads(state.read_text())["loaded"], "the note of what is loaded")
        assert not host.switch(watched.wanted()).plan()["changed"]


def test_what_somebody_else_has_noted_meanwhile_stays(host: Host) -> None:
    watched = Watched(host, gpus=False)
    with serving(watched):
        drained = Drained(Path(host.places()["drained_file"]))
        upstreams = Upstreams({**host.places(), "nginx_program": ""}, 5)
        upstreams.turn(drained, "one", {"by": "somebody"}, only_of="fleet-watch")
        with pytest.raises(NginxError, match="one was taken out by somebody meanwhile; nothing was changed"):
            upstreams.turn(drained, "one", None, only_of="fleet-watch")
        assert drained.read() == {"one": {"by": "somebody"}}


# ---- the lock


def test_only_one_at_a_time_changes_nginx(tmp_path: Path) -> None:
    file = tmp_path / "state" / "nginx.json"
    order: list[str] = []

    def second() -> None:
        with alone(file):
            order.append("second")

    with alone(file):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
        with (
            pytest.raises(NginxError, match=r"longer than 0.2 s; nothing was changed. Look: fuser -v .*nginx.lock"),
            alone(file, 0.2),
        ):
            pass
    thread.join()
    assert order == ["first", "second"]
    assert (tmp_path / "state" / "nginx.lock").stat().st_mode & 0o777 == 0o600


def test_many_changes_at_once_leave_files_and_nginx_as_one_of_them_wanted(host: Host) -> None:
    """Two threads take devices out and in, and a third one deploys; in the end all agree."""
    watched = Watched(host, gpus=False)
    with serving(watched):
        errors: list[str] = []

        def turn(device: str) -> None:
            upstreams = Upstreams({**host.places(), "nginx_program": ""}, 20)
            drained = Drained(Path(host.places()["drained_file"]))
            for number in range(6):
                entry = {"by": "test", "since": "", "why": ""} if number % 2 == 0 else None
                try:
                    configuration, change = upstreams.turn(drained, device, entry)
                    configuration.finish(change)
                except NginxError as error:
                    errors.append(str(error))

        def deploy() -> None:
            for release in ("r2", "r1"):
                host.go(watched.wanted(release))

        threads = [threading.Thread(target=turn, args=(name,)) for name in ("one", "two")]
        threads.append(threading.Thread(target=deploy))
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert not errors
        assert watched.down() == []
        assert watched.drained() == {}
        plan = host.switch(watched.wanted("r1")).plan()
        assert [step for step in plan["steps"] if "nginx" not in step] == []
        wait_for(lambda: devices_that_answer(host) == {"one", "two"}, "nginx to lead there")


def test_without_a_program_nginx_itself_refuses(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch may not start nginx's program: what nginx does not take comes back, and so does the note."""
    monkeypatch.setattr(nginx_configuration, "START_SECONDS", 1)
    watched = Watched(host, gpus=False)
    with serving(watched):
        main = host.root / "nginx.conf"
        good = main.read_text()
        main.write_text(good + "nonsense on;\n")
        drained = Drained(Path(host.places()["drained_file"]))
        upstreams = Upstreams({**host.places(), "nginx_program": ""}, 5)
        with pytest.raises(NginxError, match="did not take the new configuration"):
            upstreams.turn(drained, "one", {"by": "test"})
        assert watched.down() == []
        assert drained.read() == {}
        wait_for(lambda: devices_that_answer(host) == {"one", "two"}, "nginx to lead there")
        main.write_text(good)
        configuration, change = upstreams.turn(drained, "one", {"by": "test"})
        configuration.finish(change)
        wait_for(lambda: devices_that_answer(host) == {"two"}, "nginx to lead there")
