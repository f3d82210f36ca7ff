"""Bond: one bond's decisions.  Events and a clock's readings in, actions out.

    bond = Bond("bond0", mac=..., random_mac=...)
    for action in bond.handle(event, now): perform(action)
    wake me at bond.deadline()

No sockets, no clock, no threads.  Every event ends alike: what is due at its time is done,
then it is seen who sends now, and whatever that changes goes into one transaction.
"""

from __future__ import annotations

import errno as E
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

from ubond.bond import (
    announce,
    clients,
    damping,
    device,
    failover,
    hands,
    membership,
    modes,
    options,
    probing,
    setters,
    targets,
    teaching,
)  # fmt: skip
from ubond.bond.events import (
    SPEED_UNKNOWN,
    VANISHED,
    Action,
    ActionFailed,
    ActiveChanged,
    AnnounceSeen,
    ArpSeen,
    BondCarrierChanged,
    BondClosed,
    BondMacChanged,
    BondMtuChanged,
    BondOpened,
    BondRenamed,
    CarrierChanged,
    ClosePort,
    Enslaved,
    EnslaveRequested,
    Event,
    Forget,
    GatewaysRead,
    Level,
    LinkDead,
    Listened,
    Log,
    OptionWritten,
    PublishTable,
    ReleaseRequested,
    Remember,
    Resumed,
    RoutesRead,
    SendFrames,
    SetBondCarrier,
    SetBondMac,
    SetSlaveMac,
    SlaveChecked,
    SlaveFacts,
    SlaveGone,
    SlaveRenamed,
    SlaveReturned,
    SpeedRead,
    UppersChanged,
    Woken,
)
from ubond.bond.membership import Taking
from ubond.bond.monitor import MS, RESEND_EVERY, Grid, Rounds, look, look_at_once, unsettled
from ubond.bond.options import OptionError, Refused
from ubond.bond.slave import Slave
from ubond.bond.snapshot import BondSnapshot
from ubond.bond.state import MacKind, State
from ubond.bond.table import TxTable
from ubond.bond.transaction import Recovery, Transaction
from ubond.wire import MacAddr

#: How many transactions are remembered, for the case that one of their actions fails.
REMEMBERED = 32


@dataclass(slots=True)
class Memory:
    """What a bond decides by: all but the transactions whose actions may still fail."""

    state: State
    grid: Grid
    looked: int
    peers: Rounds
    reports: Rounds
    published: TxTable | None
    carrier_told: bool | None
    provisional: bool
    tell_again: bool
    blind: bool = False


class Bond:
    """One bond: its slaves, mode and monitors.

    `mac`: the device's MAC; `mac_set`: the administrator chose it, so the first slave does
    not give its own.  `random_mac` makes an address where one is needed.  `tx_queues`: the
    highest `queue_id`.  `strict`: do as the driver does, also where ubond does better:
    every link change waits for the monitor's pass, nobody stands in, and mode and
    fail_over_mac change only where the driver allows it.
    """

    def __init__(
        self,
        name: str,
        *,
        mac: MacAddr,
        random_mac: Callable[[], MacAddr],
        mac_set: bool = False,
        mtu: int = 1500,
        strict: bool = False,
        tx_queues: int = 16,
    ) -> None:
        kind = MacKind.SET if mac_set else MacKind.RANDOM
        self._state = State(name, mac, kind, mtu, strict, tx_queues, random_mac)
        self._taking: dict[str, Taking] = {}
        self._grid = Grid()
        self._looked = 0
        self._peers, self._reports = Rounds(), Rounds()
        self._published: TxTable | None = None
        self._carrier_told: bool | None = None
        self._provisional = False
        self._tell_again = False
        self._blind = False
        self._transactions: deque[tuple[tuple[Action, ...], Recovery | None]] = deque(maxlen=REMEMBERED)

    @classmethod
    def remembering(cls, memory: Memory) -> Bond:
        """A bond that goes on where another was when it told its `memory`."""
        state = memory.state
        bond = cls(state.name, mac=state.mac, random_mac=state.random_mac)
        for each in fields(Memory):
            setattr(bond, f"_{each.name}", getattr(memory, each.name))
        return bond

    def memory(self) -> Memory:
        """All that this bond will decide by, as long as no action of its is still under way.

        Not a copy: `document.freeze` it before the next event.
        """
        return Memory(**{each.name: getattr(self, f"_{each.name}") for each in fields(Memory)})

    def handle(self, event: Event, now: int) -> list[Action]:
        """Take in one event seen at `now` (monotonic ns); return what to do, in order.

        Raises Refused (OptionError) for an operator's event that cannot be done; then
        nothing has changed.
        """
        out = Transaction(now)
        if not self._pass_pending():
            self._looked = max(self._looked, now)  # passes with nothing to do are as good as done
        if self._tell_again and not isinstance(event, ActionFailed):
            self._tell_again = False
            self._forget_told()
        self._take_in(event, now, out)
        self._pass_if_due(now, out)
        damping.release(self._state, out)
        look_at_once(self._state, out)
        self._warn_if_blind(out)
        self._settle(now, out)
        self._announce_if_due(now, out)
        clients.run(self._state, out)
        teaching.run(self._state, out)
        actions = out.actions()
        if actions:
            self._transactions.append((tuple(actions), out.recovery))
        return actions

    def deadline(self) -> int | None:
        """When `handle(Woken(), ...)` is next due, or None while nothing is pending."""
        if not self._state.up:
            return None
        times = [self._peers.deadline, self._reports.deadline, probing.deadline(self._state)]
        times += [damping.deadline(self._state), teaching.deadline(self._state), clients.deadline(self._state)]
        if self._pass_pending():
            times.append(self._grid.after(self._looked))
        return min((time for time in times if time is not None), default=None)

    @property
    def listens(self) -> bool:
        """Whether to be woken with `Listened`, all that was heard, instead of `Woken`."""
        return self._state.probing.due is not None

    def snapshot(self) -> BondSnapshot:
        """The bond as it stands."""
        state = self._state
        options = state.settings.read_back()
        selects = modes.rules(state).selects
        active = state.active.name if state.active is not None and selects else None
        primary = state.primary.name if state.primary is not None and selects else None
        options |= {
            "active_slave": active or "",
            "primary": primary or "",
            "slaves": " ".join(slave.name for slave in state.slaves),
            "queue_id": " ".join(f"{slave.name}:{slave.queue_id}" for slave in state.slaves),
            "prio": " ".join(f"{slave.name}:{slave.prio}" for slave in state.slaves),
        }
        return BondSnapshot(
            name=state.name,
            mode=state.settings.mode,
            options=options,
            up=state.up,
            carrier=state.carrier,
            mac=state.mac,
            mtu=state.mtu,
            primary=primary,
            active_slave=active,
            stand_in=None if state.stand_in is None else state.stand_in.name,
            slaves=tuple(slave.snapshot() for slave in state.slaves),
            monitored=self._notices(),
            targets=targets.all_targets(state),
            gateways=state.probing.gateways,
            repairs=tuple(sorted(state.repairs.items())),
            awaited=tuple(state.awaited),
        )

    # ── events ───────────────────────────────────────────────────────────────────────

    def _take_in(self, event: Event, now: int, out: Transaction) -> None:
        state = self._state
        match event:
            case Woken():
                pass
            case CarrierChanged(name, carrier, source):
                self._carrier(name, carrier, f"seen by {source}", out)
            case LinkDead(name, stand_in):
                if stand_in is not None:
                    self._published = None  # the worker follows its own choice until a table comes
                self._carrier(name, False, "found while sending", out)
            case SpeedRead(name, speed, duplex):
                if (slave := state.find(name)) is not None:
                    slave.reported = (speed, duplex)
                    # What there is to read when a link comes up is read a moment later.
                    if slave.up and slave.speed == SPEED_UNKNOWN:
                        slave.read_speed()
            case UppersChanged(uppers):
                state.uppers = uppers
            case RoutesRead(routes):
                state.probing.routes = {route.target: route for route in routes}
            case GatewaysRead(gateways):
                probing.follow_gateways(state, gateways, out)
            case Listened(sightings):
                probing.hear(state, sightings)
                probing.run(state, out)
            case ArpSeen(name, frame):
                if name:
                    clients.heard(state, frame)
                else:
                    clients.send(state, frame, out)
            case OptionWritten():
                self._written(event, now, out)
            case EnslaveRequested():
                self._enslave(event, out)
            case Enslaved(facts):
                if (taking := self._taking.pop(facts.name, None)) is not None:
                    membership.join(state, facts, taking.held, out)
                else:
                    out.steps.append(ClosePort(facts.name))  # it vanished on the way
            case ReleaseRequested(name):
                self._release(name, out)
            case SlaveGone(name, why):
                if self._taking.pop(name, None) is not None:
                    out.steps.append(Forget(name))
                if (slave := state.find(name)) is not None:
                    membership.gone(state, slave, out, why)
            case SlaveRenamed(old, new):
                if (slave := state.find(old)) is not None:
                    membership.rename(state, slave, new, out)
            case SlaveReturned():
                self._returned(event, out)
            case SlaveChecked(facts, gated):
                self._checked(facts, gated, now, out)
            case Resumed():
                self._forget_told()
                membership.resume(state, event, out)
            case BondRenamed(name):
                membership.rename_bond(state, name, out)
            case BondOpened():
                state.up, self._carrier_told = True, None
                modes.set_roles(state)
                modes.mark_inactive(state, *(slave for slave in state.slaves if slave is not state.active))
                self._restart_monitor(now, out)
                probing.restart(state, now)
            case BondClosed():
                state.up, self._carrier_told = False, None
                self._peers.stop()
                self._reports.stop()
                probing.restart(state, now)
            case BondMacChanged(mac):
                device.follow_mac(state, mac, out)
            case BondCarrierChanged(carrier):
                if state.up and carrier is not state.carrier and device.minds_carrier(state, carrier, out):
                    self._carrier_told = None
            case BondMtuChanged(mtu):
                device.follow_mtu(state, mtu, out)
            case ActionFailed():
                self._failed(event, out)

    def _carrier(self, name: str, carrier: bool, source: str, out: Transaction) -> None:
        if (slave := self._state.find(name)) is not None:
            slave.carrier = carrier
            out.source = source

    def _written(self, event: OptionWritten, now: int, out: Transaction) -> None:
        name = next(iter(event.text[1:16].split()), "")
        if event.name == "slaves" and event.text.startswith("-") and name:
            slave = self._state.find(name)
            if slave is None:
                raise OptionError(E.EINVAL, [f"option slaves: invalid value ({event.text})"])
            membership.release(self._state, slave, out)
            return
        state = self._state
        was = state.settings.miimon, state.settings.number("arp_interval")
        setters.write(state, event, out)
        written = options.find(event.name).name
        if state.up and (written == "miimon" or state.settings.miimon != was[0]):
            self._restart_monitor(now, out)
        if written in ("arp_interval", "mode") or state.settings.number("arp_interval") != was[1]:
            probing.restart(state, now)

    def _enslave(self, event: EnslaveRequested, out: Transaction) -> None:
        name = event.facts.name
        if name in self._taking:
            raise Refused(E.EBUSY, [f"(slave {name}): Error: Device is being enslaved already"])
        taking = membership.take(self._state, event, self._has_slaves(), out)
        self._taking[name] = taking

        def recover(failed: ActionFailed, out: Transaction) -> None:
            if self._taking.get(name) is taking:
                del self._taking[name]
            out.log(Level.ERROR, f"Enslaving failed: {failed.error}", name)
            if failed.errno not in VANISHED:
                self._state.awaited.pop(name, None)  # what failed once would fail again
            membership.give_up(self._state, taking, failed.done, self._has_slaves(), out)

        out.recovery = recover

    def _returned(self, event: SlaveReturned, out: Transaction) -> None:
        """Enslave an interface again that had vanished; a refusal is told once, and it is still awaited."""
        name = event.facts.name
        awaited = self._state.awaited.get(name)
        if awaited is None or name in self._taking:
            return
        try:
            self._enslave(EnslaveRequested(event.facts), out)
        except Refused as refused:
            why = refused.lines[0].removeprefix(f"(slave {name}): ")
            if why != awaited.refused:
                awaited.refused = why
                out.log(Level.WARNING, f"has returned, but cannot be enslaved yet: {why}", name)
        else:
            out.info("has returned; enslaving it again", name)

    def _checked(self, facts: SlaveFacts, gated: bool, now: int, out: Transaction) -> None:
        slave, repairs = self._state.find(facts.name), self._state.repairs
        if slave is not None and slave.index == facts.index:
            for what in hands.check(slave, facts, gated, now, out):
                repairs[what] = repairs.get(what, 0) + 1

    def _has_slaves(self) -> bool:
        return bool(self._state.slaves or self._taking)

    def _release(self, name: str, out: Transaction) -> None:
        if self._state.awaited.pop(name, None) is not None:
            out.info("is not awaited any longer", name)
            return
        slave = self._state.find(name)
        if slave is None:
            raise Refused(E.EINVAL, [f"(slave {name}): Error: Device is not a slave of {self._state.name}"])
        membership.release(self._state, slave, out)

    # ── time ─────────────────────────────────────────────────────────────────────────

    def _restart_monitor(self, now: int, out: Transaction) -> None:
        """Begin a new grid of passes with one at once."""
        state = self._state
        self._grid = Grid(now, state.settings.miimon * MS)
        self._looked = now
        if state.watches_carrier:
            look(state, state.slaves, out)

    def _pass_pending(self) -> bool:
        state = self._state
        return state.up and state.watches_carrier and any(unsettled(state, slave) for slave in state.slaves)

    def _pass_if_due(self, now: int, out: Transaction) -> None:
        """Run one pass if its time has come; passes that were missed are not made up."""
        state = self._state
        if self._pass_pending() and now >= self._grid.after(self._looked):
            look(state, state.slaves, out)
        self._looked = max(self._looked, now)

    def _notices(self) -> bool:
        """Whether a monitor is on that could notice a failure: probing takes somebody to ask."""
        state = self._state
        return state.watches_carrier or (state.probes and bool(targets.all_targets(state)))

    def _warn_if_blind(self, out: Transaction) -> None:
        """Say it once when no monitor is left that could notice a failure."""
        state = self._state
        blind = state.up and not self._notices() and not state.strict
        if blind and not self._blind:
            asked = "nobody to probe" if state.probes else "no link monitor is on"
            text = f"{asked}: a failed link will not be noticed (set miimon, or arp_interval with arp_ip_target)"
            out.log(Level.WARNING, text)
        self._blind = blind

    # ── what follows from it all ─────────────────────────────────────────────────────

    def _settle(self, now: int, out: Transaction) -> None:
        """See who sends now, and bring addresses, table, carrier and neighbours in line."""
        state, mode = self._state, modes.rules(self._state)
        state.stand_in = failover.find_stand_in(state)
        sender, before = failover.sender(state), state.sender
        state.sender = sender
        if mode.selects and sender is not before:
            failover.move_macs(state, sender, out)
        failover.update_carrier(state)
        table = modes.tx_table(state, sender, failover.succession(state))
        if table != self._published:
            self._published, out.table = table, PublishTable(table)
        if state.up and state.carrier is not self._carrier_told:
            self._carrier_told, out.carrier = state.carrier, SetBondCarrier(state.carrier)
        provisional = state.stand_in is not None
        moved = mode.selects and (sender is not before or provisional is not self._provisional)
        if moved:
            old, new = (None if slave is None else slave.name for slave in (before, sender))
            out.news.append(ActiveChanged(old, new, out.changed or self._why_standing(), provisional))
        self._provisional = provisional and mode.selects
        if state.up and (moved or out.changed is not None):
            self._begin_announcing(now, before, out)

    def _why_standing(self) -> str:
        state = self._state
        if state.stand_in is not None and state.active is not None:
            return f"{state.stand_in.name} stands in for {state.active.name}, which has lost its link"
        return "the link has returned in time"

    def _begin_announcing(self, now: int, before: Slave | None, out: Transaction) -> None:
        """Tell everybody of the new sender: the first round at once, the others by the clock."""
        state, mode, settings = self._state, modes.rules(self._state), self._state.settings
        self._peers.stop()
        self._reports.stop()
        if mode.balances and state.sender is not None:
            for slave in state.slaves:
                if slave in (state.sender, before):
                    teaching.teach(state, slave, out)
            out.frames.append(AnnounceSeen(state.sender.name))
        elif mode.selects and state.sender is not None:
            passes = max(1, settings.number("peer_notif_delay")) if settings.miimon else 1
            every = settings.miimon or settings.number("arp_interval")
            if self._peers.start(settings.number("num_unsol_na"), passes * every * MS, now):
                self._send_notification(out)
                out.frames.append(AnnounceSeen(state.sender.name))
        if mode.resends and self._reports.start(settings.number("resend_igmp"), RESEND_EVERY, now):
            self._send_reports(out)

    def _announce_if_due(self, now: int, out: Transaction) -> None:
        if self._peers.run(now):
            self._send_notification(out)
        if self._reports.run(now):
            self._send_reports(out)

    def _send_notification(self, out: Transaction) -> None:
        self._send(announce.peer_notification(self._state.announcing()), "peer notification", out)

    def _send_reports(self, out: Transaction) -> None:
        self._send(announce.membership_reports(self._state.announcing()), "membership reports", out)

    def _send(self, frames: tuple[bytes, ...], what: str, out: Transaction) -> None:
        """Send on the slave that sends now; without one the round is lost, as with the driver."""
        if frames and self._state.sender is not None:
            out.frames.append(SendFrames(self._state.sender.name, frames, what))

    # ── when an action fails ─────────────────────────────────────────────────────────

    def _failed(self, failed: ActionFailed, out: Transaction) -> None:
        """One action failed and cancelled what came after it: undo, or go on without it."""
        tried = (*failed.done, failed.action)
        for actions, recovery in reversed(self._transactions):
            for tries in range(1, len(actions) + 1):
                # What follows a `Then` is done in the same breath, so `done` may begin earlier.
                if actions[tries - 1] == failed.action and actions[:tries] == tried[-tries:]:
                    self._not_written(actions[tries - 1 :])
                    self._cancelled(failed, recovery, actions[tries:], out)
                    return
        self._forget_told()
        self._go_on(failed, (), out)

    def _cancelled(
        self, failed: ActionFailed, recovery: Recovery | None, rest: tuple[Action, ...], out: Transaction
    ) -> None:
        if recovery is None:
            self._go_on(failed, rest, out)
            return
        if any(isinstance(action, PublishTable | SetBondCarrier) for action in rest):
            self._forget_told()
        recovery(failed, out)
        told = Log | ActiveChanged | SendFrames | AnnounceSeen
        self._carry_on_after((action for action in rest if isinstance(action, told)), out)

    def _not_written(self, actions: Iterable[Action]) -> None:
        """Have the journal's records written again that a failure kept from it."""
        for action in actions:
            if isinstance(action, Remember) and (slave := self._state.find(action.held.slave)) is not None:
                slave.unwritten = True

    def _forget_told(self) -> None:
        """Tell table and carrier again, whatever was told before."""
        self._published = self._carrier_told = None

    def _go_on(self, failed: ActionFailed, rest: tuple[Action, ...], out: Transaction) -> None:
        """Note what is not as it should be, and do what was cancelled and is still right."""
        state = self._state
        match failed.action:
            case SetSlaveMac(name, mac):
                rest = tuple(self._mac_not_set(name, mac, failed.errno, rest, out))
            case Remember(held) if any(isinstance(each, SetSlaveMac) and each.slave == held.slave for each in rest):
                # What is not in the journal is not taken: nobody could give it back.
                rest = tuple(self._mac_not_set(held.slave, state.mac, failed.errno, rest, out))
            case SetBondMac():
                out.log(Level.ERROR, f"Error {-failed.errno} setting bond MAC from slave")
                state.take_bond_mac(state.mac_before or state.mac)
            case SendFrames(_, _, probing.PROBE | teaching.LEARNING | clients.ARP):
                pass  # a slave that cannot send will not be answered either, nor found by anybody
            case PublishTable():
                self._tell_again = True
                out.log(Level.ERROR, f"The frame path did not take a table: {failed.error}")
            case SetBondCarrier():
                self._tell_again = True
                out.log(Level.ERROR, f"The bond's carrier could not be set: {failed.error}")
            case action:
                slave = getattr(action, "slave", None)
                out.log(Level.ERROR, f"{type(action).__name__} failed: {failed.error}", slave)
                if failed.errno not in VANISHED:
                    # Something of the slave's could not be given back: the journal keeps it.
                    rest = tuple(each for each in rest if each != Forget(slave or ""))
        self._carry_on_after(rest, out)

    def _mac_not_set(
        self, name: str, mac: MacAddr, errno: int, rest: Iterable[Action], out: Transaction
    ) -> Iterable[Action]:
        """A slave kept its MAC: the swap that it was part of ends here."""
        state = self._state
        which = "new" if mac == state.mac else "old"
        if (slave := state.find(name)) is None:
            out.log(Level.ERROR, f"Error {-errno} giving the MAC back", name)
            return [action for action in rest if errno in VANISHED or action != Forget(name)]
        out.log(Level.ERROR, f"Error {-errno} setting MAC of {which} active slave", name)
        slave.mac = slave.mac_before or slave.mac
        for action in rest:
            if isinstance(action, SetSlaveMac) and (other := state.find(action.slave)) is not None:
                other.mac = other.mac_before or other.mac
        return [action for action in rest if not isinstance(action, SetSlaveMac)]

    def _carry_on_after(self, rest: Iterable[Action], out: Transaction) -> None:
        """Do the cancelled actions; tables and carriers only if they are still the latest."""
        for action in rest:
            match action:
                case PublishTable(table):
                    if table == self._published:
                        out.table = action
                case SetBondCarrier(carrier):
                    if carrier == self._carrier_told:
                        out.carrier = action
                case _:
                    out.steps.append(action)
