"""How soon a path that dies with its carrier up is left: the kernel's bonding driver and ubond in one guest.

    python bench/probing.py [ROUNDS] [--arp-interval 50] [--arp-missed-max 2]

Two veths on a bridge; the one in use is taken off it, again and again.  Measured is the time from the last answer that
reached the active slave to the first probe that the next one sent, as the switch saw them.  `strict`: ubond --strict.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import select
import shlex
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

WHO = ("driver", "ubond", "strict")
CLONE_NEWNET = 0x40000000
HOST, PEER = "10.9.0.1", "10.9.0.2"
SLAVES = {"eth1": "sw1", "eth2": "sw2"}
CUTS = 6
ROUNDS = 3
#: Seconds a guest may take: emulation without KVM is slow.
PATIENCE = 500.0
SIOCBRADDIF, SIOCBRDELIF = 0x89A2, 0x89A3
SO_TIMESTAMPNS, ETH_P_ARP, PACKET_OUTGOING = 35, 0x0806, 4


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def wait_until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not true():
        if time.monotonic() > end:
            sys.exit(f"not within 30 s: {what}")
        time.sleep(0.02)


class ByUbond:
    """Ours."""

    proc = Path("/run/ubond/proc/net/bonding/bond0")

    def __init__(self, *more: str) -> None:
        self.more = more

    def up(self, interval: str, missed: str) -> None:
        probing = ("--arp-interval", interval, "--arp-missed-max", missed, "--arp-ip-target", PEER, "--miimon", "0")
        for slave in SLAVES:
            run("ip", "link", "set", slave, "down")     # as the driver, and --strict, ask for
        run("ubond", "up", "bond0", *SLAVES, *self.more, *probing, "--address", f"{HOST}/24")

    def down(self) -> None:
        run("ubond", "down", "bond0")


class ByDriver:
    """The kernel's own."""

    proc = Path("/proc/net/bonding/bond0")

    def up(self, interval: str, missed: str) -> None:
        run("modprobe", "bonding", "max_bonds=0")
        run("ip", "link", "add", "bond0", "type", "bond", "mode", "active-backup", "arp_interval", interval,
            "arp_missed_max", missed, "arp_ip_target", PEER)
        for slave in SLAVES:
            run("ip", "link", "set", slave, "down")
            run("ip", "link", "set", slave, "master", "bond0")
        run("ip", "link", "set", "bond0", "up")
        run("ip", "addr", "add", f"{HOST}/24", "dev", "bond0")

    def down(self) -> None:
        run("ip", "link", "del", "bond0")


def switch() -> None:
    run("ip", "netns", "add", "sw")
    # A port that left the bridge must not answer for the bridge's address.
    run("ip", "netns", "exec", "sw", "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")
    run("ip", "-n", "sw", "link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
    run("ip", "-n", "sw", "addr", "add", f"{PEER}/24", "dev", "br0")
    run("ip", "-n", "sw", "link", "set", "br0", "up")
    for slave, port in SLAVES.items():
        run("ip", "link", "add", slave, "type", "veth", "peer", "name", port, "netns", "sw")
        run("ip", "-n", "sw", "link", "set", port, "master", "br0", "up")
        run("ip", "link", "set", slave, "up")


def sniff() -> None:
    """Collect the ARP frames of the switch's ports until SIGTERM; print [s, port, sent by the switch, operation]."""
    sockets = {}
    for port in SLAVES.values():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.bind((port, 3))
        sockets[sock] = port
    seen: list[tuple[float, str, bool, int]] = []

    def leave(number: int, frame: object) -> None:
        print(json.dumps(seen), flush=True)
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    print("listening", flush=True)
    while True:
        for sock in select.select(list(sockets), [], [])[0]:
            data, extra, _, address = sock.recvmsg(2048, 256)
            arp = data[12:14] == ETH_P_ARP.to_bytes(2) and data[28:32] != data[38:42]   # no announcement
            if arp and extra:
                seconds, ns = struct.unpack("qq", extra[0][2][:16])
                op = int.from_bytes(data[20:22])
                seen.append((seconds + ns / 1e9, sockets[sock], address[2] == PACKET_OUTGOING, op))


class Ports:
    """The switch's ports, cut off and joined again without a process that would take the CPU from who is measured."""

    def __init__(self) -> None:
        with entered("sw"):
            self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._index = {port: socket.if_nametoindex(port) for port in SLAVES.values()}

    def _ask(self, request: int, port: str) -> None:
        fcntl.ioctl(self._sock, request, struct.pack("16si20x", b"br0", self._index[port]))

    def cut(self, port: str) -> None:
        self._ask(SIOCBRDELIF, port)

    def join(self, port: str) -> None:
        self._ask(SIOCBRADDIF, port)


@contextlib.contextmanager
def entered(space: str) -> Iterator[None]:
    """In this network namespace for a while."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as before, open(f"/run/netns/{space}") as there:
        libc.setns(there.fileno(), CLONE_NEWNET)
        try:
            yield
        finally:
            libc.setns(before.fileno(), CLONE_NEWNET)


def measure(who: str, interval: str, missed: str) -> list[float]:
    """ms of each cut: see `took`."""
    bonds: dict[str, ByUbond | ByDriver] = {"ubond": ByUbond(), "strict": ByUbond("--strict"), "driver": ByDriver()}
    bond = bonds[who]

    def status() -> str:
        return bond.proc.read_text() if bond.proc.exists() else ""

    def active() -> str:
        return status().partition("Currently Active Slave: ")[2].partition("\n")[0]

    def all_up() -> bool:
        return status().count("MII Status: up") == 1 + len(SLAVES)

    switch()
    ports = Ports()
    bond.up(interval, missed)
    wait_until(all_up, "both paths answer")
    sniffer = subprocess.Popen(["ip", "netns", "exec", "sw", sys.executable, __file__, "--sniff"],
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert sniffer.stdout is not None
    sniffer.stdout.readline()
    cuts = []
    for _ in range(CUTS):
        time.sleep(1)       # so that nothing is left of the turn before
        was = active()
        cuts.append((time.time(), was))
        ports.cut(SLAVES[was])
        wait_until(lambda was=was: active() not in ("", "None", was), "failover")  # type: ignore[misc]
        ports.join(SLAVES[was])
        wait_until(all_up, "both paths answer again")
    sniffer.send_signal(signal.SIGTERM)
    seen = json.loads(sniffer.communicate(timeout=30)[0])
    bond.down()
    for slave in SLAVES:
        run("ip", "link", "del", slave)
    run("ip", "netns", "del", "sw")
    return [round(took(seen, at, SLAVES[was]), 1) for at, was in cuts]


def took(seen: list[tuple[float, str, bool, int]], at: float, port: str) -> float:
    """ms from the last answer on a port to the first request of the other slave, after a cut at this time."""
    first = next(when for when, other, sent, op in seen if when > at and other != port and not sent and op == 1)
    last = max(when for when, other, sent, op in seen if when < first and other == port and sent and op == 2)
    return (first - last) * 1000


def inside(rounds: int, interval: str, missed: str) -> None:
    """In the guest: everybody in turn, one JSON object a line."""
    for _ in range(rounds):
        for who in WHO:
            print(json.dumps({"by": who, "ms": measure(who, interval, missed)}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rounds", type=int, nargs="?", default=ROUNDS)
    parser.add_argument("--arp-interval", default="50")
    parser.add_argument("--arp-missed-max", default="2")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sniff", action="store_true", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.sniff:
        sniff()
    if wanted.inside:
        inside(wanted.rounds, wanted.arp_interval, wanted.arp_missed_max)
        return 0
    from _report import note
    from guest import machine

    guests = machine()
    words = [sys.executable, __file__, str(wanted.rounds), "--inside"]
    words += ["--arp-interval", wanted.arp_interval, "--arp-missed-max", wanted.arp_missed_max]
    try:
        with guests.Guest(lifetime=PATIENCE + 60) as guest:
            note(f"the guest is up after {guest.boot_seconds:.1f} s")
            result = guest.run(f"exec {shlex.join(words)}", timeout=PATIENCE)
    except (guests.GuestError, guests.prepare.PrepareError) as error:
        note(f"probing.py: {error}")
        return 1
    sys.stderr.write(result.stderr)
    found: dict[str, list[float]] = {}
    for line in result.stdout.splitlines():
        said = json.loads(line)
        found.setdefault(said["by"], []).extend(said["ms"])
        note(f"{said['by']}: {', '.join(str(ms) for ms in said['ms'])}")
    for who, times in found.items():
        print(f"{who:7} {statistics.median(times):6.1f} ms ({min(times):.1f} to {max(times):.1f}, {len(times)} cuts)")
    return int(result.code)


if __name__ == "__main__":
    sys.exit(main())
