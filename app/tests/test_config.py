from __future__ import annotations

import re
from pathlib import Path

import pytest
from inference.config import PREFIX, Config
from inference.errors import ConfigError

README = Path(__file__).parents[1] / "README.md"


def test_defaults_without_any_variable() -> None:
    assert Config.from_environ({"PATH": "/bin"}) == Config()


def test_every_setting_is_read() -> None:
    found = Config.from_environ(
        {
            "INFERENCE_SERVICE": "mlp",
            "INFERENCE_ROUTE": "/v2/mlp",
            "INFERENCE_MODEL": "a.b:C",
            "INFERENCE_OPTIONS": '{"program": "x.pt2"}',
            "INFERENCE_ARTIFACTS": "/opt/x/models",
            "INFERENCE_RELEASE": "20260101T000000-1",
            "INFERENCE_DEVICE": "gpu1",
            "INFERENCE_ACCELERATOR": "cuda",
            "INFERENCE_THREADS": "4",
            "INFERENCE_MODE": "batch",
            "INFERENCE_CHANNEL": "/run/x/model",
            "INFERENCE_BATCH_MAX_ITEMS": "8",
            "INFERENCE_BATCH_MAX_COST": "9000",
            "INFERENCE_BATCH_DELAY_MS": "2.5",
            "INFERENCE_QUEUE_MAX_ITEMS": "16",
            "INFERENCE_MAX_BODY_BYTES": "1000",
            "INFERENCE_MAX_PIXELS": "2000",
            "INFERENCE_TIMEOUT_SECONDS": "2.5",
            "INFERENCE_READY_SECONDS": "0",
            "INFERENCE_LOG_LEVEL": "debug",
        }
    )
    assert found == Config(
        service="mlp",
        route="/v2/mlp",
        model="a.b:C",
        options={"program": "x.pt2"},
        artifacts=Path("/opt/x/models"),
        release="20260101T000000-1",
        device="gpu1",
        accelerator="cuda",
        threads=4,
        mode="batch",
        channel=Path("/run/x/model"),
        batch_max_items=8,
        batch_max_cost=9000,
        batch_delay_ms=2.5,
        queue_max_items=16,
        max_body_bytes=1000,
        max_pixels=2000,
        timeout_seconds=2.5,
        ready_seconds=0.0,
        log_level="debug",
    )


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("SERVICE", "", "1 to 128 letters"),
        ("ROUTE", "v1/parse", "a path such as /v1/parse"),
        ("ROUTE", "/v1/parse/", "without a slash at its end"),
        ("ROUTE", "/v1/<x>", "a path such as /v1/parse"),
        ("ROUTE", "/readyz", "must not be one of /healthz, /readyz, /version"),
        ("ROUTE", "/status", "must not be /status, /status.json, /docs"),
        ("ROUTE", "/assets/x.js", "take another, such as /v1/assets/x.js"),
        ("ROUTE", "/.fleet/alive", "the site in front has pages there"),
        ("MODEL", "a.b.C", "module:Class"),
        ("OPTIONS", "{", "a JSON object"),
        ("OPTIONS", "[]", "a JSON object, not list"),
        ("ARTIFACTS", "", "the path of a folder"),
        ("RELEASE", "../x", "a letter or digit first"),
        ("ACCELERATOR", "gpu", "one of cpu, cuda, auto"),
        ("THREADS", "0", "an integer from 1 to 1024"),
        ("THREADS", "1_0", "an integer from 1 to 1024"),
        ("THREADS", "-1", "an integer from 1 to 1024"),
        ("MODE", "batches", "one of process, batch"),
        ("CHANNEL", "model.sock", "an absolute path of at most 107 bytes; it has 10"),
        ("CHANNEL", "/" + "x" * 107, "an absolute path of at most 107 bytes; it has 108"),
        ("BATCH_MAX_ITEMS", "0", "an integer from 1"),
        ("BATCH_MAX_COST", "-1", "an integer from 0"),
        ("BATCH_DELAY_MS", "inf", "a number of milliseconds from 0"),
        ("QUEUE_MAX_ITEMS", "0", "an integer from 1"),
        ("MAX_BODY_BYTES", "100MB", "an integer from 1"),
        ("MAX_PIXELS", "1e6", "an integer from 1"),
        ("TIMEOUT_SECONDS", "nan", "a number of seconds from 0.001"),
        ("TIMEOUT_SECONDS", "soon", "a number of seconds from 0.001"),
        ("READY_SECONDS", "-1", "a number of seconds from 0"),
        ("LOG_LEVEL", "INFO", "one of debug, info, warning, error"),
    ],
)
def test_bad_value_is_refused_with_name_value_and_what_is_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_environ({f"INFERENCE_{name}": value})
    assert str(caught.value).startswith(f"INFERENCE_{name}={value!r}: must ")
    assert allowed in str(caught.value)


def test_mode_batch_needs_a_channel() -> None:
    with pytest.raises(ConfigError, match="INFERENCE_MODE='batch': set INFERENCE_CHANNEL to the path of the model"):
        Config.from_environ({"INFERENCE_MODE": "batch"})


def test_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"INFERENCE_TREADS='2': no such setting; did you mean INFERENCE_THREADS\?"):
        Config.from_environ({"INFERENCE_TREADS": "2"})


def test_unknown_name_with_nothing_near_gets_all_names() -> None:
    with pytest.raises(ConfigError, match=r"allowed are INFERENCE_ACCELERATOR, .*INFERENCE_TIMEOUT_SECONDS"):
        Config.from_environ({"INFERENCE_XYZZY": "2"})


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_environ({"INFERENCE_THREADS": "x", "INFERENCE_ROUTE": "y", "INFERENCE_DEVICE": "gpu0"})
    assert [line.split("=")[0] for line in str(caught.value).splitlines()] == ["INFERENCE_ROUTE", "INFERENCE_THREADS"]


def test_readme_has_every_setting_with_its_default() -> None:
    text = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(INFERENCE_\w+)` \| (?:`([^`]+)`|none) \|", text, re.MULTILINE)
    assert Config.from_environ({name: default for name, default in rows if default}) == Config()
    assert {name.removeprefix(PREFIX).lower() for name, _ in rows} == set(Config.__dataclass_fields__)
