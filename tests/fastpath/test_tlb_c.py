"""balance-tlb in the worker: against its Python twin, when links die, and who hears what."""

from __future__ import annotations

import random
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fastpath.bed import BOND, PEER, VNET, frame, number, own
from tests.fastpath.test_forwarding import arrivals, quiet, wait_for
from tests.fastpath.test_xor_broadcast import RECORDED, count_of, flow, kill
from ubond._fastpath import NO_PORT, Balance, frame_is_balanced
from ubond.bond import balance
from ubond.bond.hashing import HashPolicy, xmit_hash
from ubond.bond.table import REBALANCE, Spread, TableSlave, TxTable
from ubond.datapath import DeadLink

GROUP = bytes.fromhex("01005e000001")
L34 = HashPolicy.LAYER34


def icmpv6(type: int, size: int = 86, tag: bytes = b"") -> bytes:
    head = struct.pack("!IHBB", 6 << 28, 32, 58, 255) + bytes(32)
    return (PEER + BOND + tag + b"\x86\xdd" + head + bytes([type])).ljust(size, b"\0")


# ── which frames ─────────────────────────────────────────────────────────────────────

TAG = bytes.fromhex("81000064")


@pytest.mark.parametrize(("packet", "balanced"), [
    (flow(1), True),
    (flow(1)[:12] + TAG + flow(1)[12:], True),
    (flow(1)[:12] + TAG + TAG + flow(1)[12:], False),
    (GROUP + flow(1)[6:], False),
    (b"\xff" * 6 + flow(1)[6:], False),
    (frame(kind=0x0806), False),
    (frame(kind=0x88B5), False),
    (icmpv6(128), True),
    (icmpv6(135), False),
    (icmpv6(136), False),
    (icmpv6(136, tag=TAG), False),
    (icmpv6(128)[:54], False),
    (icmpv6(128)[:53], False),
    (b"", False),
])  # fmt: skip
def test_unicast_ip_is_balanced_and_what_teaches_the_bonds_mac_is_not(packet, balanced):
    assert balance.is_balanced(packet) is balanced
    assert frame_is_balanced(packet) is balanced


@given(st.binary(max_size=80), st.sampled_from([b"", TAG]), st.sampled_from([0x0800, 0x86DD, 0x0806, 0x8847]))
def test_the_twins_agree_on_any_bytes(data, tag, kind):
    for packet in (data, PEER + BOND + tag + struct.pack("!H", kind) + data):
        assert frame_is_balanced(packet) is balance.is_balanced(packet)


# ── the loads, by a clock of the test's ──────────────────────────────────────────────

SPEEDS = st.sampled_from([10, 100, 1000, 10_000, 400_000, 0xFFFFFFFF])
STEPS = st.one_of(
    st.tuples(st.just("flow"), st.integers(0, 400), st.integers(14, 65535)),
    st.tuples(st.just("group"), st.integers(14, 65535)),
    st.tuples(st.just("time"), st.integers(0, 2 * REBALANCE + 1)),
    st.tuples(st.just("able"), st.sets(st.integers(0, 3))),
)


@given(st.lists(SPEEDS, min_size=4, max_size=4), st.lists(STEPS, max_size=60))
def test_the_twins_count_and_choose_alike(speeds, steps):
    ours, theirs, now = balance.Loads(), Balance(), 1
    theirs.release(15)
    able = {0, 1, 2, 3}
    for what, *values in steps:
        if what == "able":
            came, able = values[0] - able, values[0]
            balance.release(ours, able)
            assert theirs.release(sum(1 << each for each in able)) is bool(came)
        elif what == "group":
            ours.unbalanced += values[0]
            theirs.pass_by(values[0])
        elif what == "time":
            now += values[0]
            balance.rebalance(ours, REBALANCE, 2, now)
            theirs.rebalance(REBALANCE, 2, now)
        else:
            rows = tuple(TableSlave(str(i), i in able, True, speed=speeds[i]) for i in range(4))
            packet = flow(values[0], size=values[1]) if values[1] >= 60 else flow(values[0])
            chosen = balance.by_load(TxTable(Spread.LOAD, rows, 2, policy=L34), ours, packet)
            ports = bytes(sorted(able))
            found = theirs.choose(xmit_hash(packet, L34), ports, [speeds[i] for i in sorted(able)], len(packet))
            assert found == (NO_PORT if chosen is None else chosen)


def shares(loads: balance.Loads, table: TxTable, flows: int, size: int) -> list[int]:
    counts = [0] * len(table.slaves)
    for port in range(flows):
        chosen = balance.by_load(table, loads, flow(port, size=size))
        assert chosen is not None
        counts[chosen] += 1
    return counts


def test_faster_slaves_get_more_once_the_weights_are_known():
    rows = tuple(TableSlave(name, True, True, speed=speed) for name, speed in (("a", 1000), ("b", 250)))
    table, loads = TxTable(Spread.LOAD, rows, 0, policy=L34), balance.Loads()
    balance.rebalance(loads, REBALANCE, 0, 1)
    shares(loads, table, 2000, 9000)
    for _ in range(700):
        for port in range(200):
            balance.by_load(table, loads, flow(port, size=9000))
    balance.rebalance(loads, REBALANCE, 0, 1 + REBALANCE)
    fast, slow = shares(loads, table, 200, 9000)
    assert fast > 2 * slow > 0


def fresh() -> balance.Loads:
    """The loads of a worker whose slaves have just come: every slot weighs something, so flows are spread at once."""
    loads = balance.Loads()
    balance.count_anew(loads, REBALANCE, None)
    return loads


# ── in the worker ────────────────────────────────────────────────────────────────────


def expected(table: TxTable, loads: balance.Loads, packet: bytes) -> tuple[int, bytes]:
    slave = balance.by_load(table, loads, packet)
    assert slave is not None
    return slave, VNET + balance.as_sent(table, slave, packet)


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("policy", [HashPolicy.LAYER2, L34, HashPolicy.VLAN_SRCMAC])
def test_each_frame_leaves_where_and_as_its_twin_says(bed, policy, dynamic):
    b = bed(3)
    speeds = {0: 100, 1: 1000, 2: 0xFFFFFFFF}
    table = b.publish(1, spread=Spread.LOAD, policy=policy, dynamic=dynamic, speeds=speeds)
    loads, used = fresh(), set()
    for packet in (*(bytes.fromhex(row["frame"]) for row in RECORDED), *(flow(each) for each in range(100))):
        b.send(packet)
        found = arrivals(b.wires, 1)[0]
        assert found == expected(table, loads, packet)
        used.add(found[0])
    assert len(used) >= 2


def test_slaves_of_one_speed_share_flows_and_a_flow_keeps_to_one(bed):
    b = bed(3)
    b.publish(0, spread=Spread.LOAD, policy=L34, rebalance=200_000_000)
    first = {}
    while len(set(first.values())) < 3:     # after the first interval the flows have weights
        first.clear()
        for _ in range(3):
            for port in range(60):
                b.send(flow(port, size=1000))
        for wire, packet in arrivals(b.wires, 180):
            first.setdefault(count_of(packet)[0], wire)
    b.publish(0, spread=Spread.LOAD, policy=L34)
    found = {}
    for _ in range(3):
        for port in range(60):
            b.send(flow(port, size=1000))
    for wire, packet in arrivals(b.wires, 180):
        assert found.setdefault(count_of(packet)[0], wire) == wire


def test_after_an_interval_flows_are_assigned_by_what_they_sent(bed):
    b = bed(2)
    b.publish(0, spread=Spread.LOAD, policy=L34, rebalance=50_000_000)

    def both() -> bool:
        for port in range(40):
            b.send(flow(port, size=1400))
        return {wire for wire, _ in arrivals(b.wires, 40)} == {0, 1}

    wait_for(both, "the flows on both slaves")


def take(sock, source: bytes) -> list[bytes]:
    """What has come out of a wire by now, all of it with this source MAC."""
    sock.setblocking(False)
    found = []
    try:
        while True:
            found.append(sock.recv(70000))
    except BlockingIOError:
        assert {packet[16:22] for packet in found} <= {source}
        return found


def test_frames_that_find_the_active_slave_dead_leave_on_its_heir_with_the_bonds_mac(bed):
    b = bed(3, ring=4096)
    b.publish(0, spread=Spread.LOAD, policy=L34, succession=(2, 1))
    kill(b, 0)
    seen = []
    for count in range(200):
        b.send(frame(count, kind=0x88B5))
        time.sleep(0.0002)
        seen += take(b.wires[2], BOND)
    wait_for(lambda: any(isinstance(each, DeadLink) for each in b.datapath.news()), "the dead link")
    assert b.datapath.stand_in() == "s2"
    stuck = take(b.wires[0], BOND)
    wait_for(lambda: seen.extend(take(b.wires[2], BOND)) or len(seen) + len(stuck) == 200, "every frame")
    assert {number(packet) for packet in (*seen, *stuck)} == set(range(200))
    b.wires[2].send(VNET + frame(7, dst=BOND, src=PEER))
    assert number(b.tap.recv(70000)) == 7


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_dead_slaves_flows_go_on_with_the_active_one_and_the_bonds_mac(bed, dynamic):
    b = bed(2, ring=4096)
    table = b.publish(0, spread=Spread.LOAD, policy=L34, dynamic=dynamic, speeds={1: 10_000})
    port = next(port for port in range(200) if balance.by_load(table, fresh(), flow(port)) == 1)
    kill(b, 1)
    seen = []
    for count in range(200):
        b.send(flow(port, count))
        time.sleep(0.0002)
        # One at a time: the kernel holds ten at a socket, and more than that is dropped when nobody reads for 2 ms.
        wait_for(lambda: b.datapath.totals()["tap_frames"] > count, "taken")  # noqa: B023
        seen += take(b.wires[0], BOND)
    wait_for(lambda: any(isinstance(each, DeadLink) for each in b.datapath.news()), "the dead link")
    assert b.datapath.stand_in() is None
    stuck = take(b.wires[1], own(1))
    wait_for(lambda: seen.extend(take(b.wires[0], BOND)) or len(seen) + len(stuck) == 200, "every frame")
    assert [count_of(packet)[1] for packet in (*stuck, *seen)] == list(range(200))
    assert stuck
    assert b.datapath.totals()["no_slave"] == 0


def test_only_the_active_slave_receives(bed):
    b = bed(3)
    b.publish(1, spread=Spread.LOAD)
    for wire in range(3):
        b.wires[wire].send(VNET + frame(wire, dst=BOND, src=PEER))
    assert number(b.tap.recv(70000)) == 1
    assert quiet(b.tap)


def test_a_successor_keeps_the_assignments(bed):
    b = bed(3)
    table = b.publish(0, spread=Spread.LOAD, policy=L34)
    loads, rng = fresh(), random.Random(7)
    for _ in range(100):
        packet = flow(rng.randrange(50))
        b.send(packet)
        assert arrivals(b.wires, 1)[0] == expected(table, loads, packet)
    memory = b.succeed()
    assert sum(sent for _, sent, _ in memory.loads[0].slots) == 6000
    for port in range(50):
        b.send(flow(port))
        assert arrivals(b.wires, 1)[0] == expected(table, loads, flow(port))
