"""Links and addresses as the kernel shows them, and who stands on a bond.

After a failover the bond and every device stacked on it (VLAN, macvlan, bridge) must be
announced through the new active slave.  This module finds them in a picture of all links.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ubond.bond.events import UpperFacts
from ubond.wire import MacAddr

IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_MASTER, IFF_LOWER_UP = 0x1, 0x8, 0x40, 0x400, 0x10000
IFA_F_DADFAILED, IFA_F_TENTATIVE, IFA_F_OPTIMISTIC = 0x08, 0x40, 0x04
ETH_P_8021Q = 0x8100
#: Kinds whose IFLA_LINK names the device they stand on; others (veth) name a peer there.
STACKING = frozenset({"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"})

#: Names of interfaces stand in the kernel's tables: they need be no UTF-8, and may have what Python takes for the end
#: of a word or a line.  Nobody reads them there.
_PLAIN = bytes(byte if 0x20 <= byte < 0x7F or byte in b"\n\t" else 0x3F for byte in range(256))

Tags = tuple[tuple[int, int], ...]  # (TPID, VLAN id), from the outside in


@dataclass(frozen=True, slots=True)
class Link:
    """One interface.

    `flags`: IFF_*; `master`: index of the device that it is a port of; `lower`: index of the
    device that it stands on in this namespace (VLAN, macvlan), 0 for none; `kind`:
    IFLA_INFO_KIND; `vlan`: (TPID, VLAN id) of a VLAN device; `carrier_changes`: how often the
    carrier came and went, so that a flap between two messages still shows.
    """

    index: int
    name: str
    flags: int
    mac: MacAddr | None
    mtu: int
    master: int = 0
    lower: int = 0
    kind: str = ""
    vlan: tuple[int, int] | None = None
    alias: str = ""
    carrier_changes: int = 0

    @property
    def up(self) -> bool:
        """Administratively up."""
        return bool(self.flags & IFF_UP)

    @property
    def running(self) -> bool:
        return bool(self.flags & IFF_RUNNING)

    @property
    def lower_up(self) -> bool:
        return bool(self.flags & IFF_LOWER_UP)

    @property
    def carrier(self) -> bool:
        """Up with carrier."""
        return self.up and self.lower_up


@dataclass(frozen=True, slots=True)
class Address:
    """One address of an interface: packed, with its prefix length, IFA_F_* flags and scope."""

    index: int
    packed: bytes
    prefix: int
    flags: int
    scope: int

    @property
    def usable(self) -> bool:
        """Not being checked for duplicates, and no duplicate found."""
        if self.flags & IFA_F_DADFAILED:
            return False
        return not self.flags & IFA_F_TENTATIVE or bool(self.flags & IFA_F_OPTIMISTIC)


def stacked(links: Mapping[int, Link], bond: int) -> Iterator[tuple[Link, Tags]]:
    """Yield the bond and the devices on it that are up, lower ones first, each with its VLAN tags."""
    seen: set[int] = set()

    def climb(link: Link, tags: Tags) -> Iterator[tuple[Link, Tags]]:
        if link.index in seen or not link.up:
            return
        seen.add(link.index)
        yield link, tags
        for index in above(links, link.index):
            upper = links.get(index)
            if upper is not None and (index != link.master or upper.kind == "bridge"):
                # A frame leaves through the topmost device first: its tag is the innermost.
                yield from climb(upper, (*tags, upper.vlan) if upper.vlan else tags)

    if bond in links:
        yield from climb(links[bond], ())


def above(links: Mapping[int, Link], index: int) -> list[int]:
    """Indices of what stands directly on a device: VLANs, macvlans and the like, and what it is a port of."""
    found = [upper.index for upper in links.values() if upper.lower == index and upper.kind in STACKING]
    return [*found, links[index].master] if index in links and links[index].master else found


def uppers(
    links: Mapping[int, Link], addresses: Mapping[int, Iterable[Address]], bond: int
) -> tuple[UpperFacts, ...]:
    """Return whom to tell after a failover of `bond` (an index): the bond itself first.

    Multicast groups and IPv6 forwarding are read from /proc now, for they are not announced.
    """
    found = [(link, tags) for link, tags in stacked(links, bond) if link.mac is not None]
    if not found:
        return ()
    groups4, groups6, versions = read_igmp(), read_igmp6(), read_igmp_versions()
    return tuple(
        UpperFacts(
            name=link.name,
            mac=link.mac or MacAddr(bytes(6)),
            tags=tags,
            addresses4=_packed(addresses.get(link.index, ()), 4),
            addresses6=_packed(addresses.get(link.index, ()), 16),
            groups4=groups4.get(link.index, ()),
            groups6=groups6.get(link.index, ()),
            igmp_version=versions.get(link.index, 3),
            mld_version=1 if _setting(link.name, "force_mld_version") == "1" else 2,
            router=_setting(link.name, "forwarding") == "1",
        )
        for link, tags in found
    )


def _packed(addresses: Iterable[Address], length: int) -> tuple[bytes, ...]:
    return tuple(a.packed for a in addresses if len(a.packed) == length and a.usable)


def _proc(path: str) -> str:
    """Text of a file of this thread's network namespace, empty where the kernel has none."""
    with contextlib.suppress(OSError):
        return Path(path).read_bytes().translate(_PLAIN).decode("ascii")
    return ""


def _setting(name: str, key: str) -> str:
    return _proc(f"/proc/sys/net/ipv6/conf/{name}/{key}").strip()


def read_igmp(text: str | None = None) -> dict[int, tuple[bytes, ...]]:
    """Joined IPv4 groups by interface index, 224.0.0.1 left out (nobody reports it)."""
    groups: dict[int, list[bytes]] = {}
    index = 0
    for line in (_proc("/proc/thread-self/net/igmp") if text is None else text).splitlines()[1:]:
        fields = line.split()
        if line[:1].isdigit():
            index = int(fields[0])
        elif fields:
            # The file prints the address as a number in the machine's byte order.
            groups.setdefault(index, []).append(int(fields[0], 16).to_bytes(4, sys.byteorder))
    return {at: tuple(g for g in found if g != b"\xe0\0\0\1") for at, found in groups.items()}


def read_igmp_versions(text: str | None = None) -> dict[int, int]:
    """The IGMP version in use by interface index: lower than 3 while an older querier is heard."""
    versions: dict[int, int] = {}
    for line in (_proc("/proc/thread-self/net/igmp") if text is None else text).splitlines()[1:]:
        if line[:1].isdigit() and (version := line.split()[-1])[:1] == "V":
            versions[int(line.split()[0])] = int(version[1:])
    return versions


def read_igmp6(text: str | None = None) -> dict[int, tuple[bytes, ...]]:
    """Joined IPv6 groups by interface index; all-nodes and what never leaves the node are left out."""
    groups: dict[int, list[bytes]] = {}
    for line in (_proc("/proc/thread-self/net/igmp6") if text is None else text).splitlines():
        fields = line.split()
        group = bytes.fromhex(fields[2])
        scope = group[1] & 0xF
        if scope >= 2 and group != _ALL_NODES:
            groups.setdefault(int(fields[0]), []).append(group)
    return {at: tuple(found) for at, found in groups.items()}


_ALL_NODES = struct.pack(">H12xH", 0xFF02, 1)
