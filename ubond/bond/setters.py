"""Setters: what writing an option leads to, in the driver's order of checks and in its words.

`write` does the checks and the storing that all options share; the options whose change
has consequences have a function of their own in `SETTERS`.

Source: bonding.rst; the texts are the driver's.
"""

from __future__ import annotations

import errno as E
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ubond.bond import failover, modes, options, targets
from ubond.bond.events import Level, OptionWritten
from ubond.bond.options import FORCED_MIIMON, MIIMON_FORCED, Mode, Option, OptionError, Probe
from ubond.bond.settings import RAW, check_supported, check_when, find, generic_line, word
from ubond.bond.slave import Slave
from ubond.bond.state import State
from ubond.bond.transaction import Transaction


def write(state: State, event: OptionWritten, out: Transaction) -> None:
    """Write one option; OptionError if it is refused, and then nothing has changed.

    Per-slave options name the slave in the event or in the text (`eth1:3`).
    """
    option, settings = find(event.name), state.settings
    canonical = options.find(event.name).name
    check_when(option, settings, up=state.up, slaves=bool(state.slaves), strict=state.strict)
    text = event.text.removesuffix("\n")
    if event.slave is not None:
        text = f"{event.slave}:{text}"
    value: int | str = text if option.name in RAW else option.parse(text)
    check_supported(option, value, settings.read_back()[canonical], strict=state.strict)
    try:
        SETTERS.get(canonical, store)(state, option, value, out)
    except OptionError as error:
        lines = [*error.lines, *generic_line(option, error.errno, text)]
        extack = "invalid option value" if error.errno == E.EINVAL else None
        raise OptionError(error.errno, lines, error.extack or extack) from None


def store(state: State, option: Option, value: int | str, out: Transaction) -> None:
    """Write an option whose change has no consequence beyond its value."""
    name = options.find(option.name).name
    state.settings.store(name, value)
    if (called := STORED.get(name)) is not None:
        shown = f"{word(option, int(value))} ({value})" if called.endswith("%") else str(value)
        out.debug(f"Setting {called.removesuffix(' %')} to {shown}")


#: What a mere change of value is called in the log; with ` %` the value's word is shown too.
STORED: Mapping[str, str] = MappingProxyType(
    {
        "packets_per_slave": "packets per slave",
        "xmit_hash_policy": "xmit hash policy %",
        "arp_validate": "arp_validate %",
        "arp_all_targets": "arp_all_targets %",
        "min_links": "min links value",
        "ad_select": "ad_select %",
        "use_carrier": "use_carrier",
        "resend_igmp": "resend_igmp",
        "tlb_dynamic_lb": "dynamic-lb %",
        "arp_missed_max": "missed max %",
    }
)


# ── modes and monitoring ─────────────────────────────────────────────────────────────


def set_mode(state: State, option: Option, value: int | str, out: Transaction) -> None:
    """Change the mode.  With slaves the roles and MACs are arranged as the new mode has them.

    A mode that selects one slave announces it: the switch has seen our MAC on every port until now.
    """
    settings, mode = state.settings, Mode(int(value))
    if settings.mode is mode:
        return
    selected = modes.rules(state).selects
    if mode in FORCED_MIIMON:
        _force_miimon(state, mode, out)
    if mode is Mode.BALANCE_ALB:
        settings.store("tlb_dynamic_lb", 1)
    settings.store("mode", value)
    settings.store("arp_validate", 0)
    settings.store("broadcast_neighbor", 0)
    if state.slaves:
        why = f"mode is now {mode}"
        failover.select(state, out, why)
        modes.set_roles(state)
        failover.arrange_macs(state, out)
        if modes.rules(state).selects and not selected:
            out.changed = out.changed or why


def _force_miimon(state: State, mode: Mode, out: Transaction) -> None:
    """What the modes that need to know speeds do: look at links by MII, whatever was set."""
    settings = state.settings
    if settings.number("arp_interval"):
        out.debug(f"{mode} mode is incompatible with arp monitoring, start mii monitoring")
        settings.store("arp_interval", 0)
    if not settings.miimon:
        settings.store("miimon", MIIMON_FORCED)
        out.debug(f"Setting MII monitoring interval to {MIIMON_FORCED}")


def set_fail_over_mac(state: State, option: Option, value: int | str, out: Transaction) -> None:
    state.settings.store("fail_over_mac", value)
    out.debug(f"Setting fail_over_mac to {word(option, int(value))} ({value})")
    if modes.rules(state).moves_mac:
        failover.arrange_macs(state, out)


def set_miimon(state: State, option: Option, value: int | str, out: Transaction) -> None:
    """Change the time between passes; delays keep their number of passes.

    The driver has one monitor at a time; without `strict` both may run.
    """
    settings = state.settings
    settings.store("miimon", value)
    out.debug(f"Setting MII monitoring interval to {value}")
    if value and state.strict and state.probes:
        out.debug("MII monitoring cannot be used with ARP monitoring - disabling ARP monitoring...")
        settings.store("arp_interval", 0)
        settings.store("arp_validate", 0)
    for delay in ("updelay", "downdelay", "peer_notif_delay"):
        if settings.number(delay):
            ms = settings.number(delay) * settings.miimon
            out.debug(f"Note: Updating {delay} (to {ms}) since it is a multiple of the miimon value")


#: ms between probes where `probe=gateway` is the first to ask for any.
PROBE_EVERY = 500


def set_arp_interval(state: State, option: Option, value: int | str, out: Transaction) -> None:
    """Change the time between probes; 0 stops them."""
    settings = state.settings
    settings.store("arp_interval", value)
    out.debug(f"Setting ARP monitoring interval to {value}")
    if value and state.strict and settings.miimon:
        out.debug("ARP monitoring cannot be used with MII monitoring. Disabling MII monitoring")
        settings.store("miimon", 0)
    if value and not targets.all_targets(state):
        out.debug("ARP monitoring has been set up, but no ARP targets have been specified")


def set_probe(state: State, option: Option, value: int | str, out: Transaction) -> None:
    """Probe the default gateway, or no longer; without an arp_interval one is chosen."""
    settings = state.settings
    if value == Probe.GATEWAY and state.strict:
        raise OptionError(E.EOPNOTSUPP, ["option probe: the driver knows no such thing, and --strict was asked for"])
    settings.store("probe", value)
    out.debug(f"Setting probe to {word(option, int(value))} ({value})")
    if value == Probe.GATEWAY and not state.probes:
        settings.store("arp_interval", PROBE_EVERY)
    elif value == Probe.OFF and not targets.all_targets(state):
        settings.store("arp_interval", 0)


def set_delay(state: State, option: Option, value: int | str, out: Transaction) -> None:
    """Set updelay, downdelay or peer_notif_delay: whole passes of the monitor, rounded down."""
    called = {"updelay": "up delay", "downdelay": "down delay"}.get(option.name, "peer notification delay")
    miimon, ms = state.settings.miimon, int(value)
    if not miimon:
        raise OptionError(E.EPERM, [f"Unable to set {called} as MII monitoring is disabled"])
    passes, rest = divmod(ms, miimon)
    if rest:
        out.log(
            Level.WARNING,
            f"{called} ({ms}) is not a multiple of miimon ({miimon}), value rounded to {passes * miimon} ms",
        )
    state.settings.store(option.name, passes)
    out.debug(f"Setting {called} to {passes * miimon}")


# ── the active slave ─────────────────────────────────────────────────────────────────


def set_primary(state: State, option: Option, value: int | str, out: Transaction) -> None:
    """Name the primary: a slave takes over at once, another name is kept for when it comes."""
    name = str(value)
    slave = state.find(name) if name else None
    had_primary = state.primary is not None
    state.settings.store("primary", name)
    state.primary, state.forced = slave, slave is not None
    if slave is not None:
        out.debug("Setting as primary slave", slave.name)
    elif had_primary or not name:
        out.debug("Setting primary slave to None")
    if slave is not None or had_primary or not name:
        failover.select(state, out, f"primary={name or 'none'}")
    if slave is None and name:
        out.debug(f"Recording {name} as primary, but it has not been enslaved yet")


def set_primary_reselect(state: State, option: Option, value: int | str, out: Transaction) -> None:
    state.settings.store("primary_reselect", value)
    reselect = word(option, int(value))
    out.debug(f"Setting primary_reselect to {reselect} ({value})")
    failover.select(state, out, f"primary_reselect={reselect}")


def set_active_slave(state: State, option: Option, value: int | str, out: Transaction) -> None:
    """Make a slave the active one by hand; empty drops the active one and chooses anew.

    Not sticky: the next choice follows the usual rules.
    """
    name = next(iter(str(value).split()), "")
    if not name:
        out.debug("Clearing current active slave")
        failover.drop_active(state)
        failover.select(state, out, "active_slave cleared")
        return
    slave = state.find(name)
    if slave is None:
        raise OptionError(E.EINVAL, [f"(slave {name}): Device is not bonding slave"])
    if slave is state.active:
        out.debug("is already the current active slave", name)
        return
    if state.active is None or not slave.can_transmit:
        text = f"Could not set as active slave; either {name} is down or the link is down"
        raise OptionError(E.EINVAL, [f"(slave {name}): {text}"])
    out.debug("Setting as active slave", name)
    failover.change_active(state, slave, out, f"active_slave={name}")


# ── options of one slave ─────────────────────────────────────────────────────────────


def _slave_and_number(state: State, text: str, pattern: str) -> tuple[Slave, int] | None:
    """Read `NAME:NUMBER`; None if it is not that or the name is no slave's."""
    name, _, number = text.partition(":")
    slave = state.find(name)
    match = re.match(pattern, number)
    return None if slave is None or match is None else (slave, int(match[0]))


def set_queue_id(state: State, option: Option, value: int | str, out: Transaction) -> None:
    """Tie a slave to a transmit queue (0: to none).  The number is read into 16 bits."""
    found = _slave_and_number(state, str(value), r"[0-9]+")
    refused = OptionError(E.EPERM, ["invalid input for queue_id set"])
    if found is None:
        raise refused
    slave, queue = found[0], found[1] & 0xFFFF
    taken = queue and any(other.queue_id == queue for other in state.slaves if other is not slave)
    if taken or queue > state.tx_queues:
        raise refused
    slave.queue_id = queue


def set_prio(state: State, option: Option, value: int | str, out: Transaction) -> None:
    """Set how much a slave is preferred.  While there is a primary this decides nothing."""
    name = str(value).partition(":")[0]
    if name and state.find(name) is None:
        raise OptionError(E.EINVAL, [f"(slave {name}): Device is not bonding slave"])
    found = _slave_and_number(state, str(value), r"-?[0-9]+$")
    if found is None or option.hi is None or not option.lo <= found[1] <= option.hi:
        raise OptionError(E.EINVAL, [])
    slave, slave.prio = found[0], found[1]
    if state.primary is not None:
        text = "prio updated, but will not affect failover re-selection as primary slave have been set"
        out.log(Level.WARNING, text, slave.name)
    else:
        failover.select(state, out, f"prio of {slave.name} is {slave.prio}")


def refuse_slaves(state: State, option: Option, value: int | str, out: Transaction) -> None:
    """Refuse what is no command to enslave or release: those come as events of their own."""
    name = next(iter(str(value)[1:].split()), "")
    if str(value).startswith("+") and name:
        raise OptionError(E.EOPNOTSUPP, [f"option slaves: add {name} with ubond add {state.name} {name}"])
    raise OptionError(E.EPERM, ["no command found in slaves file - use +ifname or -ifname"])


Setter = Callable[[State, Option, "int | str", Transaction], None]

SETTERS: Mapping[str, Setter] = MappingProxyType(
    {
        "mode": set_mode,
        "fail_over_mac": set_fail_over_mac,
        "miimon": set_miimon,
        "arp_interval": set_arp_interval,
        "arp_ip_target": targets.set_targets,
        "ns_ip6_target": targets.set_targets,
        "probe": set_probe,
        "updelay": set_delay,
        "downdelay": set_delay,
        "peer_notif_delay": set_delay,
        "primary": set_primary,
        "primary_reselect": set_primary_reselect,
        "active_slave": set_active_slave,
        "queue_id": set_queue_id,
        "prio": set_prio,
        "slaves": refuse_slaves,
    }
)
