"""The mixed traffic of a round: numbered datagrams both ways, small, large, tagged, multicast, TCP and pings."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.netns.world import HOST4, HOST6, PEER4, PEER6, Space, World, blast, wait_until

NEVER = "3600"


@dataclass(frozen=True)
class Flow:
    """Datagrams of `size` bytes at `rate` a second to a port that is the flow's alone."""

    name: str
    out: bool
    to: str
    port: int
    size: int
    rate: int


FLOWS = (
    Flow("small out", True, PEER4, 5001, 60, 1000),
    Flow("small in", False, HOST4, 5002, 60, 1000),
    Flow("large out", True, PEER6, 5003, 1400, 300),
    Flow("large in", False, HOST6, 5004, 1400, 300),
)
TCP_OUT, TCP_IN = 5011, 5012


TAG = bytes.fromhex("81000007")     # VLAN 7
KIND = 0x88B5                       # for experiments (IEEE 802)
GROUP = "01:00:5e:09:00:01"
SO_RCVBUFFORCE = 33


class Frames:
    """Numbered Ethernet frames of one kind from one interface to another, RATE a second."""

    RATE = 100

    def __init__(self, name: str, sender: tuple[Space, str], receiver: tuple[Space, str]) -> None:
        """`name`: `tagged` with a VLAN tag, `group` to a multicast address."""
        self.name = name
        (space, interface), (there, far) = sender, receiver
        self._out = space.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._in = there.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._in.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)    # all that a round brings
        self._in.setblocking(False)
        self._out.bind((interface, 0))
        kind = KIND + (name == "group")
        self._in.bind((far, kind))
        to = GROUP if name == "group" else there.mac(far)
        macs = bytes.fromhex((to + space.mac(interface)).replace(":", ""))
        self._head = macs + (TAG if name == "tagged" else b"") + kind.to_bytes(2)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.sent, self.seconds = 0, 0.0

    def start(self) -> None:
        self._thread.start()

    def _send(self) -> None:
        begin = time.monotonic()
        while not self._over.wait(1 / self.RATE):
            self._out.send(self._head + self.sent.to_bytes(8) + bytes(100))
            self.sent += 1
        self.seconds = time.monotonic() - begin

    def end(self) -> None:
        self._over.set()
        if self._thread.ident:
            self._thread.join()

    def count(self, tally: Tally) -> None:
        """Add what was sent and what has come by now."""
        numbers: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data, (_, _, way, *_) = self._in.recvfrom(2048)
                if way != socket.PACKET_OUTGOING:
                    numbers.append(data[-108:-100])
        tally.planned += self.RATE * self.seconds
        tally.offered += self.sent
        tally.delivered += len(set(numbers))
        tally.twice += len(numbers) - len(set(numbers))
        if lost := self.sent - len(set(numbers)):
            tally.lost[self.name] = lost

    def close(self) -> None:
        self.end()
        self._out.close()
        self._in.close()


@dataclass
class Tally:
    """What one direction's datagrams came to."""

    planned: float = 0
    offered: int = 0
    delivered: int = 0
    twice: int = 0
    lost: dict[str, int] = field(default_factory=dict)


class Traffic:
    """Runs from `start` to `stop`."""

    def __init__(self, world: World, *, tcp: bool, groups: bool) -> None:
        """`groups`: with multicast, of which every backup ignores a copy, and which a bond that sends on all
        its slaves gets back from a plain switch."""
        self._world, self._tcp, self._flows = world, tcp, FLOWS
        self._running: dict[str, subprocess.Popen[str]] = {}
        here, there = (world.host, "bond0"), (world.peer, "eth0")
        self._frames = [
            (Frames(name, here, there), Frames(name, there, here)) for name in ("tagged", "group")[: 1 + groups]
        ]

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *why: object) -> None:
        for frames in itertools.chain(*self._frames):
            frames.close()
        for process in self._running.values():
            process.kill()
            process.communicate()

    def _ends(self, out: bool) -> tuple[Space, Space]:
        host, peer = self._world.host, self._world.peer
        return (host, peer) if out else (peer, host)

    def start(self) -> None:
        tool = blast()
        for flow in self._flows:
            self._running[f"{flow.name}, receiver"] = self._ends(flow.out)[1].start(
                tool, "udp-recv", "--port", str(flow.port), "--seconds", NEVER)  # fmt: skip
        for out, port in ((True, TCP_OUT), (False, TCP_IN)) if self._tcp else ():
            self._running[f"tcp {port}, receiver"] = self._ends(out)[1].start(
                tool, "tcp-recv", "--port", str(port), "--seconds", NEVER)  # fmt: skip
        self._wait_for_receivers()
        for frames in itertools.chain(*self._frames):
            frames.start()
        for flow in self._flows:
            self._running[f"{flow.name}, sender"] = self._ends(flow.out)[0].start(
                tool, "udp-send", "--to", flow.to, "--port", str(flow.port), "--size", str(flow.size),
                "--rate", str(flow.rate), "--seconds", NEVER)  # fmt: skip
        for out, port, to in ((True, TCP_OUT, PEER4), (False, TCP_IN, HOST4)) if self._tcp else ():
            self._running[f"tcp {port}, sender"] = self._ends(out)[0].start(
                tool, "tcp-send", "--to", to, "--port", str(port), "--mbit", "40", "--seconds", NEVER)  # fmt: skip
        self._running["ping"] = self._world.host.start("ping", "-n", "-q", "-i", "0.1", PEER4)

    def _wait_for_receivers(self) -> None:
        ports = {True: [f.port for f in self._flows if f.out], False: [f.port for f in self._flows if not f.out]}
        if self._tcp:
            ports[True].append(TCP_OUT)
            ports[False].append(TCP_IN)
        for out, wanted in ports.items():
            space = self._ends(out)[1]

            def all_listen(space: Space = space, wanted: list[int] = wanted) -> bool:
                tables = space.run("cat", "/proc/net/udp6", "/proc/net/tcp6").stdout
                return all(f":{port:04X} " in tables for port in wanted)

            wait_until(all_listen, 20, "the receivers listen")

    def stop(self) -> tuple[Tally, Tally, dict[str, Any]]:
        """End senders, then receivers; return what came of the datagrams out and in, and of the rest."""
        said: dict[str, Any] = {}
        for frames in itertools.chain(*self._frames):
            frames.end()
        for role in ("sender", "ping", "receiver"):
            ending = {name: process for name, process in self._running.items() if name.endswith(role)}
            for name, process in ending.items():
                if not name.startswith("tcp") or role == "sender":     # a stream is received to its end
                    process.send_signal(signal.SIGINT if role == "ping" else signal.SIGTERM)
            for name, process in ending.items():
                out, err = process.communicate(timeout=60)
                if role != "ping" and process.returncode:
                    raise AssertionError(f"{name}: exit {process.returncode}: {err}")
                said[name] = out if role == "ping" else json.loads(out)
                del self._running[name]
        tallies = Tally(), Tally()
        for pair in self._frames:
            for tally, frames in zip(tallies, pair, strict=True):
                frames.count(tally)
        for flow in self._flows:
            sent, got = said[f"{flow.name}, sender"], said[f"{flow.name}, receiver"]
            tally = tallies[0 if flow.out else 1]
            tally.planned += flow.rate * sent["seconds"]
            tally.offered += sent["sent"] - sent["failed"]
            tally.delivered += got["unique"]
            tally.twice += got["duplicated"]
            if lost := sent["sent"] - sent["failed"] - got["unique"]:
                tally.lost[flow.name] = lost
        streams = {
            port: (said[f"tcp {port}, sender"]["bytes"], said[f"tcp {port}, receiver"]["bytes"])
            for port in ((TCP_OUT, TCP_IN) if self._tcp else ())
        }
        return *tallies, {"streams": streams, "ping": said["ping"]}
