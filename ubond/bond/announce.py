"""Who is told of a change of the active slave, and in what frames.

Switches and neighbours learn the new path from frames that come out of it.  `core` decides
when and how often; here is what one round says.  The bond, VLANs on it and bridges above it
are all alike: each speaks for itself, in its own VLAN.

Source: what the kernel's stacks send on NETDEV_NOTIFY_PEERS and NETDEV_RESEND_IGMP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ubond.bond.events import UpperFacts
from ubond.wire import (
    gratuitous_arp,
    igmp_reports,
    is_link_local,
    mld_reports,
    rarp_announcement,
    unsolicited_na,
)


def peer_notification(uppers: Sequence[UpperFacts]) -> tuple[bytes, ...]:
    """One round of announcements: the frames, in order, each of them once.

    For each upper a gratuitous ARP per IPv4 address and an unsolicited neighbour advertisement
    per IPv6 address.  An upper without any address sends a RARP, so that switches learn its MAC
    all the same; the driver says nothing there, and switches keep sending to the dead port.
    """
    return tuple(dict.fromkeys(frame for upper in uppers for frame in _notification(upper)))


def membership_reports(uppers: Sequence[UpperFacts]) -> tuple[bytes, ...]:
    """One round of IGMP and MLD reports for all joined groups, in the version each upper uses."""
    return tuple(dict.fromkeys(frame for upper in uppers for frame in _reports(upper)))


def _notification(upper: UpperFacts) -> Iterator[bytes]:
    for address in upper.addresses4:
        yield gratuitous_arp(upper.mac, address, upper.tags)
    for address in upper.addresses6:
        yield unsolicited_na(upper.mac, address, upper.router, upper.tags)
    if not upper.addresses4 and not upper.addresses6:
        yield rarp_announcement(upper.mac, upper.tags)


def _reports(upper: UpperFacts) -> Iterator[bytes]:
    # Without an address of its own a host reports from the unspecified one (RFC 3376 4.2.13, RFC 3590).
    source4 = upper.addresses4[0] if upper.addresses4 else bytes(4)
    source6 = next(filter(is_link_local, upper.addresses6), bytes(16))
    yield from igmp_reports(upper.mac, source4, upper.groups4, upper.igmp_version, upper.tags)
    yield from mld_reports(upper.mac, source6, upper.groups6, upper.mld_version, upper.tags)
