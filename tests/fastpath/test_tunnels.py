"""Tunnel super-frames are cut into the segments that their sender meant, every checksum right."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fastpath.bed import BOND, PEER, VNET, frame, number
from ubond import wire

TCP, UDP, GRE = 6, 17, 47


def ip(version, protocol, body, number=7):
    if version == 4:
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), number, 0x4000, 64, protocol, 0,
                           b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02")  # fmt: skip
        return head[:10] + struct.pack("!H", wire.checksum(head)) + head[12:] + body
    addresses = b"\xfd" + bytes(14) + b"\1\xfd" + bytes(14) + b"\2"
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + addresses + body


def pseudo(packet, protocol, length):
    if packet[0] >> 4 == 4:
        return packet[12:20] + struct.pack("!HH", protocol, length)
    return packet[8:40] + struct.pack("!IHH", length, 0, protocol)


def sound(packet, protocol, l4):
    """Whether a transport checksum in `packet` (from its IP header on) is right; zero UDP is none."""
    body = packet[l4:]
    if protocol == UDP and body[6:8] == b"\0\0":
        return True
    return wire.checksum(pseudo(packet, protocol, len(body)) + body) == 0


def tcp(payload, flags=0x18, options=b""):
    head = struct.pack("!HHIIBBHHH", 1000, 2000, 0xFFFFFF00, 5, (5 + len(options) // 4) << 4, flags, 512, 0, 0)
    return head + options + payload


def udp(payload, dst=2000, checksum=0):
    return struct.pack("!HHHH", 1000, dst, 8 + len(payload), checksum) + payload


def eth(kind, body, tags=()):
    return PEER + BOND[::-1] + b"".join(struct.pack("!HH", 0x8100, t) for t in tags) + struct.pack("!H", kind) + body


INNER_KIND = {4: 0x0800, 6: 0x86DD}


def super_frame(tunnel, outer, inner, transport, payload, size, tags=(), flags=0x98):
    """(packet with virtio-net header, offset of the outer IP header, of the inner one, of its L4)."""
    l4 = tcp(payload, flags, bytes.fromhex("0101080a0000000100000002")) if transport == TCP else udp(payload)
    packet = ip(inner, transport, l4)
    framed = eth(INNER_KIND[inner], packet, tags)
    body = {
        "vxlan": lambda: udp(bytes.fromhex("0800000000002a00") + framed, 4789),
        "vxlan-checked": lambda: udp(bytes.fromhex("0800000000002a00") + framed, 4789, 0x1234),
        "gretap": lambda: struct.pack("!HH", 0, 0x6558) + framed,
        "gre-checked": lambda: struct.pack("!HHHH", 0x8000, INNER_KIND[inner], 0x1234, 0) + packet,
        "ipip": lambda: packet,
    }[tunnel]()
    protocol = {"v": UDP, "g": GRE, "i": {4: 4, 6: 41}[inner]}[tunnel[0]]
    frame = eth(INNER_KIND[outer], ip(outer, protocol, body))
    inner_at = len(frame) - len(packet)
    l4_at = inner_at + (20 if inner == 4 else 40)
    gso = {(TCP, 4): 0x81, (TCP, 6): 4}.get((transport, inner), 5)
    headers = len(frame) - len(payload)
    header = struct.pack("<BBHHHH", 1, gso, headers, size, l4_at, 16 if transport == TCP else 6)
    return header + frame, 14, inner_at, l4_at


def check(segments, original, at, l4_at, transport, payload, size):
    """The segments carry the payload whole, in order, with right lengths, numbers and checksums."""
    l4_head = 32 if transport == TCP else 8
    whole = b""
    for i, segment in enumerate(segments):
        assert segment[:10] == bytes(10)
        frame = segment[10:]
        outer, inner = frame[14:], frame[at:]
        for packet in (outer, inner):
            if packet[0] >> 4 == 4:
                assert int.from_bytes(packet[2:4], "big") == len(packet)
                assert wire.checksum(packet[:20]) == 0
                assert int.from_bytes(packet[4:6], "big") == 7 + i
            else:
                assert int.from_bytes(packet[4:6], "big") == len(packet) - 40
        outer_protocol, outer_l4 = (outer[9], 20) if outer[0] >> 4 == 4 else (outer[6], 40)
        if outer_protocol == UDP:
            assert int.from_bytes(outer[outer_l4 + 4 : outer_l4 + 6], "big") == len(outer) - outer_l4
            assert sound(outer, UDP, outer_l4)
            assert bool(int.from_bytes(outer[outer_l4 + 6 : outer_l4 + 8], "big")) == bool(
                int.from_bytes(original[10 + 14 + outer_l4 + 6 : 10 + 14 + outer_l4 + 8], "big"))
        if outer_protocol == GRE and outer[outer_l4] & 0x80:
            assert wire.checksum(outer[outer_l4:]) == 0
        assert sound(inner, transport, l4_at - at)
        body = frame[l4_at + l4_head :]
        assert len(body) == min(size, len(payload) - len(whole))
        if transport == TCP:
            sequence, flags = int.from_bytes(frame[l4_at + 4 : l4_at + 8], "big"), frame[l4_at + 13]
            assert sequence == (0xFFFFFF00 + len(whole)) % 2**32
            assert bool(flags & 0x80) == (i == 0)                       # CWR with the first
            assert bool(flags & 0x08) == (i == len(segments) - 1)       # PSH with the last
        else:
            assert int.from_bytes(frame[l4_at + 4 : l4_at + 6], "big") == 8 + len(body)
        whole += body
    assert whole == payload


TUNNELS = ["vxlan", "vxlan-checked", "gretap", "gre-checked", "ipip"]


@pytest.mark.parametrize("transport", [TCP, UDP])
@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("tunnel", TUNNELS)
def test_a_super_frame_is_cut(bed, tunnel, outer, inner, transport):
    b = bed(1)
    for n, size, tags in [(10000, 1400, ()), (1401, 1400, (5,)), (60001, 1359, (5, 6)), (2800, 1400, ())]:
        payload = bytes((i * 7 + n) % 256 for i in range(n))
        packet, _, at, l4_at = super_frame(tunnel, outer, inner, transport, payload, size, tags)
        b.wires[0].send(packet)
        segments = [b.tap.recv(70000) for _ in range(-(-n // size))]
        check(segments, packet, at, l4_at, transport, payload, size)
    assert b.datapath.counters()["s0"]["rx_tunnel_gso"] == 4


def test_plain_super_frames_pass_whole(bed):
    b = bed(1)
    for version, gso in [(4, 1), (6, 4)]:
        frame = eth(INNER_KIND[version], ip(version, TCP, tcp(bytes(9000))))
        packet = struct.pack("<BBHHHH", 1, gso, 66, 1448, 34 if version == 4 else 54, 16) + frame
        b.wires[0].send(packet)
        assert b.tap.recv(70000) == packet


def test_what_cannot_be_cut_is_counted_and_not_passed_on(bed):
    """GRE with sequence numbers, and headers that make no sense."""
    b = bed(1)
    frame = eth(0x0800, ip(4, GRE, struct.pack("!HHI", 0x1000, 0x0800, 9) + ip(4, TCP, tcp(bytes(3000)))))
    b.wires[0].send(struct.pack("<BBHHHH", 1, 1, 94, 1400, 62, 16) + frame)
    b.wires[0].send(struct.pack("<BBHHHH", 1, 1, 94, 1400, 300, 16) + frame)
    b.wires[0].send(bytes(10) + eth(0x0800, ip(4, UDP, udp(b"end"))))
    assert b.tap.recv(70000)[10:].endswith(b"end")
    assert b.datapath.counters()["s0"]["rx_tunnel_refused"] == 2


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_super_frames_never_break_the_worker(bed_once, data):
    """Whatever a header says: the worker lives, and the next frame passes."""
    tunnel = data.draw(st.sampled_from(TUNNELS))
    packet, *_ = super_frame(tunnel, data.draw(st.sampled_from([4, 6])), data.draw(st.sampled_from([4, 6])),
                             data.draw(st.sampled_from([TCP, UDP])), bytes(data.draw(st.integers(0, 3000))), 1400)
    broken = bytearray(packet)
    for _ in range(data.draw(st.integers(0, 6))):
        broken[data.draw(st.integers(0, min(150, len(broken) - 1)))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(24, len(broken)))
    bed_once.wires[0].send(bytes(broken[:cut]))
    marker = bytes(10) + PEER + BOND + b"\x88\xb5" + data.draw(st.binary(min_size=46, max_size=46))
    bed_once.wires[0].send(marker)
    while bed_once.tap.recv(70000) != marker:
        pass


@pytest.fixture
def bed_once(bed):
    """One bed for all examples of a test."""
    return bed(1)


# ── what nobody may send, and somebody does ──────────────────────────────────────────


def refused(bed, packet):
    """Whether this super-frame is dropped and counted, and the next frame arrives."""
    b = bed()
    b.wires[0].send(packet)
    b.wires[0].send(VNET + frame(1))
    assert number(b.tap.recv(70000)) == 1
    return b.datapath.counters()["s0"]["rx_tunnel_refused"] == 1


def test_a_tcp_header_shorter_than_tcps_is_refused(bed):
    """The segments' flags and checksum would stand beyond the room for headers."""
    gap = bytes(424)
    inner = bytearray(ip(4, TCP, tcp(bytes(100))))
    inner[32] = 2 << 4
    framed = eth(0x0800, bytes(inner))
    outer = eth(0x0800, ip(4, UDP, udp(gap + framed, 4789)))
    l4 = len(outer) - 120
    assert l4 + 8 <= 512 < l4 + 20
    assert refused(bed, struct.pack("<BBHHHH", 1, 1, l4 + 8, 50, l4, 16) + outer)


@pytest.mark.parametrize("size", [1, 4])
def test_one_frame_cannot_make_tens_of_thousands(bed, size):
    packet, *_ = super_frame("vxlan", 4, 4, TCP, bytes(8000), size)
    assert refused(bed, packet)


def test_a_super_frame_as_long_as_can_be_received_is_refused(bed):
    packet, *_ = super_frame("vxlan", 6, 6, TCP, bytes(60000), 1400)
    longest = 2042 + 66560
    assert refused(bed, packet + bytes(longest - len(packet)))
