"""The benchmark of serving: what it makes of what the load client says, and the tables it writes."""

import subprocess
import sys
from typing import Any

import measure_soak
import processes
import pytest
import serve_load
import serve_page
import serve_rows
import serve_usage

MACHINE = {"cpu": "A", "cores": 2, "memory_gib": 8.0, "kernel": "6.1", "python": "3.11.2", "load_before": 0.1}


def raw(**more: Any) -> dict[str, Any]:
    """What serve.lua prints."""
    ms = {"p50": 1.0, "p90": 2.0, "p95": 2.5, "p99": 3.0, "max": 4.0, "mean": 1.1}
    errors = {"connect": 0, "read": 0, "write": 0, "timeout": 0}
    plain = {
        "statuses": {"200": 90},
        "right": 90,
        "seconds": 2.0,
        "errors": errors,
        "ms": ms,
        "times": {},
        "example": "",
    }
    return {**plain, "retry_after": {}, "step": 0.0001, **more}


def test_only_right_answers_count_for_the_rate() -> None:
    found = serve_load.summary(raw(statuses={"200": 90, "503": 10}, right=80, example="503 busy"))
    assert (found["requests_per_second"], found["good"], found["bad"]) == (40.0, 80, 20)
    assert found["example"] == "503 busy"


def test_errors_of_connections_count_as_bad() -> None:
    found = serve_load.summary(raw(errors={"connect": 1, "read": 2, "write": 0, "timeout": 3}))
    assert (found["good"], found["bad"]) == (90, 6)


def test_times_are_told_apart_by_status() -> None:
    times = {"200 9": 98, "200 99": 1, "200 199": 1, "503 0": 5}
    found = serve_load.summary(raw(statuses={"200": 100, "503": 5}, right=100, times=times, retry_after={"1": 5}))
    assert found["ms_by_status"]["200"] == {"p50": 1.0, "p95": 1.0, "p99": 10.0, "max": 20.0}
    assert found["ms_by_status"]["503"]["max"] == 0.1
    assert found["retry_after"] == {"1": 5}


@pytest.mark.parametrize(
    ("value", "more", "met"), [(1.5, True, True), (1.49, True, False), (0, False, True), (6, False, False)]
)
def test_goals(value: float, more: bool, met: bool) -> None:
    assert serve_rows.goal("x", value, 1.5 if more else 5, more)["met"] is met


def test_a_row_shows_failed_servers_and_missed_goals() -> None:
    servers = {
        "ours": {
            **serve_load.summary(raw()),
            "rates": [44.0, 45.0, 46.0],
            "processor_us": {"nginx": 30.0, "load client": 5.5},
        },
        "x": {"failed": "no", "requests_per_second": 0},
    }
    found = {
        "servers": servers,
        "goals": [serve_rows.goal("ratio", 1.2, 1.5)],
        "machine": MACHINE,
        "date": "d",
        "seconds": 2,
    }
    text = serve_page.row("echo", found)
    assert "| ours | 45.0 | 44.0 · 45.0 · 46.0 | 1.0 | 3.0 | 0 |" in text
    assert "| x | failed |" in text
    assert "| ratio | 1.2 | 1.5 | **missed** |" in text
    assert "| ours | 30.0 | 5.5 | 35.5 |" in text


def test_processor_time_is_counted_by_kind() -> None:
    busy = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True)\ninput()"]
    before = serve_usage.processor_seconds({})[serve_usage.CLIENT]
    with subprocess.Popen(busy, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        # Processes that have ended are no reason to fail: servers replace their workers.
        kinds = {process.pid: "worker", 2**22 + 1: "worker"}
        running = serve_usage.processor_seconds(kinds)
        process.communicate(b"\n")
    ended = serve_usage.processor_seconds({})
    assert 0.25 <= running["worker"] < processes.PATIENCE_SECONDS
    assert running[serve_usage.CLIENT] == before
    assert ended[serve_usage.CLIENT] - before >= 0.25


def test_processor_time_is_shared_by_the_answers() -> None:
    assert serve_usage.of_each({"a": 1.0, "b": 0.0}, {"a": 1.5, "b": 0.0}, 1000) == {"a": 500.0, "b": 0.0}


def test_memory_is_judged_after_the_warm_up() -> None:
    at = [float(second) for second in range(100)]
    mib = [10.0] * 20 + [100.0] * 40 + [103.0] * 40
    found = measure_soak.judged({"name": "x", "at": at, "mib": mib}, 100)
    assert (found["begin_mib"], found["end_mib"], found["growth_percent"]) == (100.0, 103.0, 3.0)


def test_numbers_of_the_page_are_those_of_the_last_run() -> None:
    text = serve_page.PAGE.read_text()
    assert serve_page.page(text) == text, "mend it with: ./fleet bench serve --page"
