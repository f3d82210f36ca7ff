"""The demonstration's own traffic: numbered datagrams, and somebody who notices what is missing.

    python demo_traffic.py send IP PORT RATE       until SIGTERM
    python demo_traffic.py receive PORT            until SIGTERM

Runs as a file of its own in the laboratory's namespaces, with the standard library alone.
Each prints one JSON object when it ends.
"""

from __future__ import annotations

import json
import selectors
import signal
import socket
import struct
import sys
import time
from types import FrameType

#: Ask for the kernel's arrival time with each datagram (asm-generic/socket.h; socket(7) SO_TIMESTAMPNS).
SO_TIMESTAMPNS = 35
_SEQ = struct.Struct("!Q")
_TIMESPEC = struct.Struct("@qq")


class Stopping:
    """Whether SIGTERM has come: report and end."""

    def __init__(self) -> None:
        self.asked = False
        # A signal only interrupts `select` for good if something becomes readable by it.
        self.reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno())
        self._writer = writer
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def send(ip: str, port: int, rate: int, stopping: Stopping) -> dict[str, float]:
    """Send `rate` numbered datagrams a second until told to stop; a refused one counts as sent."""
    sent, worst, start = 0, 0.0, time.monotonic()
    last = start
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while not stopping.asked:
            now = time.monotonic()
            worst, last = max(worst, now - last), now
            while sent < (now - start) * rate:
                sock.sendto(_SEQ.pack(sent), (ip, port))
                sent += 1
            time.sleep(0.5 / rate)
    seconds = time.monotonic() - start
    return {"sent": sent, "rate": sent / seconds, "stall_ms": 1000 * worst}


def receive(port: int, stopping: Stopping) -> dict[str, float]:
    """Count what comes until told to stop: different ones, second copies, and the longest silence."""
    seen: set[int] = set()
    twice, late, highest, silence, before = 0, 0, -1, 0, 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, selectors.DefaultSelector() as ready:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.bind(("", port))
        ready.register(sock, selectors.EVENT_READ)
        ready.register(stopping.reader, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            # Once told to stop, what is still on its way is waited for.
            came = [key.fileobj for key, _ in ready.select(0.1 if stopping.asked else None)]
            if stopping.reader in came:
                ready.unregister(stopping.reader)
            if sock not in came:
                if stopping.asked and not came:
                    break
                continue
            data, control, _, _ = sock.recvmsg(64, 64)
            seconds, ns = _TIMESPEC.unpack(control[0][2][:16])
            now = seconds * 1_000_000_000 + ns
            silence, before = max(silence, now - before if before else 0), now
            (seq,) = _SEQ.unpack(data[:8])
            twice += seq in seen
            late += seq < highest
            seen.add(seq)
            highest = max(highest, seq)
    return {"received": len(seen), "duplicated": twice, "reordered": late, "silence_ms": silence / 1e6}


def main(argv: list[str]) -> int:
    stopping = Stopping()
    match argv:
        case ["send", ip, port, rate]:
            print(json.dumps(send(ip, int(port), int(rate), stopping)))
        case ["receive", port]:
            print(json.dumps(receive(int(port), stopping)))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
