"""Services of an inventory become vassals: worked out by the role's own expressions, and run by real uWSGI."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible_modules
import measured
import processes
import pytest
from ansible.errors import AnsibleFilterError
from stack import CPU, DEVICES, GROUP, HOST, USER, UWSGI, Fleet, Json

TINY = Path(__file__).parent / "data" / "tiny"
SERVICE = {
    "name": "tiny",
    "route": "/tell",
    "wsgi_file": "app/tiny.py",
    "ready_path": "",
    "workers": 2,
    # net.core.somaxconn may be low where the tests run.
    "listen": 64,
}
services = ansible_modules.load("filter", "services")


def resolved(**options: Any) -> Json:
    (service,) = services.services_resolve([{"name": "ocr", "route": "/v1/parse", "model": "m:M", **options}])
    return dict(service)


def device(name: str, memory_mib: int, cores: int = 8) -> Json:
    return {"name": name, "kind": name.rstrip("0123456789"), "memory_mib": memory_mib, "cores": cores}


def workers(found: list[Json]) -> list[int]:
    return [one["workers"] for one in found]


def plan(memories: list[int], host_mib: int = 131072, kind: str = "gpu", cores: int = 8, **options: Any) -> list[Json]:
    devices = [device(f"{kind}{number}", memory, cores) for number, memory in enumerate(memories)]
    return list(services.services_plan([resolved(**options)], devices, {"memory_mib": host_mib, "cores": 16}))


# ---- workers, threads and ports


@pytest.mark.parametrize("memory", [16384, 16376, 16280, 16160], ids=["V100", "A4000", "P100", "V100, old driver"])
def test_two_cards_of_16_gib_and_4_gib_a_worker_are_eight_workers(memory: int) -> None:
    assert workers(plan([memory, memory], workers="auto", memory_per_worker_mib=4096)) == [4, 4]
    assert workers(plan([memory, memory])) == [4, 4], "auto and 4 GiB are the defaults"


@pytest.mark.parametrize(
    ("memory", "options", "expected"),
    [
        (15360, {}, 3),  # A T4: one of its 16 GiB goes to error correction.
        (23034, {}, 5),
        (24564, {}, 6),
        (40960, {"memory_per_worker_mib": 10000}, 4),
        (16384, {"device_reserve_mib": 1024}, 3),
        (16384, {"device_reserve_mib": 8192}, 2),
        (4864, {}, 1),
        (2048, {}, 1),
        (2048, {"device_reserve_mib": 4096}, 1),
    ],
)
def test_workers_auto_divides_what_the_reserve_leaves(memory: int, options: Json, expected: int) -> None:
    assert workers(plan([memory], **options)) == [expected]


@pytest.mark.parametrize(
    ("host", "options", "expected"),
    [
        (131072, {}, [4, 4]),
        (8192, {"host_reserve_mib": 0}, [2, 2]),
        (8192, {"host_reserve_mib": 0, "host_memory_per_worker_mib": 1024}, [4, 4]),
        (16383, {"host_reserve_mib": 0}, [3, 3]),
        (16384, {}, [3, 3]),
        (1024, {}, [1, 1]),
    ],
)
def test_workers_auto_is_capped_by_the_hosts_memory(host: int, options: Json, expected: list[int]) -> None:
    assert workers(plan([16384, 16384], host, **options)) == expected


@pytest.mark.parametrize(("cores", "threads", "expected"), [(2, 1, 2), (8, 1, 8), (8, 4, 2), (1, 1, 1), (2, 4, 1)])
def test_workers_auto_on_a_cpu_is_capped_by_its_cores(cores: int, threads: int, expected: int) -> None:
    assert workers(plan([65536], 131072, "cpu", cores, threads=threads)) == [expected]
    assert workers(plan([65536], 131072, "gpu", cores, threads=threads)) == [16], "a GPU's workers are not"


@pytest.mark.parametrize("given", [1, "1", 7, "7"])
def test_a_number_of_workers_is_taken_as_it_is(given: object) -> None:
    assert workers(plan([2048, 999999], 4096, "cpu", 1, workers=given)) == [int(str(given))] * 2


@pytest.mark.parametrize("given", [0, -1, "many", "", 2.5, None, True, [2]])
def test_another_number_of_workers_is_refused(given: object) -> None:
    with pytest.raises(
        AnsibleFilterError, match=r"services: ocr: workers is .* it takes 'auto' or a whole number above 0"
    ):
        plan([16384], workers=given)


@pytest.mark.parametrize(
    ("cores", "wanted", "threads", "expected"), [(8, 2, 1, 4), (8, 4, 2, 1), (8, 3, 1, 2), (2, 8, 1, 1), (16, 1, 1, 16)]
)
def test_compute_threads_share_the_cores(cores: int, wanted: int, threads: int, expected: int) -> None:
    (vassal,) = plan([65536], cores=cores, workers=wanted, threads=threads)
    environment = services.services_environment(
        {**vassal, "device": {**vassal["device"], "kind": "cpu"}}, {"id": "r1", "dir": "/r"}
    )
    names = ("INFERENCE_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    assert [environment[name] for name in names] == [str(expected)] * 4


def test_an_option_that_no_service_has_is_named_with_the_one_that_was_meant() -> None:
    good: dict[Any, Any] = {"name": "ocr", "route": "/v1/parse", "model": "m:M"}
    assert services.services_unknown([good]) == []
    assert services.services_unknown([good, {**good, "name": "b", "wokers": 1, 7: 1}]) == [
        "services: b: there is no option 'wokers'. Did you mean workers?",
        "services: b: there is no option 7. They stand in roles/services/README.md.",
    ]
    # Other faults are for the types to tell.
    assert services.services_unknown("ocr") == services.services_unknown(["ocr"]) == []


# ---- mode batch


@pytest.mark.parametrize(
    ("cores", "options", "expected"),
    [
        # 64 wait, 32 are computed, and 16 threads are left to say so.
        (1, {}, {"workers": 1, "threads": 112, "models": 1, "compute_threads": 1}),
        (2, {}, {"workers": 2, "threads": 56, "models": 1, "compute_threads": 2}),
        (64, {}, {"workers": 4, "threads": 28, "models": 1, "compute_threads": 64}),
        (
            8,
            {"queue_max_items": 5, "batch_max_items": 4},
            {"workers": 4, "threads": 7, "models": 1, "compute_threads": 8},
        ),
        (8, {"web_workers": 3, "web_threads": 7}, {"workers": 3, "threads": 7, "models": 1, "compute_threads": 8}),
    ],
)
def test_one_process_has_the_model_and_threads_wait_for_it(cores: int, options: Json, expected: Json) -> None:
    (vassal,) = plan([65536], cores=cores, mode="batch", **options)
    assert {name: vassal[name] for name in expected} == expected


@pytest.mark.parametrize("option", ["web_workers", "web_threads"])
@pytest.mark.parametrize("given", [0, "many", -3])
def test_another_number_of_web_workers_is_refused(option: str, given: object) -> None:
    options: dict[str, Any] = {option: given}
    with pytest.raises(AnsibleFilterError, match=rf"services: ocr: {option} is .* it takes 'auto' or a whole number"):
        plan([16384], mode="batch", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "batch", "workers": 2}, "workers is for mode process, and the mode is batch"),
        ({"mode": "batch", "threads": 2}, "threads is for mode process"),
        (
            {"batch_max_items": 2},
            "batch_max_items is for mode batch, and the mode is process, which reads workers, threads",
        ),
        ({"mode": "process", "web_threads": 2}, "Remove it, or set mode: batch."),
    ],
)
def test_an_option_that_the_mode_does_not_read_is_refused(options: Json, said: str) -> None:
    with pytest.raises(AnsibleFilterError, match=said):
        resolved(**options)


def test_the_app_is_told_of_batches_only_in_mode_batch(fleet: Fleet) -> None:
    release = fleet.release("r1", TINY, Path(sys.prefix))
    batch = {"name": "b", "route": "/b", "model": "m:M", "mode": "batch", "batch_delay_ms": 5, "queue_max_items": 7}
    (vassal,) = fleet.vassals([batch], release, DEVICES[:1])
    lines = vassal["ini"].splitlines()
    for line in (
        "env = INFERENCE_MODE=batch",
        f"env = INFERENCE_CHANNEL={fleet.run_dir}/one/@NAME@.model",
        "env = INFERENCE_BATCH_MAX_ITEMS=32",
        "env = INFERENCE_BATCH_MAX_COST=0",
        "env = INFERENCE_BATCH_DELAY_MS=5",
        "env = INFERENCE_QUEUE_MAX_ITEMS=7",
        f"attach-daemon2 = cmd=PYTHONPATH={release['dir']}/app${{PYTHONPATH:+:$PYTHONPATH}} "
        f"exec {release['dir']}/venv/bin/python -m inference.model_process,stopsignal=15",
    ):
        assert line in lines
    assert vassal["models"] == 1
    (process,) = fleet.vassals([{"name": "b", "route": "/b", "model": "m:M"}], release, DEVICES[:1])
    # An app of before mode batch refuses variables that it does not know.
    assert not re.search("INFERENCE_(MODE=|CHANNEL|BATCH|QUEUE)|attach-daemon", process["ini"])


# ---- workers by measured memory


@pytest.mark.parametrize(
    ("memory", "host", "kind", "options"),
    [
        (16384, 131072, "gpu", {}),
        (8192, 131072, "gpu", {"device_reserve_mib": 1024, "memory_per_worker_mib": 3000}),
        (16384, 6000, "gpu", {"host_memory_per_worker_mib": 1500}),
        (8192, 8192, "cpu", {}),
        (100, 200, "cpu", {}),
    ],
)
def test_a_host_that_measures_what_is_configured_comes_to_the_same_number(
    memory: int, host: int, kind: str, options: Json
) -> None:
    (vassal,) = plan([memory], host, kind, cores=8, **options)
    service = resolved(**options)
    found = measured.workers_that_fit(
        vassal["fit"], service["memory_per_worker_mib"], service["host_memory_per_worker_mib"]
    )
    assert found == vassal["workers"]


def test_a_given_number_of_workers_is_not_up_to_the_host() -> None:
    assert plan([16384], workers=3)[0]["fit"] == {}
    assert plan([16384], mode="batch")[0]["fit"] == {}


def test_what_was_measured_holds_for_the_same_settings_only() -> None:
    key = plan([16384])[0]["fit"]["key"]
    assert plan([16384], timeout_seconds=7)[0]["fit"]["key"] == key, "what does not change a process's size"
    others: list[Json] = [{"options": {"a": 1}}, {"threads": 2}, {"environment": {"A": "b"}}, {"model": "n:N"}]
    assert key not in {plan([16384], **one)[0]["fit"]["key"] for one in others}


def test_ports_follow_the_devices_and_leave_room_for_a_second_release() -> None:
    assert [one["ports"] for one in plan([1, 1, 1], transport="tcp", base_port=9200)] == [
        [9200, 9250],
        [9201, 9251],
        [9202, 9252],
    ]
    assert [one["ports"] for one in plan([1, 1])] == [[], []]


@pytest.mark.parametrize(
    ("ports", "count", "said"),
    [
        ([9100, 9101], 2, "b on gpu0 and a on gpu1 would both listen on port 9101"),
        ([9100, 9151], 2, "b on gpu0 and a on gpu1 would both listen on port 9151"),
        ([9100, 9050], 1, "b on gpu0 and a on gpu0 would both listen on port 9100"),
        ([8099, 9100], 2, "a on gpu1 and nginx would both listen on port 8100"),
        ([8100, 9100], 1, "a on gpu0 and nginx would both listen on port 8100"),
        ([9100, 9300], 51, "a on gpu50 and a on gpu0 would both listen on port 9150"),
    ],
)
def test_tcp_ports_that_meet_are_refused(ports: list[int], count: int, said: str) -> None:
    both = [
        resolved(name=name, route=f"/{name}", transport="tcp", base_port=port)
        for name, port in zip("ab", ports, strict=True)
    ]
    devices = [device(f"gpu{number}", 4096) for number in range(count)]
    with pytest.raises(AnsibleFilterError, match=re.escape(said)):
        services.services_plan(both, devices, HOST)


def test_tcp_ports_side_by_side_are_fine() -> None:
    both = [
        resolved(name=name, route=f"/{name}", transport="tcp", base_port=port)
        for name, port in (("a", 9100), ("b", 9102))
    ]
    devices = [device(f"gpu{number}", 4096) for number in range(2)]
    found = services.services_plan(both, devices, HOST)
    assert [one["ports"] for one in found] == [[9100, 9150], [9101, 9151], [9102, 9152], [9103, 9153]]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"name": "a", "route": "/b"}, "'a' and 'a' have the same name: a"),
        ({"name": "b", "route": "/a"}, "'b' and 'a' have the same port and route: 8100, /a"),
        ({"name": "b", "route": "/b", "transport": "tcp"}, "'b' and 'a' have the same base_port: 9100"),
    ],
)
def test_services_that_take_each_others_place_are_refused(second: Json, said: str) -> None:
    first = {"name": "a", "route": "/a", "transport": "tcp"}
    with pytest.raises(AnsibleFilterError, match=re.escape(said)):
        services.services_resolve([first, second])


def test_one_route_on_two_ports_is_fine() -> None:
    found = services.services_resolve([{"name": "a", "route": "/a"}, {"name": "b", "route": "/a", "port": 8101}])
    assert [one["port"] for one in found] == [8100, 8101]


# ---- what models bring along, and samples


def test_models_bring_their_extras_and_samples() -> None:
    ocr = resolved(model="inference.models.ocr:OcrModel")
    assert services.services_extras([ocr, resolved(name="e", model="inference.models.echo:EchoModel")]) == [
        "ocr",
        "torch",
    ]
    assert resolved(model="mine:Model")["extras"] == ["torch"]
    assert resolved(model="mine:Model", extras=[])["extras"] == []
    sample = services.services_sample(ocr)
    assert sample["content_type"] == "image/png"
    assert sample["expect"]["text"]
    assert services.services_sample(resolved(model="mine:Model")) == {}


def test_a_program_is_a_model_of_its_own() -> None:
    found = resolved(model="", program="/home/me/cats.pt2", options={"labels": ["cat"]})
    assert found["model"] == "inference.models.program:ProgramModel"
    assert found["options"] == {"labels": ["cat"], "program": "cats.pt2"}


def test_files_of_a_model_are_a_list_of_paths() -> None:
    assert resolved()["files"] == []
    assert resolved(files=["/home/me/cats.pt", "/home/me/vocabulary"])["files"] == [
        "/home/me/cats.pt",
        "/home/me/vocabulary",
    ]


def test_a_sample_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"\0\1")
    (tmp_path / "expect.json").write_text('{"label": "cat"}')
    sample = {"file": str(tmp_path / "body"), "expect_file": str(tmp_path / "expect.json")}
    assert services.services_sample(resolved(sample=sample)) == {
        "body_b64": "AAE=",
        "content_type": "application/octet-stream",
        "expect": {"label": "cat"},
    }


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({"file": "/no/such/image.png"}, "services: ocr: sample: .*No such file or directory: '/no/such/image.png'"),
        ({"text": "x", "expect_file": "/no/such/expect.json"}, "/no/such/expect.json"),
        ({"text": "x", "expect_file": __file__}, rf"services: ocr: sample: {re.escape(__file__)} is no JSON: "),
    ],
)
def test_a_sample_that_cannot_be_read_is_refused(sample: Json, said: str) -> None:
    with pytest.raises(AnsibleFilterError, match=said):
        services.services_sample(resolved(sample=sample))


def test_resolving_does_not_change_what_was_given() -> None:
    given = {"name": "a", "route": "/a", "program": "x.pt2", "options": {}}
    services.services_resolve([given])[0]["options"]["more"] = 1
    assert given == {"name": "a", "route": "/a", "program": "x.pt2", "options": {}}


# ---- names


def test_the_name_holds_release_and_settings(fleet: Fleet) -> None:
    release = fleet.release("r1", TINY, Path(sys.prefix))
    (first, second) = fleet.vassals([SERVICE], release)
    assert re.fullmatch(r"tiny--r1-[0-9a-f]{6}", first["name"])
    assert first["name"] == fleet.vassals([SERVICE], release)[0]["name"], "the same settings are the same vassal"
    changed = [
        {**SERVICE, "workers": 3},
        {**SERVICE, "environment": {"A": "1"}},
        {**SERVICE, "uwsgi_options": {"max-requests": 5}},
    ]
    names = {fleet.vassals([one], release)[0]["name"] for one in changed}
    assert len({first["name"], *names}) == 4
    assert second["device"] == "two"


# ---- real uWSGI

STATIC = Path(__file__).parent / "data"
#: One service for each row of the classic recipe, all brought up by the real module under one emperor.
ROWS: dict[str, Json] = {
    "classic": {},
    "http": {"protocol": "http"},
    "tcp": {"transport": "tcp"},
    "tcp-http": {"transport": "tcp", "protocol": "http"},
    "module": {"wsgi_file": "", "module": "tiny", "callable": "other"},
    "callable": {"callable": "other", "protocol": "http"},
    "no-stats": {"stats": False},
    "eager": {"lazy_apps": False},
    "threads": {"workers": 1, "threads": 3},
    "options": {
        "workers": 1,
        "uwsgi_options": {
            "static-map": [f"/a={STATIC}/tiny", f"/b={STATIC}/nvidia-smi"],
            "show-config": True,
            "log-5xx": False,
            "max-requests": 500,
            "set-placeholder": "share=100%",
        },
    },
    "environment": {
        "workers": 1,
        "environment": {
            "PYTHONOPTIMIZE": "1",
            "PERCENT": "50% of %d%%",
            "SPACES": "a  b ",
            "JSON": '{"a": ["b c", "d\'e"], "f": "\\n$HOME `id` %s"}',
            "EQUALS": "x=y=z",
            "EMPTY": "",
            "HASH": "#no; comment",
            "LANGUAGES": "Grüße, 你好",
            "NUMBER": 7,
        },
        "options": {"labels": ["100 %", 'a "b"'], "nested": {"x": None}, "letters": "ß"},
    },
}


@pytest.fixture(scope="module")
def served(shared_fleet: Fleet) -> Iterator[dict[str, Json]]:
    """The vassals by the names of their services, running."""
    ports = iter(processes.free_ports(4, stride=1))
    given = [
        {
            **SERVICE,
            "name": name,
            "route": f"/{name}",
            **({"base_port": next(ports)} if "transport" in row else {}),
            **row,
        }
        for name, row in ROWS.items()
    ]
    with shared_fleet.emperor("one"):
        vassals = shared_fleet.vassals(given, shared_fleet.release("r1", TINY, Path(sys.prefix)), DEVICES[:1])
        shared_fleet.start(vassals)
        yield {vassal["service"]: vassal for vassal in vassals}


def test_the_classic_recipe(shared_fleet: Fleet, served: dict[str, Json]) -> None:
    vassal = served["classic"]
    lines = vassal["ini"].splitlines()
    for line in ("buffer-size = 65536", "master = true", "lazy-apps = true", "threads = 1", "strict = true"):
        assert line in lines
    stats = shared_fleet.stats(vassal)
    assert len(stats["workers"]) == 2
    assert [len(one["cores"]) for one in stats["workers"]] == [1, 1]
    told = shared_fleet.ask(vassal, "/", headers={"X-Long": "x" * 60_000}).json()
    assert len(told["request"]["HTTP_X_LONG"]) == 60_000, "64 KiB of headers pass"
    assert told["pid"] in {one["pid"] for one in stats["workers"]}
    assert told["loaded_by"] == told["pid"] != stats["pid"], "lazy-apps: each worker loads the app itself"
    assert not told["threads"]
    path = Path(shared_fleet.address(vassal))
    assert path.stat().st_mode & 0o777 == 0o660
    assert (path.owner(), path.group()) == (USER, GROUP)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_of_the_recipe_answers(shared_fleet: Fleet, served: dict[str, Json], name: str) -> None:
    vassal, row = served[name], {**SERVICE, "stats": True, "lazy_apps": True, **ROWS[name]}
    answer = shared_fleet.ask(vassal, "/", headers={"Accept": "a/b"})
    assert answer.status == 200
    assert vassal["stats"] == row["stats"] == Path(f"{shared_fleet.run_dir}/one/{vassal['name']}.stats").exists()
    if row.get("callable"):
        assert answer.body == b"other"
        return
    told = answer.json()
    assert told["request"]["HTTP_ACCEPT"] == "a/b"
    assert told["environment"]["INFERENCE_SERVICE"] == name
    if row["stats"]:
        stats = shared_fleet.stats(vassal)
        assert len(stats["workers"]) == row["workers"]
        assert told["loaded_by"] == (told["pid"] if row["lazy_apps"] else stats["pid"])


def test_threads_of_a_worker(shared_fleet: Fleet, served: dict[str, Json]) -> None:
    assert [len(one["cores"]) for one in shared_fleet.stats(served["threads"])["workers"]] == [3]
    assert shared_fleet.ask(served["threads"], "/").json()["threads"]


def test_options_of_uwsgi_lists_and_booleans(shared_fleet: Fleet, served: dict[str, Json]) -> None:
    for path, file in (("/a/tiny.py", "tiny/tiny.py"), ("/b/two-t4.csv", "nvidia-smi/two-t4.csv")):
        assert shared_fleet.ask(served["options"], path).body == (STATIC / file).read_bytes()
    log = (shared_fleet.log_dir / "uwsgi-emperor@one.log").read_text()
    shown = log.partition(";uWSGI instance configuration")[2].partition(";end of configuration")[0].splitlines()
    assert {"show-config = true", "log-5xx = false", "max-requests = 500", "share = 100%"} <= set(shown)


def test_the_environment_is_there_before_python_starts(shared_fleet: Fleet, served: dict[str, Json]) -> None:
    told = shared_fleet.ask(served["environment"], "/").json()
    # Only a Python that is started with PYTHONOPTIMIZE knows it.
    assert told["optimize"] == 1
    own = ROWS["environment"]["environment"]
    assert {name: told["environment"].get(name) for name in own} == {name: str(value) for name, value in own.items()}
    assert json.loads(told["environment"]["INFERENCE_OPTIONS"]) == ROWS["environment"]["options"]


@pytest.mark.parametrize("option", ["no-such-option", "master-of-puppets", "max_requests"])
def test_uwsgi_itself_refuses_an_unknown_option(fleet: Fleet, option: str) -> None:
    release = fleet.release("r1", TINY, Path(sys.prefix))
    vassal = fleet.vassals([{**SERVICE, "uwsgi_options": {option: 1}}], release)[0]
    command: list[str | Path] = [UWSGI, "--ini", fleet.place(vassal)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert f"[strict-mode] unknown config directive: {option}" in done.stdout + done.stderr
    assert not fleet.accepting(vassal)


@pytest.mark.parametrize("value", ["a\nb", "$(whoami)", "@(exec://id)"])
def test_a_value_that_uwsgi_would_take_apart_is_refused(value: str) -> None:
    with pytest.raises(AnsibleFilterError, match="may not hold a line break"):
        services.uwsgi_value(value)


def test_devices_decide_the_accelerator() -> None:
    kinds = {"cpu": "cpu", "gpu": "cuda", "mig": "cuda"}
    for kind, expected in kinds.items():
        vassal = {"service": resolved(), "device": {**CPU, "name": "x", "kind": kind}, "compute_threads": 1, "fit": {}}
        environment = services.services_environment(vassal, {"id": "r1", "dir": "/opt/fleet/releases/r1"})
        assert environment["INFERENCE_ACCELERATOR"] == expected
        assert environment["INFERENCE_ARTIFACTS"] == "/opt/fleet/releases/r1/models"
