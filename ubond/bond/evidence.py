"""What the ARP and NS monitor learns from frames that arrive: the readable twin of `_evidence.pxd`.

The worker compares every received ARP and neighbour discovery frame with a `Watch` and keeps,
per slave, when each form of evidence was last seen.  So no frame reaches Python, and a flood of
forged ones costs nothing and hides nothing.  What a sighting is worth is for `probing` to say.

Source: bonding.rst, arp_validate.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from ubond.wire import ALL_NODES, ETH_ARP, ETH_IPV6, WireError, decode_ethernet, solicited_node

#: Addresses of ours that are compared, of each kind: the sources of probes first.
OURS_MAX = 32
TARGETS_MAX = 16


class Form(enum.IntEnum):
    """What a frame shows; the stamps of `_evidence.pxd` stand in this order.

    ANSWER: from a target to an address of ours.  REPLY: one of those that answers (an ARP reply, any
    NS or NA).  OWN: a request of ours to a target, come round through the switch.
    """

    ANY = 0
    ARP = 1
    ND = 2
    ANSWER = 3
    REPLY = 4
    OWN = 5


@dataclass(frozen=True, slots=True)
class Watch:
    """What to compare frames with: packed addresses, targets by slot.

    `macs`: those of the slaves, by their index in the table; frames to other hosts prove nothing.
    """

    targets4: tuple[bytes, ...] = ()
    targets6: tuple[bytes, ...] = ()
    ours4: tuple[bytes, ...] = ()
    ours6: tuple[bytes, ...] = ()
    macs: tuple[bytes, ...] = ()


NOTHING = Watch()


@dataclass(frozen=True, slots=True)
class Sighting:
    """One form of evidence, seen on a slave at a time (monotonic ns); `slot`: of the target."""

    slave: str
    at: int
    form: Form
    slot: int = 0


def see(frame: bytes, watch: Watch, slave: int) -> Iterator[tuple[Form, int]]:
    """What a frame that arrives on a slave shows, as (form, slot)."""
    yield Form.ANY, 0
    try:
        whole = decode_ethernet(frame)
    except WireError:
        return
    for_us = bool(frame[0] & 1) or frame[:6] == watch.macs[slave]
    if whole.ethertype == ETH_ARP:
        yield Form.ARP, 0
        if for_us:
            yield from _arp(whole.payload, watch)
    elif whole.ethertype == ETH_IPV6 and _is_nd(whole.payload):
        yield Form.ND, 0
        if for_us:
            yield from _nd(whole.payload, watch)


def _arp(body: bytes, watch: Watch) -> Iterator[tuple[Form, int]]:
    if len(body) < 28 or body[:6] != bytes.fromhex("000108000604"):
        return
    op, sender, target = int.from_bytes(body[6:8]), body[14:18], body[24:28]
    for slot, address in enumerate(watch.targets4):
        if sender == address and target in watch.ours4:
            yield Form.ANSWER, slot
            if op == 2:
                yield Form.REPLY, slot
        if target == address and sender in watch.ours4:
            yield Form.OWN, slot


def _is_nd(ip: bytes) -> bool:
    """Neighbour solicitation or advertisement, directly behind the IPv6 header."""
    return len(ip) >= 41 and ip[6] == 58 and ip[40] in (135, 136)


def _nd(ip: bytes, watch: Watch) -> Iterator[tuple[Form, int]]:
    # A hop limit of 255 shows that no router has passed it on (RFC 4861, 7.1).
    sender, destination = ip[8:24], ip[24:40]
    if ip[7] != 255 or not any(sender):
        return
    for slot, address in enumerate(watch.targets6):
        if sender == address and (destination == ALL_NODES or destination in watch.ours6):
            yield Form.ANSWER, slot
            yield Form.REPLY, slot
        if destination in (address, solicited_node(address)) and sender in watch.ours6:
            yield Form.OWN, slot
