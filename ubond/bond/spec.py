"""BondSpec: what a bond is meant to be, whoever wrote it down.

Configuration readers and the command line produce it, the daemon builds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from types import MappingProxyType

from ubond.wire import NAME_MAX, pack_name
from ubond.wire import MacAddr as MacAddr

#: What may close a slave to its own stack; `auto` takes the first of the others that can be had.
GATES = ("auto", "clsact", "nft", "bridge")
WORKERS_MAX = 16


class SpecError(ValueError):
    """This cannot be a bond; the text says what and why on one line."""


def check_name(name: str) -> str:
    """Return `name` if an interface may have it, else raise SpecError.

    `%` is refused although the kernel takes it: it would make up another name.
    """
    if not name:
        raise SpecError("an interface name cannot be empty")
    if len(pack_name(name)) > NAME_MAX:
        raise SpecError(f"{name!r} is too long for an interface name (at most {NAME_MAX} bytes)")
    if name in (".", ".."):
        raise SpecError(f"{name!r} cannot be an interface name")
    for char in name:
        if char in "/:%" or char.isspace() or not char.isprintable():
            raise SpecError(f"{name!r} cannot be an interface name: {char!r} is not allowed in it")
    return name


@dataclass(frozen=True, slots=True)
class SlaveSpec:
    """One slave and what is set for it alone (`queue_id`, `prio`; as text, option name -> value)."""

    name: str
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class BondSpec:
    """A bond as asked for.

    `options` maps option names to texts as written, only those that were written;
    `addresses` go on the bond, `broadcast` belongs to the first IPv4 address,
    `gateways` become default routes.  `mac`, `mtu`: None leaves the choice to the bond.
    `gate`: one of GATES, what keeps a slave's own stack from taking part.
    `workers`: threads that move frames, each with a queue of the bond's device and a socket at every slave.
    """

    name: str
    slaves: tuple[SlaveSpec, ...] = ()
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    broadcast: IPv4Address | None = None
    gateways: tuple[IPv4Address | IPv6Address, ...] = ()
    mac: MacAddr | None = None
    mtu: int | None = None
    strict: bool = False
    take_addresses: bool = False
    bypass: bool = True
    gate: str = "auto"
    workers: int = 1

    def __post_init__(self) -> None:
        check_name(self.name)
        seen: set[str] = set()
        for slave in self.slaves:
            check_name(slave.name)
            if slave.name == self.name:
                raise SpecError(f"{self.name} cannot be a slave of itself")
            if slave.name in seen:
                raise SpecError(f"{slave.name} is named twice as a slave of {self.name}")
            seen.add(slave.name)
        if self.mtu is not None and not 68 <= self.mtu <= 65521:
            raise SpecError(f"mtu {self.mtu} is out of range (68 - 65521)")
        if not 0 < self.workers <= WORKERS_MAX:
            raise SpecError(f"workers {self.workers} is out of range (1 - {WORKERS_MAX})")
        if self.gate not in GATES:
            raise SpecError(f"gate {self.gate!r} is none of {', '.join(GATES)}")
        if self.mac is not None and not self.mac.is_valid_unicast:
            raise SpecError(f"{self.mac} cannot be the address of an interface")
