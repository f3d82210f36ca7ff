"""One bond at one moment, in the forms that people and programs read.

`proc` is the text of /proc/net/bonding, `links` the nesting of `ip -d -j link`, `sysfs` and
`slave_sysfs` the files of the driver's sysfs directories, `table` a page for the eyes.  All
but the last are byte for byte what the driver shows, except that line 1 of `proc` names
ubond's version and that `links` adds what only ubond knows under the one key `ubond`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ubond.bond.events import DUPLEX_FULL, DUPLEX_HALF, SPEED_UNKNOWN
from ubond.bond.options import OPTIONS, USES_PRIMARY, FailOverMac, Mode
from ubond.bond.snapshot import BondSnapshot, SlaveSnapshot

#: What `json` can write.
Json = Any


@dataclass(frozen=True, slots=True)
class Report:
    """What `status` shows: the study's snapshot, and what the rest of the house knows.

    `version`: ubond's; `extra`: of the bond (`uptime` in seconds, `shortcomings` as lines for a
    person, ...), and `slave_extra` of each slave (`gate`, ...).  In both, the key `counters` holds
    a mapping from a reason to a number, of which `table` shows those that are not 0.
    """

    snapshot: BondSnapshot
    version: str
    extra: Mapping[str, Json] = field(default_factory=dict)
    slave_extra: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)


#: What is said of a bond that notices no failure.
BLIND = "no link monitor is on: a failed link will not be noticed; set miimon, or arp_interval with arp_ip_target"


# ── /proc/net/bonding ────────────────────────────────────────────────────────────────

_MODE_TEXT = {
    Mode.BALANCE_RR: "load balancing (round-robin)",
    Mode.ACTIVE_BACKUP: "fault-tolerance (active-backup)",
    Mode.BALANCE_XOR: "load balancing (xor)",
    Mode.BROADCAST: "fault-tolerance (broadcast)",
    Mode.LACP: "IEEE 802.3ad Dynamic link aggregation",
    Mode.BALANCE_TLB: "transmit load balancing",
    Mode.BALANCE_ALB: "adaptive load balancing",
}


def proc(bond: BondSnapshot, version: str) -> str:
    """The text of /proc/net/bonding for this bond, as a reader without privileges gets it."""
    lines = [f"Ethernet Channel Bonding Driver: v{version}", "", *_proc_head(bond)]
    for slave in bond.slaves:
        lines += ["", *_proc_slave(slave)]
    return "\n".join(lines) + "\n"


def _proc_head(bond: BondSnapshot) -> Iterator[str]:
    options = bond.options
    moves_mac = bond.mode is Mode.ACTIVE_BACKUP and options["fail_over_mac"] != FailOverMac.NONE
    fail_over_mac = f" (fail_over_mac {_name(bond, 'fail_over_mac')})" if moves_mac else ""
    yield f"Bonding Mode: {_MODE_TEXT[bond.mode]}{fail_over_mac}"
    if _shows_hash_policy(bond):
        yield f"Transmit Hash Policy: {_name(bond, 'xmit_hash_policy')} ({options['xmit_hash_policy']})"
    if bond.mode in USES_PRIMARY:
        reselect = f" (primary_reselect {_name(bond, 'primary_reselect')})" if bond.primary else ""
        yield f"Primary Slave: {bond.primary or 'None'}{reselect}"
        yield f"Currently Active Slave: {bond.active_slave or 'None'}"
    yield f"MII Status: {_carrier(bond)}"
    yield f"MII Polling Interval (ms): {options['miimon']}"
    yield f"Up Delay (ms): {options['updelay']}"
    yield f"Down Delay (ms): {options['downdelay']}"
    yield f"Peer Notification Delay (ms): {options['peer_notif_delay']}"
    if options["arp_interval"]:
        yield f"ARP Polling Interval (ms): {options['arp_interval']}"
        yield f"ARP Missed Max: {options['arp_missed_max']}"
        yield _targets("ARP IP target/s (n.n.n.n form):", _addresses(bond, "arp_ip_target"))
        yield _targets("NS IPv6 target/s (xx::xx form):", _addresses(bond, "ns_ip6_target"))


def _shows_hash_policy(bond: BondSnapshot) -> bool:
    if bond.mode in (Mode.BALANCE_TLB, Mode.BALANCE_ALB):
        return not bond.options["tlb_dynamic_lb"]
    return bond.mode in (Mode.BALANCE_XOR, Mode.LACP)


def _targets(title: str, addresses: Sequence[str]) -> str:
    return title + ",".join(f" {address}" for address in addresses)


def _proc_slave(slave: SlaveSnapshot) -> Iterator[str]:
    yield f"Slave Interface: {slave.name}"
    yield f"MII Status: {slave.link.value}"
    yield f"Speed: {'Unknown' if slave.speed == SPEED_UNKNOWN else f'{slave.speed} Mbps'}"
    yield f"Duplex: {_duplex(slave)}"
    yield f"Link Failure Count: {slave.failures}"
    yield f"Permanent HW addr: {slave.permanent}"
    yield f"Slave queue ID: {slave.queue_id}"


def _duplex(slave: SlaveSnapshot) -> str:
    return {DUPLEX_FULL: "full", DUPLEX_HALF: "half"}.get(slave.duplex, "Unknown")


def _carrier(bond: BondSnapshot) -> str:
    return "up" if bond.carrier else "down"


def _name(bond: BondSnapshot, option: str) -> str:
    """The word for an option's value: `layer3+4`, `on`."""
    return OPTIONS[option].values[int(bond.options[option])]


def _addresses(bond: BondSnapshot, option: str) -> list[str]:
    return str(bond.options[option]).replace(",", " ").split()


# ── sysfs ────────────────────────────────────────────────────────────────────────────

#: Options that the driver has no file for: they are netlink's alone, or ours.
_NO_FILE = frozenset(
    {"prio", "actor_port_prio", "ns_ip6_target", "coupled_control", "broadcast_neighbor", "lacp_strict"}
    | {option.name for option in OPTIONS.values() if not option.driver}
)
#: Files that say something in 802.3ad only.
_LACP_FILES = (
    "ad_actor_key", "ad_actor_sys_prio", "ad_actor_system", "ad_aggregator", "ad_num_ports",
    "ad_partner_key", "ad_partner_mac", "ad_user_port_key",
)  # fmt: skip


def sysfs(bond: BondSnapshot) -> dict[str, str]:
    """File name -> content, newline included, of /sys/class/net/BOND/bonding."""
    files = {name: OPTIONS[name].text(bond.options[name]) for name in OPTIONS if name not in _NO_FILE}
    # A switch that the driver shows as a name; the others it shows as a number.
    files["lacp_active"] = f"{_name(bond, 'lacp_active')} {bond.options['lacp_active']}"
    files["num_grat_arp"] = files["num_unsol_na"]
    files["slaves"] = " ".join(slave.name for slave in bond.slaves)
    files["queue_id"] = " ".join(f"{slave.name}:{slave.queue_id}" for slave in bond.slaves)
    files["arp_ip_target"] = " ".join(_addresses(bond, "arp_ip_target"))
    files["primary"] = bond.primary or ""
    files["active_slave"] = (bond.active_slave or "") if bond.mode in USES_PRIMARY else ""
    files["mii_status"] = _carrier(bond)
    files.update(dict.fromkeys(_LACP_FILES, ""))
    return {name: f"{text}\n" if text else "" for name, text in files.items()}


def _ours(bond: BondSnapshot) -> dict[str, str]:
    """The options that no driver has, in the form of the others."""
    return {o.name: o.text(bond.options[o.name]) for o in OPTIONS.values() if not o.driver}


def slave_sysfs(slave: SlaveSnapshot) -> dict[str, str]:
    """File name -> content, newline included, of /sys/class/net/SLAVE/bonding_slave."""
    return {
        "state": f"{_role(slave)}\n",
        "mii_status": f"{slave.link.value}\n",
        "link_failure_count": f"{slave.failures}\n",
        "perm_hwaddr": f"{slave.permanent}\n",
        "queue_id": f"{slave.queue_id}\n",
        "ad_aggregator_id": "N/A\n",
        "ad_actor_oper_port_state": "N/A\n",
        "ad_partner_oper_port_state": "N/A\n",
    }


def _role(slave: SlaveSnapshot) -> str:
    return "backup" if slave.backup else "active"


# ── ip -d -j link ────────────────────────────────────────────────────────────────────

_Value = Callable[[BondSnapshot, str], Json]


def _number(bond: BondSnapshot, option: str) -> int:
    return int(bond.options[option])


def _name_or_null(bond: BondSnapshot, option: str) -> str | None:
    """iproute2 prints null for `none` here."""
    return _name(bond, option) if bond.options[option] else None


#: iproute2's key, our option, how its value is written; in iproute2's order.
_INFO_DATA: tuple[tuple[str, str, _Value], ...] = (
    ("miimon", "miimon", _number),
    ("updelay", "updelay", _number),
    ("downdelay", "downdelay", _number),
    ("peer_notify_delay", "peer_notif_delay", _number),
    ("use_carrier", "use_carrier", _number),
    ("arp_interval", "arp_interval", _number),
    ("arp_missed_max", "arp_missed_max", _number),
    ("arp_ip_target", "arp_ip_target", _addresses),
    ("ns_ip6_target", "ns_ip6_target", _addresses),
    ("arp_validate", "arp_validate", _name_or_null),
    ("arp_all_targets", "arp_all_targets", _name),
    ("primary", "primary", lambda bond, _: bond.primary or ""),
    ("primary_reselect", "primary_reselect", _name),
    ("fail_over_mac", "fail_over_mac", _name),
    ("xmit_hash_policy", "xmit_hash_policy", _name),
    ("resend_igmp", "resend_igmp", _number),
    ("num_peer_notif", "num_unsol_na", _number),
    ("all_slaves_active", "all_slaves_active", _number),
    ("min_links", "min_links", _number),
    ("lp_interval", "lp_interval", _number),
    ("packets_per_slave", "packets_per_slave", _number),
    ("ad_lacp_active", "lacp_active", _name),
    ("ad_lacp_rate", "lacp_rate", _name),
    ("ad_select", "ad_select", _name),
    ("tlb_dynamic_lb", "tlb_dynamic_lb", _number),
)
#: Left out while there is none.
_OPTIONAL = frozenset({"arp_ip_target", "ns_ip6_target", "primary"})


def info_data(bond: BondSnapshot) -> dict[str, Json]:
    """`linkinfo.info_data` of the bond."""
    data: dict[str, Json] = {"mode": str(bond.mode)}
    if bond.mode in USES_PRIMARY and bond.active_slave:
        data["active_slave"] = bond.active_slave
    for key, option, value in _INFO_DATA:
        written = value(bond, option)
        if written or key not in _OPTIONAL:
            data[key] = written
    return data


def info_slave_data(slave: SlaveSnapshot) -> dict[str, Json]:
    """`linkinfo.info_slave_data` of a slave."""
    return {
        "state": _role(slave).upper(),
        "mii_status": slave.link.value.upper().replace(" ", "_"),
        "link_failure_count": slave.failures,
        "perm_hwaddr": str(slave.permanent),
        "queue_id": slave.queue_id,
        "prio": slave.prio,
    }


def links(report: Report) -> list[dict[str, Json]]:
    """The bond and then its slaves, each as an object with the nesting of `ip -d -j link`."""
    return [_bond_link(report), *(_slave_link(report, slave) for slave in report.snapshot.slaves)]


def _bond_link(report: Report) -> dict[str, Json]:
    bond = report.snapshot
    running = bond.up and bond.carrier
    flags = ["BROADCAST", "MULTICAST", "MASTER"]
    if bond.up:
        flags = [*flags, "UP", "LOWER_UP"] if running else ["NO-CARRIER", *flags, "UP"]
    return {
        "ifname": bond.name,
        "flags": flags,
        "mtu": bond.mtu,
        "operstate": "UP" if running else "DOWN",
        "link_type": "ether",
        "address": str(bond.mac),
        "linkinfo": {"info_kind": "bond", "info_data": info_data(bond)},
        "ubond": {
            "version": report.version,
            "monitored": bond.monitored,
            "stand_in": bond.stand_in,
            "repairs": dict(bond.repairs),
            "awaited": list(bond.awaited),
            "targets": list(bond.targets),
            "gateways": list(bond.gateways),
            "options": {name: text.removesuffix("\n") for name, text in sysfs(bond).items()} | _ours(bond),
            **report.extra,
        },
    }


def _slave_link(report: Report, slave: SlaveSnapshot) -> dict[str, Json]:
    known = {} if slave.speed == SPEED_UNKNOWN else {"speed": slave.speed}
    return {
        "ifindex": slave.index,
        "ifname": slave.name,
        "mtu": slave.mtu,
        "master": report.snapshot.name,
        "link_type": "ether",
        "address": str(slave.mac),
        "linkinfo": {"info_slave_kind": "bond", "info_slave_data": info_slave_data(slave)},
        "ubond": {
            **known,
            "duplex": _duplex(slave).lower(),
            "stand_in": slave.name == report.snapshot.stand_in,
            "answers": slave.answers if report.snapshot.targets else None,
            "suppressed": slave.suppressed,
            "repairs": dict(slave.repairs),
            "fights": list(slave.fights),
            **report.slave_extra.get(slave.name, {}),
        },
    }


# ── a page for the eyes ──────────────────────────────────────────────────────────────


def table(report: Report) -> str:
    """The bond in a few lines, its slaves as a table, and every counter that is not 0."""
    bond = report.snapshot
    lines = [f"{bond.name}: {_summary(bond)}", f"  {_details(report)}"]
    if not bond.monitored:
        lines.append(f"  {BLIND}")
    if bond.options["arp_interval"]:
        lines.append(f"  probing every {bond.options['arp_interval']} ms: {', '.join(bond.targets) or 'nobody'}")
    lines += [
        f"  {slave.name} is suppressed: its link failed too often (flap damping)"
        for slave in bond.slaves
        if slave.suppressed
    ]
    if "sandbox" in report.extra:
        lines.append(f"  sandbox: {report.extra['sandbox']}")
    lines += [f"  {text}" for text in report.extra.get("shortcomings", ())]
    lines += [
        f"  {slave.name}: somebody else changes its {what} again and again; left alone for now"
        for slave in bond.slaves
        for what in slave.fights
    ]
    lines += [f"  {name} has vanished; it is enslaved again when it returns" for name in bond.awaited]
    lines += ["", *_columns(_slave_rows(report))] if bond.slaves else ["", "no slaves"]
    lines += _counter_lines(report)
    return "\n".join(lines) + "\n"


def _summary(bond: BondSnapshot) -> str:
    state = f"carrier {_carrier(bond)}" if bond.up else "administratively down"
    parts = [state, str(bond.mode)]
    if bond.mode in USES_PRIMARY:
        parts.append(f"active slave {bond.active_slave or 'none'}")
        if bond.primary:
            parts.append(f"primary {bond.primary} ({_name(bond, 'primary_reselect')})")
    if bond.stand_in:
        parts.append(f"{bond.stand_in} sends meanwhile")
    return ", ".join(parts)


def _details(report: Report) -> str:
    bond = report.snapshot
    times = {name: bond.options[name] for name in ("miimon", "updelay", "downdelay")}
    parts = [f"MAC {bond.mac}", f"MTU {bond.mtu}", *(f"{name} {ms} ms" for name, ms in times.items() if ms)]
    if "uptime" in report.extra:
        parts.append(f"running for {duration(int(report.extra['uptime']))}")
    return ", ".join([*parts, f"ubond {report.version}"])


def duration(seconds: int) -> str:
    """`2d 3h`, `3h 12m`, `12m 5s`, `5s`."""
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {seconds % 60}s" if minutes else f"{seconds}s"


_SLAVE_TITLES = (
    "SLAVE", "ROLE", "LINK", "SPEED", "DUPLEX", "FAILURES", "QUEUE", "PRIO", "PERMANENT MAC", "GATE",
)  # fmt: skip


def _slave_rows(report: Report) -> list[list[str]]:
    rows = [list(_SLAVE_TITLES)]
    for slave in report.snapshot.slaves:
        role = "stand-in" if slave.name == report.snapshot.stand_in else _role(slave)
        speed = "unknown" if slave.speed == SPEED_UNKNOWN else f"{slave.speed} Mb/s"
        gate = report.slave_extra.get(slave.name, {}).get("gate", "-")
        rows.append(
            [slave.name, role, slave.link.value, speed, _duplex(slave).lower(), str(slave.failures),
             str(slave.queue_id), str(slave.prio), str(slave.permanent), str(gate)]
        )  # fmt: skip
    return rows


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, every column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _counter_lines(report: Report) -> list[str]:
    groups = {report.snapshot.name: report.extra, **report.slave_extra}
    rows = [
        [owner, name, str(count)]
        for owner, extra in groups.items()
        for name, count in extra.get("counters", {}).items()
        if count
    ]
    return ["", *_columns([["COUNTER OF", "WHAT", "COUNT"], *rows])] if rows else []
