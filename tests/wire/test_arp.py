"""ARP and RARP, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubond.wire import (
    ARP_REPLY,
    ARP_REQUEST,
    BROADCAST,
    ETH_RARP,
    RARP_REQUEST,
    Arp,
    MacAddr,
    WireError,
    decode_arp,
    decode_ethernet,
    encode_arp,
    gratuitous_arp,
    rarp_announcement,
)

MAC = MacAddr.parse("02:9f:25:9a:fa:e2")
macs = st.binary(min_size=6, max_size=6).map(MacAddr)
addresses = st.binary(min_size=4, max_size=4)

# What a Linux bond sent at failover, on the bond and on VLAN 3718 above it.
RECORDED = bytes.fromhex(
    "ffffffffffff029f259afae208060001080006040001029f259afae2c000021c000000000000c000021c"
)
RECORDED_VLAN = bytes.fromhex(
    "ffffffffffff029f259afae281000e8608060001080006040001029f259afae2cb0071e9000000000000cb0071e9"
)


def test_gratuitous_arp_is_what_linux_sends() -> None:
    assert gratuitous_arp(MAC, bytes([192, 0, 2, 28])) == RECORDED
    assert gratuitous_arp(MAC, bytes([203, 0, 113, 233]), ((0x8100, 3718),)) == RECORDED_VLAN


def test_gratuitous_arp_asks_for_the_senders_own_address() -> None:
    own = bytes([192, 0, 2, 28])
    assert decode_arp(RECORDED) == Arp(ARP_REQUEST, MAC, own, MacAddr(bytes(6)), own)


def test_rarp_announcement_asks_for_its_own_address_by_broadcast() -> None:
    data = rarp_announcement(MAC)
    assert data[:22].hex(" ", 2) == "ffff ffff ffff 029f 259a fae2 8035 0001 0800 0604 0003"
    assert data[22:].hex(" ", 2) == "029f 259a fae2 0000 0000 029f 259a fae2 0000 0000"
    assert decode_ethernet(data).ethertype == ETH_RARP
    assert decode_arp(data) == Arp(RARP_REQUEST, MAC, bytes(4), MAC, bytes(4))


def test_rarp_announcement_of_a_vlan_is_tagged() -> None:
    frame = decode_ethernet(rarp_announcement(MAC, ((0x88A8, 7), (0x8100, 8))))
    assert (frame.dst, frame.tags) == (BROADCAST, ((0x88A8, 7), (0x8100, 8)))


@given(st.sampled_from([1, 2, 3, 4]), macs, addresses, macs, addresses, st.binary(max_size=18))
def test_what_is_encoded_decodes_to_the_same_packet_padded_or_not(
    op: int, sender: MacAddr, sender_ip: bytes, target: MacAddr, target_ip: bytes, padding: bytes
) -> None:
    arp = Arp(op, sender, sender_ip, target, target_ip)
    assert decode_arp(encode_arp(arp, dst=target) + padding) == arp


def test_a_reply_goes_to_whom_it_is_addressed() -> None:
    target = MacAddr.parse("02:00:00:00:00:01")
    data = encode_arp(Arp(ARP_REPLY, MAC, bytes(4), target, bytes(4)), dst=target)
    assert decode_ethernet(data).dst == target


@pytest.mark.parametrize(
    ("at", "what"), [(13, "type"), (15, "Ethernet"), (17, "IPv4"), (18, "not ARP"), (19, "not ARP")]
)
def test_other_types_of_packets_and_addresses_are_refused(at: int, what: str) -> None:
    data = bytearray(RECORDED)
    data[at] ^= 0x10
    with pytest.raises(WireError, match=what):
        decode_arp(bytes(data))


def test_a_packet_cut_short_is_refused() -> None:
    for size in range(len(RECORDED)):
        with pytest.raises(WireError):
            decode_arp(RECORDED[:size])


def test_an_address_of_the_wrong_size_is_not_encoded() -> None:
    with pytest.raises(WireError, match="4 bytes"):
        gratuitous_arp(MAC, bytes(16))
