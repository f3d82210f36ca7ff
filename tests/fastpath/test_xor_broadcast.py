"""balance-xor and broadcast in the worker: against their Python twins, and when links die or are busy.

A link dies here by losing its name: then the kernel knows no such interface, and a ring that is full
is taken for a dead link.
"""

from __future__ import annotations

import gzip
import json
import random
import select
import struct
from collections import defaultdict
from pathlib import Path

import pytest

from tests.fastpath.bed import BOND, PEER, VNET, frame, number
from tests.fastpath.test_forwarding import arrivals, quiet, wait_for
from ubond.bond import modes
from ubond.bond.hashing import HashPolicy
from ubond.bond.table import Spread

with gzip.open(Path(__file__).parents[1] / "golden" / "hash.jsonl.gz", "rt") as file:
    RECORDED = [json.loads(line) for line in file]
POLICIES = {
    "layer2": HashPolicy.LAYER2, "layer3+4": HashPolicy.LAYER34, "layer2+3": HashPolicy.LAYER23,
    "encap2+3": HashPolicy.ENCAP23, "encap3+4": HashPolicy.ENCAP34, "vlan+srcmac": HashPolicy.VLAN_SRCMAC,
}  # fmt: skip
policies = pytest.mark.parametrize("policy", POLICIES)


def flow(port: int, count: int = 0, *, size: int = 60) -> bytes:
    """A UDP frame whose source port says the flow; `count` stands where `number` does not look."""
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 46, 0, 0, 64, 17, 0, bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)))
    udp = struct.pack("!HHHH", port, 53, 26, 0)
    return (PEER + BOND + b"\x08\x00" + ip + udp + struct.pack("!I", count)).ljust(size, b"\0")


def count_of(packet: bytes) -> tuple[int, int]:
    """(flow, count) of a frame behind a virtio-net header."""
    port, = struct.unpack_from("!H", packet, 10 + 34)
    count, = struct.unpack_from("!I", packet, 10 + 42)
    return port, count


def drain(sock) -> list[bytes]:
    found = []
    while select.select([sock], [], [], 0.05)[0]:
        found.append(sock.recv(70000))
    return found


def congested(b, *slaves: str) -> int:
    """Frames that slaves dropped because this process was too late to read: their rings hold ten."""
    counters = b.datapath.counters()
    return sum(counters[slave]["tx_congested"] for slave in slaves or counters)


def kill(b, slave: int) -> None:
    b.datapath._engine.rename_port(slave, "no-such-nic")


# ── balance-xor ──────────────────────────────────────────────────────────────────────


@policies
@pytest.mark.parametrize("slaves", [2, 3, 4])
def test_every_recorded_frame_leaves_where_it_left_when_recorded(bed, policy, slaves):
    b = bed(slaves)
    table = b.publish(0, spread=Spread.HASH, policy=POLICIES[policy])
    assert len(RECORDED) > 400
    for row in RECORDED:
        packet = bytes.fromhex(row["frame"])
        b.send(packet)
        wire, got = arrivals(b.wires, 1)[0]
        assert (row["kind"], wire) == (row["kind"], row["idx"][policy][slaves - 2])
        assert got[10:] == packet
        assert wire == modes.by_hash(table, packet)


@policies
@pytest.mark.parametrize("able", ["0123", "013", "23", "2"])
def test_a_hash_chooses_among_those_that_can_transmit_as_its_twin_does(bed, policy, able):
    b = bed(4)
    table = b.publish(None, spread=Spread.HASH, able=able, policy=POLICIES[policy])
    rng = random.Random(able)
    for row in rng.sample(RECORDED, 60):
        packet = bytes.fromhex(row["frame"])
        b.send(packet)
        assert arrivals(b.wires, 1)[0] == (modes.by_hash(table, packet), VNET + packet)


def test_without_a_slave_that_can_transmit_a_hash_chooses_none(bed):
    b = bed(2)
    table = b.publish(None, spread=Spread.HASH, able="x")
    assert modes.by_hash(table, flow(1)) is None
    for port in range(7):
        b.send(flow(port))
    wait_for(lambda: b.datapath.totals()["no_slave"] == 7, "seven frames counted")


def test_a_super_frame_is_hashed_by_its_headers_and_leaves_in_one_piece(bed):
    b = bed(3)
    table = b.publish(0, spread=Spread.HASH, policy=HashPolicy.LAYER34)
    for port in range(12):
        packet = struct.pack("<BBHHHH", 1, 5, 42, 1000, 34, 6) + flow(port, size=60000)
        b.tap.send(packet)
        assert arrivals(b.wires, 1)[0] == (modes.by_hash(table, packet[10:]), packet)


@pytest.mark.parametrize("spread", [Spread.HASH, Spread.BROADCAST])
def test_queue_ids_mean_nothing_where_a_hash_or_nobody_chooses(bed, spread):
    b = bed(2, queues=3)
    table = b.publish(0, spread=spread, policy=HashPolicy.LAYER34, queue_ids={1: 2})
    ports = [port for port in range(40) if modes.by_hash(table, flow(port)) == 0]
    for port in ports:
        b.send(flow(port), queue=2)
    found = arrivals(b.wires, len(ports) * (2 if spread is Spread.BROADCAST else 1))
    assert [count_of(packet)[0] for wire, packet in found if wire == 0] == ports


def test_what_finds_a_dead_link_goes_where_the_new_usable_set_sends_it(bed):
    """Three slaves, the first dies: its frames are spread anew over the two others, none is lost, flows keep order."""
    b = bed(3, ring=8192)
    b.publish(None, spread=Spread.HASH, policy=HashPolicy.LAYER34)
    after = b.publish(None, spread=Spread.HASH, policy=HashPolicy.LAYER34, able="12", wait=False)
    before = b.publish(None, spread=Spread.HASH, policy=HashPolicy.LAYER34)
    kill(b, 0)
    sent, got = [], defaultdict(list)
    ports = [port for port in range(40) if modes.by_hash(before, flow(port)) == 0][:8]
    assert {modes.by_hash(after, flow(port)) for port in ports} == {1, 2}
    for count in range(400):
        port = ports[count % len(ports)]
        sent.append((port, count))
        b.send(flow(port, count, size=1000))
        for wire in (1, 2):
            while not quiet(b.wires[wire], 0.0005):
                got[wire].append(count_of(b.wires[wire].recv(70000)))
    for wire in (1, 2):
        got[wire] += map(count_of, drain(b.wires[wire]))
    got[0] = list(map(count_of, drain(b.wires[0])))
    assert got[0], "the dead one carried something"
    assert got[0] == sent[: len(got[0])], "and nothing after it was found dead"
    came = got[0] + got[1] + got[2]
    assert len(came) == len(set(came))
    assert len(came) + congested(b) == len(sent)
    assert len(came) > 300
    for wire in (1, 2):
        assert {modes.by_hash(after, flow(port)) for port, _ in got[wire]} == {wire}
        for port in ports:
            counts = [count for p, count in got[wire] if p == port]
            assert counts == sorted(counts)
    assert [news.slave for news in b.datapath.news() if type(news).__name__ == "DeadLink"] == ["s0"]
    assert b.datapath.totals()["no_slave"] == 0


def test_when_all_links_are_dead_what_is_left_is_counted(bed):
    b = bed(2, ring=8192)
    b.publish(None, spread=Spread.HASH, policy=HashPolicy.LAYER34)
    kill(b, 0)
    kill(b, 1)
    total = 600
    for count in range(total):
        b.send(flow(count % 16, count))
    carried = lambda: sum(c["tx_frames"] for c in b.datapath.counters().values())  # noqa: E731
    wait_for(lambda: carried() + congested(b) + b.datapath.totals()["no_slave"] == total, "all sent or counted")
    assert b.datapath.totals()["no_slave"] > 0


def test_a_busy_slave_delays_its_own_flows_only(bed):
    b = bed(2, ring=8192)
    table = b.publish(None, spread=Spread.HASH, policy=HashPolicy.LAYER34)
    of = {slave: [p for p in range(60) if modes.by_hash(table, flow(p)) == slave][:5] for slave in (0, 1)}
    got = []
    for count in range(400):
        b.send(flow(of[count % 2][count % 5], count))
        while select.select([b.wires[1]], [], [], 0.0005)[0]:
            got.append(count_of(b.wires[1].recv(70000)))    # slave 0's wire is never read
    got += map(count_of, drain(b.wires[1]))
    counts = [count for _, count in got]
    assert counts == sorted(set(counts))
    assert set(counts) <= set(range(1, 400, 2))
    assert len(counts) + congested(b, "s1") == 200
    assert len(counts) > 150
    wait_for(lambda: b.datapath._engine.waiting() == 0, "nothing waits for ever")
    busy = b.datapath.counters()["s0"]
    assert busy["tx_congested"] > 0
    assert busy["tx_frames"] + busy["tx_congested"] == 200


# ── broadcast ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("able", ["012", "02", "1"])
def test_each_slave_that_can_transmit_sends_a_copy_in_order(bed, able):
    b = bed(3)
    table = b.publish(None, spread=Spread.BROADCAST, able=able)
    sizes = [60, 1514, 60000, 14 + 4, 9014] * 20
    sent = [struct.pack("<BBHHHH", 1, 1, 66, 1448, 34, 16) + frame(i, size=size) for i, size in enumerate(sizes)]
    got = defaultdict(list)
    for packet in sent:
        b.tap.send(packet)
        for wire, copy in arrivals(b.wires, len(able)):
            got[wire].append(copy)
    assert sorted(got) == modes.copies(table) == [int(digit) for digit in able]
    assert all(copies == sent for copies in got.values())
    for wire in got:  # a copy arrives before it is counted
        wait_for(lambda name=f"s{wire}": b.datapath.counters()[name]["tx_frames"] == len(sent), "all copies counted")
    assert b.datapath.totals() == {**b.datapath.totals(), "tap_frames": len(sent), "no_slave": 0}


def test_broadcast_without_a_slave_that_can_transmit_counts_the_frame_once(bed):
    b = bed(3)
    b.publish(None, spread=Spread.BROADCAST, able="x")
    for i in range(5):
        b.send(frame(i))
    wait_for(lambda: b.datapath.totals()["no_slave"] == 5, "five frames counted")


def test_a_copy_that_a_dead_slave_cannot_take_is_no_lost_frame(bed):
    b = bed(3, ring=8192)
    b.publish(None, spread=Spread.BROADCAST)
    kill(b, 1)
    total, got = 300, defaultdict(list)
    for i in range(total):
        b.send(frame(i))
        for wire in (0, 2):
            got[wire].append(number(b.wires[wire].recv(70000)))
    assert got[0] == got[2] == list(range(total))
    on_dead = [number(packet) for packet in drain(b.wires[1])]
    assert on_dead == list(range(len(on_dead)))
    assert 0 < len(on_dead) < total
    dead = b.datapath.counters()["s1"]
    assert dead["tx_copy_dead"] > 0
    assert dead["tx_frames"] == len(on_dead)
    assert b.datapath.totals()["no_slave"] == 0
    assert [news.slave for news in b.datapath.news() if type(news).__name__ == "DeadLink"] == ["s1"]


def test_when_the_last_slave_dies_frames_are_lost_and_counted(bed):
    b = bed(2, ring=8192)
    b.publish(None, spread=Spread.BROADCAST)
    kill(b, 0)
    kill(b, 1)
    total = 400
    for i in range(total):
        b.send(frame(i))
    wait_for(lambda: b.datapath.totals()["tap_frames"] == total, "all read")
    carried = [list(map(number, drain(wire))) for wire in b.wires]
    reached = max(map(len, carried))
    assert all(numbers == list(range(len(numbers))) for numbers in carried)
    assert 0 < reached < total
    assert b.datapath.totals()["no_slave"] == total - reached


def test_a_strict_bond_sends_copies_to_a_dead_slave_until_a_table_says_otherwise(bed):
    b = bed(2, ring=8192)
    b.publish(None, spread=Spread.BROADCAST, takeover=False)
    kill(b, 1)
    total = 300
    for i in range(total):
        b.send(frame(i))
        assert number(b.wires[0].recv(70000)) == i
    dead = b.datapath.counters
    wait_for(lambda: dead()["s1"]["tx_copy_dead"] + dead()["s1"]["tx_frames"] == total, "every copy accounted for")
    assert b.datapath.totals()["no_slave"] == 0
    assert not b.datapath.news()


def test_a_busy_slave_does_not_keep_copies_from_the_others(bed):
    b = bed(2, ring=8192)
    b.publish(None, spread=Spread.BROADCAST)
    total = 400
    for i in range(total):
        b.send(frame(i))
        assert number(b.wires[1].recv(70000)) == i          # slave 0's wire is never read
    wait_for(lambda: b.datapath._engine.waiting() == 0, "nothing waits for ever")
    busy = b.datapath.counters()["s0"]
    assert busy["tx_congested"] > 0
    assert busy["tx_frames"] + busy["tx_congested"] == total


def test_copies_wait_for_a_slave_that_is_busy_for_a_moment(bed):
    b = bed(2, ring=8192)
    b.publish(None, spread=Spread.BROADCAST)
    got, total = [], 200
    for i in range(total):
        b.send(frame(i, size=1000))
        b.wires[1].recv(70000)
        if i % 12 == 11:
            while not quiet(b.wires[0], 0.001):
                got.append(number(b.wires[0].recv(70000)))
    got += map(number, drain(b.wires[0]))
    assert got == sorted(set(got))
    assert len(got) + b.datapath.counters()["s0"]["tx_congested"] == total


# ── from one mode to another ─────────────────────────────────────────────────────────


def fill(b, packet: bytes) -> tuple[int, int]:
    """Send copies of a frame until some wait for slave 0; how many were sent, how many came out of slave 1."""
    came = 0
    for count in range(1, 2000):
        b.send(packet)
        select.select([], [], [], 0.0002)
        while not quiet(b.wires[1], 0):
            came += bool(b.wires[1].recv(70000))
        if b.datapath._engine.waiting() >= 3:
            return count, came
    raise AssertionError("nothing waits")


def test_copies_that_wait_are_not_sent_twice_when_the_mode_changes(bed):
    b = bed(2, ring=4096)
    for _ in range(20):
        b.publish(None, spread=Spread.BROADCAST)
        before = congested(b, "s1")
        total, came = fill(b, frame(1, size=500))
        b.publish(1)
        came += len(drain(b.wires[1]))
        came += congested(b, "s1") - before
        assert came == total, "each once, though copies of some waited for the other slave"
        drain(b.wires[0])


def test_frames_that_wait_leave_once_when_the_mode_becomes_broadcast(bed):
    b = bed(2, ring=4096)
    lost = 0
    for _ in range(20):
        b.publish(0)
        total, came = fill(b, frame(1, size=500))
        b.publish(None, spread=Spread.BROADCAST, able="1")
        came += len(drain(b.wires[0])) + len(drain(b.wires[1]))
        assert came + congested(b) - lost == total
        lost = congested(b)


def test_modes_that_follow_each_other_under_load_lose_and_double_nothing(bed):
    b = bed(3)
    total, got = 3000, defaultdict(int)
    for i in range(total):
        spread = (Spread.SINGLE, Spread.ROUND_ROBIN, Spread.HASH, Spread.BROADCAST)[i // 10 % 4]
        b.publish(i % 3, spread=spread, policy=HashPolicy.LAYER34, receives="012", wait=i % 10 == 0)
        b.send(flow(i % 50, i))
        while len(got) < i - 3:     # a few are on their way, never as many as a ring holds
            ready, _, _ = select.select(b.wires, [], [], 5)
            assert ready
            for wire in ready:
                got[count_of(wire.recv(70000))[1]] += 1
    for packet in (packet for wire in b.wires for packet in drain(wire)):
        got[count_of(packet)[1]] += 1
    assert sum(c["tx_congested"] for c in b.datapath.counters().values()) == 0
    assert sorted(got) == list(range(total))
    for i in range(total):
        # A frame may leave by the table that follows the one under which it was handed over.
        assert got[i] in ({1, 3} if i // 10 % 4 in (2, 3) else {1})
    assert list(got.values()).count(3) > total / 8
