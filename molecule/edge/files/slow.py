#!/usr/bin/env python3
"""One request that takes its time: `slow.py HOST PORT PATH SECONDS`. Sends its body in pieces; prints the status."""

import socket
import sys
import time


def main() -> None:
    host, port, path, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    with socket.create_connection((host, port), timeout=30) as link:
        head = [f"POST {path} HTTP/1.0", f"Host: {host}", "Content-Type: text/plain", f"Content-Length: {seconds}"]
        link.sendall("\r\n".join([*head, "", ""]).encode())
        for _ in range(seconds):
            time.sleep(1)
            link.sendall(b"s")
        answer = b""
        while piece := link.recv(4096):
            answer += piece
    print(answer.split(b"\r\n", 1)[0].decode(), answer.count(b"s" * seconds))


if __name__ == "__main__":
    main()
