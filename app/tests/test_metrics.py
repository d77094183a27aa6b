"""What the processes of a vassal count, and how their files are added up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from doubles import PuppetModel
from inference.app import InferenceApp
from inference.config import Config
from inference.metrics import Metrics, QueueMetrics, of_model_process, of_worker
from prometheus_client.multiprocess import MultiProcessCollector

ROUTE = "/v1/test"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back what prometheus_client wants in the environment."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")


def read(folder: Path) -> dict[tuple[str, ...], float]:
    """All samples in a folder, by name and values of labels."""
    metrics = MultiProcessCollector.merge([str(file) for file in folder.glob("*.db")], accumulate=True)
    return {(sample.name, *sample.labels.values()): sample.value for metric in metrics for sample in metric.samples}


def test_good_answers_are_counted_with_where_their_time_went(
    make_app: Callable[..., InferenceApp], puppet: PuppetModel, tmp_path: Path
) -> None:
    client = make_app(puppet, metrics=tmp_path).test_client()
    answers = [client.post(ROUTE, data=b"x").json for _ in range(3)]
    found = read(tmp_path)
    assert found["fleet_requests_total", ROUTE, "200"] == 3
    assert found["fleet_requests_in_flight",] == 0
    for stage in ("queue", "decode", "compute", "total"):
        assert found["fleet_request_duration_seconds_count", stage] == 3
        told = sum(answer["timing_ms"][stage] for answer in answers) / 1000
        assert found["fleet_request_duration_seconds_sum", stage] == pytest.approx(told, abs=1e-5)
        assert found["fleet_request_duration_seconds_bucket", stage, "+Inf"] == 3


def test_problems_are_counted_with_their_reason_and_not_in_the_times(
    make_app: Callable[..., InferenceApp], puppet: PuppetModel, tmp_path: Path
) -> None:
    client = make_app(puppet, metrics=tmp_path, max_body_bytes=10).test_client()
    assert client.post(ROUTE, data=b"x" * 11).status_code == 413
    assert client.post(ROUTE, data=b"x", headers={"X-Request-Deadline-Ms": "0"}).status_code == 504
    found = read(tmp_path)
    assert (found["fleet_requests_total", ROUTE, "413"], found["fleet_requests_total", ROUTE, "504"]) == (1, 1)
    assert found["fleet_requests_rejected_total", "body-too-large"] == 1
    assert found["fleet_requests_rejected_total", "over-time"] == 1
    assert found["fleet_request_duration_seconds_count", "total"] == 0
    assert found["fleet_requests_in_flight",] == 0


def test_paths_that_nobody_knows_are_one_series(
    make_app: Callable[..., InferenceApp], puppet: PuppetModel, tmp_path: Path
) -> None:
    client = make_app(puppet, metrics=tmp_path).test_client()
    for path in ("/a", "/b", "/v1/test/c"):
        assert client.get(path).status_code == 404
    assert client.get("/healthz").status_code == 200
    found = read(tmp_path)
    assert found["fleet_requests_total", "other", "404"] == 3
    assert found["fleet_requests_total", "/healthz", "200"] == 1


def test_a_request_that_is_computed_is_in_flight(
    make_app: Callable[..., InferenceApp], puppet: PuppetModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(puppet, metrics=tmp_path)
    seen = []
    predict = puppet.predict

    def look(item: object) -> object:
        seen.append(read(tmp_path)["fleet_requests_in_flight",])
        return predict(item)

    monkeypatch.setattr(puppet, "predict", look)
    app.test_client().post(ROUTE, data=b"x")
    assert seen == [1]


def test_a_worker_goes_on_where_the_one_before_it_ended(tmp_path: Path) -> None:
    for _ in range(2):
        metrics = Metrics(tmp_path, "1", ROUTE)
        metrics.began()
        metrics.began()
        metrics.finished(ROUTE, 200, None, (0.1, 0.2, 0.3, 0.6))
    other = Metrics(tmp_path, "2", ROUTE)
    other.began()
    found = read(tmp_path)
    assert found["fleet_requests_total", ROUTE, "200"] == 2
    # One of the second worker 1, which its end left over, and one of worker 2; that of the first worker 1 is forgotten.
    assert found["fleet_requests_in_flight",] == 2


def test_the_model_process_tells_of_queue_and_batches(tmp_path: Path) -> None:
    metrics = QueueMetrics(tmp_path, 64)
    metrics.waiting(5)
    metrics.computed(3)
    metrics.computed(8)
    found = read(tmp_path)
    assert (found["fleet_queue_items",], found["fleet_queue_items_max",]) == (5, 64)
    assert (found["fleet_batch_items_sum",], found["fleet_batch_items_bucket", "4.0"]) == (11, 1)


def test_nothing_is_kept_where_nobody_asks(config: Config) -> None:
    assert config.metrics is None
    assert (of_worker(config), of_model_process(config)) == (None, None)
