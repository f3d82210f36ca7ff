#!/usr/bin/env python3
"""Starts commands in a container: one process that the engine started there does it for all who ask.

    python agent.py serve SOCKET                    in the container; until it is killed
    python agent.py run SOCKET COMMAND...           outside; as if COMMAND ran here

`podman exec` takes a quarter of a second, and keeps signals to itself.  What the agent starts has
the namespaces, capabilities and system call filter of what the engine starts.  The one outside hands
over its environment, directory and standard descriptors, passes its signals on, and ends as the command
ends; when it is killed, so is the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from types import FrameType

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def serve(path: str) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=attend, args=(connection,), daemon=True).start()


def attend(connection: socket.socket) -> None:
    with connection:
        order, fds, _, _ = socket.recv_fds(connection, 1 << 18, 3)
        what = json.loads(order)
        try:
            process = subprocess.Popen(what["command"], stdin=fds[0], stdout=fds[1], stderr=fds[2],
                                       env=what["env"], cwd=what["cwd"])  # fmt: skip
        except OSError as error:
            os.write(fds[2], f"{what['command'][0]}: {error.strerror}\n".encode())
            connection.send(b"127")
            return
        finally:
            for fd in fds:
                os.close(fd)
        threading.Thread(target=pass_signals_on, args=(connection, process), daemon=True).start()
        code = process.wait()
        with contextlib.suppress(OSError):
            connection.send(str(code).encode())
            # The other end closes when it has heard that: no signal for this number comes later.
            connection.shutdown(socket.SHUT_WR)


def pass_signals_on(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        while number := connection.recv(16):
            process.send_signal(int(number))
    process.kill()


def run(path: str, command: list[str]) -> int:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)

    def pass_on(number: int, frame: FrameType | None) -> None:
        connection.send(str(number).encode())

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    order = {"command": command, "env": dict(os.environ), "cwd": os.getcwd()}
    socket.send_fds(connection, [json.dumps(order).encode()], [0, 1, 2])
    return int(connection.recv(16) or b"-9")


def main(what: str, path: str, *command: str) -> None:
    if what == "serve":
        serve(path)
    code = run(path, list(command))
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL's own handling cannot be set
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
