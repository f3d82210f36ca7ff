"""Two workers: flows in order, nothing twice, nothing lost, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest

from tests.netns.test_live_traffic import tcp
from tests.netns.world import (
    HOST4,
    HOST6,
    PEER4,
    PEER6,
    Bond,
    Crossed,
    LoadError,
    Sniffer,
    Space,
    World,
    assert_loaded,
    blast,
    finish,
    kind,
    wait_until,
)

pytestmark = pytest.mark.netns

FLOWS = 16
TWO = ("--workers", "2")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(3) as world:
        yield world


def shares(bond: Bond) -> list[dict[str, int]]:
    found: list[dict[str, int]] = bond.ours["per_worker"]
    return found


def both_had(before: list[dict[str, int]], after: list[dict[str, int]], counter: str) -> bool:
    """Whether each of two workers had some of what was sent meanwhile: else the test shows nothing."""
    assert len(after) == 2
    return all(new[counter] > old[counter] + 100 for old, new in zip(before, after, strict=True))


def flows_in_order(sender: Space, receiver: Space, address: str, sizes: list[int], count: int = 400) -> None:
    """Datagrams of several flows in turn, as fast as they go: of each flow all come, once and in order."""
    with contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(FLOWS):
            far = stack.enter_context(receiver.socket(socket.AF_INET, socket.SOCK_DGRAM))
            near = stack.enter_context(sender.socket(socket.AF_INET, socket.SOCK_DGRAM))
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            far.settimeout(5 * kind().patience)
            far.bind((address, 0))
            near.connect(far.getsockname())
            pairs.append((near, far))
        for first in range(0, count, 20):
            for number in range(first, first + 20):
                for near, _ in pairs:
                    near.send(struct.pack("!I", number).ljust(sizes[number % len(sizes)], b"\0"))
            for _, far in pairs:
                came = [struct.unpack_from("!I", far.recv(70000))[0] for _ in range(20)]
                assert came == list(range(first, first + 20))
        for _, far in pairs:
            far.setblocking(False)
            with pytest.raises(BlockingIOError):
                far.recv(70000)


@pytest.mark.parametrize("sizes", [[40], [40, 1200, 600], [4000]], ids=["small", "mixed", "in fragments"])
def test_flows_keep_their_order_in_both_directions(world: World, sizes: list[int]) -> None:
    with world.bond(*TWO) as bond:
        world.host.ping(PEER4)
        assert bond.ours["workers"] == 2
        before = shares(bond)
        flows_in_order(world.host, world.peer, PEER4, sizes)
        flows_in_order(world.peer, world.host, HOST4, sizes)
        if sizes != [4000]:  # the kernel tells fragments apart by their addresses alone
            assert both_had(before, shares(bond), "tap_frames")
            assert both_had(before, shares(bond), "rx_frames")


def test_what_arrives_comes_once_and_counters_are_sums(world: World) -> None:
    total, source = 200, bytes.fromhex("02005e0053f1")
    with world.bond(*TWO) as bond, Sniffer(world.host, "bond0") as sniffer:
        for number in range(total):
            flow = struct.pack("!IHBB", 0x60000000, 40, 17, 64) + socket.inet_pton(socket.AF_INET6, PEER6)
            flow += socket.inet_pton(socket.AF_INET6, HOST6) + struct.pack("!HHHH", 1000 + number, 9, 40, 0) + bytes(32)
            world.peer.send("eth0", bytes(bond.mac) + source + b"\x86\xdd" + flow)
        seen = sniffer.collect(lambda seen: seen.frame[6:12] == source, total)
        assert len({one.frame for one in seen}) == total
        assert not sniffer.during(0.2, lambda seen: seen.frame[6:12] == source)
        each, counters = shares(bond), [bond.counters(nic) for nic in bond.slaves]
        assert sum(one["rx_frames"] for one in each) >= total
        for name in counters[0]:  # what comes meanwhile is a frame or two
            assert 0 <= sum(one[name] for one in counters) - sum(one[name] for one in each) < 5000, name
        assert min(one["rx_frames"] for one in each) > 0


@pytest.mark.needs("TSO")
@pytest.mark.parametrize("words", [(), ("--no-bypass",)], ids=["bypass", "no-bypass"])
def test_tcp_passes_whole_in_super_frames(world: World, words: tuple[str, ...]) -> None:
    with world.bond(*TWO, *words) as bond:
        wait_until(lambda: world.host.reaches(PEER6), what="IPv6")
        assert "tso4" in bond.ours["offloads"]
        for _ in range(3):
            tcp(world.host, world.peer, PEER4, 4 << 20)
            tcp(world.peer, world.host, HOST4, 4 << 20)
        tcp(world.host, world.peer, PEER6, 4 << 20)


def test_balance_rr_is_even_over_workers() -> None:
    with Crossed(2) as world, world.bond(*TWO, "--mode", "balance-rr", addresses=False) as bond:
        before, flows, each = shares(bond), 64, 10
        tx = {nic: bond.counters(nic)["tx_frames"] for nic in bond.slaves}
        with world.host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind(("bond0", 0))
            for number in range(flows * each):
                flow = struct.pack("!HHI", 0x4500, 64, 0) + bytes([64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2])
                flow += struct.pack("!HHHH", 1000 + number % flows, 9, 44, 0) + bytes(36)
                sock.send(bytes.fromhex("02005e00539902005e0053010800") + flow)
        wait_until(
            lambda: sum(bond.counters(nic)["tx_frames"] - tx[nic] for nic in bond.slaves) >= flows * each,
            what="all have left",
        )
        assert both_had(before, shares(bond), "tap_frames")
        one, two = (bond.counters(nic)["tx_frames"] - tx[nic] for nic in bond.slaves)
        assert abs(one - two) <= 1


class Load:
    """Flows out of the bond and into it while the block runs.

    They are at least two each way, and so many that each worker has some.
    """

    def __init__(self, world: World, bond: Bond) -> None:
        # One emulated processor has all of it: with flows of 100 a second an upgrade took longer than a minute.
        self._world, self._bond = world, bond
        self._rate = world.rate(5000 if world.can("processors") else 1500)
        self._ends: dict[str, list[tuple[subprocess.Popen[str], subprocess.Popen[str]]]] = {"out": [], "in": []}
        self.lost: dict[str, int] = {}

    def __enter__(self) -> Load:
        for way, counter in (("out", "tap_frames"), ("in", "rx_frames")):
            before = shares(self._bond)
            while len(self._ends[way]) < 2 or not both_had(before, shares(self._bond), counter):
                assert len(self._ends[way]) < FLOWS
                self._begin_flow(way, 7000 + len(self._ends[way]))
                self.wait_carried(str(self._bond.active), "tx" if way == "out" else "rx")
        self._before = shares(self._bond)
        return self

    def _begin_flow(self, way: str, port: int) -> None:
        ends = (self._world.host, self._world.peer, PEER4), (self._world.peer, self._world.host, HOST4)
        near, far, address = ends[way == "in"]
        receiver = far.start(blast(), "udp-recv", "--port", str(port), "--seconds",
                             f"{self._world.seconds(90):g}", "--idle-ms", "3000")
        far.wait_udp(port)
        sender = near.start(blast(), "udp-send", "--to", address, "--port", str(port), "--rate", str(self._rate),
                            "--seconds", f"{self._world.seconds(60):g}")  # fmt: skip
        self._ends[way].append((sender, receiver))

    def wait_carried(self, nic: str, way: str = "tx") -> None:
        """Return when a slave carries it."""
        before = self._world.host.counters(nic)[way]["packets"]
        wait_until(lambda: self._world.host.counters(nic)[way]["packets"] > before + self._rate // 4,
                   what=f"{nic} carries the load")  # fmt: skip

    def __exit__(self, *_: object) -> None:
        after, overrun = shares(self._bond), self._bond.ours["counters"]["tx_dropped"]
        ends = [pair for pairs in self._ends.values() for pair in pairs]
        outlasted = all(sender.poll() is None for sender, _ in ends)
        for sender, _ in ends:
            sender.terminate()
        for way, pairs in self._ends.items():
            self.lost[way] = 0
            for sender, receiver in pairs:
                sent, received = finish(sender), finish(receiver)
                assert_loaded(sent, received, self._rate)
                if sent["failed"] or overrun:
                    raise LoadError(f"no processor for a receiver ({sent['error']}) or a worker ({overrun} frames)")
                assert (received["duplicated"], received["reordered"]) == (0, 0), received
                self.lost[way] += received["lost"] + sent["sent"] - 1 - received["last"]
        assert outlasted, "the load must outlast what happens"
        assert both_had(self._before, after, "tap_frames")
        assert both_had(self._before, after, "rx_frames")


def test_failovers_under_load_lose_nothing_that_leaves(world: World) -> None:
    with world.bond("eth1", "eth2", *TWO) as bond:
        world.host.ping(PEER4)
        kept_before, pulls = world.vanished(bond), 3
        before = len(bond.ask("history")["history"])  # a NIC's link may have come and gone when it was enslaved
        with Load(world, bond) as load:
            for _ in range(pulls):
                nic = bond.active
                assert nic is not None
                load.wait_carried(nic)
                world.pull(nic)
                wait_until(lambda nic=nic: bond.active not in (nic, None), what="failover")
                world.plug(nic)
                bond.wait_link(nic, "UP")
        kept = world.vanished(bond) - kept_before
        failovers = bond.ask("history")["history"][before:]
    assert load.lost["out"] <= kept
    assert [entry["lost"] for entry in failovers] == [0] * pulls, "told once, whichever worker found it"


def test_upgrades_under_load_lose_nothing(world: World) -> None:
    with world.bond("eth1", "eth2", *TWO) as bond:
        world.host.ping(PEER4)
        with Load(world, bond) as load:
            for _ in range(2):
                before = bond.pid
                world.ubond("upgrade", "bond0")
                assert bond.pid != before
                assert bond.active is not None
                load.wait_carried(bond.active)
        assert bond.ours["workers"] == 2
    assert load.lost == {"out": 0, "in": 0}


def test_slaves_come_and_go_under_load(world: World) -> None:
    with world.bond("eth1", "eth2", *TWO) as bond:
        world.host.ping(PEER4)
        world.ubond("add", "bond0", "eth3")
        world.ubond("remove", "bond0", "eth3")
        before = len(os.listdir(f"/proc/{bond.pid}/fd"))
        with Load(world, bond) as load:
            for _ in range(15):
                bond.ask("add", slaves=["eth3"])
                bond.ask("remove", slaves=["eth3"])
            load.wait_carried("eth1")
        wait_until(lambda: len(os.listdir(f"/proc/{bond.pid}/fd")) <= before, what="descriptors are closed")
    assert load.lost == {"out": 0, "in": 0}


def test_a_keeper_gives_all_queues_and_sockets_to_the_next_daemon(world: World) -> None:
    with world.bond("eth1", "eth2", *TWO) as bond:
        world.host.ping(PEER4)
        before = bond.pid
        os.kill(before, 9)
        wait_until(lambda: bond.ours["restarts"] == 1, what="the next daemon")
        assert bond.pid != before
        now = shares(bond)
        flows_in_order(world.host, world.peer, PEER4, [40])
        flows_in_order(world.peer, world.host, HOST4, [40])
        assert both_had(now, shares(bond), "tap_frames")
        assert both_had(now, shares(bond), "rx_frames")


def test_auto_takes_what_the_machine_has(world: World) -> None:
    with world.bond("--workers", "auto") as bond:
        assert bond.ours["workers"] == min(4, len(os.sched_getaffinity(0))) == len(shares(bond))
        world.host.ping(PEER4)
