"""Runs in a guest: 4 MiB go through a TCP connection and come back.

python transfer.py serve|ask ADDRESS
"""

from __future__ import annotations

import hashlib
import socket
import sys

PORT, CHUNK = 9001, 1 << 16


def received(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(CHUNK), b""))


def serve(address: str) -> None:
    with socket.create_server((address, PORT)) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
        with connection:
            connection.sendall(received(connection))


def ask(address: str) -> None:
    data = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(1 << 17))
    with socket.create_connection((address, PORT)) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        got = received(connection)
    print("same" if got == data else f"{len(got)} of {len(data)} bytes, or others")


if __name__ == "__main__":
    {"serve": serve, "ask": ask}[sys.argv[1]](sys.argv[2])
