"""Bytes on the wire and the values they stand for: addresses and frames, both ways.

Nothing here keeps state, opens a socket or knows what a bond is.  Frames are `bytes`
from the destination MAC on, without FCS.  Decoders raise `WireError` and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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

#: Bytes of an interface's name: IFNAMSIZ less the final zero.
NAME_MAX = 15


def pack_name(name: str) -> bytes:
    """The bytes of an interface's name or alias.

    The kernel takes any, also what is no UTF-8: such bytes stand in texts as Python's file names have them (PEP 383).
    """
    return name.encode("utf-8", "surrogateescape")


def unpack_name(name: str | bytes | None) -> str:
    """The text for it, empty for none."""
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name or ""


def is_possible_name(name: str) -> bool:
    """Whether the kernel may call an interface so, also if nobody can type it."""
    packed = pack_name(name)
    return 0 < len(packed) <= NAME_MAX and name not in (".", "..") and not set(packed) & set(b"/:\0 \t\n\v\f\r")


ETH_IPV4, ETH_ARP, ETH_RARP, ETH_IPV6 = 0x0800, 0x0806, 0x8035, 0x86DD
ETH_LOOPBACK = 0x9000
TPID_8021Q, TPID_8021AD = 0x8100, 0x88A8
#: The EtherTypes that announce a VLAN tag, as Linux knows them.
TPIDS = frozenset({TPID_8021Q, TPID_8021AD})

#: VLAN tags from the outside in, each (TPID, TCI); TCI = priority << 13 | DEI << 12 | VLAN id.
Tags = tuple[tuple[int, int], ...]


def _short(what: str, data: bytes, need: int) -> None:
    if len(data) < need:
        raise WireError(f"{what} needs {need} bytes, there are {len(data)}")


# ── Ethernet and VLAN tags ───────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Ethernet:
    """One frame.  `ethertype` is that behind the tags (below 0x600 it is an 802.3 length);
    `payload` includes whatever padding the frame came with.
    """

    dst: MacAddr
    src: MacAddr
    ethertype: int
    payload: bytes
    tags: Tags = ()


def encode_ethernet(frame: Ethernet) -> bytes:
    """The bytes of a frame, not padded: drivers do that.  WireError if a tag cannot be encoded."""
    head = bytearray(frame.dst + frame.src)
    for tpid, tci in frame.tags:
        if tpid not in TPIDS or not 0 <= tci <= 0xFFFF:
            raise WireError(f"not a VLAN tag: TPID {tpid:#06x}, TCI {tci:#06x}")
        head += struct.pack("!HH", tpid, tci)
    return bytes(head) + struct.pack("!H", frame.ethertype) + frame.payload


def decode_ethernet(data: bytes) -> Ethernet:
    """Read the addresses, all VLAN tags and the type of a frame; WireError if it ends too soon.

    Source: IEEE 802.3-2018, 3.2; IEEE 802.1Q-2018, 9.
    """
    _short("an Ethernet header", data, 14)
    tags = []
    at = 12
    while (ethertype := int.from_bytes(data[at : at + 2])) in TPIDS:
        _short("a VLAN tag", data, at + 6)
        tags.append((ethertype, int.from_bytes(data[at + 2 : at + 4])))
        at += 4
    return Ethernet(MacAddr(data[:6]), MacAddr(data[6:12]), ethertype, data[at + 2 :], tuple(tags))


# ── ARP and RARP ─────────────────────────────────────────────────────────────────────

ARP_REQUEST, ARP_REPLY, RARP_REQUEST, RARP_REPLY = 1, 2, 3, 4
_ARP_HEAD = struct.pack("!HHBB", 1, ETH_IPV4, 6, 4)  # Ethernet addresses, IPv4 addresses


@dataclass(frozen=True, slots=True)
class Arp:
    """An ARP or RARP packet for Ethernet and IPv4; protocol addresses are 4 packed bytes."""

    op: int
    sender_mac: MacAddr
    sender_ip: bytes
    target_mac: MacAddr
    target_ip: bytes


def encode_arp(arp: Arp, dst: MacAddr = BROADCAST, tags: Tags = ()) -> bytes:
    """The frame that carries `arp`, from its sender; operations 3 and 4 go under the RARP type."""
    _check_addresses(4, arp.sender_ip, arp.target_ip)
    body = struct.pack("!H", arp.op) + arp.sender_mac + arp.sender_ip + arp.target_mac + arp.target_ip
    ethertype = ETH_RARP if arp.op in (RARP_REQUEST, RARP_REPLY) else ETH_ARP
    return encode_ethernet(Ethernet(dst, arp.sender_mac, ethertype, _ARP_HEAD + body, tags))


def decode_arp(data: bytes) -> Arp:
    """Read the ARP or RARP packet of a frame; WireError if it holds none for Ethernet and IPv4.

    Source: RFC 826, RFC 903.
    """
    frame = decode_ethernet(data)
    if frame.ethertype not in (ETH_ARP, ETH_RARP):
        raise WireError(f"not ARP or RARP: type {frame.ethertype:#06x}")
    body = frame.payload
    _short("an ARP packet", body, 28)
    if body[:6] != _ARP_HEAD:
        raise WireError(f"not ARP for Ethernet and IPv4: {body[:6].hex()}")
    op = int.from_bytes(body[6:8])
    return Arp(op, MacAddr(body[8:14]), body[14:18], MacAddr(body[18:24]), body[24:28])


def arp_request(mac: MacAddr, source: bytes, target: bytes, tags: Tags = ()) -> bytes:
    """Ask all neighbours who has the IPv4 address `target`; `source`: ours, all zeros for none."""
    return encode_arp(Arp(ARP_REQUEST, mac, source, MacAddr(bytes(6)), target), tags=tags)


def gratuitous_arp(mac: MacAddr, address: bytes, tags: Tags = ()) -> bytes:
    """Tell all neighbours that the IPv4 `address` (4 bytes) is at `mac`.

    A request whose sender and target are the same, as the bonding driver's notification
    makes it; RFC 5227 calls it an ARP Announcement (2.3).
    """
    return arp_request(mac, address, address, tags)


def rarp_announcement(mac: MacAddr, tags: Tags = ()) -> bytes:
    """Show switches where `mac` is now, without an IP address: what hypervisors send for a
    guest that has moved.  A "request reverse" asking for its own address (RFC 903).
    """
    return encode_arp(Arp(RARP_REQUEST, mac, bytes(4), mac, bytes(4)), tags=tags)


def arp_from(frame: bytes, source: MacAddr, *, sender: bool) -> bytes:
    """An ARP frame as another NIC sends it: its source, and the sender inside if `sender`."""
    at = 14 + 4 * len(decode_ethernet(frame).tags) + 8
    frame = frame[:6] + source + frame[12:]
    return frame[:at] + source + frame[at + 6 :] if sender else frame


def learning_frame(mac: MacAddr, tags: Tags = ()) -> bytes:
    """Show switches where `mac` is: to itself, under the type of Ethernet's configuration test, nothing in it."""
    return encode_ethernet(Ethernet(mac, mac, ETH_LOOPBACK, bytes(46), tags))


# ── IP, as far as the announcements need it ──────────────────────────────────────────

_IGMP, _ICMPV6, _HOP_BY_HOP = 2, 58, 0
#: "Routers, look into this": an IPv4 option (RFC 2113) and an IPv6 hop-by-hop header, in which
#: two bytes of padding follow (RFC 2711; value 0 means MLD).  The latter's first byte is the next header.
_IPV4_ROUTER_ALERT = bytes.fromhex("94040000")
_IPV6_ROUTER_ALERT = bytes.fromhex("050200000100")


def checksum(data: bytes) -> int:
    """The Internet checksum; 0 for data that holds its own correct one.  Source: RFC 1071."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) & 1)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def group_mac(group: bytes) -> MacAddr:
    """The Ethernet address of an IPv4 or IPv6 multicast group (RFC 1112, 6.4; RFC 2464, 7)."""
    if len(group) == 4 and group[0] >> 4 == 0xE:
        return MacAddr(b"\x01\x00\x5e" + bytes((group[1] & 0x7F, group[2], group[3])))
    if len(group) == 16 and group[0] == 0xFF:
        return MacAddr(b"\x33\x33" + group[12:])
    raise WireError(f"not a multicast group: {group.hex()}")


def _check_addresses(size: int, *addresses: bytes) -> None:
    for address in addresses:
        if len(address) != size:
            raise WireError(f"an IPv{4 if size == 4 else 6} address has {size} bytes, not {len(address)}")


def _with_checksum(body: bytes, at: int, pseudo: bytes = b"") -> bytes:
    """`body` with its checksum, over `pseudo` and itself, put in at byte `at`."""
    return body[:at] + struct.pack("!H", checksum(pseudo + body)) + body[at + 2 :]


def _pseudo6(src: bytes, dst: bytes, body: bytes) -> bytes:
    """What an ICMPv6 checksum covers besides the message (RFC 8200, 8.1)."""
    return src + dst + struct.pack("!II", len(body), _ICMPV6)


def _igmp_frame(mac: MacAddr, src: bytes, dst: bytes, igmp: bytes, tags: Tags) -> bytes:
    """IGMP in IPv4 with TTL 1, precedence 6 and router alert (RFC 3376, 4)."""
    igmp = _with_checksum(igmp, 2)
    head = struct.pack("!BBHHHBBH", 0x46, 0xC0, 24 + len(igmp), 0, 0x4000, 1, _IGMP, 0)
    head = _with_checksum(head + src + dst + _IPV4_ROUTER_ALERT, 10)
    return encode_ethernet(Ethernet(group_mac(dst), mac, ETH_IPV4, head + igmp, tags))


def _icmpv6_frame(mac: MacAddr, src: bytes, dst: bytes, icmp: bytes, tags: Tags, alert: bool) -> bytes:
    """ICMPv6 to a group: hop limit 1 and router alert for MLD, 255 without for NDP."""
    icmp = _with_checksum(icmp, 2, _pseudo6(src, dst, icmp))
    if alert:
        icmp = bytes((_ICMPV6, 0)) + _IPV6_ROUTER_ALERT + icmp
    head = struct.pack("!IHBB", 6 << 28, len(icmp), _HOP_BY_HOP if alert else _ICMPV6, 1 if alert else 255)
    return encode_ethernet(Ethernet(group_mac(dst), mac, ETH_IPV6, head + src + dst + icmp, tags))


@dataclass(frozen=True, slots=True)
class _Packet:
    """An IP packet taken apart: addresses, TTL or hop limit, whether it asks routers to look, its load."""

    src: bytes
    dst: bytes
    hops: int
    alert: bool
    body: bytes


def _decode_igmp_packet(ip: bytes) -> _Packet:
    _short("an IPv4 header", ip, 20)
    header, total = (ip[0] & 0x0F) * 4, int.from_bytes(ip[2:4])
    if ip[0] >> 4 != 4 or not 20 <= header <= total <= len(ip):
        raise WireError("malformed IPv4 header")
    if checksum(ip[:header]):
        raise WireError("wrong IPv4 header checksum")
    if int.from_bytes(ip[6:8]) & 0x3FFF:
        raise WireError("a fragment of an IPv4 packet")
    if ip[9] != _IGMP:
        raise WireError(f"not IGMP: protocol {ip[9]}")
    body = ip[header:total]
    _short("an IGMP message", body, 8)
    if checksum(body):
        raise WireError("wrong IGMP checksum")
    return _Packet(ip[12:16], ip[16:20], ip[8], ip[20:header] == _IPV4_ROUTER_ALERT, body)


def _decode_icmpv6_packet(ip: bytes) -> _Packet:
    _short("an IPv6 header", ip, 40)
    if ip[0] >> 4 != 6:
        raise WireError("malformed IPv6 header")
    end, kind, at, alert = 40 + int.from_bytes(ip[4:6]), ip[6], 40, False
    _short("this IPv6 packet", ip, end)
    if kind == _HOP_BY_HOP:
        _short("a hop-by-hop header", ip[:end], 48)
        kind, after = ip[40], 48 + 8 * ip[41]
        alert, at = bytes.fromhex("05020000") in _options(ip[42:after]), after
    if kind != _ICMPV6:
        raise WireError(f"not ICMPv6: next header {kind}")
    src, dst, body = ip[8:24], ip[24:40], ip[at:end]
    _short("an ICMPv6 message", body, 8)
    if checksum(_pseudo6(src, dst, body) + body):
        raise WireError("wrong ICMPv6 checksum")
    return _Packet(src, dst, ip[7], alert, body)


def _options(data: bytes) -> list[bytes]:
    """The options of a hop-by-hop header, each with its type and length (RFC 8200, 4.2)."""
    found, at = [], 0
    while at < len(data):
        # Pad1 is the one option without a length.
        size = 1 if data[at] == 0 else 2 + int.from_bytes(data[at + 1 : at + 2])
        found.append(data[at : at + size])
        at += size
    return found


# ── neighbour discovery ──────────────────────────────────────────────────────────────

ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
_SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")
_NS, _NA, _SOURCE_LINK_ADDRESS, _TARGET_LINK_ADDRESS = 135, 136, 1, 2


@dataclass(frozen=True, slots=True)
class NeighbourAdvert:
    """An ICMPv6 neighbour advertisement: `target` (16 bytes) is at `mac` (None: not said)."""

    src: bytes
    dst: bytes
    target: bytes
    mac: MacAddr | None
    router: bool = False
    solicited: bool = False
    override: bool = False


def solicited_node(address: bytes) -> bytes:
    """The multicast group on which an IPv6 address is asked for (RFC 4291, 2.7.1)."""
    return _SOLICITED_NODE + address[13:]


def neighbour_solicitation(mac: MacAddr, source: bytes, target: bytes, tags: Tags = ()) -> bytes:
    """Ask who has the IPv6 address `target` (16 bytes); `source`: ours, all zeros for none.

    Source: RFC 4861, 4.3 (without a source address nothing is said of `mac`).
    """
    _check_addresses(16, source, target)
    option = bytes((_SOURCE_LINK_ADDRESS, 1)) + mac if any(source) else b""
    icmp = struct.pack("!BBHI", _NS, 0, 0, 0) + target + option
    return _icmpv6_frame(mac, source, solicited_node(target), icmp, tags, alert=False)


def unsolicited_na(mac: MacAddr, address: bytes, router: bool = False, tags: Tags = ()) -> bytes:
    """Tell all neighbours that the IPv6 `address` (16 bytes) is at `mac`, to be believed over what they know.

    `router`: whether this host forwards IPv6; a wrong 0 would make hosts drop their default route.
    Source: RFC 4861, 4.4 and 7.2.6.
    """
    _check_addresses(16, address)
    flags = 0x20000000 | (0x80000000 if router else 0)
    option = bytes((_TARGET_LINK_ADDRESS, 1)) + mac
    icmp = struct.pack("!BBHI", _NA, 0, 0, flags) + address + option
    return _icmpv6_frame(mac, address, ALL_NODES, icmp, tags, alert=False)


def decode_na(data: bytes) -> NeighbourAdvert:
    """Read the neighbour advertisement in a frame; WireError on anything a receiver must discard.

    Source: RFC 4861, 4.4 (structure), 7.1.2 (what is checked).
    """
    frame = decode_ethernet(data)
    if frame.ethertype != ETH_IPV6:
        raise WireError(f"not IPv6: type {frame.ethertype:#06x}")
    ip = _decode_icmpv6_packet(frame.payload)
    body = ip.body
    if body[0] != _NA or body[1] != 0 or ip.hops != 255:
        raise WireError(f"not a neighbour advertisement: type {body[0]}, code {body[1]}, hops {ip.hops}")
    _short("a neighbour advertisement", body, 24)
    router, solicited, override = (bool(body[4] & bit) for bit in (0x80, 0x40, 0x20))
    target = body[8:24]
    if target[0] == 0xFF or (solicited and ip.dst[0] == 0xFF):
        raise WireError("a neighbour advertisement for a group, or solicited by one")
    return NeighbourAdvert(ip.src, ip.dst, target, _link_address(body[24:]), router, solicited, override)


def _link_address(options: bytes) -> MacAddr | None:
    found, at = None, 0
    while at < len(options):
        size = 8 * int.from_bytes(options[at + 1 : at + 2])
        if not 0 < size <= len(options) - at:
            raise WireError("malformed option in a neighbour advertisement")
        if options[at] == _TARGET_LINK_ADDRESS and size == 8:
            found = MacAddr(options[at + 2 : at + 8])
        at += size
    return found


# ── membership reports ───────────────────────────────────────────────────────────────

ALL_HOSTS = bytes.fromhex("e0000001")
_IGMPV3_ROUTERS = bytes.fromhex("e0000016")
_MLDV2_ROUTERS = bytes.fromhex("ff020000000000000000000000000016")
_IGMP_TYPES = {1: 0x12, 2: 0x16, 3: 0x22}
_MLD_TYPES = {1: 131, 2: 143}
#: Group record types: how a group stands, and how it has just changed (RFC 3376, 4.2.12).
IS_INCLUDE, IS_EXCLUDE, TO_INCLUDE, TO_EXCLUDE, ALLOW, BLOCK = range(1, 7)
#: Groups in one report, so that it fits the packet that every network carries:
#: 576 bytes of IPv4 (24 header, 8 report), 1280 of IPv6 (40 header, 8 router alert, 8 report).
_IGMPV3_GROUPS = (576 - 32) // 8
_MLDV2_GROUPS = (1280 - 56) // 20


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """One group of a report: `kind` is IS_EXCLUDE with no sources for "joined, whoever sends"."""

    group: bytes
    kind: int = IS_EXCLUDE
    sources: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class MembershipReport:
    """An IGMP (1 to 3) or MLD (1, 2) report; the size of `src` says which: 4 bytes or 16."""

    version: int
    src: bytes
    dst: bytes
    records: tuple[GroupRecord, ...]


def igmp_reports(
    mac: MacAddr, src: bytes, groups: Sequence[bytes], version: int = 3, tags: Tags = ()
) -> tuple[bytes, ...]:
    """The frames that report `groups` (4 bytes each) as joined, from the IPv4 address `src`.

    Versions 1 and 2 take a frame per group, sent to the group; version 3 lists them, to 224.0.0.22.
    The all-hosts group is never reported.  Source: RFC 1112 appendix I, RFC 2236 2 and 9, RFC 3376 4.2.
    """
    _check_addresses(4, src, *groups)
    kind = _type_of(_IGMP_TYPES, version, "IGMP")
    groups = [group for group in groups if group != ALL_HOSTS]
    if version < 3:
        return tuple(_igmp_frame(mac, src, group, bytes((kind, 0, 0, 0)) + group, tags) for group in groups)
    reports = (_listing(kind, some) for some in _chunks(groups, _IGMPV3_GROUPS))
    return tuple(_igmp_frame(mac, src, _IGMPV3_ROUTERS, report, tags) for report in reports)


def mld_reports(
    mac: MacAddr, src: bytes, groups: Sequence[bytes], version: int = 2, tags: Tags = ()
) -> tuple[bytes, ...]:
    """The frames that report `groups` (16 bytes each) as joined, from `src`: link-local or all zeros.

    Version 1 takes a frame per group, sent to the group; version 2 lists them, to ff02::16.
    All-nodes and the scopes that never leave the host are not reported.
    Source: RFC 2710 3 and 5, RFC 3590, RFC 3810 5.2 and 6.
    """
    _check_addresses(16, src, *groups)
    kind = _type_of(_MLD_TYPES, version, "MLD")
    groups = [group for group in groups if group != ALL_NODES and group[1] & 0x0F > 1]
    if version < 2:
        bodies = [(group, struct.pack("!BBHHH", kind, 0, 0, 0, 0) + group) for group in groups]
    else:
        bodies = [(_MLDV2_ROUTERS, _listing(kind, some)) for some in _chunks(groups, _MLDV2_GROUPS)]
    return tuple(_icmpv6_frame(mac, src, dst, body, tags, alert=True) for dst, body in bodies)


def decode_membership_report(data: bytes) -> MembershipReport:
    """Read the IGMP or MLD report in a frame; WireError if it holds none.

    MLD must come with hop limit 1, router alert and a link-local or zero source (RFC 3810, 6.2).
    """
    frame = decode_ethernet(data)
    if frame.ethertype == ETH_IPV4:
        return _report(_decode_igmp_packet(frame.payload), _IGMP_TYPES, 4)
    if frame.ethertype != ETH_IPV6:
        raise WireError(f"not IPv4 or IPv6: type {frame.ethertype:#06x}")
    ip = _decode_icmpv6_packet(frame.payload)
    if ip.hops != 1 or not ip.alert or not (is_link_local(ip.src) or not any(ip.src)):
        raise WireError("an MLD message that is not link-local, or lacks the router alert")
    return _report(ip, _MLD_TYPES, 16)


def is_link_local(address: bytes) -> bool:
    """True for a packed IPv6 address of fe80::/10."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _type_of(types: Mapping[int, int], version: int, protocol: str) -> int:
    if version not in types:
        raise WireError(f"there is no {protocol} version {version}")
    return types[version]


def _chunks(groups: Sequence[bytes], size: int) -> list[Sequence[bytes]]:
    return [groups[at : at + size] for at in range(0, len(groups), size)]


def _listing(kind: int, groups: Sequence[bytes]) -> bytes:
    """The body of an IGMPv3 or MLDv2 report; the two differ in the size of addresses alone."""
    head = struct.pack("!BBHHH", kind, 0, 0, 0, len(groups))
    return head + b"".join(struct.pack("!BBH", IS_EXCLUDE, 0, 0) + group for group in groups)


def _report(ip: _Packet, types: Mapping[int, int], size: int) -> MembershipReport:
    versions = {kind: version for version, kind in types.items()}
    version = versions.get(ip.body[0])
    if version is None:
        raise WireError(f"not a membership report: type {ip.body[0]}")
    if version == max(types):
        return MembershipReport(version, ip.src, ip.dst, _records(ip.body, size))
    at = 4 if size == 4 else 8
    _short("a membership report", ip.body, at + size)
    return MembershipReport(version, ip.src, ip.dst, (GroupRecord(ip.body[at : at + size]),))


def _records(body: bytes, size: int) -> tuple[GroupRecord, ...]:
    records, at = [], 8
    for _ in range(int.from_bytes(body[6:8])):
        first = at + 4 + size
        _short("a group record", body, first)
        kind, aux, count = struct.unpack_from("!BBH", body, at)
        end = first + count * size
        _short("the sources of a group record", body, end)
        sources = tuple(body[s : s + size] for s in range(first, end, size))
        records.append(GroupRecord(body[at + 4 : first], kind, sources))
        at = end + 4 * aux
    return tuple(records)
