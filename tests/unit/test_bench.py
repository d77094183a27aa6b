"""The tables that benchmarks write into docs/performance.md."""

from typing import Any

import deploy_page

MACHINE = {"cpu": "A", "cores": 2, "memory_gib": 8.0, "kernel": "6.1", "python": "3.11.2", "load_before": 0.1}


def run(seconds: float) -> dict[str, Any]:
    tasks = {f"role : Task {number}": float(number) for number in range(20)}
    cpu = {"controller_cpu_seconds": seconds / 2, "machine_cpu_seconds": seconds * 2}
    return {"seconds": seconds, **cpu, "tasks_per_host": 42, "task_seconds": tasks}


def raw() -> dict[str, Any]:
    return {"date": "2026-01-02", "kind": "host", "machine": MACHINE}


def test_a_row_for_each_fleet_compares_with_the_plain_play() -> None:
    fleets = {
        "1": {"first": run(60.0), "no_change": run(10.0), "plain": run(20.0)},
        "20": {"no_change": run(30.0), "plain": run(40.0), "no_change_mitogen": run(15.0), "plain_mitogen": run(20.0)},
    }
    text = deploy_page.tables({**raw(), "fleets": fleets})
    assert "| 1 | 60.0 |  | 10.0 | 20.0 | 0.50 | 42 |" in text
    assert "| 20 |  |  | 30.0 | 40.0 | 0.75 | 42 |" in text
    assert "| 20 | 15.0 | 20.0 | 0.75 | 0.50 |" in text
    assert "| 20 | the controller | 15.0 | 20.0 | 7.5 | 10.0 |" in text


def test_the_longest_tasks_stand_first_and_the_others_are_added_up() -> None:
    text = deploy_page.tables({**raw(), "fleets": {"1": {"no_change": run(10.0)}, "5": {"no_change": run(20.0)}}})
    rows = [line for line in text.splitlines() if "role : Task" in line]
    assert rows[0] == "| role : Task 19 | 19.00 | 19.00 |"
    assert len(rows) == deploy_page.LONGEST
    assert "| the other 5 | 10.00 | 10.00 |" in text


def test_settings_and_tasks_have_tables() -> None:
    tasks = {"file": {"milliseconds": 500, "controller_cpu_milliseconds_per_host": 52}}
    text = deploy_page.ansible({**raw(), "hosts": 5, "settings": {"as it is": run(8.0)}, "tasks": tasks})
    assert "| as it is | 8.0 | 4.0 | 16.0 |" in text
    assert "| file | 500 | 52 |" in text


def test_only_the_part_of_a_command_is_replaced() -> None:
    page = "a\n<!-- from here: made by `x` -->\nold\n<!-- to here: `x` -->\nb\n"
    made = deploy_page.part(page, "x", "new\n")
    assert made == "a\n<!-- from here: made by `x` -->\n\nnew\n\n<!-- to here: `x` -->\nb\n"
    assert deploy_page.part(made, "x", "new\n") == made
