"""balance-alb in the worker: against its Python twin, what the host's ARP becomes, and who hears what."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fastpath.bed import BOND, PEER, VNET, frame, number, own
from tests.fastpath.test_forwarding import arrivals, quiet, wait_for
from tests.fastpath.test_tlb_c import TAG, expected, flow, fresh, icmpv6
from tests.fastpath.test_xor_broadcast import RECORDED
from ubond._fastpath import frame_is_balanced_to_all
from ubond.bond import balance
from ubond.bond.hashing import HashPolicy
from ubond.bond.modes import accepts
from ubond.bond.table import Divert, Spread
from ubond.wire import ARP_REQUEST, Arp, MacAddr, encode_arp

ALL = b"\xff" * 6
ALB = {"spread": Spread.LOAD, "adaptive": True, "divert": Divert.ARP}


def ipv4(dst: bytes, mac: bytes = PEER, protocol: int = 17, tag: bytes = b"") -> bytes:
    return mac + BOND + tag + b"\x08\x00" + struct.pack("!BBHHHBBH4s4s", 0x45, 0, 46, 0, 0, 64, protocol, 0, PEER[:4],
                                                        dst) + bytes(26)  # fmt: skip


def ipv6(dst: bytes, mac: bytes = PEER, src: bytes = bytes([0xFE, 0x80, *[0] * 13, 9])) -> bytes:
    return mac + BOND + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, 8, 17, 64) + src + dst + bytes(8)


GROUP6 = bytes([0xFF, 2, *[0] * 12, 1, 7])


@pytest.mark.parametrize(("packet", "hash"), [
    (ipv4(bytes((10, 0, 0, 7))), 10 ^ 7),
    (ipv4(bytes((10, 0, 7, 0))), 10 ^ 7),
    (ipv4(bytes((10, 0, 0, 7)), tag=TAG), 10 ^ 7),
    (ipv4(bytes((239, 0, 0, 1)), bytes.fromhex("01005e000001")), 239 ^ 1),
    (ipv4(bytes((10, 0, 0, 255)), ALL), None),
    (ipv4(b"\xff" * 4), None),
    (ipv4(bytes((224, 0, 0, 22)), protocol=2), None),
    (ipv4(bytes((10, 0, 0, 7)))[:33], None),
    (ipv6(GROUP6), 0xFF ^ 2 ^ 1 ^ 7),
    (ipv6(GROUP6, bytes.fromhex("333300000107")), 0xFF ^ 2 ^ 1 ^ 7),
    (ipv6(GROUP6, bytes.fromhex("333300000001")), None),
    (ipv6(GROUP6, ALL), None),
    (ipv6(GROUP6, src=bytes(16)), None),
    (icmpv6(135), None),
    (icmpv6(136), None),
    (frame(kind=0x0806), None),
    (frame(kind=0x88B5), None),
    (b"", None),
])  # fmt: skip
def test_the_hash_is_the_xor_of_the_destination_address(packet, hash):
    assert balance.hash_to_all(packet) == hash
    assert frame_is_balanced_to_all(packet) == hash


MACS = [PEER, ALL, bytes.fromhex("333300000001"), bytes.fromhex("01005e000001")]


@given(st.binary(max_size=80), st.sampled_from(MACS), st.sampled_from([b"", TAG]),
       st.sampled_from([0x0800, 0x86DD, 0x0806, 0x8847]))  # fmt: skip
def test_the_twins_agree_on_any_bytes(data, mac, tag, kind):
    for packet in (data, mac + BOND + tag + struct.pack("!H", kind) + data,
                   mac + BOND + tag + struct.pack("!H", kind) + data.ljust(60, b"\0")):  # fmt: skip
        assert frame_is_balanced_to_all(packet) == balance.hash_to_all(packet)


@pytest.mark.parametrize("dynamic", [True, False])
def test_each_frame_leaves_where_and_as_its_twin_says(bed, dynamic):
    b = bed(3)
    table = b.publish(1, policy=HashPolicy.LAYER34, dynamic=dynamic, speeds={0: 100, 1: 1000, 2: 1000}, **ALB)
    loads, used = fresh(), set()
    packets = [ipv4(bytes((10, 0, each, 7))) for each in range(60)] + [flow(each) for each in range(30)]
    recorded = [bytes.fromhex(row["frame"]) for row in RECORDED]
    for packet in (*packets, *(each for each in recorded if b"\x08\x06" not in each[12:22])):
        b.send(packet)
        found = arrivals(b.wires, 1)[0]
        assert found == expected(table, loads, packet)
        used.add(found[0])
    assert len(used) >= 2


def arp(each: int, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    ip = bytes((10, 0, each >> 8, each & 255))
    return encode_arp(Arp(ARP_REQUEST, MacAddr(BOND), bytes((10, 0, 0, 1)), MacAddr(bytes(6)), ip), tags=tags)


@pytest.mark.parametrize("tags", [(), ((0x8100, 5),), ((0x88A8, 5), (0x8100, 6))])
def test_the_hosts_arp_is_handed_to_control_and_not_sent(bed, tags):
    b = bed(2)
    b.publish(0, **ALB)
    b.send(arp(9, tags))
    found = []
    wait_for(lambda: found.extend(b.datapath.diverted()) or found, "the ARP")
    assert [(slave, packet) for _, slave, packet in found] == [("", arp(9, tags))]
    assert all(quiet(wire) for wire in b.wires)
    totals = b.datapath.totals()
    assert (totals["tap_frames"], totals["tap_diverted"], totals["no_slave"]) == (1, 1, 0)


def test_a_flood_of_it_is_more_than_control_looks_at_and_the_rest_leaves_on_the_active_slave(bed):
    b = bed(2)
    b.publish(1, **ALB)
    for each in range(600):
        b.send(arp(each))
    wait_for(lambda: b.datapath.totals()["tap_frames"] == 600, "all")
    taken = b.datapath.totals()["tap_diverted"]
    assert 64 <= taken < 600
    sent = arrivals(b.wires, 600 - taken)
    assert {wire for wire, _ in sent} == {1}
    assert {packet[16:22] for _, packet in sent} == {BOND}
    taken_ones = {packet for _, _, packet in b.datapath.diverted()}
    assert taken_ones | {packet[10:] for _, packet in sent} == {arp(each) for each in range(600)}


def test_other_modes_send_the_hosts_arp_themselves(bed):
    b = bed(2)
    b.publish(0, spread=Spread.LOAD)
    b.send(arp(9))
    assert arrivals(b.wires, 1) == [(0, VNET + arp(9))]


@pytest.mark.parametrize("receives", ["0", "012"])
def test_each_slave_receives_what_names_it_and_the_bond_is_handed_it_under_its_own_mac(bed, receives):
    b = bed(3)
    table = b.publish(0, able="01", receives=receives, macs={0: BOND}, **ALB)
    for wire in range(3):
        for dst in (BOND, own(1), own(2), bytes.fromhex("02000000aaaa"), ALL):
            packet = frame(wire, dst=dst, src=PEER)
            b.wires[wire].send(VNET + packet)
            if accepts(table, wire, packet):
                got = b.tap.recv(70000)
                assert number(got) == wire
                assert got[10:16] == (dst if dst in (ALL, bytes.fromhex("02000000aaaa")) else BOND)
            else:
                assert quiet(b.tap), (wire, dst)


def test_what_is_received_as_arp_reaches_both_the_bond_and_control(bed):
    b = bed(2)
    b.publish(0, macs={0: BOND}, **ALB)
    packet = own(1) + PEER + arp(9)[12:]
    b.wires[1].send(VNET + packet)
    assert b.tap.recv(70000)[10:] == BOND + packet[6:]
    assert [(slave, got) for _, slave, got in b.datapath.diverted()] == [("s1", packet)]


def test_a_successor_goes_on_the_same_way(bed):
    b = bed(2)
    b.publish(0, **ALB)
    b.send(arp(9))
    wait_for(lambda: b.datapath.totals()["tap_diverted"] == 1, "the ARP")
    b.succeed()
    assert b.datapath.totals()["tap_diverted"] == 1
    b.send(arp(10))
    wait_for(lambda: b.datapath.totals()["tap_diverted"] == 2, "the next one")
