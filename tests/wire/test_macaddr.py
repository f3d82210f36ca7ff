"""MacAddr: text and bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubond.wire import BROADCAST, MacAddr, WireError


@given(st.binary(min_size=6, max_size=6))
def test_text_and_bytes_are_the_same_address(data: bytes) -> None:
    assert MacAddr.parse(str(MacAddr(data))) == data


@pytest.mark.parametrize("text", ["02:00:00:00:00:0a", "02-00-00-00-00-0A", " 2:0:0:0:0:a\n"])
def test_the_usual_spellings_are_read(text: str) -> None:
    assert str(MacAddr.parse(text)) == "02:00:00:00:00:0a"


@pytest.mark.parametrize(
    "text", ["", "02:00:00:00:00", "02:00:00:00:00:0g", "02:00:00:00:00:00:0a", "020000:::::0a"]
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(WireError, match="not a MAC address"):
        MacAddr.parse(text)


@given(st.binary(max_size=12).filter(lambda data: len(data) != 6))
def test_another_number_of_bytes_is_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="6 bytes"):
        MacAddr(data)


def test_groups_and_zeros_are_no_addresses_of_an_interface() -> None:
    assert BROADCAST.is_multicast
    assert not BROADCAST.is_valid_unicast
    assert not MacAddr(bytes(6)).is_valid_unicast
    assert MacAddr.parse("02:00:00:00:00:0a").is_valid_unicast
