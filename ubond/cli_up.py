"""From the words of `ubond up` to a BondSpec: every bonding option a flag, every value checked.

Apart from `cli` because `ubond status` should not wait for what only `up` needs.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from types import MappingProxyType
from typing import Any

from ubond.bond.options import OPTIONS, Kind, Option, OptionError, apply_order, find
from ubond.bond.settings import Settings, check_supported, check_when
from ubond.bond.spec import GATES, WORKERS_MAX, BondSpec, SlaveSpec, SpecError, check_name
from ubond.cli_options import describe
from ubond.wire import MacAddr, WireError

#: Each has its own memory and sockets; more than these are left to people.
WORKERS_AUTO = 4

#: Capabilities that a bond needs, by their bit in CapEff.
CAPABILITIES = {12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW"}

_METAVARS = {
    Kind.ENUM: "NAME", Kind.NUMBER: "N", Kind.MS: "TIME", Kind.SECONDS: "SECONDS", Kind.SWITCH: "on|off",
    Kind.SLAVE: "SLAVE", Kind.LIST: "ADDRESS,...", Kind.MAC: "MAC", Kind.PER_SLAVE: "SLAVE=N",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Written:
    """One option as it was written: `slave` for those that belong to a slave."""

    slave: str | None
    option: Option
    text: str


# ── flags ────────────────────────────────────────────────────────────────────────────


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `up` takes: the bond, its slaves, how it runs, and every bonding option."""
    parser.add_argument("bond", metavar="BOND", help="name of the bond's device")
    parser.add_argument("slaves", metavar="SLAVE", nargs="+", help="interfaces to enslave, in this order")
    _add_device_arguments(parser.add_argument_group("the device"))
    _add_running_arguments(parser.add_argument_group("how it runs"))
    group = parser.add_argument_group(
        "bonding options",
        "Named values go by name or number; times are milliseconds, or have a unit: 100ms, 2s.\n"
        "  What belongs to one slave is written SLAVE=N here and SLAVE.OPTION=N after -o.",
    )
    group.add_argument(
        "-o", "--option", metavar="OPTION=VALUE", dest="written", action="append", default=[],
        type=assignment, help="any of the options below by its own name; for one slave eth2.prio=10",
    )  # fmt: skip
    for option in OPTIONS.values():
        if option.name != "slaves":  # they are named after the bond
            _add_option(group, option)


def _add_device_arguments(group: Any) -> None:
    group.add_argument(
        "--address", metavar="CIDR", action="append", type=_read_interface, default=[],
        help="IPv4 or IPv6 address with prefix length for the bond; may be given again",
    )  # fmt: skip
    group.add_argument("--gateway", metavar="IP", action="append", type=_read_address, default=[], help="default route")
    group.add_argument("--mac", metavar="MAC", type=_read_mac, help="address of the bond (default: the first slave's)")
    group.add_argument("--mtu", metavar="N", type=int, help="MTU of the bond and its slaves (default 1500)")


def _add_running_arguments(group: Any) -> None:
    group.add_argument(
        "--take-addresses", action="store_true",
        help="move addresses and routes of the slaves to the bond, and back when they leave; without it a "
        "slave that has addresses is refused",
    )  # fmt: skip
    group.add_argument(
        "--strict", action="store_true",
        help="the driver's behaviour where ubond's is safer or laxer: no slave stands in before a failover "
        "is decided, mode and fail_over_mac change only while the driver would let them",
    )  # fmt: skip
    group.add_argument(
        "--no-bypass", dest="bypass", action="store_false",
        help="send through the slaves' queueing disciplines, so that tcpdump and tc see the frames; slower, "
        "and a lost link is noticed later",
    )  # fmt: skip
    group.add_argument(
        "--gate", choices=GATES, default="auto",
        help="what keeps the slaves' own stacks from receiving and sending: classic BPF on a clsact qdisc, "
        "nftables netdev chains, or a private bridge (receiving only); auto takes the first that the kernel has",
    )  # fmt: skip
    group.add_argument(
        "--workers", metavar="N", type=_read_workers, default=1,
        help=f"threads that move frames, 1 to {WORKERS_MAX}, or auto: as many as there are processors for them, "
        f"at most {WORKERS_AUTO}; a flow stays with one (1)",
    )  # fmt: skip
    group.add_argument(
        "--foreground", action="store_true",
        help="stay in the foreground and log to standard error: for containers and systemd (Type=notify)",
    )  # fmt: skip
    group.add_argument(
        "--no-keeper", dest="keeper", action="store_false",
        help="without the process above the daemon that starts it again when it dies: for service managers that do",
    )  # fmt: skip


def _add_option(group: Any, option: Option) -> None:
    flags = [option.flag, *("--" + alias.replace("_", "-") for alias in option.aliases)]

    def read(text: str) -> Written:
        if option.kind is Kind.PER_SLAVE:
            return _of_slave(option, text)
        return Written(None, option, text)

    group.add_argument(
        *flags, metavar=_METAVARS[option.kind], dest="written", action="append", type=read,
        help=describe(option),
    )  # fmt: skip


# ── values ───────────────────────────────────────────────────────────────────────────


def assignment(text: str) -> Written:
    """Read `miimon=100`, `eth2.prio=10`, or the driver's `queue_id=eth2:3`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not OPTION=VALUE")
    # The last dot: VLAN devices have one in their name.
    slave, dot, plain = name.rpartition(".")
    option = _find(plain)
    if dot and option.kind is not Kind.PER_SLAVE:
        raise argparse.ArgumentTypeError(f"{option.name} belongs to the bond: write {option.name}={value}")
    if dot:
        return Written(slave, option, value)
    return _of_slave(option, value) if option.kind is Kind.PER_SLAVE else Written(None, option, value)


def _find(name: str) -> Option:
    try:
        option = find(name)
    except OptionError:
        from difflib import get_close_matches

        near = get_close_matches(name.replace("-", "_"), OPTIONS, 1)
        hint = f"did you mean {near[0]}?" if near else "ubond up --help lists them"
        raise argparse.ArgumentTypeError(f"unknown option {name!r}; {hint}") from None
    if option.name == "slaves":
        raise argparse.ArgumentTypeError("slaves are named after the bond: ubond up bond0 eth1 eth2")
    return option


def _of_slave(option: Option, text: str) -> Written:
    found = re.fullmatch(r"(.+)[=:]([^=:]*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{option.name} belongs to a slave: write SLAVE.{option.name}=N")
    return Written(found[1], option, found[2])


def _read_interface(text: str) -> Any:
    try:
        if "/" in text:
            return ip_interface(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not an address with prefix length like 192.0.2.10/24")


def _read_address(text: str) -> Any:
    try:
        return ip_address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IP address") from None


def _read_workers(text: str) -> int:
    if text == "auto":
        return min(len(os.sched_getaffinity(0)), WORKERS_AUTO)
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of workers nor auto") from None


def _read_mac(text: str) -> MacAddr:
    try:
        return MacAddr.parse(text)
    except WireError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# ── the spec ─────────────────────────────────────────────────────────────────────────


def spec_from(args: argparse.Namespace) -> BondSpec:
    """The bond that these arguments describe; SpecError or OptionError if it cannot be one.

    Every option is checked against its table and the mode, so that nothing has been touched
    when one turns out to be wrong.
    """
    options: dict[str, str] = {}
    of_slaves: dict[str, dict[str, str]] = {name: {} for name in args.slaves}
    for written in args.written:
        if written.slave is None:
            options[written.option.name] = written.text
        elif written.slave in of_slaves:
            of_slaves[written.slave][written.option.name] = written.text
        else:
            raise SpecError(f"{written.option.name}: {written.slave} is not among the slaves")
    check_options(options, args.written, strict=args.strict)
    return BondSpec(
        args.bond,
        tuple(SlaveSpec(name, MappingProxyType(of_slaves[name])) for name in args.slaves),
        MappingProxyType(options),
        addresses=tuple(args.address),
        gateways=tuple(args.gateway),
        mac=args.mac,
        mtu=args.mtu,
        strict=args.strict,
        take_addresses=args.take_addresses,
        bypass=args.bypass,
        gate=args.gate,
        workers=args.workers,
    )


def check_options(options: dict[str, str], written: Sequence[Written], *, strict: bool) -> None:
    """Refuse what an empty bond that is down would refuse, in the order in which it would be written."""
    settings = Settings()
    for name in apply_order(options):
        option = OPTIONS[name]
        check_when(option, settings, up=False, slaves=False, strict=strict)
        value = _value(option, options[name])
        check_supported(option, value, option.start, strict=strict)
        settings.store(name, value)
    for one in written:
        if one.slave is not None:
            check_when(one.option, settings, up=False, slaves=True, strict=strict)
            one.option.parse(one.text)


def _value(option: Option, text: str) -> int | str:
    match option.kind:
        case Kind.SLAVE:
            return check_name(text) if text else text
        case Kind.LIST | Kind.MAC:
            return text
        case _:
            return option.parse(text)


def remarks(spec: BondSpec) -> list[str]:
    """What a person should be told before this bond comes up: defaults chosen, and one trap."""
    chosen = [name for name in ("mode", "miimon") if name not in spec.options]
    lines = []
    if chosen:
        lines.append("using " + " ".join(f"{name}={_word(OPTIONS[name])}" for name in chosen))
    if spec.options.get("primary") and not _delay(spec, "updelay"):
        lines.append(
            "hint: a switch port that was just plugged in has carrier some time before it forwards; "
            "with --updelay the primary takes over only after that"
        )
    return lines


def _word(option: Option) -> str:
    return option.values.get(int(option.start), str(option.start))


def _delay(spec: BondSpec, name: str) -> int:
    return OPTIONS[name].parse(spec.options[name]) if name in spec.options else 0


# ── permission ───────────────────────────────────────────────────────────────────────


def missing_capabilities(status: str = "/proc/self/status") -> list[str]:
    """The capabilities that a bond needs and this process does not have."""
    with open(status) as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return [name for bit, name in CAPABILITIES.items() if not effective >> bit & 1]


def open_tun(path: str = "/dev/net/tun") -> None:
    """Open and close the device that bonds are made of; OSError if that cannot be."""
    os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
