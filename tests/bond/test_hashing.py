"""Transmit hashes against the driver's recorded choices, worked vectors, and what each policy is for."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import pytest

from ubond.bond.hashing import HashPolicy, slave_index, xmit_hash
from ubond.bond.options import OPTIONS

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "hash.jsonl.gz"
NAMES = OPTIONS["xmit_hash_policy"].values
POLICIES = {name: HashPolicy(value) for value, name in NAMES.items()}
ALL = list(HashPolicy)
LAYER2, LAYER34, LAYER23 = HashPolicy.LAYER2, HashPolicy.LAYER34, HashPolicy.LAYER23
ENCAP23, ENCAP34, VLAN_SRCMAC = HashPolicy.ENCAP23, HashPolicy.ENCAP34, HashPolicy.VLAN_SRCMAC

with gzip.open(GOLDEN, "rt") as file:
    RECORDED = [json.loads(line) for line in file]
with (HERE / "hash_vectors.jsonl").open() as file:
    VECTORS = [json.loads(line) for line in file]
FRAME = {one["vector"]: bytes.fromhex(one["frame"]) for one in VECTORS}


# ── frames, small ────────────────────────────────────────────────────────────────────

MACS = bytes.fromhex("02000000001b02000000000a")
A, B = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 7))
A6, B6 = bytes.fromhex("20010db8" + "00" * 11 + "01"), bytes.fromhex("20010db8" + "00" * 11 + "02")
UDP = struct.pack("!HHHH", 5000, 53, 16, 0) + bytes(8)


def eth(kind: int, payload: bytes, *tags: tuple[int, int]) -> bytes:
    return MACS + b"".join(struct.pack("!HH", *tag) for tag in tags) + struct.pack("!H", kind) + payload


def ip4(protocol: int, payload: bytes, src=A, dst=B, fragment=0, options=b"", total=None) -> bytes:
    size = 20 + len(options)
    total = size + len(payload) if total is None else total
    head = struct.pack("!BBHHHBBH", 0x40 | size // 4, 0, total, 1, fragment, 64, protocol, 0)
    return head + src + dst + options + payload


def ip6(protocol: int, payload: bytes, src=A6, dst=B6) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + src + dst + payload


def icmp(kind: int, code: int = 0, id: int = 0, body: bytes = b"") -> bytes:
    return struct.pack("!BBHHH", kind, code, 0, id, 0) + body


def hashes(frame: bytes, *policies: HashPolicy) -> tuple[int, ...]:
    return tuple(xmit_hash(frame, policy) for policy in policies or ALL)


# ── the driver ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", POLICIES)
def test_every_recorded_frame_leaves_on_the_slave_that_the_driver_chose(name):
    wrong = []
    for one in RECORDED:
        hash = xmit_hash(bytes.fromhex(one["frame"]), POLICIES[name])
        ours = [slave_index(hash, n) for n in (2, 3, 4)]
        if ours != one["idx"][name]:
            wrong.append((one["kind"], one["tags"], one["via"], ours, one["idx"][name]))
    assert wrong == []


def test_the_recording_is_whole_and_has_frames_of_both_ways_in():
    assert len(RECORDED) == 415
    assert {way for one in RECORDED for way in one["via"]} == {"forwarded", "local"}
    assert all(set(one["idx"]) == set(POLICIES) for one in RECORDED)


@pytest.mark.parametrize("one", VECTORS, ids=lambda one: f"{one['vector']} {one['what']}")
def test_vector(one):
    frame = bytes.fromhex(one["frame"])
    for name, value in one["hash"].items():
        assert xmit_hash(frame, POLICIES[name]) == int(value, 16), name
        assert [slave_index(int(value, 16), n) for n in (2, 3, 4)] == one["idx"][name], name


def test_policies_have_the_numbers_of_the_option():
    assert [NAMES[policy] for policy in ALL] == [
        "layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac",
    ]  # fmt: skip


def test_one_slave_takes_all_and_none_takes_nothing():
    assert {slave_index(hash, 1) for hash in range(100)} == {0}
    assert slave_index(12345, 0) is None


# ── flows ────────────────────────────────────────────────────────────────────────────


def test_both_directions_agree_but_for_ports_and_source_mac():
    there, back = FRAME["V1"], FRAME["V2"]
    assert hashes(there, LAYER2, LAYER23, ENCAP23) == hashes(back, LAYER2, LAYER23, ENCAP23)
    for policy in (LAYER34, ENCAP34, VLAN_SRCMAC):
        assert xmit_hash(there, policy) != xmit_hash(back, policy)


def test_fragments_of_one_datagram_stay_together():
    whole, first, later = (eth(0x0800, ip4(17, UDP, fragment=bits)) for bits in (0, 0x2000, 0x0002))
    for policy in ALL:
        assert xmit_hash(first, policy) == xmit_hash(later, policy)
    assert xmit_hash(whole, LAYER23) == xmit_hash(first, LAYER23)
    assert xmit_hash(whole, LAYER34) != xmit_hash(first, LAYER34)


def test_dont_fragment_is_no_fragment():
    for policy in ALL:
        plain, df = (xmit_hash(eth(0x0800, ip4(17, UDP, fragment=bits)), policy) for bits in (0, 0x4000))
        assert plain == df


def test_a_fragmented_icmp_error_is_not_looked_into():
    error = icmp(3, 3, body=ip4(17, UDP, src=bytes(4), dst=bytes(4)))
    whole, first = (eth(0x0800, ip4(1, error, fragment=bits)) for bits in (0, 0x2000))
    assert xmit_hash(first, LAYER34) == xmit_hash(eth(0x0800, ip4(103, b"")), LAYER34)
    assert xmit_hash(whole, LAYER34) != xmit_hash(first, LAYER34)


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_an_icmp_error_travels_with_the_flow_it_quotes(kind):
    quoted = ip4(17, UDP, options=bytes(8))
    error = eth(0x0800, ip4(1, icmp(kind, body=quoted), src=bytes((10, 9, 9, 9)), dst=A))
    flow = eth(0x0800, ip4(17, UDP))
    assert hashes(error, LAYER34, LAYER23) == hashes(flow, LAYER34, LAYER23)
    assert xmit_hash(error, ENCAP34) != xmit_hash(flow, ENCAP34)


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_an_icmpv6_error_travels_with_the_flow_it_quotes(kind):
    error = eth(0x86DD, ip6(58, icmp(kind, body=ip6(17, UDP)), dst=bytes(16)))
    flow = eth(0x86DD, ip6(17, UDP))
    assert hashes(error, LAYER34, LAYER23) == hashes(flow, LAYER34, LAYER23)


def test_an_icmp_error_that_quotes_a_fragment_has_its_addresses_alone():
    error = eth(0x0800, ip4(1, icmp(11, body=ip4(17, UDP, fragment=0x2000))))
    assert xmit_hash(error, LAYER34) == xmit_hash(eth(0x0800, ip4(17, UDP, fragment=0x2000)), LAYER34)


def test_an_icmp_error_with_a_cut_quote_has_no_flow():
    whole = eth(0x0800, ip4(1, icmp(3, body=ip4(17, b""))))
    assert len({xmit_hash(whole, policy) for policy in (LAYER2, LAYER34, LAYER23)}) == 3
    assert set(hashes(whole[:-1], LAYER2, LAYER34, LAYER23)) == {xmit_hash(whole, LAYER2)}


@pytest.mark.parametrize("kind", [0, 8, 13, 14, 128, 129])
def test_icmp_with_an_id_is_spread_by_it_and_no_id_counts_as_one(kind):
    zero, one, two = (eth(0x0800, ip4(1, icmp(kind, id=id))) for id in (0, 1, 2))
    for policy in (LAYER34, ENCAP34):
        assert xmit_hash(zero, policy) == xmit_hash(one, policy) != xmit_hash(two, policy)


def test_other_icmp_has_its_addresses_alone():
    one, two = (eth(0x0800, ip4(1, icmp(9, id=id))) for id in (1, 2))
    assert hashes(one) == hashes(two)


def test_ip_options_come_before_the_ports():
    assert hashes(eth(0x0800, ip4(17, UDP, options=bytes(40)))) == hashes(eth(0x0800, ip4(17, UDP)))


def test_bytes_behind_the_ip_length_count_as_ports():
    # So the recording says ("ip4 total length short"): the driver does not read the length.
    assert hashes(eth(0x0800, ip4(17, UDP, total=20))) == hashes(eth(0x0800, ip4(17, UDP)))


def test_ah_and_esp_are_spread_by_their_spi():
    spi = bytes.fromhex("deadbeef")
    ah = eth(0x0800, ip4(51, bytes(4) + spi + bytes(16)))
    esp = eth(0x0800, ip4(50, spi + bytes(20)))
    other = eth(0x0800, ip4(50, bytes.fromhex("deadbee0") + bytes(20)))
    assert hashes(ah, LAYER34, ENCAP34) == hashes(esp, LAYER34, ENCAP34)
    assert xmit_hash(esp, LAYER34) != xmit_hash(other, LAYER34)


@pytest.mark.parametrize("cut", range(1, 5))
def test_ports_that_are_not_whole_count_as_zero(cut):
    frame = eth(0x0800, ip4(6, bytes.fromhex("9c4001bb")))
    for policy in (LAYER34, ENCAP34):
        assert xmit_hash(frame[:-cut], policy) == xmit_hash(eth(0x0800, ip4(103, b"")), policy)


@pytest.mark.parametrize("payload", [ip4(17, UDP)[:19], ip6(17, UDP)[:39]])
def test_a_cut_ip_header_has_no_flow(payload):
    frame = eth(0x0800 if payload[0] >> 4 == 4 else 0x86DD, payload)
    assert set(hashes(frame)[:-1]) == {xmit_hash(frame, LAYER2)}


@pytest.mark.parametrize("length", range(14))
def test_without_a_whole_ethernet_header_all_hashes_are_zero(length):
    assert set(hashes(FRAME["V1"][:length])) == {0}


# ── VLAN tags ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tpid", [0x8100, 0x88A8])
@pytest.mark.parametrize("tci", [0, 100, 0x2064, 0xFFFF])
def test_the_outermost_tag_counts_for_vlan_srcmac_alone(tpid, tci):
    plain, tagged = eth(0x0800, ip4(17, UDP)), eth(0x0800, ip4(17, UDP), (tpid, tci))
    assert hashes(tagged)[:-1] == hashes(plain)[:-1]
    assert xmit_hash(tagged, VLAN_SRCMAC) == xmit_hash(plain, VLAN_SRCMAC) ^ tci


def test_a_second_tag_hides_the_flow_from_all_but_the_encap_policies():
    plain, double = eth(0x0800, ip4(17, UDP)), eth(0x0800, ip4(17, UDP), (0x88A8, 5), (0x8100, 6))
    other = eth(0x0800, ip4(17, UDP, src=bytes(4)), (0x88A8, 5), (0x8100, 6))
    assert hashes(double, LAYER23, LAYER34) == hashes(double, LAYER2, LAYER2) == hashes(other, LAYER2, LAYER2)
    assert xmit_hash(double, ENCAP34) == xmit_hash(plain, ENCAP34)


def test_a_tag_cut_short_stays_in_the_frame():
    frame = eth(0x0800, b"", (0x8100, 100))
    assert xmit_hash(frame[:17], LAYER2) == 0x1B ^ 0x0A ^ 0x8100
    assert xmit_hash(frame, LAYER2) == 0x1B ^ 0x0A ^ 0x0800


@pytest.mark.parametrize("inner", [0, 1, 6])
def test_tagged_mpls_is_hashed_with_its_tag_in_the_frame(inner):
    frame = eth(0x8847, bytes(30), (0x88A8, 100), *[(0x8100, 7)] * inner)
    assert xmit_hash(frame, LAYER2) == 0x1B ^ 0x0A ^ 0x88A8
    assert xmit_hash(frame, VLAN_SRCMAC) == xmit_hash(FRAME["V1"], VLAN_SRCMAC)


def test_behind_seven_tags_mpls_is_not_found():
    frame = eth(0x8847, bytes(30), (0x88A8, 100), *[(0x8100, 7)] * 7)
    assert xmit_hash(frame, LAYER2) == 0x1B ^ 0x0A ^ 0x8100


# ── the walk of the encap policies ───────────────────────────────────────────────────

INNER = ip4(17, UDP, src=bytes((10, 1, 0, 1)), dst=bytes((10, 2, 0, 9)))
INNER6 = ip6(17, UDP, src=bytes(16))
PLAIN, PLAIN6 = xmit_hash(eth(0x0800, INNER), ENCAP34), xmit_hash(eth(0x86DD, INNER6), ENCAP34)
GRE_ALL = bytes.fromhex("b0000800") + bytes(12)  # checksum, key, sequence number
PPTP = bytes.fromhex("3081880b") + bytes(12) + bytes.fromhex("ff030021")
HSR = bytes(4) + bytes.fromhex("0800")
BATMAN = bytes((0x40, 15)) + bytes(20) + bytes.fromhex("0800")
EXTENSION = bytes((17, 0)) + bytes(6)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(eth(0x0800, ip4(4, INNER)), id="ipip"),
        pytest.param(eth(0x86DD, ip6(4, INNER)), id="ipv4 in ipv6"),
        pytest.param(eth(0x0800, ip4(47, bytes.fromhex("00000800") + INNER)), id="gre"),
        pytest.param(eth(0x0800, ip4(47, GRE_ALL + INNER)), id="gre with everything"),
        pytest.param(eth(0x0800, ip4(47, bytes.fromhex("00006558") + eth(0x0800, INNER))), id="ethernet in gre"),
        pytest.param(eth(0x0800, ip4(47, PPTP + INNER)), id="pptp"),
        pytest.param(eth(0x8864, bytes.fromhex("1100000100000021") + INNER), id="pppoe"),
        pytest.param(eth(0x8864, bytes.fromhex("11000001000021") + INNER), id="pppoe, type in one byte"),
        pytest.param(eth(0x892F, HSR + INNER), id="hsr"),
        pytest.param(eth(0x88FB, HSR + INNER), id="prp"),
        pytest.param(eth(0x4305, BATMAN + INNER), id="batman"),
        pytest.param(eth(0x0800, INNER, *[(0x8100, 1)] * 4), id="four tags"),
    ],
)
def test_encap_policies_see_the_innermost_ipv4_flow(frame):
    assert xmit_hash(frame, ENCAP34) == PLAIN


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(eth(0x0800, ip4(41, INNER6)), id="sit"),
        pytest.param(eth(0x86DD, ip6(41, INNER6)), id="ipv6 in ipv6"),
        pytest.param(eth(0x8864, bytes.fromhex("1100000100000057") + INNER6), id="pppoe"),
        *(
            pytest.param(eth(0x86DD, ip6(kind, EXTENSION + UDP, src=bytes(16))), id=f"extension {kind}")
            for kind in (0, 43, 60)
        ),
    ],
)
def test_encap_policies_see_the_innermost_ipv6_flow(frame):
    assert xmit_hash(frame, ENCAP34) == PLAIN6


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(eth(0x0800, ip4(47, bytes.fromhex("40000800") + INNER)), id="gre with routing"),
        pytest.param(eth(0x0800, ip4(47, bytes.fromhex("00020800") + INNER)), id="gre version 2"),
        pytest.param(eth(0x0800, ip4(47, bytes.fromhex("0001880b") + INNER)), id="pptp without key"),
        pytest.param(eth(0x0800, ip4(47, bytes.fromhex("20010800") + INNER)), id="gre version 1 without ppp"),
        pytest.param(eth(0x0800, ip4(137, bytes(4) + INNER)), id="mpls in ip"),
        pytest.param(eth(0x0800, ip4(0, EXTENSION + UDP)), id="ipv6 extension in ipv4"),
    ],
)
def test_what_is_not_entered_is_spread_by_its_addresses(frame):
    assert xmit_hash(frame, ENCAP34) == xmit_hash(eth(0x0800, ip4(103, b"")), ENCAP34)


def test_an_ipv6_fragment_ends_the_walk():
    fragment = eth(0x86DD, ip6(44, EXTENSION + UDP))
    assert xmit_hash(fragment, ENCAP34) == xmit_hash(eth(0x86DD, ip6(103, b"")), ENCAP34)


@pytest.mark.parametrize(
    ("kind", "size"),
    [(0x0806, 0), (0x8035, 0), (0x8847, 0), (0x8848, 0), (0x8902, 0), (0x88F7, 34), (0x8906, 38)],
)
def test_types_without_a_flow_of_their_own_all_leave_on_one_slave(kind, size):
    frame = eth(kind, bytes(size))
    assert xmit_hash(frame, ENCAP34) == 0
    if size:
        assert xmit_hash(frame[:-1], ENCAP34) == xmit_hash(frame, LAYER2)


def test_tipc_is_spread_by_the_senders_node():
    one, two = (eth(0x88CA, bytes(12) + node + bytes(8)) for node in (A, B))
    assert xmit_hash(one, ENCAP34) != xmit_hash(two, ENCAP34)
    assert xmit_hash(one, LAYER34) == xmit_hash(one, LAYER2)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(eth(0x88CC, bytes(46)), id="lldp"),
        pytest.param(eth(0x0026, bytes(46)), id="802.3"),
        pytest.param(eth(0x0800, ip4(47, bytes.fromhex("00001234") + INNER)), id="unknown type in gre"),
        pytest.param(eth(0x0800, ip4(47, bytes.fromhex("2000"))), id="cut gre"),
        pytest.param(eth(0x0800, ip4(47, bytes.fromhex("20000800") + bytes(3))), id="gre with a cut key"),
        pytest.param(eth(0x0800, ip4(47, bytes.fromhex("00006558") + bytes(13))), id="cut ethernet in gre"),
        pytest.param(eth(0x0800, ip4(4, INNER[:19])), id="cut inner ipv4"),
        pytest.param(eth(0x0800, ip4(4, b"\x44" + INNER[1:])), id="inner ipv4 with a header of 16 bytes"),
        pytest.param(eth(0x86DD, ip6(0, b"\0")), id="cut extension"),
        pytest.param(eth(0x86DD, ip6(44, bytes(7))), id="cut fragment header"),
        pytest.param(eth(0x8864, bytes.fromhex("1109000100000021") + INNER), id="pppoe not in session"),
        pytest.param(eth(0x8864, bytes.fromhex("1100000100000020") + INNER), id="pppoe with an invalid type"),
        pytest.param(eth(0x4305, bytes((0x40, 14)) + BATMAN[2:] + INNER), id="batman of another version"),
        pytest.param(eth(0x892F, HSR[:5]), id="cut hsr"),
    ],
)
def test_what_cannot_be_read_is_hashed_as_layer2(frame):
    assert hashes(frame, ENCAP23, ENCAP34) == hashes(frame, LAYER2, LAYER2)


def test_pppoe_of_another_valid_protocol_has_no_addresses():
    frame = eth(0x8864, bytes.fromhex("11000001000ac021") + bytes(8))  # LCP
    assert xmit_hash(frame, ENCAP34) == 0


def test_the_walk_takes_fifteen_steps_after_the_first_header():
    # IPIP is a step each: the addresses of the sixteenth header are the last to be taken.
    def nested(depth: int) -> bytes:
        packet = UDP
        for level in range(depth, 0, -1):
            packet = ip4(17 if level == depth else 4, packet, src=bytes((10, 0, 0, level)))
        return eth(0x0800, packet)

    def lone(level: int, protocol: int, payload: bytes) -> int:
        return xmit_hash(eth(0x0800, ip4(protocol, payload, src=bytes((10, 0, 0, level)))), ENCAP34)

    assert xmit_hash(nested(16), ENCAP34) == lone(16, 17, UDP)
    assert xmit_hash(nested(17), ENCAP34) == lone(16, 103, b"")


def test_ports_are_still_found_behind_the_last_extension_header():
    def chain(count: int) -> bytes:
        headers = b"".join(bytes((60 if left else 17, 0)) + bytes(6) for left in range(count - 1, -1, -1))
        return eth(0x86DD, ip6(60, headers + UDP, src=bytes(16)))

    assert xmit_hash(chain(16), ENCAP34) == PLAIN6
    assert xmit_hash(chain(17), ENCAP34) == xmit_hash(eth(0x86DD, ip6(103, b"", src=bytes(16))), ENCAP34)


def test_a_tag_inside_a_tunnel_is_taken_for_the_frames_own():
    # The driver's reader looks for the tag that it holds apart at the first tag it meets, and goes
    # on with the frame's own type in the tag's place: behind GRE that is no IPv4 header.
    inside = bytes.fromhex("00006558") + eth(0x0800, INNER, (0x8100, 5))
    assert xmit_hash(eth(0x0800, ip4(47, inside)), ENCAP34) == PLAIN
    tagged = eth(0x0800, ip4(47, inside), (0x8100, 9))
    assert xmit_hash(tagged, ENCAP34) == xmit_hash(tagged, LAYER2)
