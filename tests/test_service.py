"""The hall's own rules: what may overtake what, and that failures come back as events."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
import uvloop

from tests.bond.pretend import opened
from ubond import datapath, doors, handover, netlink, service
from ubond.assembly import Alarm
from ubond.bond.document import freeze
from ubond.bond.events import (
    Action,
    ActionFailed,
    ActiveChanged,
    BondClosed,
    BondOpened,
    CarrierChanged,
    DoorError,
    Enslaved,
    Event,
    Level,
    Log,
    PublishTable,
    SetBondCarrier,
    SetBondMac,
    SlaveChecked,
    SlaveFacts,
    SlaveGone,
    SlaveRenamed,
    SpeedRead,
    Then,
    UppersChanged,
    Woken,
)
from ubond.bond.snapshot import LinkState
from ubond.bond.spec import BondSpec
from ubond.bond.table import Spread, TxTable
from ubond.service import Service
from ubond.uppers import Link
from ubond.wire import MacAddr

MAC = MacAddr(bytes([2, 0, 0, 0, 0, 1]))


def table(number: int) -> PublishTable:
    return PublishTable(TxTable(Spread.SINGLE, (), packets_per_slave=number))

OPTIONS = {"miimon": 100, "use_carrier": 1, "arp_interval": 0, "probe": 0, "busy_poll": 0}


class Script:
    """A study that answers each event with what the test says."""

    def __init__(self, **answers: list[Action]) -> None:
        self.answers = answers
        self.seen: list[Event] = []
        self.slaves: tuple[Any, ...] = ()
        self.listens = False
        self.awaited: tuple[str, ...] = ()

    def handle(self, event: Event, now: int) -> list[Action]:
        self.seen.append(event)
        return list(self.answers.get(type(event).__name__, []))

    def deadline(self) -> int | None:
        return None

    def snapshot(self) -> Any:
        return SimpleNamespace(name="bond0", options=OPTIONS, slaves=self.slaves, targets=(), awaited=self.awaited,
                               up=True, carrier=True, mac=MAC, mtu=1500, uppers=())


class Doors:
    """Doors that note what is done, and wait or refuse where the test says."""

    ns_targets = ()
    shared_mac: frozenset[bytes] = frozenset()

    def __init__(self) -> None:
        self.done: list[Action] = []
        self.gate = asyncio.Event()
        self.refuse: Action | None = None
        self.ports: dict[str, object] = {}
        self.gates = {"eth1": "clsact"}
        self.notes: list[Log] = []
        self.index = 1
        self.busy_poll: list[int] = []
        self.reader, self.writer = os.pipe()
        self.netlink = SimpleNamespace(subscribe=lambda listener: lambda: None, link=lambda index: None,
                                       uppers=lambda index: ())  # fmt: skip
        self.datapath = SimpleNamespace(news_fd=self.reader, set_interval=lambda ns, by_mii: None,
                                        set_busy_poll=self.busy_poll.append, sees_unannounced=True)  # fmt: skip

    def perform_now(self, action: Action) -> None:
        if action == self.refuse:
            raise DoorError("TUNSETCARRIER", 22, "bond0")
        self.done.append(action)

    async def perform(self, action: Action) -> None:
        if isinstance(action, SetBondMac):
            await self.gate.wait()
        self.perform_now(action)


def test_a_table_never_overtakes_one_made_before_it() -> None:
    async def story() -> None:
        doors = Doors()
        study = Script(BondOpened=[SetBondMac(MAC), table(1)], BondClosed=[table(2)])
        service = Service(study, doors)  # type: ignore[arg-type]
        first = service.feed(BondOpened())
        await asyncio.sleep(0)
        second = service.feed(BondClosed())
        doors.gate.set()
        await asyncio.gather(first, second)
        assert doors.done == [SetBondMac(MAC), table(1), table(2)]

    asyncio.run(story())


def test_what_has_no_table_before_it_is_done_at_once() -> None:
    async def story() -> None:
        doors = Doors()
        study = Script(BondOpened=[SetBondMac(MAC)], BondClosed=[table(2), SetBondCarrier(True)])
        service = Service(study, doors)  # type: ignore[arg-type]
        slow = service.feed(BondOpened())
        await asyncio.sleep(0)
        assert service.feed(BondClosed()).done()
        assert doors.done == [table(2), SetBondCarrier(True)]
        doors.gate.set()
        await slow

    asyncio.run(story())


def test_what_the_doors_have_to_say_of_an_action_is_in_the_log_and_told_to_who_waits() -> None:
    async def story() -> None:
        doors = Doors()
        doors.gate.set()
        doors.notes.append(Log(Level.WARNING, "down and up again", "eth1"))
        service = Service(Script(BondOpened=[SetBondMac(MAC)]), doors)  # type: ignore[arg-type]
        with service.notes() as notes:
            await service.feed(BondOpened())
        assert notes == ["bond0: (slave eth1): down and up again"]
        assert service.lines[-1]["text"] == notes[0]
        assert not doors.notes

    asyncio.run(story())


def test_workers_hear_in_nanoseconds_how_long_to_look_before_they_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        doors = Doors()
        monkeypatch.setitem(OPTIONS, "busy_poll", 50)
        Service(Script(), doors)  # type: ignore[arg-type]
        assert doors.busy_poll == [50_000]

    asyncio.run(story())


def test_a_look_that_led_to_nothing_is_told_again_only_when_something_has_happened_since() -> None:
    async def story() -> None:
        study = Script(ActionFailed=[])
        study.slaves = (SimpleNamespace(name="eth1", index=7, fights=()),)
        service = Service(study, Doors())  # type: ignore[arg-type]
        same, other = (SlaveChecked(SlaveFacts("eth1", 7, MAC, mtu, True, True), True) for mtu in (1500, 1400))

        def told(*looks: SlaveChecked) -> int:
            before = len(study.seen)
            for look in looks:
                service._compare(look)
            return len(study.seen) - before

        assert told(same, same, same) == 1
        assert told(other, same, other) == 3
        service.feed(Woken())
        assert told(other, other) == 1
        study.answers["SlaveChecked"] = [Log(Level.WARNING, "put right")]
        assert told(same, same) == 2            # what leads to something may have to again
        study.answers.clear()
        study.slaves = (SimpleNamespace(name="eth1", index=7, fights=("MTU",)),)
        assert told(other, other) == 2          # what is left alone now is not for ever

    asyncio.run(story())


def test_looks_around_end_while_nothing_happens_or_waits_for_them_and_come_soon_after_an_event() -> None:
    async def story() -> None:
        study, doors = Script(), Doors()
        service = Service(study, doors)  # type: ignore[arg-type]
        service._look_around()
        pauses = []
        for _ in range(6):
            service._round.cancel()
            pauses.append(service._pause)
            service._look_around()
        assert pauses == [5, 10, None, None, None, None]
        assert service._round.cancelled()
        service.feed(Woken())
        assert not service._round.cancelled()
        assert service._round.when() - asyncio.get_running_loop().time() <= 5
        service._look_around()
        assert service._pause == 5              # it follows an event
        service._look_around()
        assert service._pause == 10
        for waits, rests in ((("listens", True), ("listens", False)), (("awaited", ("eth1",)), ("awaited", ())),
                             (("sees_unannounced", False), ("sees_unannounced", True)),
                             (("gates", {"eth1": "nft"}), ("gates", {"eth1": "clsact"}))):  # fmt: skip
            who = {"sees_unannounced": doors.datapath, "gates": doors}.get(waits[0], study)
            setattr(who, *waits)
            service._look_around()
            assert service._pause == 5, waits
            setattr(who, *rests)
            service._events_then = service._events
            service._look_around()
            assert service._pause == 10
        service.leave()

    asyncio.run(story())


@pytest.mark.parametrize("slow", [False, True])
def test_a_failed_action_cancels_the_rest_and_is_an_event(slow: bool) -> None:
    async def story() -> None:
        doors = Doors()
        doors.gate.set()
        doors.refuse = SetBondCarrier(True)
        before: list[Action] = [SetBondMac(MAC)] if slow else [table(1)]
        rest = Log(Level.INFO, "never said")
        study = Script(BondOpened=[*before, SetBondCarrier(True), rest], ActionFailed=[table(9)])
        service = Service(study, doors)  # type: ignore[arg-type]
        with pytest.raises(DoorError):
            await service.feed(BondOpened())
        failed = study.seen[-1]
        assert isinstance(failed, ActionFailed)
        assert (failed.action, failed.done, failed.errno) == (SetBondCarrier(True), tuple(before), 22)
        assert doors.done == [*before, table(9)]
        assert not service.lines

    asyncio.run(story())


def test_log_lines_are_kept_with_their_prefix() -> None:
    async def story() -> None:
        study = Script(Woken=[Log(Level.INFO, "link status definitely up", "eth1"), Log(Level.DEBUG, "detail")])
        service = Service(study, Doors())  # type: ignore[arg-type]
        await service.feed(Woken())
        assert [line["text"] for line in service.lines] == ["bond0: (slave eth1): link status definitely up"]
        await service.feed(UppersChanged(()))

    asyncio.run(story())


def links(**states: LinkState) -> tuple[Any, ...]:
    return tuple(SimpleNamespace(name=name, index=number, link=link)
                 for number, (name, link) in enumerate(states.items(), 1))  # fmt: skip


def test_up_waits_for_a_link_that_a_driver_resets_and_says_how_long() -> None:
    async def story() -> None:
        study = Script()
        study.slaves = links(eth1=LinkState.DOWN, eth2=LinkState.UP, eth3=LinkState.DOWN)
        service = Service(study, Doors())  # type: ignore[arg-type]
        # eth3 had no link before: nobody waits for a cable that is not there.
        waiting = asyncio.ensure_future(service.wait_for_links(["eth1", "eth2"]))
        await asyncio.sleep(0.4)
        assert not waiting.done()
        study.slaves = links(eth1=LinkState.BACK, eth2=LinkState.UP, eth3=LinkState.DOWN)
        await waiting
        (line,) = (str(line["text"]) for line in service.lines)
        assert line.startswith("bond0: (slave eth1): its driver has reset the link for another MTU or MAC: waited 0.")

    asyncio.run(story())


def test_up_does_not_wait_for_ever_for_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        monkeypatch.setattr("ubond.service.LINK_PATIENCE", 0.1)
        study = Script()
        study.slaves = links(eth1=LinkState.DOWN)
        service = Service(study, Doors())  # type: ignore[arg-type]
        await service.wait_for_links(["eth1"])
        assert "it has not returned yet" in str(service.lines[-1]["text"])
        await service.wait_for_links([])
        assert len(service.lines) == 1

    asyncio.run(story())


# ── what is kept for a successor ─────────────────────────────────────────────────────


def test_a_document_with_a_past_written_before_reads_as_the_whole_one() -> None:
    """Slaves and failovers are each numbered from nought: who was the same stays the same."""
    rig = opened("a", "b")
    past = service.Memory(7, deque([{"text": "one"}]), restarts=2)
    for name in ("a", "b"):
        past.history.begin(ActiveChanged(None, name, "because", False), 5, 0)
    document = handover.Document(
        handover.VERSION, BondSpec("bond0", ()), "bond0", rig.bond.memory(), doors.Memory(3), datapath.Memory(),
        service.Memory(),
    )  # fmt: skip
    text = handover.write(document, handover.write_past(past))
    read = handover.read(json.loads(text), random_mac=document.bond.state.random_mac)
    assert freeze(read.bond) == freeze(document.bond)
    assert freeze(read.service) == freeze(past)
    assert read.service.history.open is read.service.history.kept[-1]
    assert read.bond.state.active is read.bond.state.slaves[0]


def test_an_alarm_rings_once_at_the_earliest_time_that_was_asked_for() -> None:
    """On the daemon's own loop, also for times so short that it makes no timer for them."""
    rung: list[float] = []

    async def ask() -> None:
        alarm = Alarm(lambda: rung.append(time.monotonic()))
        for _ in range(3):
            alarm.within(0.0001)
        alarm.within(60)
        await asyncio.sleep(0.05)
        assert len(rung) == 1
        alarm.within(60)
        alarm.within(0.0001)
        await asyncio.sleep(0.05)
        assert len(rung) == 2
        alarm.within(0.0001)
        alarm.cancel()
        await asyncio.sleep(0.05)
        assert len(rung) == 2

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ask())


def test_a_new_slave_has_the_carrier_that_the_kernel_says_whatever_the_watch_has_read_and_reads_meanwhile() -> None:
    """The watch looks all the time: until it is told what is true, it says after each of our glances something else."""
    told: list[datapath.CarrierRead] = []
    believed: list[bool] = []

    def news() -> list[datapath.CarrierRead]:
        said = told[:]
        told[:] = [] if believed else [datapath.CarrierRead("eth1", False, 1)]
        return said

    async def story() -> None:
        doors, enslaved = Doors(), Enslaved(SlaveFacts("eth1", 7, MAC, 1500, True, True))
        doors.netlink.glance = AsyncMock(return_value=enslaved.facts)
        doors.datapath.news, doors.datapath.diverted = news, list
        doors.datapath.look = lambda slave: None
        doors.datapath.believe = lambda slave, carrier: believed.append(carrier)
        study = Script(BondOpened=[Then(enslaved)])
        service = Service(study, doors)  # type: ignore[arg-type]
        told.append(datapath.CarrierRead("eth1", False, 1))
        await service.feed(BondOpened())
        service._datapath_news()
        assert believed == [True]
        assert enslaved in study.seen
        assert not any(isinstance(event, CarrierChanged) for event in study.seen)

    asyncio.run(story())


class Rising:
    """A hall with one slave, whose link the watch tells of and whose speed is read when the test lets it."""

    def __init__(self) -> None:
        self.doors, self.study = Doors(), Script()
        self.study.slaves = (SimpleNamespace(name="eth1", index=7),)
        self.answer = asyncio.Event()
        self.fails = False
        self.doors.netlink.speed = self._speed
        self.doors.rename = lambda old, new: None  # type: ignore[attr-defined]
        self.told: list[datapath.CarrierRead] = []
        self.doors.datapath.news, self.doors.datapath.diverted = self._news, list
        self.doors.datapath.counters, self.doors.datapath.released = dict, dict
        self.doors.datapath.look = lambda slave: None
        self.doors.datapath.totals = lambda: {"no_slave": 0}
        self.doors.filters_followed = AsyncMock()  # type: ignore[attr-defined]
        self.hall = Service(self.study, self.doors)  # type: ignore[arg-type]

    async def _speed(self, name: str) -> tuple[int, int]:
        await self.answer.wait()
        if self.fails:
            raise DoorError("ETHTOOL_GLINKSETTINGS", 19, name)
        return 10_000, 1

    def _news(self) -> list[datapath.CarrierRead]:
        said, self.told = self.told, []
        return said

    def reads(self, carrier: bool) -> None:
        self.told.append(datapath.CarrierRead("eth1", carrier, 1))
        self.hall._datapath_news()

    async def heard(self, count: int) -> list[Event]:
        """What the study hears of the link, when it has heard so much; and nothing more follows."""
        kinds = CarrierChanged, SpeedRead
        async with asyncio.timeout(10):
            while len([event for event in self.study.seen if isinstance(event, kinds)]) < count:
                await asyncio.sleep(0.001)
        for _ in range(10):
            await asyncio.sleep(0)
        return [event for event in self.study.seen if isinstance(event, kinds)]


SPEED = SpeedRead("eth1", 10_000, 1)
RISEN, FALLEN = CarrierChanged("eth1", True), CarrierChanged("eth1", False)


def test_who_rises_is_known_by_its_speed_before_it_may_be_chosen() -> None:
    async def story() -> None:
        rising = Rising()
        rising.reads(True)
        await asyncio.sleep(0)
        assert rising.study.seen == []
        assert not await rising.hall.stand_still()
        rising.answer.set()
        assert await rising.heard(2) == [SPEED, RISEN]

    asyncio.run(story())


@pytest.mark.parametrize("fails", [True, False])
def test_a_link_does_not_wait_for_a_speed_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    async def story() -> None:
        rising = Rising()
        rising.fails = fails
        if fails:
            rising.answer.set()
        else:
            monkeypatch.setattr(service, "SPEED_PATIENCE", 0.001)
        rising.reads(True)
        assert await rising.heard(1) == [RISEN]
        rising.answer.set()     # the late one is taken in all the same
        assert fails or await rising.heard(2) == [RISEN, SPEED]

    asyncio.run(story())


def test_what_rose_and_fell_while_its_speed_was_read_has_not_risen() -> None:
    async def story() -> None:
        rising = Rising()
        rising.reads(True)
        rising.reads(False)
        rising.reads(True)
        rising.reads(False)
        assert await rising.heard(2) == [FALLEN, FALLEN]
        rising.answer.set()
        await asyncio.sleep(0.01)
        assert RISEN not in await rising.heard(2)

    asyncio.run(story())


def test_what_rises_under_another_name_or_is_released_meanwhile() -> None:
    async def story(*, released: bool) -> list[Event]:
        rising = Rising()
        rising.reads(True)
        await asyncio.sleep(0)
        if released:
            await rising.hall.release("eth1")
        else:
            rising.hall._slave_is_called("eth1", "eth9")
        rising.answer.set()
        return await rising.heard(0 if released else 2)

    assert asyncio.run(story(released=False)) == [SpeedRead("eth9", 10_000, 1), CarrierChanged("eth9", True)]
    assert asyncio.run(story(released=True)) == []


def test_of_the_names_that_a_slave_has_in_a_row_only_the_last_is_taken() -> None:
    """Each would be a transaction: thousands would hold up whoever asks for seconds."""

    def link(name: str) -> netlink.LinkChanged:
        return netlink.LinkChanged(Link(7, name, 1, MAC, 1500), None)

    async def story(*names: str, then: netlink.Change | None = None) -> tuple[list[Event], list[str]]:
        rising = Rising()
        looked: list[str] = []
        rising.doors.datapath.look = looked.append
        before = "eth1"
        for name in names:
            rising.hall._netlink_news(netlink.LinkRenamed(before, name, 7))
            rising.hall._netlink_news(link(name))
            before = name
        if then is not None:
            rising.hall._netlink_news(then)
        await asyncio.sleep(0)
        kinds = SlaveRenamed, SlaveGone
        return [event for event in rising.study.seen if isinstance(event, kinds)], looked

    assert asyncio.run(story("eth8", "eth9")) == ([SlaveRenamed("eth1", "eth9")], ["eth9"])
    assert asyncio.run(story("eth9", "eth1")) == ([], ["eth1"])
    gone = asyncio.run(story("eth8", "eth9", then=netlink.LinkGone("eth9", 7)))[0]
    assert gone == [SlaveRenamed("eth1", "eth9"), SlaveGone("eth9")]
