"""What places nginx's configuration, with a real nginx over a folder of the test."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import environments
import fleet_socket
import nginx_configuration
import processes
import pytest
from nginx_configuration import Configuration, NginxError, children, program_changed, runs
from processes import wait_for
from stack import USER, Fleet, Json

#: Stands where the module finds nginx: reloads reach the nginx of this test, and can be held up.
WRAPPER = """#!/bin/sh
case $* in
"-s reload")
    while [ -e {folder}/hold ]; do sleep 0.05; done
    exec {nginx} -e stderr -p {folder}/etc/nginx -c {folder}/etc/nginx/nginx.conf -s reload
    ;;
*) exec {nginx} -e stderr -p {folder}/etc/nginx "$@" ;;
esac
"""
MAIN = """user {user};
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/log/error.log;
events {{}}
http {{
    client_body_temp_path {folder}/t1;
    proxy_temp_path {folder}/t2;
    fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4;
    scgi_temp_path {folder}/t5;
    access_log off;
    include sites-enabled/a.conf;
}}
"""
SITE = """server {{
    listen 127.0.0.1:{port};
    location / {{ return 200 {answer}; }}
    location /slow {{ proxy_pass http://127.0.0.1:{backend}; }}
}}
"""


class Host:
    """A folder with /etc/nginx as Debian's package leaves it."""

    def __init__(self, fleet: Fleet) -> None:
        self.folder = fleet.folder
        self.root = self.folder / "etc" / "nginx"
        self.port, self.backend = processes.free_ports(2)
        (self.root / "conf.d").mkdir(parents=True)
        (self.root / "nginx.conf").write_text("# Debian's own\nevents {}\n")
        (self.root / "mime.types").write_text("types {}\n")
        (self.root / "modules-enabled").mkdir()
        self.wrapper = self.folder / "helpers" / "nginx"
        self.wrapper.write_text(WRAPPER.format(nginx=environments.nginx(), folder=self.folder))
        self.wrapper.chmod(0o755)
        self.state = self.folder / "state" / "nginx.json"

    def arguments(self, answer: str = "one", site: str = SITE, name: str = "a", **more: Any) -> Json:
        main = MAIN.format(folder=self.folder, user=USER).replace("a.conf", f"{name}.conf")
        content = site.format(port=self.port, backend=self.backend, answer=answer)
        return {
            "files": [
                {"path": "nginx.conf", "content": main},
                {"path": f"sites-available/{name}.conf", "content": content},
            ],
            "links": [{"path": f"sites-enabled/{name}.conf", "target": f"../sites-available/{name}.conf"}],
            "root": str(self.root),
            "state_file": str(self.state),
            "nginx": str(self.wrapper),
            "pid_file": str(self.folder / "nginx.pid"),
            "wait_seconds": 20,
            **more,
        }

    def run(self, answer: str = "one", check: bool = False, **more: Any) -> Json:
        configuration = Configuration({"ports": [], **self.arguments(answer, **more)})
        if check:
            differences = configuration.differences()
            return {"failed": False, "changed": bool(differences) or configuration.stale(), "diff": differences}
        try:
            return {"failed": False, **configuration.apply()}
        except NginxError as error:
            return {"failed": True, "msg": str(error)}

    def tree(self) -> dict[str, str]:
        """Every file and link of the whole host with its mode and content."""
        found = {}
        for path in sorted((self.folder / "etc").rglob("*")):
            content = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
            digest = hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()
            found[str(path.relative_to(self.folder))] = f"{stat.filemode(path.lstat().st_mode)} {digest}"
        return found

    def master(self) -> int:
        return int((self.folder / "nginx.pid").read_text())

    @contextmanager
    def nginx(self) -> Iterator[processes.Server]:
        command: list[str | Path] = [environments.nginx(), "-e", "stderr", "-p", self.root]
        command += ["-c", self.root / "nginx.conf", "-g", "daemon off;"]
        with processes.running(command, self.folder / "log" / "nginx.log", end=signal.SIGQUIT) as server:
            wait_for(lambda: server.process.poll() is not None or processes.listens(self.port), server.text)
            yield server

    @contextmanager
    def daemon(self, program: Path | None = None) -> Iterator[None]:
        """nginx as systemd starts it; in the foreground it does not change its program."""
        command: list[str | Path] = [program or environments.nginx(), "-e", "stderr", "-p", self.root]
        command += ["-c", self.root / "nginx.conf", "-g", "daemon on;"]
        with processes.running(command, self.folder / "log" / "nginx.log") as server:
            # Before the process that starts it has ended, it takes no other program.
            wait_for(lambda: server.process.poll() is not None and processes.listens(self.port), server.text)
            try:
                yield
            finally:
                # One that has taken over has lost the mark by which the others are found.
                last = self.master()
                os.kill(last, signal.SIGQUIT)
                wait_for(lambda: not runs(last), "nginx to end")

    def answer(self, path: str = "/") -> str:
        answer = fleet_socket.request(f"127.0.0.1:{self.port}", "http", path, timeout=20)
        assert answer.status == 200, answer
        return answer.body.decode()


@pytest.fixture
def host(fleet: Fleet) -> Host:
    return Host(fleet)


def names(result: Json, side: str = "after_header") -> list[str]:
    return sorted(Path(one[side]).name for one in result["diff"] if one[side])


def test_a_port_that_goes_to_all_addresses_is_told_of(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The running nginx holds one address of the port, and the kernel refuses it all of them as well."""
    monkeypatch.setattr(nginx_configuration, "ERROR_LOG", host.folder / "log" / "error.log")
    monkeypatch.setattr(nginx_configuration, "START_SECONDS", 3)
    everywhere = SITE.replace("127.0.0.1:{port}", "{port}")
    host.run()
    with host.nginx():
        refused = host.run("two", site=everywhere)
        assert refused["failed"]
        assert "systemctl stop nginx; then deploy again" in refused["msg"]
        assert host.answer() == "one"
    assert not host.run("two", site=everywhere)["failed"]
    with host.nginx():
        assert host.answer() == "two"


def test_a_bare_host_gets_its_configuration(host: Host) -> None:
    before = host.tree()
    planned = host.run(check=True)
    assert planned["changed"]
    assert host.tree() == before, "check mode"
    assert not host.state.exists(), "check mode"
    assert names(planned) == ["a.conf", "a.conf", "nginx.conf"]
    (main,) = [one for one in planned["diff"] if one["after_header"].endswith("nginx.conf")]
    assert main["before"].startswith("# Debian's own")
    assert main["after"] == host.arguments()["files"][0]["content"]

    placed = host.run()
    assert not placed["failed"], placed
    assert (placed["changed"], placed["running"], placed["diff"]) == (True, False, planned["diff"])
    added = set(host.tree()) - set(before)
    assert added == {
        "etc/nginx/nginx.conf.before-fleet",
        *(f"etc/nginx/{path}" for path in ("sites-available", "sites-enabled")),
        *(f"etc/nginx/{path}/a.conf" for path in ("sites-available", "sites-enabled")),
    }
    assert (host.root / "nginx.conf.before-fleet").read_text().startswith("# Debian's own")
    assert str((host.root / "sites-enabled" / "a.conf").readlink()) == "../sites-available/a.conf"
    assert stat.S_IMODE((host.root / "nginx.conf").stat().st_mode) == 0o644

    after = host.tree()
    again = host.run()
    assert (again["changed"], again["diff"]) == (False, [])
    assert host.tree() == after


def test_the_original_is_kept_once(host: Host) -> None:
    host.run()
    kept = host.root / "nginx.conf.before-fleet"
    host.run("two")
    (host.root / "nginx.conf").write_text("events {} # changed by hand")
    host.run("two")
    assert kept.read_text().startswith("# Debian's own")
    host.state.unlink()
    host.run("three")
    assert kept.read_text().startswith("# Debian's own")


def test_without_an_original_nothing_of_ours_is_kept_for_one(host: Host) -> None:
    (host.root / "nginx.conf").unlink()
    host.run()
    host.run("two")
    (host.root / "nginx.conf").write_text("events {} # changed by hand")
    host.run("two")
    assert not (host.root / "nginx.conf.before-fleet").exists()


def test_the_running_nginx_takes_a_change_and_only_a_change(host: Host) -> None:
    host.run("one")
    with host.nginx() as server:
        workers = children
        # What was placed before nginx ran is what it was started with; only the module does not know it yet.
        host.run("one")
        before = workers(server.process.pid)
        assert len(before) == 2
        assert not host.run("one")["changed"]
        assert workers(server.process.pid) == before
        changed = host.run("two")
        assert (changed["changed"], changed["running"], names(changed)) == (True, True, ["a.conf"])
        assert host.answer() == "two"
        assert not workers(server.process.pid) & before
        assert not host.run("two")["changed"]


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (SITE.replace("location / {{", "location / {{ no_such_directive;"), 'unknown directive "no_such_directive" in'),
        (SITE.replace("location /slow", "include no-such-file; location /slow"), "no-such-file"),
        (SITE + "}}", 'unexpected "}" in'),
    ],
    ids=["directive", "file", "brace"],
)
def test_a_refused_configuration_touches_nothing(host: Host, site: str, said: str) -> None:
    host.run("one")
    with host.nginx() as server:
        host.run("one")
        before, state = host.tree(), host.state.read_text()
        workers = children(server.process.pid)
        refused = host.run("two", site=site)
        assert refused["failed"]
        assert "nginx refuses the new configuration; nothing was changed" in refused["msg"]
        assert said in refused["msg"]
        assert f"{host.root}/" in refused["msg"]
        assert ".nginx-test-" not in refused["msg"], "where the person would look, not the copy"
        assert host.tree() == before
        assert host.state.read_text() == state
        assert host.answer() == "one"
        assert children(server.process.pid) == workers
        assert host.run("two")["changed"], "the next one that is right is taken"
        assert host.answer() == "two"


def test_files_no_longer_wanted_go_and_those_of_others_stay(host: Host) -> None:
    host.run(name="a")
    (host.root / "sites-enabled" / "theirs.conf").write_text("this is not even a configuration")
    planned = host.run(name="b", check=True)
    gone = [one["before_header"] for one in planned["diff"] if not one["after_header"]]
    assert sorted(gone) == [f"{host.root}/sites-available/a.conf", f"{host.root}/sites-enabled/a.conf"]
    assert (host.root / "sites-available" / "a.conf").exists(), "check mode"
    assert host.run(name="b")["changed"]
    for folder in ("sites-available", "sites-enabled"):
        assert not os.path.lexists(host.root / folder / "a.conf")
        assert (host.root / folder / "b.conf").exists()
    assert (host.root / "sites-enabled" / "theirs.conf").exists()
    assert not host.run(name="b")["changed"]


def test_what_was_changed_by_hand_is_put_right(host: Host) -> None:
    host.run()
    after = host.tree()
    (host.root / "sites-available" / "a.conf").write_text("server {}\n")
    (host.root / "sites-enabled" / "a.conf").unlink()
    (host.root / "sites-enabled" / "a.conf").symlink_to("/dev/null")
    result = host.run()
    assert names(result) == ["a.conf", "a.conf"]
    assert host.tree() == after


def test_a_run_cut_off_between_placing_and_reloading_is_made_up_for(host: Host) -> None:
    host.run("one")
    with host.nginx():
        host.run("one")
        (host.folder / "hold").touch()
        process = multiprocessing.get_context("fork").Process(target=host.run, args=("two",))
        process.start()
        wait_for(lambda: "two" in (host.root / "sites-available" / "a.conf").read_text(), "the files to be placed")
        process.kill()
        process.join()
        (host.folder / "hold").unlink()
        assert host.answer() == "one", "placed, not loaded"
        planned = host.run("two", check=True)
        assert (planned["changed"], planned["diff"]) == (True, [])
        made_up = host.run("two")
        assert (made_up["changed"], made_up["diff"]) == (True, [])
        assert host.answer() == "two"
        assert not host.run("two")["changed"]


def test_the_former_files_come_back_when_nginx_does_not_take_the_new_ones(host: Host) -> None:
    host.run("one")
    with host.nginx():
        host.run("one")
        before = host.tree()
        working = host.wrapper.read_text()
        host.wrapper.write_text(working.replace("-s reload\n", "-s no-such-signal\n"))
        failed = host.run("two")
        assert failed["failed"]
        assert "nginx -s reload failed" in failed["msg"]
        assert "The former files were put back" in failed["msg"]
        host.wrapper.write_text(working)
        assert host.tree() == before
        assert host.answer() == "one"
        assert not host.run("one")["changed"]
        host.run("two")
        assert host.answer() == "two"


def test_nginx_that_takes_them_late_gets_the_former_ones_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has read the new files already, and only waits for something; it must not end up with what was put away."""
    late = host.root / "late.conf"
    late.touch()
    # Read last; as a pipe it holds nginx up until somebody writes.
    site = SITE + f"include {late};\n"
    host.run("one", site=site)
    monkeypatch.setattr(nginx_configuration, "START_SECONDS", 1)
    test = Configuration.test

    def hold_after_the_test(configuration: Configuration) -> None:
        test(configuration)
        late.unlink()
        os.mkfifo(late)
        os.link(late, host.folder / "pipe")

    # The signal alone: nginx's own command reads all files first.
    alone = f'"-s reload") kill -HUP $(cat {host.folder}/nginx.pid); exit 0'
    host.wrapper.write_text(host.wrapper.read_text().replace('"-s reload")', alone))
    with host.nginx() as server:
        host.run("one", site=site)
        former = children(server.process.pid)
        monkeypatch.setattr(Configuration, "test", hold_after_the_test)
        failed = host.run("two", site=site)
        assert "nginx did not take the new configuration" in failed["msg"]
        late.unlink()
        late.touch()
        with (host.folder / "pipe").open("w"):
            pass
        wait_for(lambda: not children(server.process.pid) & former and host.answer() == "one", "the former files")
        time.sleep(0.5)
        assert host.answer() == "one"
        monkeypatch.setattr(Configuration, "test", test)
        assert host.run("one", site=site, check=True)["changed"], "the next run makes sure"


def test_what_a_killed_test_left_behind_is_cleared_away(host: Host) -> None:
    left = host.root.parent / ".nginx-test-killed"
    left.mkdir()
    (left / "nginx.conf").touch()
    assert not host.run()["failed"]
    assert [path.name for path in host.root.parent.iterdir()] == ["nginx"]


@contextmanager
def slow_backend(port: int, release: threading.Event) -> Iterator[None]:
    """A server that answers its only request when it is told to."""
    listener = socket.create_server(("127.0.0.1", port))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            release.wait(20)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nslow")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        release.set()
        thread.join()
        listener.close()


def test_it_waits_for_the_requests_of_former_workers(host: Host) -> None:
    host.run("one")
    release = threading.Event()
    answers: list[str] = []
    with host.nginx(), slow_backend(host.backend, release):
        host.run("one")
        client = threading.Thread(target=lambda: answers.append(host.answer("/slow")))
        client.start()
        wait_for(lambda: connections(host.backend), "the request to be on its way")

        late = host.run("two", wait_seconds=1)
        assert late["failed"]
        assert "still serve requests of the former configuration after 1 s" in late["msg"]
        assert host.answer() == "two", "new requests meet the new configuration"

        results: list[Json] = []
        late_run = threading.Thread(target=lambda: results.append(host.run("two")))
        late_run.start()
        time.sleep(1)
        assert not results, "it waits"
        release.set()
        late_run.join()
        (result,) = results
        client.join()
        assert (result["failed"], result["changed"]) == (False, True)
        assert answers == ["slow"]


def connections(port: int) -> bool:
    """Whether somebody is connected to a port of this machine."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(line[1].endswith(f":{port:04X}") and line[3] == "01" for line in lines)


def test_a_full_disk_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(type(Path())):  # type: ignore[misc]
        def write_text(self, *arguments: Any, **options: Any) -> int:
            raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(nginx_configuration, "Path", Full)
    before = host.tree()
    with pytest.raises(OSError, match="No space left on device"):
        host.run()
    assert host.tree() == before


# ---- another nginx in the place of the running one


def test_a_program_that_was_upgraded_is_seen(host: Host) -> None:
    program = host.folder / "helpers" / "nginx-program"
    shutil.copy2(environments.nginx(), program)
    assert not host.run()["failed"]
    with host.daemon(program):
        assert program_changed(host.master()) == []
        # As a package does it: a new file of the same name.
        shutil.copy2(program, program.with_name("new"))
        program.with_name("new").rename(program)
        assert program_changed(host.master()) == [str(program)]
        Configuration({"ports": [], **host.arguments()}).take_over()
        assert program_changed(host.master()) == []
        program.unlink()
        assert program_changed(host.master()) == [], "a removed one would not start again"
    assert program_changed(2**22 + 1) == []


def test_another_nginx_takes_over_without_losing_a_request(host: Host) -> None:
    assert not host.run()["failed"]
    release, end = threading.Event(), threading.Event()
    slow: list[str] = []
    answers: list[str] = []
    taken: list[int] = []

    def load() -> None:
        while not end.wait(0.005):
            answers.append(host.answer())

    with host.daemon(), slow_backend(host.backend, release):
        former = host.master()
        clients = [threading.Thread(target=load) for _ in range(3)]
        clients.append(threading.Thread(target=lambda: slow.append(host.answer("/slow"))))
        for one in clients:
            one.start()
        wait_for(lambda: connections(host.backend), "the request to be on its way")
        configuration = Configuration({"ports": [], **host.arguments()})
        run = threading.Thread(target=lambda: taken.append(configuration.take_over()))
        run.start()
        time.sleep(1)
        assert run.is_alive(), "it waits for the slow request"
        release.set()
        run.join(10)
        end.set()
        for one in clients:
            one.join(10)
        assert taken == [host.master()] != [former]
        assert not runs(former)
        assert slow == ["slow"], "it was on its way"
        assert set(answers) == {"one"}
        assert len(answers) > 50
        assert not (host.folder / "nginx.pid.oldbin").exists()


def test_what_a_run_that_was_cut_off_began_is_brought_to_its_end(host: Host) -> None:
    assert not host.run()["failed"]
    with host.daemon():
        former = host.master()
        os.kill(former, signal.SIGUSR2)
        wait_for(lambda: (host.folder / "nginx.pid").exists() and host.master() != former, "the new nginx")
        new = host.master()
        assert Configuration({"ports": [], **host.arguments()}).take_over() == new
        assert not runs(former)


def test_when_the_new_program_does_not_start_the_former_one_serves_on(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = host.folder / "helpers" / "nginx-program"
    shutil.copy2(environments.nginx(), program)
    monkeypatch.setattr(nginx_configuration, "START_SECONDS", 1)
    assert not host.run()["failed"]
    with host.daemon(program):
        former = host.master()
        program.with_name("new").write_text("#!/bin/sh\nexit 1\n")
        program.with_name("new").chmod(0o755)
        program.with_name("new").rename(program)
        with pytest.raises(NginxError, match="did not start its new program; the former one serves on"):
            Configuration({"ports": [], **host.arguments()}).take_over()
        wait_for(lambda: (host.folder / "nginx.pid").exists() and host.master() == former, "its file to be back")
        assert host.answer() == "one"


def test_without_nginx_nothing_takes_over(host: Host) -> None:
    with pytest.raises(NginxError, match="nginx does not run"):
        Configuration({"ports": [], **host.arguments()}).take_over()
