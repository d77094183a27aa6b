"""Measures ours beside the peers under load. Called by bench/serve.

Each row starts one server after the other, loads it with wrk from the same two cores, and notes rates, latencies and
wrong answers. Ours is what a host runs: nginx in front of a vassal under uWSGI, from the roles' own templates.
  echo      nothing to compute, unbatched, 64 connections
  mlp       a perceptron of three layers on one torch thread, batches up to 32, 64 connections
  single    the same, one request at a time
  overload  the same, twice as many requests as can be answered
  ocr       pages of mixed sizes, 1 and 8 connections
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import serve_load
import serve_page
import serve_peers
import serve_rows
from bench_hosts import machine

#: What the client and servers of an earlier run leave behind in the load average.
QUIET_LOAD = 1.0
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    # So that the servers end with it: they are in sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(
        prog="./fleet bench serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="ROW,...", default=",".join(serve_rows.ROWS), help="rows to measure")
    parser.add_argument("--seconds", type=int, default=8, help="length of one load (overload: 6 times, ocr: 3 times)")
    parser.add_argument(
        "--keep", action="store_true", help="write the rows measured into the docs, and keep the others"
    )
    parser.add_argument("--page", action="store_true", help="only write the page anew from the numbers that are there")
    options = parser.parse_args()
    if options.page:
        serve_page.write()
        return
    chosen = options.only.split(",")
    if unknown := sorted(set(chosen) - set(serve_rows.ROWS)):
        parser.error(f"unknown rows: {', '.join(unknown)}; there are {', '.join(serve_rows.ROWS)}")
    began = time.monotonic()
    client, versions = serve_load.version(), serve_peers.versions()
    if (busy := machine()["load_before"]) > QUIET_LOAD:
        print(f"The load of this machine is {busy}: what else runs takes from all servers, and not the same from each.")
    rows: dict[str, Any] = {}
    for name in chosen:
        print(name, flush=True)
        known = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "seconds": options.seconds}
        rows[name] = {**known, "machine": machine(), **serve_rows.ROWS[name](options.seconds)}
        print(serve_page.row(name, rows[name]), flush=True)
    raw = {"client": client, "versions": versions, "rows": rows}
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    if set(chosen) != set(serve_rows.ROWS) and not options.keep:
        print("Parts of it leave the page as it is; --keep writes them into it.")
        return
    if options.keep and serve_page.RAW.exists():
        raw["rows"] = {**json.loads(serve_page.RAW.read_text())["rows"], **rows}
    serve_page.RAW.write_text(json.dumps(raw, indent=1, sort_keys=True) + "\n")
    serve_page.write()
    print(f"written: {serve_page.RAW.relative_to(ROOT)}, {serve_page.PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
