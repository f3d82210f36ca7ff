"""Neighbour advertisements and membership reports: recorded bytes, standards' examples, damage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubond.wire import (
    ALL_HOSTS,
    ALL_NODES,
    IS_EXCLUDE,
    TO_EXCLUDE,
    GroupRecord,
    MacAddr,
    MembershipReport,
    NeighbourAdvert,
    WireError,
    checksum,
    decode_arp,
    decode_ethernet,
    decode_membership_report,
    decode_na,
    group_mac,
    igmp_reports,
    mld_reports,
    unsolicited_na,
)


def ip(text: str) -> bytes:
    return (IPv6Address if ":" in text else IPv4Address)(text).packed


MAC = MacAddr.parse("02:6e:65:f2:f7:1f")
LINK_LOCAL = ip("fe80::407")

# What a Linux bond with these addresses and groups sent at failover.
RECORDED_NA = bytes.fromhex(
    "333300000001026e65f2f71f86dd6000000000203afffe800000000000000000000000000407ff02000000000000000000000000"
    "00018800f20f20000000fe8000000000000000000000000004070201026e65f2f71f"
)
RECORDED_IGMP = bytes.fromhex(
    "01005e000016026e65f2f71f080046c0002800004000010241dfc000021ae000001694040000220019b10000000102000000ef45d307"
)
RECORDED_MLD = bytes.fromhex(
    "333300000016026e65f2f71f86dd6000000000380001fe800000000000000000000000000407ff02000000000000000000000000"
    "00163a000502000001008f007f970000000202000000ff05000000000000000000000000ea4802000000ff020000000000000000"
    "0001ff000407"
)
#: Not a resend but a change of state: the stack has just joined, from no address.
RECORDED_JOIN = bytes.fromhex(
    "33330000001602b16f462d9386dd600000000024000100000000000000000000000000000000ff020000000000000000000000000016"
    "3a000502000001008f00115a0000000104000000ff0200000000000000000001ff005e30"
)
GROUPS6 = (ip("ff05::ea48"), ip("ff02::1:ff00:407"))


def in_ipv4(body: bytes) -> bytes:
    """The frame of an IGMP message without router alert, both checksums put right."""
    body = body[:2] + checksum(body).to_bytes(2) + body[4:]
    header = bytes.fromhex("45c0") + (20 + len(body)).to_bytes(2)
    header += bytes.fromhex("0000000001020000c0000201e0000016")
    header = header[:10] + checksum(header).to_bytes(2) + header[12:]
    return RECORDED_IGMP[:14] + header + body


def test_checksum_is_that_of_the_rfc_example() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF ^ 0xDDF2  # RFC 1071, section 3


def test_checksum_of_an_odd_number_of_bytes_pads_with_zero() -> None:
    assert checksum(b"\x12\x34\x56") == checksum(b"\x12\x34\x56\x00")


@pytest.mark.parametrize(
    ("group", "mac"),
    [
        ("224.0.0.22", "01:00:5e:00:00:16"),
        ("239.255.255.255", "01:00:5e:7f:ff:ff"),  # RFC 1112, 6.4: the low 23 bits alone
        ("224.128.1.2", "01:00:5e:00:01:02"),
        ("ff02::1:ff0e:8c6c", "33:33:ff:0e:8c:6c"),
    ],
)
def test_group_mac_is_the_standards_mapping(group: str, mac: str) -> None:
    assert str(group_mac(ip(group))) == mac


@pytest.mark.parametrize("address", ["192.0.2.1", "240.0.0.1", "2001:db8::1"])
def test_an_ordinary_address_has_no_group_mac(address: str) -> None:
    with pytest.raises(WireError, match="not a multicast group"):
        group_mac(ip(address))


def test_unsolicited_advertisement_is_what_linux_sends() -> None:
    assert unsolicited_na(MAC, LINK_LOCAL) == RECORDED_NA
    assert decode_na(RECORDED_NA) == NeighbourAdvert(LINK_LOCAL, ALL_NODES, LINK_LOCAL, MAC, override=True)


def test_advertisement_of_a_router_says_so_and_keeps_its_vlan() -> None:
    data = unsolicited_na(MAC, ip("2001:db8::1"), router=True, tags=((0x8100, 5),))
    advert = decode_na(data)
    assert (advert.router, advert.override, advert.solicited) == (True, True, False)
    assert decode_ethernet(data).tags == ((0x8100, 5),)


def test_igmpv3_report_is_what_linux_sends() -> None:
    group = ip("239.69.211.7")
    assert igmp_reports(MAC, ip("192.0.2.26"), [group]) == (RECORDED_IGMP,)
    expected = MembershipReport(3, ip("192.0.2.26"), ip("224.0.0.22"), (GroupRecord(group, IS_EXCLUDE),))
    assert decode_membership_report(RECORDED_IGMP) == expected


def test_mldv2_report_is_what_linux_sends() -> None:
    assert mld_reports(MAC, LINK_LOCAL, GROUPS6) == (RECORDED_MLD,)
    records = tuple(GroupRecord(group) for group in GROUPS6)
    assert decode_membership_report(RECORDED_MLD) == MembershipReport(2, LINK_LOCAL, ip("ff02::16"), records)


def test_a_change_of_state_is_read_as_such() -> None:
    (record,) = decode_membership_report(RECORDED_JOIN).records
    assert (record.kind, record.group) == (TO_EXCLUDE, ip("ff02::1:ff00:5e30"))


@pytest.mark.parametrize(("version", "kind"), [(1, 0x12), (2, 0x16)])
def test_old_igmp_reports_go_to_the_group_itself(version: int, kind: int) -> None:
    groups = [ip("239.1.2.3"), ip("224.0.0.251")]
    frames = igmp_reports(MAC, ip("192.0.2.1"), groups, version)
    for data, group in zip(frames, groups, strict=True):
        frame = decode_ethernet(data)
        header, igmp = frame.payload[:24], frame.payload[24:]
        assert frame.dst == group_mac(group)
        assert (header[8], header[16:20], header[20:]) == (1, group, b"\x94\x04\x00\x00")
        assert (igmp[0], igmp[1], igmp[4:]) == (kind, 0, group)
        assert checksum(header) == checksum(igmp) == 0
        assert decode_membership_report(data).records == (GroupRecord(group),)


def test_mldv1_report_goes_to_the_group_with_hop_limit_one_and_router_alert() -> None:
    (data,) = mld_reports(MAC, LINK_LOCAL, [GROUPS6[0]], version=1)
    frame = decode_ethernet(data)
    assert frame.dst == group_mac(GROUPS6[0])
    assert (frame.payload[7], frame.payload[24:40]) == (1, GROUPS6[0])
    assert frame.payload[40:48] == bytes.fromhex("3a00050200000100")
    assert frame.payload[48] == 131
    expected = MembershipReport(1, LINK_LOCAL, GROUPS6[0], (GroupRecord(GROUPS6[0]),))
    assert decode_membership_report(data) == expected


def test_groups_that_are_never_reported_are_left_out() -> None:
    assert igmp_reports(MAC, bytes(4), [ALL_HOSTS]) == ()
    assert igmp_reports(MAC, bytes(4), [ALL_HOSTS], version=2) == ()
    assert mld_reports(MAC, bytes(16), [ALL_NODES, ip("ff01::5"), ip("ff00::5")]) == ()


def test_many_groups_are_spread_over_reports_that_every_network_carries() -> None:
    groups4 = [ip(f"239.0.{n // 256}.{n % 256}") for n in range(300)]
    groups6 = [ip(f"ff05::{n:x}") for n in range(200)]
    for frames, groups, limit in (
        (igmp_reports(MAC, bytes(4), groups4), groups4, 576),
        (mld_reports(MAC, bytes(16), groups6), groups6, 1280),
    ):
        assert max(len(frame) - 14 for frame in frames) <= limit
        reported = [record.group for frame in frames for record in decode_membership_report(frame).records]
        assert reported == groups


def test_an_unknown_version_is_not_encoded() -> None:
    with pytest.raises(WireError, match="no IGMP version 4"):
        igmp_reports(MAC, bytes(4), [], version=4)
    with pytest.raises(WireError, match="no MLD version 3"):
        mld_reports(MAC, bytes(16), [], version=3)


def test_sources_and_auxiliary_data_of_a_record_are_stepped_over() -> None:
    body = bytes.fromhex("22000000 00000002 01010002 ef010203 c0000201 c0000202 deadbeef 02000000 ef010204")
    report = decode_membership_report(in_ipv4(body))
    first = GroupRecord(ip("239.1.2.3"), 1, (ip("192.0.2.1"), ip("192.0.2.2")))
    assert report.records == (first, GroupRecord(ip("239.1.2.4")))


CASES = [
    (decode_na, RECORDED_NA),
    (decode_membership_report, RECORDED_IGMP),
    (decode_membership_report, RECORDED_MLD),
]
IDS = ["NA", "IGMPv3", "MLDv2"]


@pytest.mark.parametrize(("decode", "data"), CASES, ids=IDS)
def test_padding_behind_the_packet_changes_nothing(decode: Callable[[bytes], object], data: bytes) -> None:
    assert decode(data + bytes(20)) == decode(data)


@pytest.mark.parametrize(("decode", "data"), CASES, ids=IDS)
def test_a_packet_cut_short_is_refused(decode: Callable[[bytes], object], data: bytes) -> None:
    for size in range(len(data)):
        with pytest.raises(WireError):
            decode(data[:size])


@pytest.mark.parametrize(("decode", "data"), CASES, ids=IDS)
def test_a_flipped_bit_is_found_by_the_checksum(decode: Callable[[bytes], object], data: bytes) -> None:
    for at in range(len(data) - 12, len(data)):
        broken = data[:at] + bytes([data[at] ^ 0x04]) + data[at + 1 :]
        with pytest.raises(WireError, match="checksum"):
            decode(broken)


@pytest.mark.parametrize("hops", [0, 1, 254])
def test_an_advertisement_that_was_routed_is_refused(hops: int) -> None:
    routed = RECORDED_NA[:21] + bytes([hops]) + RECORDED_NA[22:]
    with pytest.raises(WireError, match="hops"):
        decode_na(routed)


def test_mld_from_beyond_the_link_is_refused() -> None:
    (data,) = mld_reports(MAC, ip("2001:db8::1"), GROUPS6)
    with pytest.raises(WireError, match="link-local"):
        decode_membership_report(data)
    routed = RECORDED_MLD[:21] + b"\x02" + RECORDED_MLD[22:]
    with pytest.raises(WireError, match="link-local"):
        decode_membership_report(routed)


RECORDED = [RECORDED_NA, RECORDED_IGMP, RECORDED_MLD, RECORDED_JOIN]
DECODERS = [decode_ethernet, decode_arp, decode_na, decode_membership_report]
damage = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=6)


@given(st.sampled_from(DECODERS), st.binary(max_size=150))
def test_random_bytes_never_crash_a_decoder(decode: Callable[[bytes], object], data: bytes) -> None:
    _only_wire_errors(decode, data)


@given(st.sampled_from(DECODERS), st.sampled_from(RECORDED), damage, st.integers(0, 130))
def test_damaged_frames_never_crash_a_decoder(
    decode: Callable[[bytes], object], data: bytes, changes: list[tuple[int, int]], size: int
) -> None:
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    _only_wire_errors(decode, bytes(damaged[:size]))


@given(st.sampled_from([1, 2, 3, 0x16, 0x12, 0x22]), st.binary(min_size=7, max_size=60))
def test_any_igmp_message_with_right_checksums_never_crashes(kind: int, rest: bytes) -> None:
    """Behind the checksum, where damage alone seldom gets."""
    _only_wire_errors(decode_membership_report, in_ipv4(bytes([kind, 0, 0, 0]) + rest))


@given(st.sampled_from([131, 136, 143]), st.binary(min_size=20, max_size=80), st.sampled_from([1, 255]))
def test_any_icmpv6_message_with_right_checksum_never_crashes(kind: int, rest: bytes, hops: int) -> None:
    body = bytes([kind, 0, 0, 0]) + rest
    pseudo = LINK_LOCAL + ALL_NODES + len(body).to_bytes(4) + (58).to_bytes(4)
    body = body[:2] + checksum(pseudo + body).to_bytes(2) + body[4:]
    alert = bytes.fromhex("3a00050200000100") if hops == 1 else b""
    head = b"\x60\x00\x00\x00" + (len(alert + body)).to_bytes(2) + bytes([0 if alert else 58, hops])
    _only_wire_errors(
        decode_na if hops == 255 else decode_membership_report,
        RECORDED_NA[:14] + head + LINK_LOCAL + ALL_NODES + alert + body,
    )


def _only_wire_errors(decode: Callable[[bytes], object], data: bytes) -> None:
    """Whatever else a decoder raises fails the test."""
    with contextlib.suppress(WireError):
        assert decode(data) is not None
