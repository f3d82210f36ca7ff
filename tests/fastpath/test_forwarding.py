"""The worker on socketpairs: what goes where, and what is counted."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import select
import socket
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fastpath.bed import BOND, PEER, VNET, frame, number
from ubond import _fastpath
from ubond.bond import modes
from ubond.bond.table import Divert, Spread, TableSlave, TxTable
from ubond.datapath import GroupsReported

SO_DETACH_FILTER = 27  # asm/socket.h
GOLDEN = Path(__file__).parents[1] / "golden"


def arrivals(wires, total, timeout=5):
    """(wire, packet) in the order in which `total` packets come out, whichever the wire."""
    found = []
    while len(found) < total:
        ready, _, _ = select.select(wires, [], [], timeout)
        assert ready, f"only {len(found)} of {total} came"
        for sock in ready:
            found.append((wires.index(sock), sock.recv(70000)))
    return found


def quiet(sock, seconds=0.05):
    return not select.select([sock], [], [], seconds)[0]


def wait_for(condition, what):
    for _ in range(500):
        if condition():
            return
        select.select([], [], [], 0.01)
    raise AssertionError(f"did not happen: {what}")


# ── out ──────────────────────────────────────────────────────────────────────────────


def test_frames_leave_on_the_active_slave_unchanged_and_in_order(bed):
    b = bed()
    sent = [frame(i, size=random.Random(i).choice([14, 60, 61, 1514, 9014])) for i in range(14, 214)]
    sent = [f if len(f) >= 18 else f + bytes(4) for f in sent]
    for f in sent:
        b.send(f)
    assert [b.wires[0].recv(70000)[10:] for _ in sent] == sent
    assert quiet(b.wires[1])
    counters = b.datapath.counters()
    assert counters["s0"]["tx_frames"] == len(sent)
    assert counters["s0"]["tx_bytes"] == sum(map(len, sent))
    assert b.datapath.totals()["tap_frames"] == len(sent)


def test_the_virtio_header_travels_with_its_frame(bed):
    b = bed()
    header = struct.pack("<BBHHHH", 1, 1, 66, 1448, 34, 16)
    packet = header + frame(7, size=60000)
    b.tap.send(packet)
    assert b.wires[0].recv(70000) == packet


def test_another_table_sends_the_next_frame_elsewhere(bed):
    b = bed(3)
    for turn in range(30):
        b.publish(turn % 3)
        b.send(frame(turn))
        wire, packet = arrivals(b.wires, 1)[0]
        assert (wire, number(packet)) == (turn % 3, turn)


def test_without_an_active_slave_frames_are_dropped_and_counted(bed):
    b = bed()
    b.publish(None)
    for i in range(5):
        b.send(frame(i))
    wait_for(lambda: b.datapath.totals()["no_slave"] == 5, "five frames counted")
    assert quiet(b.wires[0])
    assert quiet(b.wires[1])


def test_runts_are_counted_and_not_sent(bed):
    b = bed()
    b.tap.send(VNET + b"short")
    b.send(frame(1))
    assert number(b.wires[0].recv(100)) == 1
    assert b.datapath.totals()["runt"] == 1


def test_frames_of_a_queue_leave_on_the_slave_with_its_queue_id(bed):
    b = bed(3, queues=3)
    b.publish(0, queue_ids={2: 2})
    b.send(frame(1), queue=0)
    b.send(frame(2), queue=2)
    b.send(frame(3), queue=1)
    assert {number(p): wire for wire, p in arrivals(b.wires, 3)} == {1: 0, 2: 2, 3: 0}


def test_a_queue_whose_slave_is_down_follows_the_mode(bed):
    b = bed(3, queues=3)
    b.publish(0, able="01", queue_ids={2: 2})
    b.send(frame(2), queue=2)
    assert arrivals(b.wires, 1)[0][0] == 0


@pytest.mark.parametrize("able", ["0123", "013", "2"])
@pytest.mark.parametrize("packets_per_slave", [1, 3, 7])
def test_round_robin_is_its_twin_in_python(bed, able, packets_per_slave):
    b = bed(4)
    table = b.publish(int(able[0]), spread=Spread.ROUND_ROBIN, able=able, packets_per_slave=packets_per_slave)
    rng = random.Random(packets_per_slave)
    sent = []
    for i in range(120):
        f = bytearray(frame(i, kind=0x0800))
        f[14:18] = struct.pack("!I", i)
        f[23] = 2 if rng.random() < 0.1 else 17
        sent.append(bytes(f))
    counter, expected = 0, []
    for f in sent:
        slave, counter = modes.round_robin(table, counter, f)
        expected.append(slave)
    got = []
    for f in sent:
        b.send(f)
        wire, packet = arrivals(b.wires, 1)[0]
        assert packet[10:] == f
        got.append(wire)
    assert got == expected


def rr_rows():
    with gzip.open(GOLDEN / "rr.jsonl.gz") as file:
        return [row for row in map(json.loads, file) if "seq" in row]


def is_determined(row):
    """Not random, and no slave comes or goes on the way (the study's tests have those)."""
    values = [row["packets_per_slave"], *(value for _, _, value in row.get("changes", []))]
    return all(values) and not row.get("events")


@pytest.mark.parametrize("row", [pytest.param(r, id=str(i)) for i, r in enumerate(rr_rows()) if is_determined(r)])
def test_round_robin_is_the_recorded_one(bed, row):
    b = bed(row["slaves"])
    able = "".join(str(i) for i in range(row["slaves"]) if i != row["down"])
    active = int(able[0])
    changes = {at: value for at, _, value in row.get("changes", [])}
    igmp = row.get("igmp", "." * len(row["seq"]))
    b.publish(active, spread=Spread.ROUND_ROBIN, able=able, packets_per_slave=row["packets_per_slave"])
    got = []
    for i in range(len(row["seq"])):
        if i in changes:
            b.publish(active, spread=Spread.ROUND_ROBIN, able=able, packets_per_slave=changes[i])
        f = bytearray(frame(i))
        f[23] = 2 if igmp[i] == "I" else 17
        b.send(bytes(f))
        got.append(arrivals(b.wires, 1)[0][0])
    assert got == row["seq"]


# ── in ───────────────────────────────────────────────────────────────────────────────


def test_only_what_comes_on_a_receiving_slave_reaches_the_bond(bed):
    b = bed(3)
    for i, wire in enumerate(b.wires):
        wire.send(VNET + frame(i, dst=b"\xff" * 6))
    assert number(b.tap.recv(70000)) == 0
    assert quiet(b.tap)
    wait_for(lambda: b.datapath.counters()["s2"]["rx_ignored"] == 1, "ignored on the backup")
    b.publish(0, receives="012")
    for i, wire in enumerate(b.wires):
        wire.send(VNET + frame(i, dst=b"\xff" * 6))
    assert sorted(number(b.tap.recv(70000)) for _ in range(3)) == [0, 1, 2]


@pytest.mark.parametrize("size", [60, 1514, 2032, 2033, 2043, 9014, 65000])
def test_received_frames_of_every_size_arrive_whole(bed, size):
    b = bed()
    packet = VNET + frame(1, size=size - 4) + b"tail"
    b.wires[0].send(packet)
    assert b.tap.recv(70000) == packet


def test_large_and_small_frames_mixed_keep_their_order(bed):
    b = bed()
    sizes = [60, 60000, 1514, 64000, 60] * 6
    for i, size in enumerate(sizes):
        b.wires[0].send(VNET + frame(i, size=size))
        packet = b.tap.recv(70000)
        assert (number(packet), len(packet)) == (i, size + 10)


# ── diversion ────────────────────────────────────────────────────────────────────────


def neighbour(kind):
    return PEER + BOND + bytes.fromhex("86dd60000000001c3aff") + bytes(32) + bytes([kind, 0]) + bytes(30)


def test_slow_frames_are_taken_and_arp_is_copied(bed):
    b = bed(2, divert=Divert.SLOW | Divert.ARP | Divert.ND)
    b.wires[1].send(VNET + frame(1, kind=0x8809, size=124))
    b.wires[1].send(VNET + frame(2, kind=0x0806))
    b.wires[0].send(VNET + frame(3, kind=0x0806))
    b.wires[0].send(VNET + neighbour(136))
    assert number(b.tap.recv(70000)) == 3
    assert b.tap.recv(70000)[10:] == neighbour(136)
    got = []
    wait_for(lambda: got.extend(b.datapath.diverted()) or len(got) == 4, "four diverted frames")
    assert sorted(slave for _, slave, _ in got) == ["s0", "s0", "s1", "s1"]
    assert quiet(b.tap)


def test_a_flood_is_policed_and_one_kind_never_starves_another(bed):
    b = bed(2, divert=Divert.SLOW | Divert.ARP)
    for _ in range(200):
        b.wires[1].send(VNET + frame(1, kind=0x0806))
    b.wires[1].send(VNET + frame(2, kind=0x8809, size=124))
    wait_for(lambda: b.datapath.counters()["s1"]["diverted"] > 0 and quiet(b.tap, 0.01)
             and sum(b.datapath.counters()["s1"][k] for k in ("diverted", "divert_policed")) == 201, "all seen")
    kinds = [f[12:14] for _, _, f in b.datapath.diverted()]
    assert kinds.count(b"\x88\x09") == 1
    assert kinds.count(b"\x08\x06") < 150


@given(st.binary(min_size=0, max_size=80))
def test_kinds_are_read_as_the_twin_reads_them(data):
    assert _fastpath.frame_kind(data) == kind_twin(data)


@given(st.lists(st.sampled_from([0x8100, 0x88A8]), max_size=4),
       st.sampled_from([0x0806, 0x8809, 0x86DD, 0x0800]), st.integers(0, 255), st.integers(0, 255), st.integers(0, 60))
def test_kinds_of_frames_with_tags(tags, ethertype, next_header, icmp, cut):
    data = PEER + BOND + b"".join(struct.pack("!HH", t, 5) for t in tags) + struct.pack("!H", ethertype)
    body = bytearray(60)
    body[6], body[40] = next_header, icmp
    data = (data + body)[: 14 + cut]
    assert _fastpath.frame_kind(bytes(data)) == kind_twin(bytes(data))


def kind_twin(data: bytes) -> int:
    at = 12
    if len(data) < 14:
        return 0
    ethertype = int.from_bytes(data[12:14], "big")
    while ethertype in (0x8100, 0x88A8) and len(data) >= at + 6:
        at += 4
        ethertype = int.from_bytes(data[at : at + 2], "big")
    if ethertype == 0x8809:
        return Divert.SLOW if at == 12 else 0
    if ethertype == 0x0806:
        return Divert.ARP
    if ethertype == 0x86DD and len(data) >= at + 43 and data[at + 8] == 58 and data[at + 42] in (135, 136):
        return Divert.ND
    return 0


@given(st.binary(min_size=0, max_size=80))
def test_igmp_is_seen_as_the_twin_sees_it(data):
    assert _fastpath.frame_is_igmp(data) == modes.is_igmp(data)


@given(st.sampled_from(["", "81000005", "88a80005"]).map(bytes.fromhex), st.integers(0, 3), st.integers(0, 40))
def test_igmp_behind_a_tag(tag, protocol, cut):
    body = bytearray(30)
    body[9] = protocol
    data = (PEER + BOND + tag + b"\x08\x00" + bytes(body))[: 14 + cut]
    assert _fastpath.frame_is_igmp(data) == modes.is_igmp(data)


def report_twin(data: bytes) -> bool:
    at = 12
    while int.from_bytes(data[at : at + 2], "big") in (0x8100, 0x88A8) and len(data) >= at + 6:
        at += 4
    if len(data) < at + 22 or not data[0] & 1:
        return False
    body = data[at + 2 :]
    if data[at : at + 2] == b"\x08\x00":
        return body[9] == 2
    return data[at : at + 2] == b"\x86\xdd" and len(body) > 40 and (body[6], body[40]) == (0, 58)


@given(st.lists(st.sampled_from([0x8100, 0x88A8]), max_size=2), st.sampled_from([0x0800, 0x86DD, 0x0806]),
       st.sampled_from([0, 2, 6, 58]), st.sampled_from([0, 58]), st.booleans(), st.integers(0, 60))
def test_membership_reports_are_seen_behind_tags(tags, ethertype, protocol, extension, group, cut):
    destination = bytes([0x33 if group else 0x32]) + PEER[1:]
    data = destination + BOND + b"".join(struct.pack("!HH", t, 5) for t in tags) + struct.pack("!H", ethertype)
    body = bytearray(60)
    body[6] = body[9] = protocol
    body[40] = extension
    data = (data + body)[: 14 + cut]
    assert _fastpath.frame_is_membership_report(bytes(data)) == report_twin(bytes(data))


def test_a_membership_report_is_told_once_until_control_looks(bed):
    b = bed(2)
    report = bytes.fromhex("01005e000016") + BOND + b"\x08\x00" + bytes(9) + b"\x02" + bytes(50)

    def send():
        b.send(report)
        b.wires[0].recv(70000)

    send()
    send()
    assert [type(each) for each in b.datapath.news()] == [GroupsReported]
    b.datapath.expect_reports()
    send()
    assert [type(each) for each in b.datapath.news()] == [GroupsReported]


# ── VLAN tags ────────────────────────────────────────────────────────────────────────


@given(st.binary(min_size=14, max_size=200), st.integers(0, 0xFFFF), st.sampled_from([0x8100, 0x88A8]),
       st.integers(0, 300), st.booleans(), st.integers(0, 300))
def test_a_tag_goes_back_where_it_was(data, tci, tpid, start, unfinished, header):
    packet = struct.pack("<BBHHHH", unfinished, 1, header, 1448, start, 16) + data
    got = _fastpath.put_tag_back(packet, tci, tpid)
    expected = struct.pack("<BBHHHH", unfinished, 1, header + 4 if header else 0, 1448, start + 4 * unfinished, 16)
    assert got == expected + data[:12] + struct.pack("!HH", tpid, tci) + data[12:]


# ── tables and descriptors ───────────────────────────────────────────────────────────


def test_tables_swapped_under_load_lose_and_duplicate_nothing(bed):
    b = bed(4)
    total, got = 4000, []
    for i in range(total):
        b.publish(i % 4, wait=False)
        b.send(frame(i))
        if i % 50 == 49:
            got.extend(number(p) for _, p in arrivals(b.wires, 50))
    assert sorted(got) == list(range(total))


def test_what_came_before_a_release_is_delivered_or_counted(bed):
    b = bed(2)
    alone = (TableSlave("s1", True, True),)
    total = 20 * 200
    for turn in range(20):
        b.publish(0)
        for i in range(200):
            b.wires[0].send(VNET + frame(200 * turn + i, dst=BOND))
        b.datapath.publish(TxTable(Spread.SINGLE, alone, 0, address=BOND))
        asyncio.run(b.datapath.remove("s0"))
        b._slaves[0][0][1].setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        b.add(0)
    got = [number(b.tap.recv(2048)) for _ in range(total - b.datapath.released().get("rx_left", 0))]
    assert got == sorted(set(got))
    assert quiet(b.tap)
    assert len(got) == b.datapath.released()["rx_frames"] >= total // 2


def test_every_table_is_followed_and_freed_then(bed):
    """Without a frame to wake the worker; a hundred thousand tables would be 50 MB."""
    b = bed(2)
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096  # noqa: E731
    for i in range(1000):
        b.publish(i % 2, wait=False)
    before = resident()
    for i in range(100_000):
        b.publish(i % 2, wait=i % 1000 == 0)
    assert resident() - before < 8 << 20


def test_a_removed_port_is_free_when_the_worker_has_passed_it(bed):
    b = bed(2)
    slave = TableSlave("s1", True, True)
    b.datapath.publish(TxTable(Spread.SINGLE, (slave,), 0, address=BOND))
    asyncio.run(b.datapath.remove("s0"))
    assert "s0" not in b.datapath.counters()
    b.send(frame(1))
    assert arrivals(b.wires, 1)[0][0] == 1
    b.wires[0].send(VNET + frame(2))
    assert quiet(b.tap)


def test_what_arrived_before_a_change_of_table_is_received_by_the_old_one(bed):
    b = bed(2)
    for turn in range(20):
        active = turn % 2
        b.publish(active)
        for i in range(40):
            b.wires[active].send(VNET + frame(turn * 100 + i))
        b.publish(1 - active)
        assert [number(b.tap.recv(70000)) for _ in range(40)] == [turn * 100 + i for i in range(40)]


# ── a full ring ──────────────────────────────────────────────────────────────────────


def test_frames_wait_for_a_full_ring_in_order(bed):
    """A unix socket says EAGAIN when its buffer is full, as a packet socket with a full ring.

    Frames wait and the TAP is left unread; what a reader on a busy machine is too late for is counted.
    """
    b = bed(1, ring=8192)
    total, got = 2000, []
    sender = threading.Thread(target=lambda: [b.send(frame(i, size=1000)) for i in range(total)])
    sender.start()
    while len(got) + b.datapath.counters()["s0"]["tx_congested"] < total:
        if not quiet(b.wires[0], 0.01):
            got.append(number(b.wires[0].recv(70000)))
    sender.join(20)
    assert got == sorted(set(got))
    assert len(got) > 200, "far more than a ring holds"


def test_a_ring_that_stays_full_costs_a_counted_drop_and_no_other_slave_waits(bed):
    b = bed(2, ring=8192)
    b.publish(0, spread=Spread.ROUND_ROBIN)
    got = []
    for i in range(600):
        b.send(frame(i))
        while select.select([b.wires[1]], [], [], 0.0005)[0]:
            got.append(number(b.wires[1].recv(70000)))      # slave 0's wire is never read
    while not quiet(b.wires[1], 0.05):
        got.append(number(b.wires[1].recv(70000)))
    assert len(got) == 300
    assert got == sorted(got)
    wait_for(lambda: b.datapath._engine.waiting() == 0, "nothing waits for ever")
    counters = b.datapath.counters()["s0"]
    assert counters["tx_congested"] > 0
    assert counters["tx_frames"] + counters["tx_congested"] == 300


def test_macs_of_guests_are_remembered(bed):
    b = bed(1)
    macs = [bytes([2, 0, 0, 0, i, 1]) for i in range(20)]
    for mac in macs:
        b.send(frame(1, src=mac))
        b.wires[0].recv(70000)
    b.send(frame(1, src=BOND))
    b.wires[0].recv(70000)
    assert sorted(b.datapath.seen_macs()) == macs
