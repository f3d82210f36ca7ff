"""The ARP and NS monitor: probes out, answers in, and what silence leads to.

One pass every arp_interval while the bond is up: see who has been heard, commit what that
means, probe again.  In active-backup the active slave alone is probed, and with none the
slaves take turns (the rotating slave); in the other modes each slave is probed.

With no other monitor a slave's link is what probing says, with the driver's own rules, states
and words.  Beside the MII monitor probing has a verdict of its own, `Slave.path`, and `monitor`
makes the link of both.

Source: bonding.rst, arp_interval, arp_validate, arp_all_targets, arp_missed_max.
"""

from __future__ import annotations

from collections.abc import Iterable

from ubond.bond import damping, failover, modes
from ubond.bond.events import Level, SendFrames, TargetRoute
from ubond.bond.evidence import TARGETS_MAX, Form, Sighting
from ubond.bond.monitor import MS, look_at_once
from ubond.bond.slave import Link, Slave, Stamps
from ubond.bond.snapshot import LinkState
from ubond.bond.state import State
from ubond.bond.targets import all_targets, packed, targets4, targets6
from ubond.bond.transaction import Transaction
from ubond.wire import arp_request, neighbour_solicitation

#: How the log and the history name what this monitor sends.
PROBE = "probe"
#: The driver's times are in ticks (of 4 ms where HZ is 250): what is heard in the tick in which a
#: slave became the active one is not heard later than that.
TICK = 4 * MS
#: arp_validate: on whom answers are checked, and whether ARP alone counts on the others.
ACTIVE, BACKUP, FILTER = 1, 2, 4


def interval(state: State) -> int:
    """ns between two passes."""
    return state.settings.number("arp_interval") * MS


def within(state: State, at: int, intervals: int, now: int) -> bool:
    """Whether `now` is within so many intervals of `at`, with half a one for late passes."""
    every = interval(state)
    return at - every <= now <= at + intervals * every + every // 2


def restart(state: State, now: int) -> None:
    """Begin anew with a pass at once, or stop, as the options say.

    Links stay as they are.  Without `strict` nobody is blamed for a silence before he was asked.
    """
    probing = state.probing
    probing.rotating, probing.due = None, now if state.probes and state.up else None
    for slave in state.slaves:
        slave.path = slave.link.state if _alone(state) else (LinkState.UP if slave.up else LinkState.DOWN)
        if not state.strict:
            slave.stamps = Stamps.all_at(now, now)
    modes.set_roles(state)


def follow_gateways(state: State, gateways: tuple[str, ...], out: Transaction) -> None:
    """The routes name these default gateways now: they are the targets, and have just been heard."""
    probing = state.probing
    before = all_targets(state)
    probing.gateways = gateways
    if all_targets(state) == before:
        return
    if state.probes:
        out.info(f"probing {', '.join(gateways) or 'no gateway: there is no default route through the bond'}")
    for slave in state.slaves:
        slave.stamps.targets = [out.now] * TARGETS_MAX
        slave.stamps.received = slave.stamps.sent = slave.stamps.up = out.now


def begin(state: State, slave: Slave, now: int) -> None:
    """A slave has joined: it has not been heard yet, but is not to blame for that."""
    slave.stamps = Stamps.all_at(now - interval(state) - TICK, now)
    slave.path = LinkState.UP if slave.carrier else LinkState.DOWN


def _alone(state: State) -> bool:
    """Whether the link is what probing says."""
    return not state.watches_carrier


# ── what is heard ────────────────────────────────────────────────────────────────────


def hear(state: State, sightings: Iterable[Sighting]) -> None:
    """Take in what was seen, in the order in which it was."""
    for each in sightings:
        slave = state.find(each.slave)
        if slave is not None and _counts(state, slave, each):
            stamps = slave.stamps
            stamps.received = max(stamps.received, each.at)
            if each.form >= Form.ANSWER:
                stamps.targets[each.slot] = max(stamps.targets[each.slot], each.at)


def _counts(state: State, slave: Slave, seen: Sighting) -> bool:
    """Whether a sighting on a slave is life, by arp_validate."""
    validate = state.settings.number("arp_validate")
    backup = slave.backup
    if backup and not modes.rules(state).selects and not state.strict:
        backup = False      # else a slave that is down, whose answers do not count, would stay so for ever
    if not validate & (BACKUP if backup else ACTIVE):
        if not validate & FILTER:
            return seen.form is Form.ANY
        return seen.form is Form.ARP or (seen.form is Form.ND and bool(targets6(state)))
    if not backup:
        return seen.form is Form.ANSWER
    active, rotating = state.active, state.probing.rotating
    if active is not None and _last_heard(state, active) // TICK > active.stamps.up // TICK:
        # Our own request, come round: the active slave is known to reach the targets with it.
        return seen.form is Form.OWN
    return (
        rotating is not None
        and within(state, rotating.stamps.sent, 1, seen.at)
        and seen.form is Form.REPLY
    )


def _last_heard(state: State, slave: Slave) -> int:
    if modes.rules(state).selects and state.settings.number("arp_all_targets"):
        slots = max(1, len(targets4(state)), len(targets6(state)))
        return min(slave.stamps.targets[:slots])
    return slave.stamps.received


# ── a pass ───────────────────────────────────────────────────────────────────────────


def deadline(state: State) -> int | None:
    """When to be told what was heard: at the next pass, or when a silence has lasted too long, if that is earlier.

    The driver looks at its passes alone, so a path that died is left up to an interval later.
    """
    due = state.probing.due
    if due is None or state.strict:
        return due
    return min((due, *(end + 1 for slave in state.slaves if (end := _patience(state, slave)) is not None)))


def _patience(state: State, slave: Slave) -> int | None:
    """The last time at which the silence of a slave that is up is forgiven; None for as long as it likes."""
    if slave.path is not LinkState.UP:
        return None
    every, missed = interval(state), state.settings.number("arp_missed_max")
    if not modes.rules(state).selects:
        return min(slave.stamps.sent, slave.stamps.received) + missed * every + every // 2
    if slave.backup and state.probing.rotating is not None:
        return None
    heard = _last_heard(state, slave)
    since = heard + every if slave.backup else min(slave.stamps.sent, heard)
    return max(since + missed * every, slave.stamps.up + 2 * every) + every // 2


def run(state: State, out: Transaction) -> None:
    """Do a pass if one is due, or somebody has been silent for too long."""
    due, now, when = state.probing.due, out.now, deadline(state)
    if due is None or when is None or now < when:
        return
    late = now - due - interval(state) // 2
    if late > 0 and not state.strict:
        # We slept, not they: what could not be sent or looked at meanwhile is no silence.  Windows have
        # half an interval for late passes already; given twice, it would let dead paths live by that much.
        for slave in state.slaves:
            slave.stamps.shift(late, now)
    if not state.strict and not any(_leaves(state, target) for target in all_targets(state)):
        # Nobody to ask, so nobody is judged.  The driver takes such slaves down.
        for slave in state.slaves:
            if slave.carrier:
                slave.stamps = Stamps.all_at(now, slave.stamps.up)
    out.source = out.source or "seen by probes"
    if modes.rules(state).selects:
        _active_backup(state, out)
    else:
        _each_for_itself(state, out)
    state.probing.due = now + interval(state)


def _leaves(state: State, target: str) -> bool:
    """Whether probes to a target go through the bond."""
    route = state.probing.routes.get(target)
    return route is None or route.mine


def _set_path(state: State, slave: Slave, path: LinkState) -> None:
    slave.path = path
    if _alone(state):
        slave.link = Link(path)


def _goes_down(state: State, slave: Slave, text: str, out: Transaction) -> None:
    _set_path(state, slave, LinkState.DOWN)
    if _alone(state):
        damping.failed(state, slave, out)
        out.info(text, slave.name)
    else:
        out.info("probes are not answered any more", slave.name)


def _comes_up(state: State, slave: Slave, text: str, out: Transaction) -> None:
    _set_path(state, slave, LinkState.UP)
    out.info(text if _alone(state) else "probes are answered", slave.name)


def _settle(state: State, reasons: list[str], out: Transaction) -> None:
    """Choose the active slave anew if need be, and mind the carrier."""
    if not _alone(state):
        look_at_once(state, out)
    elif reasons:
        failover.select(state, out, f"{' and '.join(reasons)}, {out.source}")
    modes.set_roles(state)
    failover.update_carrier(state)


# ── active-backup ────────────────────────────────────────────────────────────────────


def _active_backup(state: State, out: Transaction) -> None:
    _commit(state, [(slave, path) for slave in state.slaves if (path := _inspect(state, slave, out))], out)
    _probe(state, out)


def _inspect(state: State, slave: Slave, out: Transaction) -> LinkState | None:
    """What a slave's path has become since the last pass, None for no change."""
    now, missed, heard = out.now, state.settings.number("arp_missed_max"), _last_heard(state, slave)
    if slave.path is not LinkState.UP:
        if within(state, heard, 1, now) and not damping.holds(state, slave):
            return LinkState.UP
        return LinkState.FAIL if slave.path is LinkState.BACK else None
    if within(state, slave.stamps.up, 2, now):
        return None
    if slave.backup:
        # A backup hears only what the active slave leads to, so it is given an interval more.
        silent = state.probing.rotating is None and not within(state, heard, missed + 1, now)
        return LinkState.DOWN if silent else None
    answered = within(state, slave.stamps.sent, missed, now) and within(state, heard, missed, now)
    return None if answered else LinkState.DOWN


def _commit(state: State, found: list[tuple[Slave, LinkState]], out: Transaction) -> None:
    probing, reasons = state.probing, []
    for slave, path in found:
        active = state.active
        if path is LinkState.UP:
            probing.rotating = None
            _comes_up(state, slave, "link status definitely up", out)
            if active is None or slave is state.primary or slave.prio > active.prio:
                reasons.append(f"{slave.name} answers")
        elif path is LinkState.DOWN:
            _goes_down(state, slave, "link status definitely down, disabling slave", out)
            if slave is active:
                probing.rotating = None
                reasons.append(f"{slave.name} is silent")
        else:
            _set_path(state, slave, path)
            if active is not None:
                probing.rotating = None
    if found:
        _settle(state, reasons, out)


def _probe(state: State, out: Transaction) -> None:
    """Probe on the slave that sends; without one on the next that may be tried."""
    sender = failover.find_stand_in(state) or state.active
    if sender is not None:
        _send(state, sender, out)
        return
    if not state.slaves:
        return
    slaves = state.slaves
    present = state.probing.rotating if state.probing.rotating in slaves else slaves[0]
    assert present is not None
    for slave in slaves:
        if not slave.carrier and slave.path is LinkState.UP:
            _goes_down(state, slave, "backup interface is now down", out)
    at = slaves.index(present) + 1
    turn = next((slave for slave in (*slaves[at:], *slaves[:at]) if slave.carrier), None)
    state.probing.rotating = present if turn is None else turn
    if turn is not None:
        _set_path(state, turn, LinkState.BACK)
        turn.stamps.up = out.now
        modes.set_roles(state)
        _send(state, turn, out)
    else:
        modes.set_roles(state)


# ── the other modes ──────────────────────────────────────────────────────────────────


def _each_for_itself(state: State, out: Transaction) -> None:
    missed, reasons, now = state.settings.number("arp_missed_max"), list[str](), out.now
    current, changed = state.active, False

    def recent(slave: Slave, intervals: int) -> bool:
        stamps = slave.stamps
        return within(state, stamps.sent, intervals, now) and within(state, stamps.received, intervals, now)

    for slave in state.slaves:
        if slave.path is not LinkState.UP and recent(slave, 1) and not damping.holds(state, slave):
            text = "link status definitely up" if current is None else "interface is now up"
            _comes_up(state, slave, text, out)
            changed = True
            if current is None:
                reasons.append(f"{slave.name} answers")
        elif slave.path is LinkState.UP and not recent(slave, missed):
            _goes_down(state, slave, "interface is now down", out)
            changed = True
            if slave is current:
                reasons.append(f"{slave.name} is silent")
    if changed or reasons:
        _settle(state, reasons, out)
    for slave in state.slaves:
        if slave.carrier:
            _send(state, slave, out)
    if _alone(state):
        for slave in state.slaves:
            slave.backup = not slave.up


# ── probes ───────────────────────────────────────────────────────────────────────────


def _send(state: State, slave: Slave, out: Transaction) -> None:
    """Probe all targets on a slave, from its own MAC; those routed elsewhere are left out."""
    frames: list[bytes] = []
    for target in targets4(state):
        if (route := _route(state, target, out)).mine:
            frames.append(arp_request(slave.mac, route.source or bytes(4), packed(target), route.tags))
    for target in targets6(state):
        if (route := _route(state, target, out)).mine:
            source = route.source or bytes(16)
            frames.append(neighbour_solicitation(slave.mac, source, packed(target), route.tags))
    if frames:
        slave.stamps.sent = out.now
        out.frames.append(SendFrames(slave.name, tuple(frames), PROBE))


def _route(state: State, target: str, out: Transaction) -> TargetRoute:
    probing = state.probing
    route = probing.routes.get(target, TargetRoute(target))
    if route.routed:
        if target in probing.warned:
            probing.warned.remove(target)
    elif state.settings.number("arp_validate") and target not in probing.warned:
        probing.warned.append(target)
        option = "ns_ip6_target" if ":" in target else "arp_ip_target"
        out.log(Level.WARNING, f"no route to {option} {target} and arp_validate is set")
    return route
