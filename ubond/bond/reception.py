"""What an interface lets in beside frames to its own MAC and broadcasts, and what slaves must let in.

A NIC drops what nobody asked for.  Whatever stands on the bond (sockets that joined groups, VLANs,
macvlans, bridges, sniffers) asks the bond's device, so its lists are what the slaves need.  All of
them hold the lists, not the active slave alone as with the driver: the worker fails over without
asking, and a NIC that first had to be told would drop what comes next.

Source: packet(7), PACKET_ADD_MEMBERSHIP; bonding.rst, "Promiscuous mode".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address

#: More addresses than this are as good as all: the filters of NICs hold fewer, and their drivers do the same.
MOST = 512
#: 802.3ad: LACPDUs and markers (IEEE 802.1AX, 6.2.11.2).
SLOW_PROTOCOLS = bytes.fromhex("0180c2000002")


@dataclass(frozen=True, slots=True)
class Reception:
    """`groups`: multicast MACs; `unicast`: MACs beside its own; 6 bytes each."""

    promiscuous: bool = False
    all_multicast: bool = False
    groups: frozenset[bytes] = frozenset()
    unicast: frozenset[bytes] = frozenset()


def of_device(promiscuity: int, all_multicast: int, addresses: Iterable[bytes]) -> Reception:
    """What a TAP is asked to let in: how often for all frames and all groups, and its address lists.

    A TAP cannot filter by unicast address, so the kernel makes it promiscuous once for having any.
    """
    found = frozenset(addresses)
    groups = frozenset(address for address in found if address[0] & 1)
    unicast = found - groups
    return Reception(promiscuity > bool(unicast), all_multicast > 0, groups, unicast)


def solicited_node_group(target: IPv6Address) -> bytes:
    """The MAC of the group that whoever has this address listens to (RFC 4291 2.7.1, RFC 2464 7)."""
    return b"\x33\x33\xff" + target.packed[-3:]


def needed(
    bond: Reception, *, filters_vlans: bool = False, vlans: bool = False, ns_targets: Iterable[IPv6Address] = ()
) -> Reception:
    """What a slave must let in for a bond whose device has these lists.

    `filters_vlans`: its NIC drops tags that nobody registered, and cannot be told not to;
    `vlans`: VLANs are on the bond.  `ns_targets`: whose solicitations by the active slave a backup
    takes as a sign of life.
    """
    if bond.promiscuous or (filters_vlans and vlans) or len(bond.unicast) > MOST:
        # Promiscuous NICs still filter groups (packet(7) says all frames, some drivers do not).
        return Reception(promiscuous=True, all_multicast=True)
    groups = bond.groups | {SLOW_PROTOCOLS} | {solicited_node_group(target) for target in ns_targets}
    if bond.all_multicast or len(groups) > MOST:
        return Reception(all_multicast=True, unicast=bond.unicast)
    return Reception(groups=groups, unicast=bond.unicast)
