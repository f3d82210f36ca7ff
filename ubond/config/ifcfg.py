"""ifcfg-* of the Red Hat family: a bond's file, with BONDING_OPTS and addresses, and its slaves' files.

    # ifcfg-bond0                                  # ifcfg-eth1
    DEVICE=bond0                                   DEVICE=eth1
    BONDING_OPTS="mode=active-backup miimon=100"   MASTER=bond0
    IPADDR=192.0.2.10                              SLAVE=yes
    PREFIX=24

The files are read, not sourced (`shell`).  Of several assignments of a key the last holds.
Files of other interfaces are left alone, whatever is in them.

Source: initscripts' sysconfig.txt, nm-settings-ifcfg-rh(5).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import TypeVar

from ubond.bond.options import find

# MacAddr is part of spec's vocabulary: a reader reaches no further down than that.
from ubond.bond.spec import MacAddr, SpecError, check_name
from ubond.config.common import (
    ConfigError,
    Note,
    Setting,
    integer,
    listing,
    natural,
    read_option,
    read_text,
    words,
)
from ubond.config.shell import Assignment, assignments, shown

DIRECTORY = "etc/sysconfig/network-scripts"

T = TypeVar("T")

#: Copies that editors, packages and people leave behind; initscripts passes over most of them too.
_BACKUP = re.compile(r"(~|\.bak|\.old|\.orig|\.rpmnew|\.rpmorig|\.rpmsave|\.swp)$")
_TRUE = frozenset({"yes", "true", "t", "y", "1", "on"})
_FALSE = frozenset({"no", "false", "f", "n", "0", "off", ""})
#: Understood, and nothing to do: labels, and what is for programs that start interfaces by themselves.
_QUIET = frozenset({"NAME", "UUID", "ONBOOT", "NM_CONTROLLED", "HOTPLUG"})
#: Per-slave options: key -> option.
_PORT_OPTIONS = {"BOND_PORT_QUEUE_ID": "queue_id", "BOND_PORT_PRIO": "prio"}


@dataclass(slots=True)
class Interface:
    """One ifcfg file: its assignments by key, the last of each, and which of them were asked for."""

    file: str
    name: str
    keys: dict[str, Assignment]
    asked: set[str] = field(default_factory=set)

    def line(self, key: str) -> int:
        return self.keys[key].line if key in self.keys else 0

    def text(self, key: str) -> str:
        """The value of a key, empty if it is not there; ConfigError if only a shell could tell."""
        self.asked.add(key)
        found = self.keys.get(key)
        if found is None:
            return ""
        if found.shell:
            raise self.error(key, f"{found.shell!r} needs a shell, which is not run; write the value itself")
        return found.value.strip()

    def flag(self, key: str, default: bool = False) -> bool:
        text = self.text(key).lower()
        if text not in _TRUE | _FALSE:
            raise self.error(key, f"invalid value {text!r} (may be: yes, no)")
        return text in _TRUE if text else default

    def value(self, key: str, read: Callable[[str], T], what: str) -> T | None:
        """The value of a key as `read` gives it; None if it is empty or not there."""
        text = self.text(key)
        try:
            return read(text) if text else None
        except ValueError as error:
            why = f": {error}" if isinstance(error, SpecError) else ""
            raise self.error(key, f"{text!r} is not {what}{why}") from None

    def error(self, key: str, text: str) -> ConfigError:
        return ConfigError(self.file, self.line(key), key, text)

    def note(self, key: str, text: str) -> Note:
        return Note(self.file, self.line(key), text)


@dataclass(frozen=True, slots=True)
class IfcfgSlave:
    """A slave and the options that its own file sets."""

    name: str
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class IfcfgBond:
    """What the ifcfg files say about one bond; `file` is empty where no file describes the bond itself."""

    file: str
    settings: tuple[Setting, ...] = ()
    slaves: tuple[IfcfgSlave, ...] = ()
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    broadcast: IPv4Address | None = None
    gateways: tuple[IPv4Address | IPv6Address, ...] = ()
    mac: MacAddr | None = None
    mtu: int | None = None


def read(root: Path, bond: str) -> tuple[IfcfgBond, list[Note]]:
    """What the ifcfg files below `root` say about `bond` and its slaves, slaves in natural order."""
    notes: list[Note] = []
    interfaces = list(_interfaces(root, bond, notes))
    described = [one for one in interfaces if one.name == bond]
    if len(described) > 1:
        raise described[1].error("DEVICE", f"{bond} is described in {described[0].file} already")
    notes += [note for one in interfaces for note in _stacked(one, bond)]
    for path in _routes(root, bond):
        notes.append(Note(str(path), 0, "not read: routes and rules can be added with ip"))
    identity = described[0].text("UUID") if described else ""
    slaves = _slaves(interfaces, bond, identity, notes)
    if not described:
        return IfcfgBond("", slaves=slaves), notes
    return _bond(described[0], slaves, notes), notes


def bonds(root: Path) -> list[str]:
    """The bonds that the ifcfg files below `root` describe or name as a master."""
    found: set[str] = set()
    for one in _interfaces(root, "", []):
        bonding = one.keys.keys() & {"BONDING_OPTS"} or one.text("TYPE").lower() in ("bond", "bonding")
        if bonding or one.flag("BONDING_MASTER"):
            found.add(one.name)
        elif one.text("MASTER") and one.flag("SLAVE"):
            found.add(one.text("MASTER"))
    return sorted(found, key=natural)


# ── files ────────────────────────────────────────────────────────────────────────────


def _interfaces(root: Path, bond: str, notes: list[Note]) -> Iterator[Interface]:
    """The files that can concern `bond` (empty: any bond); a file that never names it is not even parsed."""
    for path in listing(root / DIRECTORY, "ifcfg-*"):
        if _BACKUP.search(path.name):
            continue
        text = read_text(path)
        names = rf"(?<![\w.-]){re.escape(bond)}(?![\w-])|MASTER_UUID" if bond else "MASTER|BOND|bond|Bond"
        if path.name == f"ifcfg-{bond}" or re.search(names, text):
            yield _interface(path, text, bond, notes)


def _interface(path: Path, text: str, bond: str, notes: list[Note]) -> Interface:
    file, remarks = str(path), list[Note]()
    keys: dict[str, Assignment] = {}
    for one in assignments(text, file, remarks):
        old = keys.get(one.key)
        if old is not None and old.value != one.value:
            remarks.append(Note(file, old.line, f"{one.key} gives way to the one in line {one.line}"))
        keys[one.key] = one
    interface = Interface(file, path.name.removeprefix("ifcfg-"), keys)
    if device := interface.text("DEVICE"):
        interface.name = device
    elif interface.name == bond or "MASTER" in keys:
        remarks.append(Note(file, 0, f"no DEVICE: taken for {interface.name} by the name of the file"))
    if path.name == f"ifcfg-{bond}" != f"ifcfg-{interface.name}":
        notes.append(Note(file, 0, f"not for {bond}: it says DEVICE={interface.name}"))
    if interface.name == bond or keys.keys() & {"MASTER", "MASTER_UUID"}:
        notes += remarks
    return interface


def _routes(root: Path, bond: str) -> list[Path]:
    names = {f"{kind}-{bond}" for kind in ("route", "route6", "rule", "rule6")}
    return [path for path in listing(root / DIRECTORY, "r*-*") if path.name in names]


def _stacked(one: Interface, bond: str) -> list[Note]:
    """What to say of files for something on top of the bond: an alias, a VLAN, a bridge's port."""
    if one.name.startswith(bond + ":"):
        return [Note(one.file, 0, f"not read: write its address into ifcfg-{bond} as IPADDR1")]
    if one.name.startswith(bond + ".") or (one.keys.keys() & {"PHYSDEV"} and one.text("PHYSDEV") == bond):
        return [Note(one.file, 0, f"not read: a VLAN on {bond} can be added with ip link when it is up")]
    return []


def _leftover(one: Interface, kind: str, notes: list[Note]) -> None:
    """Name every key that nobody asked for."""
    for key, found in one.keys.items():
        if key not in one.asked | _QUIET:
            notes.append(one.note(key, f"{key}={shown(found.value)} ignored: it has no meaning for {kind}"))


# ── slaves ───────────────────────────────────────────────────────────────────────────


def _slaves(
    interfaces: list[Interface], bond: str, identity: str, notes: list[Note]
) -> tuple[IfcfgSlave, ...]:
    found: dict[str, Interface] = {}
    for one in interfaces:
        master = one.text("MASTER") or one.text("MASTER_UUID")
        if not master or master not in (bond, identity):
            continue
        if not one.flag("SLAVE", default="MASTER_UUID" in one.keys):
            notes.append(one.note("MASTER", f"{one.name} is not enslaved: MASTER={bond} without SLAVE=yes"))
            continue
        if one.name in found:
            raise one.error("DEVICE", f"{one.name} is described in {found[one.name].file} already")
        found[one.name] = one
    return tuple(_slave(found[name], notes) for name in sorted(found, key=natural))


def _slave(one: Interface, notes: list[Note]) -> IfcfgSlave:
    _checked_name(one)
    options = [found for key, name in _PORT_OPTIONS.items() if (found := _port_option(one, key, name))]
    if one.text("TYPE").lower() not in ("", "ethernet"):
        notes.append(one.note("TYPE", f"TYPE={one.text('TYPE')} ignored: a slave is an Ethernet interface"))
    if one.text("BOOTPROTO").lower() not in ("", "none", "static"):
        text = f"BOOTPROTO={one.text('BOOTPROTO')} ignored: the bond has the address, not its slaves"
        notes.append(one.note("BOOTPROTO", text))
    if one.text("HWADDR"):
        notes.append(one.note("HWADDR", f"HWADDR is not compared: {one.name} is taken by its name"))
    _look_at_userctl(one, notes)
    _leftover(one, "a slave", notes)
    return IfcfgSlave(one.name, tuple(options))


def _port_option(one: Interface, key: str, name: str) -> Setting | None:
    option = find(name)
    number = one.value(key, integer, "a number")
    if number is None:
        return None
    if number < option.lo or (option.hi is not None and number > option.hi):
        raise one.error(key, f"{number} is out of range ({option.lo} - {option.hi})")
    return Setting(name, str(number), number, one.file, one.line(key), written=key)


def _checked_name(one: Interface) -> None:
    try:
        check_name(one.name)
    except SpecError as error:
        raise one.error("DEVICE", str(error)) from None


def _look_at_userctl(one: Interface, notes: list[Note]) -> None:
    if one.flag("USERCTL"):
        notes.append(one.note("USERCTL", "USERCTL=yes ignored: it takes root to control a bond"))


# ── the bond itself ──────────────────────────────────────────────────────────────────


def _bond(one: Interface, slaves: tuple[IfcfgSlave, ...], notes: list[Note]) -> IfcfgBond:
    _checked_name(one)
    _look_at_type(one, notes)
    _look_at_bootproto(one, notes)
    _look_at_userctl(one, notes)
    settings = tuple(_bonding_opts(one, notes))
    four = _addresses4(one, notes)
    broadcast = _broadcast(one, four, notes)
    six = _addresses6(one, notes)
    bond = IfcfgBond(
        one.file,
        settings,
        slaves,
        (*four, *six),
        broadcast,
        _gateways(one, four, notes),
        one.value("MACADDR", _mac, "a MAC address that an interface can have"),
        one.value("MTU", _mtu, "an MTU (68 - 65521)"),
    )
    _leftover(one, "a bond of ubond", notes)
    return bond


def _look_at_type(one: Interface, notes: list[Note]) -> None:
    kind = one.text("TYPE")
    master = one.flag("BONDING_MASTER")
    if kind.lower() in ("", "bond", "bonding"):
        return
    if master or kind.lower() != "ethernet":
        raise one.error("TYPE", f"{kind} is not a bond (may be: Bond)")
    notes.append(one.note("TYPE", f"TYPE={kind} ignored: {one.name} is set up as a bond"))


def _look_at_bootproto(one: Interface, notes: list[Note]) -> None:
    how = one.text("BOOTPROTO").lower()
    if how in ("dhcp", "bootp"):
        text = f"BOOTPROTO={how}: ubond runs no DHCP client; start one on {one.name} when it is up"
        notes.append(one.note("BOOTPROTO", f"{text} (dhclient {one.name}), or write IPADDR and PREFIX"))
    elif how not in ("", "none", "static"):
        notes.append(one.note("BOOTPROTO", f"BOOTPROTO={how} ignored: not none, static or dhcp"))


def _bonding_opts(one: Interface, notes: list[Note]) -> Iterator[Setting]:
    if not one.text("BONDING_OPTS"):
        return
    written = one.keys["BONDING_OPTS"]
    for word, line in words(written.value, written.lines):
        name, equals, text = word.partition("=")
        if not equals:
            notes.append(Note(one.file, line, f"BONDING_OPTS {word!r} ignored: not an option with a value"))
        elif setting := read_option(name, text, one.file, line, notes):
            yield setting


def _mac(text: str) -> MacAddr:
    mac = MacAddr.parse(text)
    if not mac.is_valid_unicast:
        raise ValueError
    return mac


def _mtu(text: str) -> int:
    mtu = integer(text)
    if not 68 <= mtu <= 65521:
        raise ValueError
    return mtu


# ── addresses ────────────────────────────────────────────────────────────────────────


def _addresses4(one: Interface, notes: list[Note]) -> list[IPv4Interface]:
    """IPADDR, then IPADDR0, IPADDR1 and so on, each with the PREFIX or NETMASK of its number."""
    keys = sorted((key for key in one.keys if re.fullmatch(r"IPADDR[0-9]*", key)), key=natural)
    found = [address for key in keys if (address := _address4(one, key.removeprefix("IPADDR"), notes))]
    return list(dict.fromkeys(found))


def _address4(one: Interface, number: str, notes: list[Note]) -> IPv4Interface | None:
    address = one.value(f"IPADDR{number}", IPv4Address, "an IPv4 address")
    prefix = one.value(f"PREFIX{number}", _prefix, "a prefix length (0 - 32)")
    mask = one.value(f"NETMASK{number}", _netmask, "a netmask")
    if address is None:
        return None
    if prefix is not None and mask is not None and prefix != mask:
        key = f"NETMASK{number}"
        notes.append(one.note(key, f"{key}={one.text(key)} ignored: PREFIX{number}={prefix} goes before it"))
    length = prefix if prefix is not None else mask
    if length is None:
        length = 8 if address.packed[0] < 128 else 16 if address.packed[0] < 192 else 24
        text = f"IPADDR{number}={address} has no PREFIX or NETMASK: /{length}, by its class"
        notes.append(one.note(f"IPADDR{number}", text))
    return IPv4Interface((address, length))


def _prefix(text: str) -> int:
    length = integer(text)
    if not 0 <= length <= 32:
        raise ValueError
    return length


def _netmask(text: str) -> int:
    """The length of a netmask; ValueError if its ones are not all in front."""
    bits = f"{int(IPv4Address(text)):032b}"
    if "01" in bits:
        raise ValueError
    return bits.count("1")


def _broadcast(one: Interface, addresses: list[IPv4Interface], notes: list[Note]) -> IPv4Address | None:
    """BROADCAST, which is honoured as it stands, and NETWORK, which follows from the address anyway."""
    broadcast = one.value("BROADCAST", IPv4Address, "an IPv4 address")
    network = one.value("NETWORK", IPv4Address, "an IPv4 address")
    for key, given in (("BROADCAST", broadcast), ("NETWORK", network)):
        if given is None:
            continue
        if not addresses:
            notes.append(one.note(key, f"{key}={given} ignored: there is no IPADDR"))
            continue
        net = addresses[0].network
        right = net.broadcast_address if key == "BROADCAST" else net.network_address
        if given != right:
            what = "used, although" if key == "BROADCAST" else "ignored:"
            notes.append(one.note(key, f"{key}={given} {what} that of {addresses[0]} is {right}"))
    return broadcast if addresses else None


def _gateways(
    one: Interface, addresses: list[IPv4Interface], notes: list[Note]
) -> tuple[IPv4Address | IPv6Address, ...]:
    four = one.value("GATEWAY", IPv4Address, "an IPv4 address")
    six = one.value("IPV6_DEFAULTGW", _unscoped, "an IPv6 address")
    wanted = one.flag("DEFROUTE", default=True)
    if four and not wanted:
        notes.append(one.note("DEFROUTE", f"GATEWAY={four} ignored: DEFROUTE=no"))
        four = None
    if four and not any(four in address.network for address in addresses):
        notes.append(one.note("GATEWAY", f"GATEWAY={four} is in no network of this bond, and may be refused"))
    return tuple(gateway for gateway in (four, six) if gateway)


def _unscoped(text: str) -> IPv6Address:
    return IPv6Address(text.partition("%")[0])


def _addresses6(one: Interface, notes: list[Note]) -> list[IPv6Interface]:
    texts = [("IPV6ADDR", one.text("IPV6ADDR"))]
    texts += [("IPV6ADDR_SECONDARIES", text) for text in one.text("IPV6ADDR_SECONDARIES").split()]
    texts = [(key, text) for key, text in texts if text]
    if texts and not one.flag("IPV6INIT", default=True):
        notes.append(one.note("IPV6INIT", "IPV6ADDR ignored: IPV6INIT=no"))
        return []
    found = []
    for key, text in texts:
        try:
            # Without a length it is 64, as initscripts have it.
            found.append(IPv6Interface(text if "/" in text else f"{text}/64"))
        except ValueError:
            raise one.error(key, f"{text!r} is not an IPv6 address") from None
    return found
