"""Prints which TCP ports of an address take connections, as a JSON list: open_ports.py ADDRESS."""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor


def is_open(port: int) -> bool:
    with socket.socket() as connection:
        connection.settimeout(2)
        return connection.connect_ex((sys.argv[1], port)) == 0


ports = range(1, 65536)
with ThreadPoolExecutor(32) as pool:
    print(json.dumps([port for port, answer in zip(ports, pool.map(is_open, ports, chunksize=1024)) if answer]))
