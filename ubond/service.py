"""One bond at work: events in, actions out.  The one place that reads the clock.

`Service` introduces the rooms to each other: what netlink and the datapath notice becomes
an event for the study, what the study asks for is performed at the doors, in order, and
the control socket's requests end here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address

from ubond import control
from ubond.bond import core
from ubond.bond.enslave import ARPHRD_ETHER, read_mark
from ubond.bond.events import (
    Action,
    ActionFailed,
    ActiveChanged,
    ArpSeen,
    BondCarrierChanged,
    BondClosed,
    BondMacChanged,
    BondMtuChanged,
    BondOpened,
    BondRenamed,
    CarrierChanged,
    DoorError,
    Enslaved,
    EnslaveRequested,
    Event,
    Forget,
    Held,
    Level,
    LinkDead,
    Listened,
    Log,
    OptionWritten,
    PublishTable,
    ReleaseRequested,
    Resumed,
    SlaveChecked,
    SlaveFacts,
    SlaveGone,
    SlaveRenamed,
    SlaveReturned,
    SpeedRead,
    Then,
    UppersChanged,
    Woken,
)
from ubond.bond.options import Probe, Refused
from ubond.bond.snapshot import BondSnapshot, LinkState
from ubond.datapath import CarrierRead, DeadLink, FeaturesChanged, FramesPassed, GroupsReported, TapGone
from ubond.doors import INSTANT, Doors
from ubond.history import History
from ubond.netlink import (
    AddressesChanged,
    Change,
    FiltersRemoved,
    Link,
    LinkChanged,
    LinkGone,
    LinkRenamed,
    LinkTouched,
)
from ubond.scout import Scout

US, MS = 1_000, 1_000_000
KEEP_LINES = 1000
#: A carrier read so soon after a link message was found by that message.
HINT_NS = 50 * MS
#: Seconds that a link which has come waits for its speed: another may hold the kernel's lock on all links.
SPEED_PATIENCE = 0.05
#: Seconds between two looks at what no message tells of: features, gates, slaves that may come back.  When nothing has
#: happened before one, a last one follows after so many: the watch has begun to tell of features by then.
LOOK_EVERY, LOOK_LAST = 5.0, 10.0
#: Seconds from a message to the look that it leads to, so that many make one; longer in a fight.
LOOK_SOON, LOOK_IN_A_FIGHT = 0.02, 1.0
#: Following address lists takes at most this share of the time, however many groups come and go; but on a
#: busy machine a look takes long by the clock, and whoever joins must not wait for longer than this (seconds).
FILTER_SHARE, FILTER_PAUSE = 0.1, 0.25
#: Seconds in which the link of a new slave returns whose driver resets it for another MTU or MAC (e1000: two).
LINK_PATIENCE = 5.0
#: A link that was gone for longer than this, in seconds, is worth a line.
LINK_PAUSE = 0.2
DROPS = ("tx_congested", "tx_link_down", "tx_held_too_long", "tx_refused", "tx_unknown",
         "tx_too_long", "tx_too_long_tagged")  # fmt: skip

_LEVELS = {Level.ERROR: logging.ERROR, Level.WARNING: logging.WARNING,
           Level.INFO: logging.INFO, Level.DEBUG: logging.DEBUG}  # fmt: skip

log = logging.getLogger("ubond")


class _Transaction:
    """The actions of one event on their way, and whoever waits for their end."""

    def __init__(self, actions: Sequence[Action]) -> None:
        self.actions = deque(actions)
        self.done: list[Action] = []
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Nobody waits for most transactions: their failures are events, not exceptions.
        self.end.add_done_callback(lambda end: end.exception())


@dataclass(slots=True)
class Memory:
    """The past of a bond: what happened, since when (monotonic ns), and what a failover is counted from."""

    started: int = 0
    lines: deque[dict[str, object]] = field(default_factory=deque)
    history: History = field(default_factory=History)
    drops_before: int = 0
    new_sender: str | None = None
    restarts: int = 0


class Service:
    """Runs one bond on the loop in which it is made."""

    def __init__(self, bond: core.Bond, doors: Doors, memory: Memory | None = None) -> None:
        """`memory`: of the process that ran it before."""
        self.bond, self.doors, self.index = bond, doors, doors.index
        self.name = bond.snapshot().name
        past = memory or Memory(time.monotonic_ns())
        self.history, self.started = past.history, past.started
        self.lines: deque[dict[str, object]] = deque(past.lines, maxlen=KEEP_LINES)
        self._drops_before, self._new_sender = past.drops_before, past.new_sender
        self.restarts = past.restarts
        """How often a process went on for one that had ended."""
        self._notes: list[str] | None = None
        self.gone = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        self.on_release: Callable[[], None] = lambda: None
        """Called before a slave is given back: a successor must not take it for one any more."""
        self.on_frames: Callable[[], None] = lambda: None
        """Called when frames have come by since `Datapath.ask_for_frames`."""
        self.on_news: Callable[[Mapping[str, object]], None] = lambda news: None
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[_Transaction] = asyncio.Queue()
        self._under_way: list[_Transaction] = []
        self._timer: asyncio.TimerHandle | None = None
        self._uppers_timer: asyncio.TimerHandle | None = None
        self._filter_timer: asyncio.TimerHandle | None = None
        self._filters_after = 0.0
        self.on_rename: Callable[[str], None] = lambda name: None
        self._looks: dict[str, asyncio.TimerHandle] = {}
        self._events = 0
        """How many the study has had, but for looks that led to nothing; those are `_unremarkable`."""
        self._unremarkable: dict[str, tuple[SlaveChecked, int]] = {}
        self._queued = 0
        self._ending = self._left = self._standing = False
        self._performer = self._loop.create_task(self._perform_queue())
        self._end_netlink = doors.netlink.subscribe(self._netlink_news)
        self._loop.add_reader(doors.datapath.news_fd, self._datapath_news)
        self._indices = {slave.name: slave.index for slave in bond.snapshot().slaves}
        self._hinted: dict[str, int] = {}
        self._renamed: LinkRenamed | None = None
        self._rising: dict[int, asyncio.Task[None]] = {}
        self._scout = Scout(doors.netlink, self.index, lambda: self.bond.snapshot().targets, self._found)
        self._followed: tuple[object, ...] = ()
        self._shared_mac: frozenset[bytes] = frozenset()
        self._follow_monitors()
        self._pause: float | None = LOOK_EVERY
        self._events_then = -1
        self._round = self._loop.call_later(LOOK_EVERY, self._look_around)

    # ── one process after the other ──────────────────────────────────────────────────

    async def stand_still(self) -> bool:
        """Stop the worker at a moment at which nothing is under way, and say whether that was one.

        If not, everything goes on.  If so, `memory` and those of bond, doors and datapath are exact
        until the caller waits for anything; `go_on` ends it.
        """
        await self._queue.join()
        await self.doors.filters_followed()
        if self._under_way or self._rising or self._ending or self.gone.is_set():
            return False
        self._standing = True
        self.doors.datapath.pause()
        self._datapath_news()  # may lead to a table, which the worker that stands has not seen
        if self.doors.datapath.settled and not self._under_way and not self._rising:
            return True
        self.go_on()
        return False

    def go_on(self) -> None:
        """Frames flow again after `stand_still`."""
        self._standing = False
        self.doors.datapath.resume()
        self._filters_soon()

    def memory(self) -> Memory:
        """What another process has to know of the past."""
        self._settle_history()
        return Memory(
            self.started, self.lines, self.history, self._drops_before, self._new_sender, self.restarts
        )

    def say(self, text: str, level: Level = Level.INFO) -> None:
        """Log a line about the bond."""
        self._tell(Log(level, text))

    @property
    def performer(self) -> asyncio.Task[None]:
        """The task that performs actions; when it ends by itself nothing more can be done here."""
        return self._performer

    def came_back(self, death: str) -> None:
        """This process goes on for one that has ended: how, if it died."""
        self.restarts += 1
        how = f"its daemon {death}" if death else "its daemon has ended"
        self._tell(Log(Level.ERROR if death else Level.INFO, f"{how}; started again (restart {self.restarts})"))

    async def reconcile(self, held: tuple[Held, ...] | None = None) -> None:
        """After another process: see what has become of the device and the slaves meanwhile.

        `held`: what the journal holds, if that process may have ended in the middle of something; return
        when that is done.
        """
        netlink = self.doors.netlink
        device = netlink.link(self.index)
        if device is None:
            self._bond_gone("deleted")
            return
        if device.name != self.name:
            self._bond_renamed(device.name)
        self._bond_changed(device)
        slaves = [(slave, netlink.link(slave.index)) for slave in self.bond.snapshot().slaves]
        # First, so that no table names what nothing can be sent on.
        self._slaves_gone(*(
            SlaveGone(slave.name, "deleted" if link is None else "out of reach")
            for slave, link in slaves
            if link is None or slave.name not in self.doors.ports
        ))  # fmt: skip
        if held is not None:
            macs = {slave.name: link.mac for slave, link in slaves if link is not None and link.mac}
            with contextlib.suppress(DoorError):  # it is told, and looked at again
                await self.feed(Resumed(held, device.mac, macs, tuple(self.doors.ports)))
        for slave, link in slaves:
            if link is None or not self._has(slave.name):
                continue
            self._slave_is_called(slave.name, link.name)
        self._follow_monitors()
        self._refresh_uppers()
        self._loop.call_later(1.1, self._settle_history)
        self.feed(Woken())

    # ── events in ────────────────────────────────────────────────────────────────────

    def feed(self, event: Event) -> asyncio.Future[None]:
        """Give the study an event; the future ends when all that follows from it is done.

        Raises Refused when the study will not have it.
        """
        self._happened()
        return self._handle(event).end

    def _happened(self) -> None:
        """Something is not as it was: look around soon again."""
        self._events += 1
        if self._pause != LOOK_EVERY and not self._ending:
            self._round.cancel()
            self._look_around_in(LOOK_EVERY)

    def _look_around_in(self, seconds: float | None) -> None:
        self._pause = seconds
        if seconds is not None:
            self._round = self._loop.call_later(seconds, self._look_around)

    def _handle(self, event: Event) -> _Transaction:
        transaction = _Transaction(self.bond.handle(event, time.monotonic_ns()))
        self._start(transaction)
        self._rearm()
        return transaction

    def _feed_as_one(self, events: Sequence[Event]) -> None:
        """Give the study several events that are true already: no table between them is published."""
        self._happened()
        actions = [action for event in events for action in self.bond.handle(event, time.monotonic_ns())]
        last = next((action for action in reversed(actions) if isinstance(action, PublishTable)), None)
        kept = [action for action in actions if action is last or not isinstance(action, PublishTable)]
        self._start(_Transaction(kept))
        self._rearm()

    def _start(self, transaction: _Transaction) -> None:
        quick = all(isinstance(action, (*INSTANT, Log, ActiveChanged)) for action in transaction.actions)
        if quick and not self._table_waits():
            self._perform_at_once(transaction)
        else:
            if any(isinstance(action, Forget) for action in transaction.actions):
                self.on_release()
            self._under_way.append(transaction)
            self._queued += 1
            self._queue.put_nowait(transaction)

    def _table_waits(self) -> bool:
        """Whether a slow transaction still has a table to publish.

        If not, a quick one need not wait for it; tables must reach the worker in the order in
        which they were made.
        """
        return any(isinstance(action, PublishTable) for slow in self._under_way for action in slow.actions)

    def _rearm(self) -> None:
        """Be woken when the study asks for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.bond.deadline()
        if deadline is not None:
            delay = max(0, deadline - time.monotonic_ns()) / 1e9
            self._timer = self._loop.call_later(delay, self._wake)

    def _follow_monitors(self) -> None:
        """Have the watch poll and the scout look as the options say.  Probing too wants to know the carrier."""
        seen = self.bond.snapshot()
        options = seen.options
        every = int(options["miimon"] or options["arp_interval"])
        self.doors.datapath.set_interval(every * MS, by_mii=not options["use_carrier"])
        self.doors.datapath.set_busy_poll(int(options["busy_poll"]) * US)
        followed = (bool(options["arp_interval"]), options["probe"] == Probe.GATEWAY, seen.targets)
        if followed != self._followed:
            self._followed = followed
            self._scout.follow(*followed[:2])
        targets = tuple(IPv6Address(target) for target in seen.targets if ":" in target)
        if targets != self.doors.ns_targets:
            self.doors.ns_targets = targets
            self._filters_soon()

    def _found(self, event: Event) -> None:
        """Take in what the scout has found; gateways may be new targets."""
        self.feed(event)
        self._follow_monitors()

    def _wake(self) -> None:
        # The loop's clock is coarser than ours: never be early, the grid would be missed.
        deadline = self.bond.deadline()
        if deadline is not None and time.monotonic_ns() >= deadline:
            self.feed(Listened(self.doors.datapath.heard()) if self.bond.listens else Woken())
        else:
            self._rearm()

    def _datapath_news(self) -> None:
        for news in self.doors.datapath.news():
            match news:
                case CarrierRead(slave, carrier):
                    if self._has(slave):
                        self._carrier(slave, carrier)
                case DeadLink(slave, stand_in):
                    if self._has(slave):
                        self._dead(slave, stand_in)
                case TapGone():
                    self._bond_gone("deleted")
                case GroupsReported():
                    self._filters_soon()
                case FeaturesChanged(slave):
                    self._look_soon(slave)
                case FramesPassed():
                    self.on_frames()
        for _, slave, frame in self.doors.datapath.diverted():
            self.feed(ArpSeen(slave, frame))

    def _carrier(self, slave: str, carrier: bool) -> None:
        hinted = time.monotonic_ns() - self._hinted.pop(slave, 0) < HINT_NS
        source = "netlink" if hinted else "poll"
        index = self._indices[slave]
        self._forget_rise(index)
        if carrier:
            self._rising[index] = self._loop.create_task(self._rise(index, source))
        else:
            self._trouble()
            self.feed(CarrierChanged(slave, False, source))

    async def _rise(self, index: int, source: str) -> None:
        """A slave's link has come: read its speed, which may decide who is active, before the study hears of it."""
        read = self._loop.create_task(self._read_speed(index))
        await asyncio.wait([read], timeout=SPEED_PATIENCE)
        del self._rising[index]
        if (slave := self._slave_at(index)) is not None:
            self.feed(CarrierChanged(slave, True, source))

    def _forget_rise(self, index: int) -> None:
        """What rose and fell again, or is a slave no more, has not risen."""
        if (rise := self._rising.pop(index, None)) is not None:
            rise.cancel()

    def _dead(self, slave: str, stand_in: str | None) -> None:
        self._forget_rise(self._indices[slave])
        self._trouble()
        self.doors.datapath.believe(slave, False)
        before = self.doors.datapath.generation
        self.feed(LinkDead(slave, stand_in))
        if self.doors.datapath.generation == before and not self._table_waits():
            # What the worker did provisionally is official now or ends here.
            self.doors.datapath.confirm()

    def _trouble(self) -> None:
        """Look at what the coming failover will be told by: drops so far, and whom to announce."""
        self._settle_history()
        self._drops_before = self._drops()
        self._refresh_uppers()

    async def _read_speed(self, index: int) -> None:
        if (slave := self._slave_at(index)) is None:
            return
        try:
            speed, duplex = await self.doors.netlink.speed(slave)
        except DoorError:
            return
        if (slave := self._slave_at(index)) is not None:
            self.feed(SpeedRead(slave, speed, duplex))

    def _netlink_news(self, change: Change) -> None:
        """Take in what the kernel says; of several names that a slave has had in a row only the last one."""
        if self._renamed is None:
            pass
        elif isinstance(change, LinkRenamed) and change.index == self._renamed.index:
            self._renamed = replace(self._renamed, new=change.new)
            return
        elif isinstance(change, LinkChanged) and change.link.index == self._renamed.index:
            return  # it is looked at under its last name
        self._take_name()
        match change:
            case LinkRenamed(_, new, index) if index == self.index:
                self._bond_renamed(new)
            case LinkRenamed(old, _, index) if self._indices.get(old) == index:
                self._renamed = change
                self._loop.call_soon(self._take_name)
            case LinkGone(name, index, why):
                if index == self.index:
                    self._bond_gone(why)
                elif self._indices.get(name) == index:
                    self._slaves_gone(SlaveGone(name, why))
                else:
                    self._uppers_soon()
            case LinkChanged(link, before):
                if link.index == self.index:
                    self._bond_changed(link)
                elif self._indices.get(link.name) == link.index:
                    self._slave_changed(link, before)
                elif before is None or link != before:
                    self._look_soon(link.name)
                    self._uppers_soon()
            case LinkTouched(link):
                if self._indices.get(link.name) == link.index:
                    self._look_soon(link.name)
            case AddressesChanged(name) | FiltersRemoved(name):
                self._look_soon(name)
                if isinstance(change, AddressesChanged):
                    self._uppers_soon()

    def _take_name(self) -> None:
        """Take in the last of the names that a slave has had in a row."""
        renamed, self._renamed = self._renamed, None
        if renamed is not None and self._has(renamed.old):
            self._slave_is_called(renamed.old, renamed.new)

    def _slave_changed(self, link: Link, before: Link | None) -> None:
        # A hint, not a fact: what it says may be older than what the watch has read.
        self._hinted[link.name] = time.monotonic_ns()
        self.doors.datapath.look(link.name)
        if before is None or not _only_the_link(link, before):
            self._look_soon(link.name)

    # ── other hands ──────────────────────────────────────────────────────────────────

    def _look_around(self) -> None:
        """Look at all slaves: some changes are not announced, and what is awaited may be acceptable now."""
        self._look_around_in(self._pause_now())
        for name in (*self._indices, *self.bond.snapshot().awaited):
            self._look_soon(name)
        self._filters_soon()
        if self.bond.listens:
            # Which groups are joined is not announced, and probing gives no warning of a failover.
            self._refresh_uppers()
        link, seen = self.doors.netlink.link(self.index), self.bond.snapshot()
        wanted = seen.up, seen.mac, seen.mtu, seen.up and seen.carrier
        if link is not None and (link.up, link.mac, link.mtu, link.carrier) != wanted:
            self._bond_changed(link)

    def _pause_now(self) -> float | None:
        """Seconds to the next look around; None: while nothing happens and nothing waits for it there need be none."""
        then, self._events_then = self._events_then, self._events
        waited_for = self.bond.listens or self.bond.snapshot().awaited or not self.doors.datapath.sees_unannounced
        silent = any(gate != "clsact" for gate in self.doors.gates.values())  # nobody tells that such a gate is gone
        if waited_for or silent or then != self._events:
            return LOOK_EVERY
        return LOOK_LAST if self._pause == LOOK_EVERY else None

    def _look_soon(self, name: str) -> None:
        """Look at a slave, or at what may be one that returns; many reasons make one look."""
        seen = self.bond.snapshot()
        slave = next((slave for slave in seen.slaves if slave.name == name), None)
        if self._ending or name in self._looks or (slave is None and name not in seen.awaited):
            return
        delay = LOOK_IN_A_FIGHT if slave is not None and slave.fights else LOOK_SOON
        self._looks[name] = self._loop.call_later(delay, self._begin_look, name)

    def _begin_look(self, name: str) -> None:
        del self._looks[name]
        self._loop.create_task(self._look(name) if self._has(name) else self._look_for(name))

    async def _look(self, slave: str) -> None:
        """Compare a slave with what we set, as it is while nothing of ours is on its way."""
        while True:
            await self._queue.join()
            queued = self._queued
            if not self._has(slave):
                return
            if not self.doors.is_bound(slave):
                self._slaves_gone(SlaveGone(slave, "replaced by another of its name"))
                return
            try:
                facts, gated = await self.doors.look(slave)
            except DoorError as error:
                log.debug("%s: (slave %s): could not be looked at: %s", self.name, slave, error)
                return
            if queued == self._queued:
                break       # else something of ours may have been read half done
        if self._has(slave) and not self._ending:
            self._compare(SlaveChecked(facts, gated))

    def _compare(self, seen: SlaveChecked) -> None:
        """Give the study what a look has seen, unless that led to nothing before and nothing has happened since."""
        name = seen.facts.name
        if self._unremarkable.get(name) == (seen, self._events):
            return
        remarked = bool(self._handle(seen).actions)
        if remarked or any(slave.fights for slave in self.bond.snapshot().slaves if slave.name == name):
            self._happened()
        else:
            self._unremarkable[name] = seen, self._events

    async def _look_for(self, name: str) -> None:
        """See whether a slave that vanished is there again."""
        await self._queue.join()
        try:
            facts = await self.doors.netlink.facts(name)
        except DoorError:
            return
        if name in self.bond.snapshot().awaited and not self._ending:
            self.feed(SlaveReturned(self._placed(facts)))

    # ── the bond's own device ────────────────────────────────────────────────────────

    def _bond_renamed(self, name: str) -> None:
        self._tell(Log(Level.INFO, f"is {name} now"))
        self.name = name
        self.doors.rename_bond(name)
        self.on_rename(name)
        self.feed(BondRenamed(name))

    def _bond_changed(self, link: Link) -> None:
        seen = self.bond.snapshot()
        if link.up and not seen.up:
            # Opening may choose an active slave, and what is announced at once is what stands on the bond now.
            self.feed(UppersChanged(self.doors.netlink.uppers(self.index)))
            self.feed(BondOpened())
        elif seen.up and not link.up:
            self.feed(BondClosed())
        if link.mac != seen.mac or link.mtu != seen.mtu or (link.up and link.lower_up is not seen.carrier):
            self._loop.create_task(self._compare_bond())
        self._uppers_soon()

    async def _compare_bond(self) -> None:
        """Somebody changed the bond's MAC, MTU or carrier, or a message from before our own change came late."""
        await self._queue.join()
        told = self.doors.carrier_told
        try:
            facts = await self.doors.netlink.facts(self.doors.tap.name)
        except DoorError:
            return      # gone meanwhile; that is news of its own
        if facts.mac != self.bond.snapshot().mac:
            self._attempt(BondMacChanged(facts.mac))
        if facts.mtu != self.bond.snapshot().mtu:
            self._attempt(BondMtuChanged(facts.mtu))
        if facts.up and told == self.doors.carrier_told and told[0] is not None and facts.carrier is not told[0]:
            self.feed(BondCarrierChanged(facts.carrier))

    def _attempt(self, event: Event) -> None:
        try:
            self.feed(event)
        except Refused as refused:
            for line in refused.lines:
                self._tell(Log(Level.ERROR, line))

    def _slave_is_called(self, old: str, new: str) -> None:
        """Look at a slave by the name that it has now, another one perhaps."""
        if new != old:
            self.doors.rename(old, new)
            self._indices[new] = self._indices.pop(old)
            self.feed(SlaveRenamed(old, new))
        self.doors.datapath.look(new)
        self._look_soon(new)

    def _slaves_gone(self, *gone: SlaveGone) -> None:
        for each in gone:
            self._forget(each.slave)
            self._tell(Log(Level.WARNING, f"interface {each.why}; releasing it", each.slave))
        self._feed_as_one(gone)

    def _forget(self, slave: str) -> None:
        """This one is no slave any more; nothing that is under way about it counts."""
        if (index := self._indices.pop(slave, None)) is not None:
            self._forget_rise(index)
        self._hinted.pop(slave, None)

    def _bond_gone(self, why: str) -> None:
        if not self.gone.is_set():
            self._tell(Log(Level.WARNING, f"the bond's device was {why}; giving the slaves back"))
            self.doors.bond_is_there = False
            self.gone.set()

    def _uppers_soon(self) -> None:
        if self._uppers_timer is None:
            self._uppers_timer = self._loop.call_later(0.05, self._refresh_uppers)

    def _refresh_uppers(self) -> None:
        """Tell the study who would have to be announced now, if that has changed."""
        if self._uppers_timer is not None:
            self._uppers_timer.cancel()
            self._uppers_timer = None
        netlink = self.doors.netlink
        self.feed(UppersChanged(netlink.uppers(self.index)))
        self._scout.again()
        self._filters_soon()

    # ── what slaves let in ───────────────────────────────────────────────────────────

    def _filters_soon(self) -> None:
        """Have slaves let in what the bond's device lets in: at once, then with pauses."""
        if self._filter_timer is None and not self._ending:
            delay = max(0.0, self._filters_after - self._loop.time())
            self._filter_timer = self._loop.call_later(delay, self._begin_filters)

    def _begin_filters(self) -> None:
        self._filter_timer = None       # what changes from now on needs another look
        if not self._standing:          # else the sockets are about to be another process's
            self._loop.create_task(self._follow_filters())

    async def _follow_filters(self) -> None:
        began = self._loop.time()
        self.doors.datapath.expect_reports()
        before = self._asked()
        try:
            told = await self.doors.follow_filters()
        except DoorError as error:
            log.debug("%s: its address lists could not be read: %s", self.name, error)
            return
        finally:
            now = self._loop.time()
            self._filters_after = now + min((now - began) / FILTER_SHARE, FILTER_PAUSE)
        for slave, line in told:
            if self._has(slave) and not self._ending:
                self._tell(Log(Level.WARNING, line, slave))
        if self._asked() != before:
            self.on_change()        # a successor has to know what these sockets ask for

    def _asked(self) -> list[object]:
        return [port.asked for port in self.doors.ports.values()]

    def _has(self, slave: str) -> bool:
        return slave in self._indices

    def _slave_at(self, index: int) -> str | None:
        """What the slave of this index is called now."""
        return next((name for name, its in self._indices.items() if its == index), None)

    # ── actions out ──────────────────────────────────────────────────────────────────

    def _perform_at_once(self, transaction: _Transaction) -> None:
        for action in transaction.actions:
            try:
                if isinstance(action, INSTANT):
                    self.doors.perform_now(action)
                else:
                    self._tell(action)
            except DoorError as error:
                self._failed(transaction, action, error)
                return
            transaction.done.append(action)
        self._finish(transaction)

    async def _perform_queue(self) -> None:
        while True:
            transaction = await self._queue.get()
            try:
                await self._perform(transaction)
            finally:
                self._under_way.remove(transaction)
                self._queue.task_done()

    async def _perform(self, transaction: _Transaction) -> None:
        while transaction.actions:
            action = transaction.actions.popleft()
            try:
                match action:
                    case Log() | ActiveChanged():
                        self._tell(action)
                    case Then(event):
                        await self._continue(transaction, event)
                    case _:
                        await self.doors.perform(action)
                        while self.doors.notes:
                            self._tell(self.doors.notes.pop(0))
            except DoorError as error:
                self._failed(transaction, action, error)
                return
            transaction.done.append(action)
        self._finish(transaction)

    async def _continue(self, transaction: _Transaction, event: Event) -> None:
        """What follows from an event that a transaction ends with belongs to it."""
        if isinstance(event, Enslaved):
            facts = await self.doors.netlink.glance(event.facts.name)
            # What the watch has read before is old, and the kernel's running flag, which it asks at a rise, may
            # lag by a second; whether frames pass at this moment the kernel has just said.  First that, and then away
            # with what the watch has told: the other way round it could tell once more in between.
            self.doors.datapath.believe(facts.name, facts.carrier)
            self._datapath_news()
            self._indices[facts.name] = facts.index
            event = replace(event, facts=facts)
        transaction.actions.extend(self.bond.handle(event, time.monotonic_ns()))
        if isinstance(event, Enslaved):
            self.doors.datapath.look(facts.name)
            self._filters_soon()    # the lists may have changed while it was on its way
        self._rearm()

    def _failed(self, transaction: _Transaction, action: Action, error: DoorError) -> None:
        """The study hears of the failure; whoever waits hears of it when the undo is done."""
        log.debug("%s: %s failed: %s", self.name, type(action).__name__, error)
        event = ActionFailed(action, tuple(transaction.done), error.errno, str(error))
        end = self.feed(event)

        def pass_on(_: asyncio.Future[None]) -> None:
            if not transaction.end.done():
                transaction.end.set_exception(error)

        end.add_done_callback(pass_on)

    def _finish(self, transaction: _Transaction) -> None:
        if not transaction.end.done():
            transaction.end.set_result(None)
        if self.doors.shared_mac != self._shared_mac:
            self._shared_mac = self.doors.shared_mac
            self._filters_soon()
        self.on_change()

    def _tell(self, news: Log | ActiveChanged | Action) -> None:
        match news:
            case Log(level, text, slave):
                line = f"{self.name}: (slave {slave}): {text}" if slave else f"{self.name}: {text}"
                log.log(_LEVELS[level], "%s", line)
                if level <= Level.INFO:
                    entry = control.log_line(news, self.name, time.time())
                    self.lines.append(entry)
                    self.on_news(entry)
                    if self._notes is not None and level <= Level.WARNING:
                        self._notes.append(line)
            case ActiveChanged():
                self._record_failover(news)
                self.on_news(control.active_changed(news, time.time()))

    # ── the past ─────────────────────────────────────────────────────────────────────

    def _drops(self) -> int:
        datapath = self.doors.datapath
        counters = (*datapath.counters().values(), datapath.released())
        lost = sum(each.get(name, 0) for each in counters for name in DROPS)
        return lost + datapath.totals()["no_slave"]

    def _record_failover(self, change: ActiveChanged) -> None:
        self._settle_history()
        old = change.old
        last = self.doors.datapath.times(old)[1] if old is not None and old in self.doors.ports else 0
        self.history.begin(change, last, self._drops_before or self._drops())
        self._new_sender = change.new
        self._loop.call_later(1.1, self._settle_history)

    def _settle_history(self) -> None:
        new = self._new_sender
        first = self.doors.datapath.times(new)[0] if new is not None and new in self.doors.ports else 0
        self.history.settle(first, self._drops())

    # ── what operators ask ───────────────────────────────────────────────────────────

    def failovers(self) -> list[dict[str, object]]:
        """Past failovers, oldest first."""
        self._settle_history()
        return self.history.entries()

    def snapshot(self) -> BondSnapshot:
        return self.bond.snapshot()

    async def enslave(self, slave: str, take_addresses: bool = False) -> bool:
        """Enslave an interface; return whether it had a link before.

        Refused or DoorError if that fails, and nothing is left behind.
        """
        netlink = self.doors.netlink
        facts = await netlink.facts(slave)
        # Setting the MAC that it has tells whether one can be set; a name that is taken already is not touched.
        if not self._has(slave) and facts.link_type == ARPHRD_ETHER and not facts.master and not facts.is_master:
            facts = replace(facts, mac_fixed=not await netlink.sets_mac(slave, facts.mac))
        await self.feed(EnslaveRequested(self._placed(facts), take_addresses))
        return facts.carrier

    def _placed(self, facts: SlaveFacts) -> SlaveFacts:
        """With whether it stands on this bond: what is sent on it would come back for ever.

        Of a bond on a bond the kernel knows nothing, but the lower one's alias says whose slave it is.
        """
        netlink = self.doors.netlink
        names = {link.name: link.index for link in netlink.links}
        waiting, seen = [self.index], set[int]()
        while waiting:
            at = waiting.pop()
            link = netlink.link(at)
            if link is None or at in seen:
                continue
            seen.add(at)
            waiting += netlink.above(at)
            if (mark := read_mark(link.alias)) is not None:
                waiting.append(names.get(mark.bond, 0))
        return replace(facts, on_bond=facts.index in seen)

    async def wait_for_links(self, slaves: Sequence[str]) -> None:
        """Return when these new slaves have the link again that they had before, so that frames can flow."""
        began, waited = self._loop.time(), 0.0
        late: set[str] = set()
        while (away := self._without_link(slaves)) and waited < LINK_PATIENCE:
            late |= away
            await asyncio.sleep(0.02)
            waited = self._loop.time() - began
        for slave in sorted(late if waited > LINK_PAUSE else away):
            end = "it has not returned yet" if slave in away else f"waited {waited:.1f} s for it"
            self._tell(Log(Level.WARNING, f"its driver has reset the link for another MTU or MAC: {end}", slave))

    def _without_link(self, slaves: Sequence[str]) -> set[str]:
        down = (LinkState.DOWN, LinkState.FAIL)
        return {each.name for each in self.bond.snapshot().slaves if each.name in slaves and each.link in down}

    async def release(self, slave: str) -> None:
        """Release a slave and give it back what it had."""
        end = self.feed(ReleaseRequested(slave))
        self._forget(slave)
        await end

    async def write(self, name: str, text: str, slave: str | None = None) -> None:
        """Write an option."""
        await self.feed(OptionWritten(name, text, slave))
        self._follow_monitors()

    async def set_mtu(self, mtu: int) -> None:
        """The bond's device has this MTU now; slaves follow."""
        await self.feed(BondMtuChanged(mtu))

    @contextlib.contextmanager
    def notes(self) -> Iterator[list[str]]:
        """Collect the warnings that come while somebody waits for the outcome."""
        found: list[str] = []
        self._notes = found
        try:
            yield found
        finally:
            self._notes = None

    async def shut(self) -> None:
        """Release all slaves, the last first, so that each failover on the way has somewhere to go."""
        if self._left:
            return
        self._ending = True
        self._scout.rest()
        for look in (self._round, *self._looks.values()):
            look.cancel()
        if not self._performer.done():
            await self._queue.join()  # a slave on its way in must be in before it can be given back
        for slave in reversed([slave.name for slave in self.bond.snapshot().slaves]):
            try:
                await self.release(slave)
            except (DoorError, Refused) as error:
                log.error("%s: (slave %s): could not be given back: %s", self.name, slave, error)
        self.leave()

    def leave(self) -> None:
        """Do nothing any more: all slaves are released, or another process has them."""
        if self._left:
            return
        self._ending = self._left = True
        self._scout.rest()
        self._performer.cancel()
        self._end_netlink()
        self._loop.remove_reader(self.doors.datapath.news_fd)
        for timer in (self._timer, self._uppers_timer, self._filter_timer, self._round, *self._looks.values()):
            if timer is not None:
                timer.cancel()


def _only_the_link(now: Link, before: Link) -> bool:
    """Whether a link differs from what it was by its carrier alone."""
    return now.up == before.up and now == replace(
        before, flags=now.flags, carrier_changes=now.carrier_changes
    )
