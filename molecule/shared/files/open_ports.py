"""Prints which TCP ports of an address take connections, as a JSON list: open_ports.py ADDRESS."""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor


def is_open(port: int) -> bool:
    """Whether something accepts a connection."""
    with socket.socket() as connection:
        connection.settimeout(2)
        return connection.connect_ex((sys.argv[1], port)) == 0


ports = range(1, 65536)
with ThreadPoolExecutor(32) as pool:
    answers = pool.map(is_open, ports, chunksize=1024)
    json.dump([port for port, answer in zip(ports, answers, strict=True) if answer], sys.stdout)
