"""balance-xor and broadcast on two cables that go straight to a peer, and modes changed under load."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.world import Bond, Crossed, Seen, Sniffer, wait_until
from ubond.bond.hashing import HashPolicy, slave_index, xmit_hash

pytestmark = pytest.mark.netns

HERE, THERE = "10.8.0.1", "10.8.0.2"
KIND = 0x88B5
FLOWS = 32
#: One order of all flows.
ONE = ("--workers", "1")
BATCH = 64


@pytest.fixture(scope="module")
def world() -> Iterator[Crossed]:
    with Crossed(2) as world:
        yield world


def udp(flow: int, number: int) -> bytes:
    """A UDP frame of a flow, numbered; nobody listens to it."""
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 36, 0, 0, 64, 17, 0, bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2)))
    head = bytes.fromhex("02005e005399") + bytes.fromhex("02005e005301") + b"\x08\x00"
    return (head + ip + struct.pack("!HHHHII", 1000 + flow, 9, 16, 0, number, KIND)).ljust(60, b"\0")


def is_ours(seen: Seen) -> bool:
    return seen.kind == 0x0800 and len(seen.frame) >= 50 and seen.frame[46:50] == struct.pack("!I", KIND)


def number(seen: Seen) -> int:
    return int(struct.unpack_from("!I", seen.frame, 42)[0])


class Wires:
    """What comes out of the two cables: the numbers of each, in order."""

    def __init__(self, world: Crossed) -> None:
        self._sniffers = [Sniffer(world.peer, cable, only=(46, KIND)) for cable in ("p1", "p2")]
        self._out = world.host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._out.bind(("bond0", 0))
        self.found: tuple[list[int], list[int]] = ([], [])
        self.sent = 0

    def __enter__(self) -> Wires:
        return self

    def __exit__(self, *why: object) -> None:
        for each in (*self._sniffers, self._out):
            each.__exit__(*why)

    def send(self, count: int) -> None:
        for each in range(self.sent, self.sent + count):
            self._out.send(udp(each % FLOWS, each))
        self.sent += count
        self.take()

    def take(self) -> None:
        for numbers, sniffer in zip(self.found, self._sniffers, strict=True):
            numbers += [number(seen) for seen in sniffer.take() if is_ours(seen)]

    def wait(self, kept: Callable[[], int] = lambda: 0) -> int:
        """Return when every number sent has come out of one of the cables, but those that NICs have kept; how many."""

        def all_there() -> bool:
            self.take()
            return self.missing <= kept()

        wait_until(all_there, what=f"all of {self.sent} frames")
        return self.missing

    @property
    def missing(self) -> int:
        return self.sent - len({*self.found[0], *self.found[1]})


# ── balance-xor ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("policy", ["layer2", "layer3+4", "encap2+3"])
def test_flows_leave_on_the_slave_that_their_hash_says(world: Crossed, policy: str) -> None:
    options = ("--mode", "balance-xor", "--xmit-hash-policy", policy)
    with world.bond(*options, *ONE, addresses=False) as bond, Wires(world) as wires:
        wires.send(FLOWS * 4)
        wires.wait()
        value = {"layer2": HashPolicy.LAYER2, "layer3+4": HashPolicy.LAYER34, "encap2+3": HashPolicy.ENCAP23}[policy]
        expected: tuple[list[int], list[int]] = ([], [])
        for each in range(wires.sent):
            index = slave_index(xmit_hash(udp(each % FLOWS, each), value), 2)
            assert index is not None
            expected[index].append(each)
        assert wires.found == expected
        assert f"Transmit Hash Policy: {policy} ({int(value)})" in world.ubond("status", "bond0").stdout
        for nic in world.nics:
            assert bond.slave(nic)["linkinfo"]["info_slave_data"]["state"] == "ACTIVE"


def test_another_policy_takes_effect_at_once_and_loses_nothing(world: Crossed) -> None:
    with world.bond("--mode", "balance-xor", *ONE, addresses=False) as bond, Wires(world) as wires:
        for policy in ("layer3+4", "layer2", "vlan+srcmac", "layer3+4"):
            wires.send(FLOWS * 3)
            bond.set(f"xmit_hash_policy={policy}")
        wires.send(FLOWS * 3)
        wires.wait()
        assert len(wires.found[0]) + len(wires.found[1]) == wires.sent
        assert set(wires.found[0][-8:]) | set(wires.found[1][-8:]) > set(range(wires.sent - 8, wires.sent))


@pytest.mark.parametrize("mode", ["balance-xor", "broadcast"])
def test_pulling_one_of_two_slaves_loses_nothing_that_leaves(world: Crossed, mode: str) -> None:
    options = ("--mode", mode, "--xmit-hash-policy", "layer3+4")
    with world.bond(*options, addresses=False) as bond, Wires(world) as wires:
        kept_before = world.vanished(bond)
        for cable in ("eth2", "eth1"):
            for step in range(60):
                wires.send(20)
                if step == 30:
                    numbers = wires.found[int(cable[3:]) - 1]
                    wait_until(lambda found=numbers: wires.take() or found, what=f"{cable} has carried something")
                    world.pull(cable)
            bond.wait_link(cable, "DOWN")
            assert world.host.carrier("bond0")
            world.plug(cable)
            bond.wait_link(cable, "UP")
        if mode == "broadcast":     # a copy that one NIC keeps, the other has sent
            wires.wait()
        else:
            assert wires.wait(lambda: world.vanished(bond) - kept_before) < wires.sent / 8
        for numbers in wires.found:
            assert len(numbers) == len(set(numbers)), "no cable has a frame twice"
        if mode == "balance-xor":
            assert not set(wires.found[0]) & set(wires.found[1]), "each frame on one cable"
        assert bond.no_slave == 0


# ── broadcast ────────────────────────────────────────────────────────────────────────


def test_every_frame_leaves_on_every_slave_in_order(world: Crossed) -> None:
    with world.bond("--mode", "broadcast", *ONE, addresses=False), Wires(world) as wires:
        wires.send(500)
        wait_until(lambda: wires.take() or all(len(numbers) >= 500 for numbers in wires.found), what="all copies")
        assert wires.found == ([*range(500)], [*range(500)])


def test_super_frames_are_broadcast_whole(world: Crossed) -> None:
    """TCP with 64 KiB segments from a broadcasting bond to a peer that listens on one of the cables."""
    with world.bond("--mode", "broadcast", "--address", f"{HERE}/24", addresses=False) as bond:
        world.peer.ip("addr", "add", f"{THERE}/24", "dev", "p1")
        # The host may have said something while there was but one slave.
        before = {nic: bond.counters(nic) for nic in world.nics}
        try:
            bulk(world, 8 << 20)
        finally:
            world.peer.ip("addr", "flush", "dev", "p1", "scope", "global")

        def grown(nic: str, name: str) -> int:
            return bond.counters(nic)[name] - before[nic][name]

        def same() -> bool:
            frames, sizes, congested = (
                [grown(nic, name) for nic in world.nics] for name in ("tx_frames", "tx_bytes", "tx_congested")
            )
            if world.can("room in rings"):
                return congested == [0, 0] and frames[0] == frames[1] and sizes[0] == sizes[1] > 8 << 20
            return frames[0] + congested[0] == frames[1] + congested[1] and sizes[0] > 8 << 20

        wait_until(same, what="as much on the one as on the other")


def bulk(world: Crossed, size: int) -> None:
    """Send so many bytes by TCP from the host to the peer; all must arrive."""
    data = os.urandom(1 << 16)
    with (
        world.peer.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
        world.host.socket(socket.AF_INET, socket.SOCK_STREAM) as out,
    ):
        listener.bind((THERE, 0))
        listener.listen(1)
        out.settimeout(world.seconds(20))
        out.connect(listener.getsockname())
        incoming, _ = listener.accept()
        with incoming:
            incoming.setblocking(False)
            out.setblocking(False)
            sent = received = 0

            def more() -> bool:
                nonlocal sent, received
                for _ in range(64):
                    try:
                        if sent < size:
                            sent += out.send(data[: size - sent])
                        received += len(incoming.recv(1 << 20))
                    except BlockingIOError:
                        pass
                return received == size

            wait_until(more, 20, f"{size} bytes by TCP")


def test_copies_of_a_peer_that_broadcasts_all_reach_the_bond(world: Crossed) -> None:
    """No duplicate is suppressed: two copies sent, two received, as with the driver."""
    with world.bond("--mode", "broadcast", addresses=False) as bond, Sniffer(world.host, "bond0") as inside:
        for each in range(50):
            for port in ("p1", "p2"):
                world.peer.send(port, bytes(bond.mac) + udp(each, each)[6:])    # a NIC keeps out what is for others
        seen = Counter(number(one) for one in inside.collect(is_ours, 100))
        assert seen == {each: 2 for each in range(50)}


# ── balance-tlb ──────────────────────────────────────────────────────────────────────

TLB = ("--mode", "balance-tlb", "--xmit-hash-policy", "layer3+4")


def drops(world: Crossed) -> tuple[str, ...]:
    """Counters of frames out that a slave was not given, in which there must be none."""
    always = ("tx_link_down", "tx_held_too_long", "tx_refused", "tx_unknown")
    return (*always, "tx_congested") if world.can("room in rings") else always


def active(bond: Bond) -> str:
    return str(bond.info["active_slave"])


@pytest.mark.parametrize("dynamic", ["1", "0"])
def test_balance_tlb_spreads_flows_and_each_slave_sends_under_its_own_mac(world: Crossed, dynamic: str) -> None:
    options = (*TLB, "-o", f"tlb_dynamic_lb={dynamic}")
    with (
        world.bond(*options, addresses=False) as bond,
        Sniffer(world.peer, "p1") as one,
        Sniffer(world.peer, "p2") as two,
    ):
        macs = {nic: world.host.mac(nic) for nic in world.nics}
        assert macs[active(bond)] == str(bond.mac)
        assert len(set(macs.values())) == 2
        for nic in world.nics:
            assert bond.slave(nic)["linkinfo"]["info_slave_data"]["state"] == "ACTIVE"
        with world.host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
            out.bind(("bond0", 0))

            def shared() -> bool:
                """Whether a round of all flows leaves on both; by load they do when their weight is known."""
                for each in range(FLOWS * 4):
                    out.send(udp(each % FLOWS, each))
                found: dict[str, list[Seen]] = {nic: [] for nic in macs}

                def all_there() -> bool:
                    for nic, sniffer in zip(found, (one, two), strict=True):
                        found[nic] += filter(is_ours, sniffer.take())
                    return sum(map(len, found.values())) == FLOWS * 4

                wait_until(all_there, what="all frames")
                for nic, frames in found.items():
                    source = udp(0, 0)[6:12].hex(":") if nic == active(bond) else macs[nic]
                    assert {bytes(seen.frame[6:12]).hex(":") for seen in frames} <= {source}
                return min(map(len, found.values())) >= FLOWS

            wait_until(shared, 25, "flows on both slaves")


def test_balance_tlb_teaches_the_switch_and_again_after_a_change(world: Crossed) -> None:
    with world.bond(*TLB, addresses=False) as bond, Sniffer(world.peer, "p1") as one, Sniffer(world.peer, "p2") as two:

        def taught(sniffer: Sniffer, mac: str) -> bool:
            return any(seen.kind == 0x9000 and bytes(seen.frame[6:12]).hex(":") == mac for seen in sniffer.take())

        before = active(bond)
        sniffers = {"eth1": one, "eth2": two}
        other = next(nic for nic in world.nics if nic != before)
        wait_until(lambda: taught(sniffers[before], str(bond.mac)), what="the active slave says who it is")
        wait_until(lambda: taught(sniffers[other], world.host.mac(other)), what="and so does the other")
        bond.set(f"active_slave={other}")
        wait_until(lambda: taught(sniffers[other], str(bond.mac)), what="the new active slave")
        assert world.host.mac(other) == str(bond.mac) != world.host.mac(before)


def test_tcp_goes_on_while_the_slaves_of_balance_tlb_are_pulled_and_released(world: Crossed) -> None:
    """Both ends receive on what is active there; the peer is an active-backup that hears all."""
    world.ubond("up", "bond0", "p1", "p2", "--mode", "balance-rr", "--address", f"{THERE}/24", space=world.peer)
    stream = None
    try:
        with world.bond(*TLB, "-o", "all_slaves_active=1", "--address", f"{HERE}/24", addresses=False) as bond:
            stream = Stream(world)
            mac, own = str(bond.mac), {nic: world.host.mac(nic) for nic in world.nics}

            def goes_on() -> None:
                count = stream.received
                wait_until(lambda: stream.broken or stream.received > count + (1 << 20), what="TCP goes on")
                assert not stream.broken

            for _ in range(4):
                goes_on()
                pulled = active(bond)
                world.pull(pulled)
                bond.wait_link(pulled, "DOWN")
                goes_on()
                assert active(bond) != pulled
                wait_until(lambda: world.host.mac(active(bond)) == mac, what="the bond's MAC has moved")
                world.plug(pulled)
                bond.wait_link(pulled, "UP")
            leaving = active(bond)
            world.ubond("remove", "bond0", leaving)
            goes_on()
            assert world.host.mac(leaving) == own[leaving]
            assert str(bond.mac) == mac == world.host.mac(active(bond))
            assert bond.no_slave == 0
            assert not {name for name in drops(world) if bond.counters(active(bond))[name]}
    finally:
        if stream is not None:
            stream.close()
        world.ubond("down", "bond0", space=world.peer, check=False)
        for port in (*world.nics, "p1", "p2"):
            (world.host if port in world.nics else world.peer).ip("link", "set", port, "up")


def test_numbered_frames_survive_pulls_in_balance_tlb(world: Crossed) -> None:
    with world.bond(*TLB, addresses=False) as bond, Wires(world) as wires:
        kept_before = world.vanished(bond)
        for cable in ("eth2", "eth1"):
            for step in range(60):
                wires.send(20)
                if step == 30:
                    numbers = wires.found[int(cable[3:]) - 1]
                    wait_until(lambda found=numbers: wires.take() or found, what=f"{cable} has carried something")
                    world.pull(cable)
            bond.wait_link(cable, "DOWN")
            world.plug(cable)
            bond.wait_link(cable, "UP")
        assert wires.wait(lambda: world.vanished(bond) - kept_before) < wires.sent / 8
        for numbers in wires.found:
            assert len(numbers) == len(set(numbers)), "no cable has a frame twice"
        assert not set(wires.found[0]) & set(wires.found[1]), "each frame on one cable"
        assert bond.no_slave == 0


# ── the mode of a running bond ───────────────────────────────────────────────────────

STEPS = (
    "mode=balance-xor", "mode=active-backup", "active_slave=eth2", "active_slave=eth1", "mode=balance-rr",
    "mode=broadcast", "mode=active-backup", "active_slave=eth2", "mode=broadcast", "mode=balance-xor",
    "mode=balance-tlb", "active_slave=eth1", "mode=balance-alb", "active_slave=eth2", "mode=balance-rr",
    "mode=balance-alb", "mode=broadcast", "mode=balance-tlb", "mode=active-backup", "active_slave=eth1",
)  # fmt: skip


class Stream:
    """One TCP connection from the host to the peer that is never idle; every byte that arrives is the next one sent."""

    def __init__(self, world: Crossed) -> None:
        self._listener = world.peer.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._out = world.host.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.bind((THERE, 0))
        self._listener.listen(1)
        self._out.settimeout(world.seconds(20))
        self._out.connect(self._listener.getsockname())
        self._in, _ = self._listener.accept()
        self._in.settimeout(1)
        self.received, self.broken = 0, ""
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        block = bytes(range(251)) * 64
        try:
            while not self._ending.is_set():
                self._out.sendall(block)
        except OSError as error:
            self.broken = self.broken or f"send: {error}"

    def _receive(self) -> None:
        expected = bytes(range(251)) * 5000
        try:
            while not self._ending.is_set():
                try:
                    piece = self._in.recv(1 << 18)
                except TimeoutError:
                    continue
                at = self.received % 251
                if piece != expected[at : at + len(piece)] or not piece:
                    self.broken = self.broken or f"wrong bytes or none after {self.received}"
                    return
                self.received += len(piece)
        except OSError as error:
            self.broken = self.broken or f"receive: {error}"

    def close(self) -> None:
        self._ending.set()
        for each in (self._in, self._out, self._listener):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        for each in (self._in, self._out, self._listener):
            each.close()


def resident(pid: int) -> int:
    """KiB of memory that a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def test_the_mode_changes_under_load_and_nothing_is_lost_or_doubled(world: Crossed) -> None:
    """Numbered frames and a TCP connection leave while the mode, or the active slave, changes again and again.

    Each frame comes out of exactly one cable; out of both, each once, only where broadcast was the mode at
    some time between its being handed over and its coming out.  The peer's end is a bond that receives on
    both slaves and answers on both; `all_slaves_active` lets active-backup hear it.
    """
    world.ubond("up", "bond0", "p1", "p2", "--mode", "balance-rr", "--address", f"{THERE}/24", space=world.peer)
    stream, changes = None, int(os.environ.get("UBOND_CHANGES", "50"))      # `make modes` asks for 1,000
    options = ("-o", "all_slaves_active=1", "--xmit-hash-policy", "layer3+4", "--address", f"{HERE}/24")
    try:
        with world.bond(*options, addresses=False) as bond, Wires(world) as wires:
            world.host.ip("route", "add", "198.51.100.0/24", "via", THERE)
            stream = Stream(world)
            before, routes, memory = bond.mac, world.host.ip("route"), 0
            pid, copied = bond.pid, set[int]()
            since: int | None = None
            for change in range(changes):
                wires.send(16)
                name, _, value = STEPS[change % len(STEPS)].partition("=")
                if value == "broadcast":  # what has not come out yet may leave by the new table
                    since = wires.sent
                    copied |= set(range(wires.sent)) - {*wires.found[0], *wires.found[1]}
                bond.ask("set", options=[{"slave": None, "option": name, "value": value}])
                if since is not None and value != "broadcast":  # and by the old one a batch that was begun
                    copied |= set(range(since, wires.sent + BATCH))
                    since = None
                assert bond.info.get("active_slave", value) == value or name == "mode"
                if change == changes // 4:
                    memory = resident(pid)
            wires.send(16)
            wires.wait()
            assert bond.pid == pid
            assert (bond.mac, world.host.ip("route")) == (before, routes)
            assert not stream.broken
            count = stream.received
            wait_until(lambda: stream.received > count + (1 << 20), what="TCP goes on after the last change")
            assert not stream.broken
            assert stream.received > changes << 12
            for numbers in wires.found:
                assert len(numbers) == len(set(numbers)), "a cable has a frame twice"
            assert set(wires.found[0]) & set(wires.found[1]) <= copied, "doubled outside broadcast"
            assert min(map(len, wires.found)) > wires.sent / 8, "both slaves carried frames"
            counters = {nic: bond.counters(nic) for nic in world.nics}
            lost = (*drops(world), "tx_copy_dead")
            assert not {(nic, name) for nic in world.nics for name in lost if counters[nic][name]}
            assert bond.no_slave == 0
            assert resident(pid) < memory + 4096, "memory grows with every change"
    finally:
        if stream is not None:
            stream.close()
        world.ubond("down", "bond0", space=world.peer, check=False)
        for port in ("p1", "p2"):
            world.peer.ip("link", "set", port, "up")


def test_a_strict_bond_refuses_another_mode_as_the_driver_does(world: Crossed) -> None:
    for nic in world.nics:
        world.host.ip("link", "set", nic, "down")       # as the driver asks for
    world.ubond("up", "bond0", *world.nics, "--strict")
    try:
        refused = world.ubond("set", "bond0", "mode=balance-xor", check=False)
        assert "option mode: unable to set because the bond device has slaves" in refused.stderr
        assert refused.returncode != 0
        assert Bond(world, "bond0").option("mode") == "active-backup 1"
    finally:
        world.ubond("down", "bond0")
        for nic in world.nics:
            world.host.ip("link", "set", nic, "up")
