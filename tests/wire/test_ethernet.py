"""Ethernet headers and VLAN tags, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubond.wire import (
    ETH_ARP,
    ETH_IPV4,
    TPID_8021AD,
    TPID_8021Q,
    Ethernet,
    MacAddr,
    WireError,
    decode_ethernet,
    encode_ethernet,
)

DST = MacAddr.parse("02:00:00:00:00:01")
SRC = MacAddr.parse("02:00:00:00:00:02")
macs = st.binary(min_size=6, max_size=6).map(MacAddr)
tags = st.lists(st.tuples(st.sampled_from([TPID_8021Q, TPID_8021AD]), st.integers(0, 0xFFFF)), max_size=4)
types = st.integers(0, 0xFFFF).filter(lambda kind: kind not in (TPID_8021Q, TPID_8021AD))
frames = st.builds(Ethernet, macs, macs, types, st.binary(max_size=80), tags.map(tuple))


def test_untagged_frame_is_fourteen_bytes_of_header_and_the_payload() -> None:
    data = bytes.fromhex("020000000001 020000000002 0800") + b"payload"
    assert decode_ethernet(data) == Ethernet(DST, SRC, ETH_IPV4, b"payload")
    assert encode_ethernet(Ethernet(DST, SRC, ETH_IPV4, b"payload")) == data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8100 0e86", ((0x8100, 3718),)),
        ("88a8 0064", ((0x88A8, 100),)),
        ("88a8 0064 8100 e00a", ((0x88A8, 100), (0x8100, 7 << 13 | 10))),
        ("8100 0001 8100 0002 8100 1003", ((0x8100, 1), (0x8100, 2), (0x8100, 1 << 12 | 3))),
    ],
    ids=["802.1Q", "802.1ad", "QinQ with priority", "three levels with DEI"],
)
def test_vlan_tags_go_from_the_outside_in(text: str, expected: tuple[tuple[int, int], ...]) -> None:
    data = DST + SRC + bytes.fromhex(text) + bytes.fromhex("0806") + b"body"
    assert decode_ethernet(data) == Ethernet(DST, SRC, ETH_ARP, b"body", expected)
    assert encode_ethernet(Ethernet(DST, SRC, ETH_ARP, b"body", expected)) == data


@given(frames)
def test_what_is_encoded_decodes_to_the_same_frame(frame: Ethernet) -> None:
    assert decode_ethernet(encode_ethernet(frame)) == frame


@pytest.mark.parametrize("size", [0, 6, 13, 14, 17])
def test_a_frame_cut_inside_its_header_or_tag_is_refused(size: int) -> None:
    data = DST + SRC + bytes.fromhex("8100000a0800")
    with pytest.raises(WireError, match="bytes"):
        decode_ethernet(data[:size])
    assert decode_ethernet(data).payload == b""


@pytest.mark.parametrize("tag", [(0x9100, 5), (0x0800, 5), (0x8100, 0x10000), (0x8100, -1)])
def test_a_tag_that_linux_does_not_know_is_not_encoded(tag: tuple[int, int]) -> None:
    with pytest.raises(WireError, match="not a VLAN tag"):
        encode_ethernet(Ethernet(DST, SRC, ETH_ARP, b"", (tag,)))
