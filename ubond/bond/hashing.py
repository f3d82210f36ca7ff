"""Transmit hashes: the number that says which slave sends a frame, for each xmit_hash_policy.

This is the readable form; the worker has the same in C (`_hash.pxd`), and the tests hold the
two against each other and against what the driver was recorded to do.

A frame is `bytes` from the destination MAC on, all VLAN tags in place.  The driver hashes what
is left when the outermost tag is taken off, and so do we; nothing is changed in the frame.
Numbers are 32 bits, unsigned.  Addresses and ports enter them as little-endian numbers, as
they do in the driver on the usual machines, so that the choice is the same on every machine.

Source: Documentation/networking/bonding.rst, "xmit_hash_policy"; recordings of Linux 6.1.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ubond.wire import ETH_ARP, ETH_IPV4, ETH_IPV6, ETH_RARP, TPIDS


class HashPolicy(enum.IntEnum):
    """The values of the option `xmit_hash_policy`."""

    LAYER2 = 0
    LAYER34 = 1
    LAYER23 = 2
    ENCAP23 = 3
    ENCAP34 = 4
    VLAN_SRCMAC = 5


def xmit_hash(frame: bytes, policy: HashPolicy) -> int:
    """The hash of a frame; 0 for one without a whole Ethernet header."""
    if len(frame) < 14:
        return 0
    link = _read_link(frame)
    if policy is HashPolicy.VLAN_SRCMAC:
        return link.tci ^ int.from_bytes(frame[6:9]) ^ int.from_bytes(frame[9:12])
    eth = frame[5] ^ frame[11] ^ link.ethertype
    if policy is HashPolicy.LAYER2:
        return eth
    encap = policy in (HashPolicy.ENCAP23, HashPolicy.ENCAP34)
    try:
        flow = _inner_flow(frame, link) if encap else _outer_flow(frame, link)
    except _UnreadableError:
        return eth
    if policy in (HashPolicy.LAYER23, HashPolicy.ENCAP23):
        return _fold(eth ^ flow.addresses)
    # The lowest bit goes: many hosts take even source ports only.
    return _fold(flow.key ^ flow.addresses) >> 1


def slave_index(hash: int, n: int) -> int | None:
    """Which of `n` slaves that can transmit sends a frame of this hash; None without any."""
    return hash % n if n else None


def _fold(h: int) -> int:
    h ^= h >> 16
    return h ^ h >> 8


class _UnreadableError(Exception):
    """A header is unknown or ends too soon: the frame belongs to no flow."""


def _header(frame: bytes, at: int, size: int) -> bytes:
    """The `size` bytes at `at`; _UnreadableError if the frame has fewer."""
    header = frame[at : at + size]
    if len(header) < size:
        raise _UnreadableError
    return header


# ── the Ethernet header ──────────────────────────────────────────────────────────────

_MPLS = frozenset({0x8847, 0x8848})
_MORE_TAGS = 6  # how many tags behind the outermost the driver looks through for MPLS


@dataclass(frozen=True, slots=True)
class _Link:
    """The frame as the hash sees it: `ethertype`, and `at`, where that type's header begins.

    `tci`: of the tag that was taken off; 0 without one.  `untagged`: whether one was.
    """

    ethertype: int
    at: int
    tci: int
    untagged: bool


def _read_link(frame: bytes) -> _Link:
    tpid = int.from_bytes(frame[12:14])
    if tpid not in TPIDS or len(frame) < 18:
        return _Link(tpid, 14, 0, False)
    if _carries_mpls(frame):
        # A bond offers no tag offload for MPLS: the driver gets the tag put back into the
        # frame, yet with the network header where it was, behind the tag.
        return _Link(tpid, 18, 0, False)
    return _Link(int.from_bytes(frame[16:18]), 18, int.from_bytes(frame[14:16]), True)


def outer_type(frame: bytes) -> tuple[int, int]:
    """The EtherType behind the outermost tag of a frame of at least 14 bytes, and where its header begins."""
    link = _read_link(frame)
    return link.ethertype, link.at


def _carries_mpls(frame: bytes) -> bool:
    """Whether the type behind all tags of a tagged frame is MPLS."""
    at = 16
    for _ in range(_MORE_TAGS):
        if int.from_bytes(frame[at : at + 2]) not in TPIDS or len(frame) < at + 6:
            break
        at += 4
    return int.from_bytes(frame[at : at + 2]) in _MPLS


# ── flows ────────────────────────────────────────────────────────────────────────────

_ICMP, _IPIP, _IPV6_IN_IP, _GRE, _AH, _ICMPV6 = 1, 4, 41, 47, 51, 58
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_EXTENSIONS = frozenset({_HOP_BY_HOP, _ROUTING, _DESTINATION})
#: Where four bytes of ports (or an SPI) stand: TCP, UDP, DCCP, ESP, SCTP, UDP-Lite; AH.
_PORTS_AT = {6: 0, 17: 0, 33: 0, 50: 0, 132: 0, 136: 0, _AH: 4}
#: Echo, timestamp and their answers, for both versions alike.
_ICMP_WITH_ID = frozenset({0, 8, 13, 14, 128, 129})
_ICMP_ERRORS = {_ICMP: frozenset({3, 4, 5, 11, 12}), _ICMPV6: frozenset({1, 2, 3, 4})}


@dataclass(frozen=True, slots=True)
class _Flow:
    """`addresses`: all words of both, XORed; `key`: ports, SPI or ICMP id, 0 without."""

    addresses: int
    key: int


@dataclass(frozen=True, slots=True)
class _Ip:
    """An IP header: `protocol` is None for a fragment, `end` is where the next header begins."""

    addresses: int
    protocol: int | None
    end: int


def _xor_words(data: bytes) -> int:
    total = 0
    for at in range(0, len(data), 4):
        total ^= int.from_bytes(data[at : at + 4], "little")
    return total


def _read_ip(frame: bytes, ethertype: int, at: int) -> _Ip:
    """The IPv4 or IPv6 header at `at`; _UnreadableError for another type.

    Version, lengths and checksum are not looked at, as in the driver.
    """
    if ethertype == ETH_IPV4:
        ip = _header(frame, at, 20)
        fragment = int.from_bytes(ip[6:8]) & 0x3FFF  # more fragments, or an offset
        return _Ip(_xor_words(ip[12:20]), None if fragment else ip[9], at + (ip[0] & 0x0F) * 4)
    if ethertype == ETH_IPV6:
        ip = _header(frame, at, 40)
        return _Ip(_xor_words(ip[8:40]), ip[6], at + 40)
    raise _UnreadableError


def _ports(frame: bytes, at: int, protocol: int | None) -> int:
    """The ports or SPI of the header at `at`; 0 where there are none, or not whole."""
    if protocol not in _PORTS_AT:
        return 0
    at += _PORTS_AT[protocol]
    return int.from_bytes(frame[at : at + 4], "little") if len(frame) >= at + 4 else 0


def _icmp_id(icmp: bytes) -> int:
    """Type, code and id of an ICMP header in one number; 0 where there is no id."""
    if len(icmp) < 8 or icmp[0] not in _ICMP_WITH_ID:
        return 0
    # 0 would mean "no id".
    return icmp[0] | icmp[1] << 8 | (int.from_bytes(icmp[4:6]) or 1) << 16


def _outer_flow(frame: bytes, link: _Link) -> _Flow:
    """The flow for layer2+3 and layer3+4: of the first header, but an ICMP error belongs to
    the flow that caused it."""
    ip = _read_ip(frame, link.ethertype, link.at)
    if ip.protocol in _ICMP_ERRORS:
        icmp = frame[ip.end : ip.end + 8]
        if len(icmp) == 8 and icmp[0] in _ICMP_ERRORS[ip.protocol]:
            ip = _read_ip(frame, link.ethertype, ip.end + 8)
        else:
            return _Flow(ip.addresses, _icmp_id(icmp))
    return _Flow(ip.addresses, _ports(frame, ip.end, ip.protocol))


# ── the walk to the innermost flow ───────────────────────────────────────────────────

_FURTHER = 15  # headers after the first
_PPPOE, _TIPC, _FCOE, _PTP, _CFM, _PRP, _HSR = 0x8864, 0x88CA, 0x8906, 0x88F7, 0x8902, 0x88FB, 0x892F
_BATMAN, _ETHERNET_IN_GRE, _PPP_IN_GRE = 0x4305, 0x6558, 0x880B
_PPP = {0x0021: ETH_IPV4, 0x0057: ETH_IPV6}
#: The walk ends there, content with what it has, if this many bytes are there.
_ENDS = {ETH_ARP: 0, ETH_RARP: 0, 0x8847: 0, 0x8848: 0, _CFM: 0, _TIPC: 16, _PTP: 34, _FCOE: 38}

#: A type and where its header begins; None where the walk ends.
_Inner = tuple[int, int] | None


def _inner_flow(frame: bytes, link: _Link) -> _Flow:
    """The flow for encap2+3 and encap3+4: tunnels are entered, ICMP errors are not looked into.

    _UnreadableError if a header on the way is unknown or cut short.
    """
    flow = _Flow(0, 0)
    ethertype, at = link.ethertype, link.at
    protocol: int | None = None  # what the header at `at` is, None: an `ethertype`
    first_tag = link.untagged
    for _ in range(1 + _FURTHER):
        if protocol is None:
            if ethertype in TPIDS and first_tag:
                # The driver takes the first tag that it meets for the one that it holds apart,
                # so it goes on with the frame's own type, where it is.
                first_tag, ethertype = False, link.ethertype
                continue
            if ethertype not in (ETH_IPV4, ETH_IPV6):
                if ethertype == _TIPC:
                    flow = _Flow(_xor_words(_header(frame, at, 16)[12:]), 0)  # the sender's node
                if (inner := _enter(frame, ethertype, at)) is None:
                    return flow
                ethertype, at = inner
                continue
            ip = _read_ip(frame, ethertype, at)
            if ethertype == ETH_IPV4 and ip.end < at + 20:
                raise _UnreadableError
            flow, protocol, at = _Flow(ip.addresses, 0), ip.protocol, ip.end
            if protocol is None:
                return flow
        if protocol in _EXTENSIONS and ethertype == ETH_IPV6:
            extension = _header(frame, at, 2)
            protocol, at = extension[0], at + 8 * (1 + extension[1])
            flow = _Flow(flow.addresses, _ports(frame, at, protocol))
        elif protocol == _FRAGMENT and ethertype == ETH_IPV6:
            _header(frame, at, 8)
            return flow
        elif protocol in (_ICMP, _ICMPV6):
            return _Flow(flow.addresses, _icmp_id(frame[at : at + 8]))
        elif protocol in (_IPIP, _IPV6_IN_IP):
            ethertype, protocol = ETH_IPV4 if protocol == _IPIP else ETH_IPV6, None
        elif protocol == _GRE:
            if (inner := _enter_gre(frame, at)) is None:
                return flow
            (ethertype, at), protocol = inner, None
        else:
            return _Flow(flow.addresses, _ports(frame, at, protocol))
    return flow


def _enter(frame: bytes, ethertype: int, at: int) -> _Inner:
    """What a header of a type other than IP carries; _UnreadableError for an unknown type."""
    if ethertype in TPIDS:
        return int.from_bytes(_header(frame, at, 4)[2:]), at + 4
    if ethertype in (_PRP, _HSR):
        return int.from_bytes(_header(frame, at, 6)[4:]), at + 6
    if ethertype == _BATMAN:
        batman = _header(frame, at, 24)
        if batman[:2] != bytes((0x40, 15)):  # a unicast packet of the present version
            raise _UnreadableError
        return int.from_bytes(batman[22:]), at + 24
    if ethertype == _PPPOE:
        return _enter_pppoe(frame, at)
    if ethertype in _ENDS:
        _header(frame, at, _ENDS[ethertype])
        return None
    raise _UnreadableError


def _enter_pppoe(frame: bytes, at: int) -> _Inner:
    """Source: RFC 2516, 4; RFC 1661, 2 (valid protocol numbers), 6.5 (compressed to one byte)."""
    pppoe = _header(frame, at, 8)
    if pppoe[:2] != bytes((0x11, 0)):  # version 1, type 1, session data
        raise _UnreadableError
    number, size = int.from_bytes(pppoe[6:]), 8
    if number & 0x0100:
        number, size = pppoe[6], 7
    if number in _PPP:
        return _PPP[number], at + size
    if number & 0x0101 != 0x0001:
        raise _UnreadableError
    return None


def _enter_gre(frame: bytes, at: int) -> _Inner:
    """Source: RFC 2784, RFC 2890 (key and sequence number), RFC 2637, 4.1 (version 1, PPTP)."""
    gre = _header(frame, at, 4)
    flags, ethertype = int.from_bytes(gre[:2]), int.from_bytes(gre[2:])
    csum, routing, key, sequence, ack = (flags & bit for bit in (0x8000, 0x4000, 0x2000, 0x1000, 0x0080))
    version = flags & 7
    if routing or version > 1 or (version == 1 and not (key and ethertype == _PPP_IN_GRE)):
        return None
    at += 8 if csum else 4
    if key:
        _header(frame, at, 4)
        at += 4
    at += 4 if sequence else 0
    if version == 1:
        at += 4 if ack else 0
        ppp = int.from_bytes(_header(frame, at, 4)[2:])
        return _PPP.get(ppp, ethertype), at + 4
    if ethertype == _ETHERNET_IN_GRE:
        return int.from_bytes(_header(frame, at, 14)[12:]), at + 14
    return ethertype, at
