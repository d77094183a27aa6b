"""Measures ways to pass requests between web workers and the model process. Called by bench/channel.

One process sends a message and waits until the same comes back, in one thread or in 32 of them; the other one answers
all of them from one thread, as the model process does. The ways:
  link     what the service uses (inference.channel): what is small through the socket, what is large through memory
  socket   the same, with everything through the socket
  memory   the same, with every array through memory, that is, a file in memory whose descriptor is sent
  zmq      pyzmq, DEALER and ROUTER over a Unix socket, arrays as parts of their own
"""

import argparse
import datetime
import json
import multiprocessing
import os
import pickle
import select
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from bench_hosts import ROOT, machine
from inference import channel

RAW = ROOT / "docs" / "performance" / "channel.json"
SIZES = {"1 KiB": 2**10, "4 KiB": 2**12, "32 KiB": 2**15, "128 KiB": 2**17, "1 MiB": 2**20, "24 MiB": 24 * 2**20}
THREADS = (1, 32)
#: From how many bytes on the ways of inference.channel use a file in memory.
LARGE = {"link": channel.LARGE_BYTES, "socket": sys.maxsize, "memory": 512}
WAYS = (*LARGE, "zmq")

Ask = Callable[[tuple[Any, ...]], Any]


def serve_links(path: Path, large: int) -> None:
    """Give every message back, over any number of links, until the first one that says so."""
    channel.LARGE_BYTES = large
    listening = channel.listen(path)
    epoll = select.epoll()
    epoll.register(listening.fileno(), select.EPOLLIN)
    links: dict[int, channel.Link] = {}
    while True:
        for file, _ in epoll.poll():
            if file == listening.fileno():
                link = channel.accept(listening)
                links[link.fileno()] = link
                epoll.register(link.fileno(), select.EPOLLIN)
                continue
            try:
                message = links[file].receive()
            except channel.LinkClosed:
                epoll.unregister(file)
                links.pop(file).close()
                continue
            if message[0] == "end":
                links[file].send(("end", time.process_time()))
                return
            links[file].send(message)


def serve_zmq(path: Path, _: int) -> None:
    router = zmq.Context().socket(zmq.ROUTER)
    before = os.umask(0o177)
    router.bind(f"ipc://{path}")
    os.umask(before)
    while True:
        who, head, *parts = router.recv_multipart(copy=False)
        message = pickle.loads(head.buffer, buffers=[part.buffer for part in parts])  # noqa: S301
        if message[0] == "end":
            router.send_multipart([who, *packed(("end", time.process_time()))])
            time.sleep(0.5)
            return
        router.send_multipart([who, *packed(message)], copy=False)


def packed(message: tuple[Any, ...]) -> list[Any]:
    buffers: list[pickle.PickleBuffer] = []
    return [pickle.dumps(message, protocol=5, buffer_callback=buffers.append), *(one.raw() for one in buffers)]


def ask_link(path: Path) -> Ask:
    link = channel.connect(path)

    def ask(message: tuple[Any, ...]) -> Any:
        link.send(message)
        return link.receive()

    return ask


def ask_zmq(path: Path) -> Ask:
    dealer = zmq.Context.instance().socket(zmq.DEALER)
    dealer.connect(f"ipc://{path}")

    def ask(message: tuple[Any, ...]) -> Any:
        dealer.send_multipart(packed(message), copy=False)
        head, *parts = dealer.recv_multipart(copy=False)
        return pickle.loads(head.buffer, buffers=[part.buffer for part in parts])  # noqa: S301

    return ask


def round_trips(connect: Callable[[], Ask], size: int, threads: int, seconds: float) -> list[float]:
    """Seconds of each round trip of some threads together."""
    found: list[float] = []
    begin = threading.Barrier(threads)

    def run() -> None:
        ask = connect()
        array = np.arange(size, dtype=np.uint8)
        mine: list[float] = []
        ask(("work", 0, array))
        begin.wait()
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            back = ask(("work", 1, array))
            mine.append(time.monotonic() - now)
            if back[2].nbytes != size:
                raise RuntimeError(f"{back[2].nbytes} of {size} bytes came back")
        found.extend(mine)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return found


def measure(way: str, size: int, threads: int, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "channel"
        server = serve_zmq if way == "zmq" else serve_links
        process = multiprocessing.get_context("spawn").Process(target=server, args=(path, LARGE.get(way, 0)))
        process.start()
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.1)
        channel.LARGE_BYTES = LARGE.get(way, 0)
        connect = partial(ask_zmq if way == "zmq" else ask_link, path)
        began = time.process_time()
        times = round_trips(connect, size, threads, seconds)
        client_cpu = time.process_time() - began
        _, server_cpu = connect()(("end",))
        process.join()
    return {
        "round_trips_per_second": round(len(times) / seconds, 1),
        "median_microseconds": round(statistics.median(times) * 1e6, 1),
        "client_cpu_microseconds": round(client_cpu / len(times) * 1e6, 1),
        # With what Python takes to start, which is the same for all.
        "server_cpu_microseconds": round(server_cpu / len(times) * 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./fleet bench channel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each way, size and number of threads")
    parser.add_argument("--out", type=Path, default=RAW, help="file to write")
    given = parser.parse_args()
    raw: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "zmq": f"pyzmq {zmq.pyzmq_version()}, libzmq {zmq.zmq_version()}",
        "seconds": given.seconds,
        "results": {},
    }
    for threads in THREADS:
        for name, size in SIZES.items():
            for way in WAYS:
                found = measure(way, size, threads, given.seconds)
                raw["results"].setdefault(f"{threads} threads", {}).setdefault(name, {})[way] = found
                print(f"{threads:3} threads  {name:8} {way:7} {found}", flush=True)
    given.out.write_text(json.dumps(raw, indent=2) + "\n")
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
