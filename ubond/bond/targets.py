"""Whom to probe: the targets of a bond, how they are written, and what answers are compared with.

IPv4 and IPv6 targets of the same place share a slot, as in the driver: an answer of either
refreshes it.  The gateways that `probe=gateway` has found come behind the configured ones.

Source: bonding.rst, arp_ip_target and ns_ip6_target; the texts are the driver's.
"""

from __future__ import annotations

import errno as E
import re
from ipaddress import IPv4Address, IPv6Address, ip_address

from ubond.bond.events import Level
from ubond.bond.evidence import NOTHING, OURS_MAX, TARGETS_MAX, Watch
from ubond.bond.options import Option, OptionError, Probe
from ubond.bond.state import State
from ubond.bond.transaction import Transaction

_NO_ADDRESS4 = bytes(4)


def targets4(state: State) -> tuple[str, ...]:
    """The IPv4 targets by slot."""
    return _with_gateways(state, "arp_ip_target", 4)


def targets6(state: State) -> tuple[str, ...]:
    """The IPv6 targets by slot."""
    return _with_gateways(state, "ns_ip6_target", 6)


def all_targets(state: State) -> tuple[str, ...]:
    return targets4(state) + targets6(state)


def _with_gateways(state: State, option: str, version: int) -> tuple[str, ...]:
    found = configured(state, option)
    if state.settings.number("probe") == Probe.GATEWAY:
        found += [each for each in state.probing.gateways if ip_address(each).version == version]
    return tuple(dict.fromkeys(found))[:TARGETS_MAX]


def configured(state: State, option: str) -> list[str]:
    return state.settings.text(option).split()


def packed(address: str) -> bytes:
    return ip_address(address).packed


def watch(state: State) -> Watch:
    """What the worker compares received frames with; nothing while nobody probes.

    With more addresses than it compares, the sources of probes go first: those are answered.
    """
    if not state.probes:
        return NOTHING
    sources = [route.source for route in state.probing.routes.values() if route.mine and route.source]
    ours = [*sources, *(each for upper in state.uppers for each in (*upper.addresses4, *upper.addresses6))]
    return Watch(
        targets4=tuple(packed(each) for each in targets4(state)),
        targets6=tuple(packed(each) for each in targets6(state)),
        ours4=tuple(dict.fromkeys((_NO_ADDRESS4, *(each for each in ours if len(each) == 4))))[:OURS_MAX],
        ours6=tuple(dict.fromkeys(each for each in ours if len(each) == 16))[:OURS_MAX],
        macs=tuple(bytes(slave.mac) for slave in state.slaves),
    )


# ── writing them ─────────────────────────────────────────────────────────────────────


def set_targets(state: State, option: Option, value: int | str, out: Transaction) -> None:
    """`+ADDRESS` adds one, `-ADDRESS` removes one; addresses with commas or blanks between replace all.

    The signs are those of the driver's file, the list is its netlink attribute.  A list with a
    wrong address in it changes nothing here; the driver keeps those before it.
    """
    text = str(value)
    before = configured(state, option.name)
    kind = _Kind(option.name)
    if text[:1] in ("+", "-"):
        address = kind.read(text[1:])
        after = [*before, kind.added(address, before)] if text[0] == "+" else kind.without(address, before)
    else:
        after = []
        for word in text.replace(",", " ").split():
            after.append(kind.added(kind.listed(word), after))
    for gone in (each for each in before if each not in after):
        if len(before) == 1 and not after and state.probes:
            out.log(Level.WARNING, f"Removing last {kind.last} target with arp_interval on")
        out.debug(f"Removing {kind.name} target {gone}")
    for new in (each for each in after if each not in before):
        out.debug(f"Adding {kind.name} target {new}")
    for slave in state.slaves:
        # A stamp moves along with its target; a new target has just been heard.
        kept = [slave.stamps.targets[before.index(each)] if each in before else out.now for each in after]
        slave.stamps.targets = [*kept, *slave.stamps.targets[len(before) :], *[out.now] * len(before)]
        del slave.stamps.targets[TARGETS_MAX:]
    state.settings.store(option.name, " ".join(after))


class _Kind:
    """How one of the two target options reads its text, and what it says about it."""

    def __init__(self, option: str) -> None:
        self.v6 = option == "ns_ip6_target"
        self.name, self.last = ("NS", "ns") if self.v6 else ("ARP", "arp")

    def read(self, text: str) -> IPv4Address | IPv6Address:
        """The address that a text begins with: what follows it is ignored, as by the driver."""
        pattern = r"[0-9A-Fa-f:.]+" if self.v6 else r"[0-9]{1,3}(\.[0-9]{1,3}){3}"
        match = re.match(pattern, text)
        try:
            return (IPv6Address if self.v6 else IPv4Address)(match[0] if match else "")
        except ValueError:
            raise OptionError(E.EPERM, [f"invalid {self.name} target specified"]) from None

    def listed(self, word: str) -> IPv4Address | IPv6Address:
        """An address of a list, which is nothing but that."""
        try:
            return (IPv6Address if self.v6 else IPv4Address)(word)
        except ValueError:
            text = f"no command found in {self.last}_ip_targets file - use +<addr> or -<addr>"
            raise OptionError(E.EPERM, [text]) from None

    def added(self, address: IPv4Address | IPv6Address, before: list[str]) -> str:
        self._check(address, "addition")
        if str(address) in before:
            raise OptionError(E.EINVAL, [f"{self.name} target {address} is already present"])
        if len(before) == TARGETS_MAX:
            raise OptionError(E.EINVAL, [f"{self.name} target table is full!"])
        return str(address)

    def without(self, address: IPv4Address | IPv6Address, before: list[str]) -> list[str]:
        self._check(address, "removal")
        if str(address) not in before:
            raise OptionError(E.EINVAL, [f"unable to remove nonexistent {self.name} target {address}"])
        return [each for each in before if each != str(address)]

    def _check(self, address: IPv4Address | IPv6Address, what: str) -> None:
        broadcast = address == IPv4Address("255.255.255.255")
        unfit6 = self.v6 and (address.is_loopback or address.is_multicast)
        if address.is_unspecified or broadcast or unfit6:
            raise OptionError(E.EINVAL, [f"invalid {self.name} target {address} specified for {what}"])
