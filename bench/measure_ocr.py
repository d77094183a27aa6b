"""Measures OCR inside of one process: each stage, engine by engine, page by page and in batches. Called by bench/ocr.

Needs neither root nor network, only a Python with the app's packages (and, without --artifacts, onnx). On a machine
with a GPU it measures torch on the GPU; elsewhere torch and onnxruntime on the CPU.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pages
from inference.model import ModelContext
from inference.models.ocr import OcrModel, graph, lines, sessions
from inference.models.ocr.model import Page

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "docs" / "performance" / "ocr.json"
#: Names of the pipeline's methods, and of the stages they are.
STAGES = {"_detect": "detection", "_cut": "boxes and crops", "_turn": "direction", "_read": "recognition"}
#: Clients that each want one line of text read at the same moment.
CLIENTS = 32
#: Width in pixels of a line of some thirty characters.
LINE_WIDTH = 320


def opened(device: str, engine: str, threads: int, artifacts: Path) -> OcrModel:
    """The model, loaded."""
    context = ModelContext(device=device, artifacts=artifacts, threads=threads, options={"engine": engine})
    model = OcrModel()
    model.prepare(context)
    model.setup(context)
    return model


@contextmanager
def timed(model: OcrModel) -> Iterator[dict[str, float]]:
    """Seconds spent in each stage of the pipeline meanwhile."""
    spent: dict[str, float] = defaultdict(float)
    reading = model._pipeline

    def timing(method: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                spent[stage] += time.perf_counter() - began

        return call

    for name, stage in STAGES.items():
        setattr(reading, name, timing(getattr(reading, name), stage))
    try:
        yield spent
    finally:
        for name in STAGES:
            delattr(reading, name)


def texts(found: Sequence[Page | Exception]) -> list[list[str]]:
    """The lines of each page; a failure ends the benchmark."""
    result = []
    for page in found:
        if isinstance(page, Exception):
            raise page
        result.append([text for text, _, _ in page.lines])
    return result


def milliseconds(seconds: float, number: int = 1) -> float:
    return round(seconds / number * 1000, 2)


def reading(model: OcrModel, files: dict[str, bytes], rounds: int) -> tuple[dict[str, Any], list[list[str]]]:
    """Pages one at a time, and all at once; each the fastest of some rounds. Gives the text too."""
    began = time.perf_counter()
    pictures = [model.decode(content, "") for content in files.values()]
    decoding = time.perf_counter() - began
    expected = texts([model.predict([picture])[0] for picture in pictures])  # warms up
    alone: list[tuple[float, dict[str, float]]] = []
    for _ in range(rounds):
        with timed(model) as spent:
            began = time.perf_counter()
            found = [model.predict([picture])[0] for picture in pictures]
            alone.append((time.perf_counter() - began, dict(spent)))
    seconds, stages = min(alone, key=lambda one: one[0])
    began = time.perf_counter()
    body = [json.dumps(model.encode(page), ensure_ascii=False) for page in found if isinstance(page, Page)]
    encoding = time.perf_counter() - began
    together = []
    same = True
    for _ in range(rounds + 1):  # the first warms up
        began = time.perf_counter()
        found = model.predict(pictures)
        together.append(time.perf_counter() - began)
        same = same and texts(found) == expected
    number = len(pictures)
    per_page = {stage: milliseconds(spent, number) for stage, spent in stages.items()}
    per_page["the rest"] = round(milliseconds(seconds, number) - sum(per_page.values()), 2)
    result = {
        "pages_per_second_alone": round(number / seconds, 3),
        "pages_per_second_together": round(number / min(together[1:]), 3),
        "same_text_together": same,
        "milliseconds_per_page": {
            "decoding": milliseconds(decoding, number),
            **per_page,
            "encoding": milliseconds(encoding, len(body)),
        },
    }
    return result, expected


def recognition(model: OcrModel, rounds: int) -> dict[str, Any]:
    """Lines that come at the same moment: read one after the other, and as many at once as one call takes."""
    session = model._pipeline._sessions["rec"]
    limit = max(model._pipeline._limits.lines // (lines.HEIGHT * LINE_WIDTH), 1)
    noise = np.random.default_rng(3).uniform(-1, 1, (CLIENTS, 3, lines.HEIGHT, LINE_WIDTH)).astype(np.float32)
    result: dict[str, Any] = {"clients": CLIENTS}
    for name, size in (("unbatched", 1), ("batched", min(limit, CLIENTS))):
        session.best(noise[:size])
        waited = []
        began_all = time.perf_counter()
        for _ in range(rounds):
            began = time.perf_counter()
            for start in range(0, CLIENTS, size):
                batch = noise[start : start + size]
                session.best(batch)
                waited += [time.perf_counter() - began] * len(batch)
        seconds = time.perf_counter() - began_all
        result[name] = {
            "lines_at_once": size,
            "lines_per_second": round(rounds * CLIENTS / seconds, 1),
            "p95_milliseconds": milliseconds(statistics.quantiles(waited, n=20)[-1]),
        }
    result["ratio"] = round(result["batched"]["lines_per_second"] / result["unbatched"]["lines_per_second"], 2)
    return result


def busy(model: OcrModel, files: dict[str, bytes], rounds: int) -> float:
    """Share of the time in which the GPU computes, while pages are read in batches without a pause."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    pictures = [model.decode(content, "") for content in files.values()]
    model.predict(pictures)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(rounds):
            model.predict(pictures)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    used = sum(event.self_device_time_total for event in profiled.key_averages()) / 1e6
    return round(float(used) / seconds, 3)


def spinning(artifacts: Path, threads: int, rounds: int) -> dict[str, float]:
    """Milliseconds of one detection with onnxruntime, whose threads wait by sleeping, and by spinning."""
    content, _ = graph.load_onnx(artifacts / "ocr", "det")
    picture = np.random.default_rng(4).uniform(-1, 1, (1, 3, 736, 1024)).astype(np.float32)
    result = {}
    for name, spins in (("sleeping", False), ("spinning", True)):
        session = sessions.OnnxSession(content, threads, spinning=spins)
        session(picture)
        took = []
        for _ in range(rounds * 3):
            began = time.perf_counter()
            session(picture)
            took.append(time.perf_counter() - began)
        result[name] = milliseconds(statistics.median(took))
    return result


def configurations(cores: int) -> list[tuple[str, str, int]]:
    """Device, engine and threads of each measurement."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return [("cuda:0", "torch", min(cores, 8))]
    wanted = [("onnxruntime", cores), ("onnxruntime", 1), ("torch", cores)]
    return [("cpu", engine, threads) for engine, threads in wanted if importlib.util.find_spec(engine) is not None]


def machine(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    known: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            known["cpu"] = line.split(":", 1)[1].strip()
            break
    for name in ("torch", "onnxruntime"):
        if importlib.util.find_spec(name) is not None:
            known[name] = str(importlib.import_module(name).__version__)
    if device != "cpu":
        import torch

        known["gpu"] = torch.cuda.get_device_name(0)
    return known


def measure(artifacts: Path, rounds: int) -> dict[str, Any]:
    """Everything."""
    files = pages.pages()
    cores = len(os.sched_getaffinity(0))
    chosen = configurations(cores)
    raw: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(chosen[0][0]),
        "pages": len(files),
        "rounds": rounds,
        "runs": [],
    }
    first: list[list[str]] = []
    for device, engine, threads in chosen:
        model = opened(device, engine, threads, artifacts)
        result, found = reading(model, files, rounds)
        first = first or found
        run = {"device": device, "engine": engine, "threads": threads, **result, "same_text_as_first": found == first}
        run["recognition"] = recognition(model, rounds)
        if device != "cpu":
            run["busy"] = busy(model, files, rounds)
        print(json.dumps(run), flush=True)
        raw["runs"].append(run)
    if chosen[0][:2] == ("cpu", "onnxruntime"):
        raw["onnxruntime_detection_milliseconds"] = spinning(artifacts, cores, rounds)
        print(json.dumps(raw["onnxruntime_detection_milliseconds"]), flush=True)
    return raw


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./fleet bench ocr", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that each measurement is made")
    parser.add_argument(
        "--artifacts", type=Path, help="models folder of a release; made from the rapidocr package if not given"
    )
    parser.add_argument("--out", type=Path, default=RAW, help="file to write")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        artifacts = given.artifacts
        if artifacts is None:
            from inference.models.ocr.convert import convert

            package = importlib.util.find_spec("rapidocr")
            if package is None or package.origin is None:
                raise SystemExit(
                    "bench: rapidocr is not installed; install the extra 'ocr' of app/, or give --artifacts"
                )
            artifacts = Path(made)
            convert(Path(package.origin).parent, artifacts)
        raw = measure(artifacts, given.rounds)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(raw, indent=2) + "\n")
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
