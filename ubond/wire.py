"""Bytes on the wire and the values they stand for: addresses and frames, both ways.

Nothing here keeps state, opens a socket or knows what a bond is.  Frames are `bytes`
from the destination MAC on, without FCS.  Decoders raise `WireError` and nothing else.
"""

from __future__ import annotations


class WireError(ValueError):
    """These bytes (or this text) are not what the standard says they should be."""


class MacAddr(bytes):
    """An Ethernet address: six bytes that print as `02:00:00:00:00:0a`.

    Raises WireError on any other number of bytes.
    """

    __slots__ = ()

    def __new__(cls, value: bytes) -> MacAddr:
        if len(value) != 6:
            raise WireError(f"a MAC address has 6 bytes, not {len(value)}")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> MacAddr:
        """Read `02:00:00:00:00:0a` or `02-00-00-00-00-0A`; WireError on anything else."""
        parts = text.strip().replace("-", ":").split(":")
        if len(parts) != 6 or not all(1 <= len(part) <= 2 for part in parts):
            raise WireError(f"not a MAC address: {text!r}")
        try:
            return cls(bytes(int(part, 16) for part in parts))
        except ValueError:
            raise WireError(f"not a MAC address: {text!r}") from None

    def __str__(self) -> str:
        return self.hex(":")

    def __repr__(self) -> str:
        return f"MacAddr({self})"

    @property
    def is_multicast(self) -> bool:
        """True for group addresses, broadcast included (IEEE 802-2014, 8.2.2)."""
        return bool(self[0] & 1)

    @property
    def is_valid_unicast(self) -> bool:
        """True for an address that an interface may have: not a group's, not all zeros."""
        return not self.is_multicast and any(self)


BROADCAST = MacAddr(b"\xff" * 6)
