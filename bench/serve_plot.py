"""Draws docs/performance/serve.svg and soak.svg from the raw numbers beside them. Runs with the peers' Python."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
# The same numbers give the same file.
mpl.rcParams.update({"svg.hashsalt": "fleet", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False})
from matplotlib import pyplot as plt  # noqa: E402 - the settings come first

OURS, OTHERS, REFERENCE = "#1f6f8b", "#b8c4cc", "#e0a458"
TITLES = {"echo": "echo, unbatched", "mlp": "MLP, batches ≤ 32", "ocr": "OCR, 8 connections"}


def rates(name: str, row: dict[str, Any]) -> dict[str, float]:
    """Rates of a row's servers."""
    if name == "ocr":
        return {key: one["c=8"]["requests_per_second"] for key, one in row["servers"].items() if "c=8" in one}
    return {key: one["requests_per_second"] for key, one in row["servers"].items()}


def colour(name: str) -> str:
    return OURS if name.startswith("ours") else REFERENCE if name.startswith("torch") else OTHERS


def save(figure: Any, path: Path, title: str) -> None:
    figure.savefig(path, metadata={"Date": None, "Title": title})


def draw_rates(rows: dict[str, Any], path: Path) -> None:
    names = [name for name in TITLES if name in rows]
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 2.6), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        found = rates(name, rows[name])
        labels = list(found)[::-1]
        bars = axis.barh(labels, [found[label] for label in labels], color=[colour(label) for label in labels])
        texts = [f"{found[label]:,.0f}" if found[label] > 20 else f"{found[label]:.2f}" for label in labels]
        axis.bar_label(bars, labels=texts, padding=2)
        axis.set_title(f"{TITLES[name]}: right answers a second", fontsize=9)
        axis.margins(x=0.18)
        axis.spines["right"].set_visible(False)
    save(figure, path, "Right answers a second, ours and the peers")


def draw_soak(raw: dict[str, Any], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for one in raw["processes"]:
        axis.plot([at / 60 for at in one["at"]], one["mib"], label=one["name"], linewidth=1.2)
    axis.axvspan(0, raw["warm_minutes"], color="#eeeeee")
    axis.set_xlabel("minutes; grey: warm-up")
    axis.set_ylabel("resident memory, MiB")
    axis.set_ylim(bottom=0)
    axis.spines["right"].set_visible(False)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path, "Resident memory of each process during the soak")


def main() -> None:
    folder = Path(sys.argv[1])
    if (folder / "serve.json").exists():
        draw_rates(json.loads((folder / "serve.json").read_text())["rows"], folder / "serve.svg")
    if (folder / "soak.json").exists():
        draw_soak(json.loads((folder / "soak.json").read_text()), folder / "soak.svg")


if __name__ == "__main__":
    main()
