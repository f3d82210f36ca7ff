"""Every recording of the driver's ARP monitor, replayed against a strict Bond.

The clock of a replay is the recording's: a pass takes place when the driver's did, which shows in
what it sent and logged, and what was heard is every frame recorded towards a slave.  The windows
are those of the recorded kernel, whose 50 ms are 13 ticks of 4 ms.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from tests.bond.pretend import MS, Rig, line, nic, recorded
from ubond.bond import events as ev
from ubond.bond.evidence import Sighting, see
from ubond.bond.options import IMPLEMENTED_MODES
from ubond.wire import MacAddr, WireError, decode_arp

Record = dict[str, Any]
RECORDS = {
    str(number): record
    for number, record in enumerate(recorded("arpmon"))
    if record["options"]["mode"] in {str(mode) for mode in IMPLEMENTED_MODES}
}
#: 50 ms in ticks.
INTERVAL_MS = 52
#: Two traces of the driver so near to each other are of one pass.
ONE_PASS_MS = 30
MONITOR_LINE = re.compile(
    r"link status definitely|interface is now|now running without|active interface up|making interface"
)


def _first_lines(record: Record) -> list[str]:
    return [text for at, text in record["log"] if at < ONE_PASS_MS]


#: Slaves that were enslaved so late that the first pass found them alive.
LATE = frozenset(number for number, record in RECORDS.items() if not _first_lines(record))
#: The command that opened the bond still held the configuration lock (monitoring, section 1): the
#: first pass logged what it would have committed, probed, and was not made up for.
FIRST_PASS_LOST = frozenset(
    number for number, record in RECORDS.items()
    if _first_lines(record) and not any("now running" in text for text in _first_lines(record))
)  # fmt: skip
#: The first answers were back within a millisecond, before the driver had given the slaves that it
#: took down the backup role, in which it would not have counted them.
RACE = frozenset(number for number, record in RECORDS.items() if record["options"] == {
    "mode": "balance-rr", "slaves": 3, "targets": 2, "arp_validate": "all"
})  # fmt: skip
#: The phase of the recorded kernel's ticks is not known: one of these explains a whole recording.
PHASES_MS = (0, 1, 2, 3)


def is_probe(frame: bytes) -> bool:
    """Whether this is a request for somebody else's address: no announcement."""
    try:
        arp = decode_arp(frame)
    except WireError:
        return False
    return arp.sender_ip != arp.target_ip


class Replay:
    def __init__(self, number: str, phase: int) -> None:
        record, late = RECORDS[number], number in LATE | FIRST_PASS_LOST | RACE
        self.untold = 2 if number in RACE else 1 if number in FIRST_PASS_LOST else 0
        """How many passes' lines are not to be compared."""
        self.skipped = int(number in FIRST_PASS_LOST and not record["targets"])
        self.record = record
        self.table = [bytes.fromhex(frame) for frame in record["frame_table"]]
        self.names = [f"s{number}" for number in range(record["options"]["slaves"])]
        macs = [MacAddr.parse(record["perm"][name]) for name in self.names]
        nics = (nic(name, number, mac=mac) for number, (name, mac) in enumerate(zip(self.names, macs, strict=True), 1))
        self.rig = Rig(*nics, strict=True)
        options = {k: v for k, v in record["options"].items() if k.startswith(("arp_", "mode", "fail_over"))}
        self.rig.set(**options)
        self.rig.set(arp_interval=INTERVAL_MS)
        for target in record["targets"]:
            self.rig.set(arp_ip_target=f"+{target}")
        self.rig.enslave(*self.names)
        if record["address"]:
            own = bytes(int(part) for part in record["address"].split("."))
            self.rig.do(ev.UppersChanged((ev.UpperFacts("bond0", self.rig.bond.snapshot().mac, (), (own,)),)))
            routes = tuple(ev.TargetRoute(target, source=own) for target in record["targets"])
            self.rig.do(ev.RoutesRead(routes))
        self.rig.now += (1 if late else 400) * MS + phase * MS
        self.start = self.rig.now
        self.coming = deque(record["frames"])
        self.see = cache(lambda frame, watch, slave: tuple(see(frame, watch, slave)))
        self.rig.world.logs.clear()

    def probes(self) -> list[tuple[float, int]]:
        """(ms, slave) of every request for a target that a slave sent."""
        requests = {number for number, frame in enumerate(self.table) if is_probe(frame)}
        return [(at, slave) for at, slave, sent, number in self.record["frames"] if sent and number in requests]

    def passes(self) -> list[float]:
        """ms of every pass of the driver's that left a trace."""
        traces = sorted(
            [at for at, _ in self.probes()] + [at for at, text in self.record["log"] if MONITOR_LINE.search(text)]
        )
        times: list[float] = []
        for at in traces:
            if not times or at - times[-1] > ONE_PASS_MS:
                times.append(at)
        return times

    def sightings(self, since: float, until: float) -> Iterator[Sighting]:
        table = self.rig.world.table
        assert table is not None
        while self.coming and self.coming[0][0] < until:
            at, slave, sent, number = self.coming.popleft()
            if not sent and at >= since:
                for form, slot in self.see(self.table[number], table.watch, slave):
                    yield Sighting(self.names[slave], self.start + int(at * MS), form, slot)

    def cables(self) -> list[tuple[float, str, bool]]:
        """When a carrier went or came: the commands take a while, what a slave carries shows when."""
        found = []
        for at, text in self.record["events"]:
            match = re.match(r"carrier of (s\d) (on|off)", text)
            if match is None:
                continue
            number, on = int(match[1][1:]), match[2] == "on"
            frames = [when for when, slave, _, _ in self.record["frames"] if slave == number]
            if on:
                at = min((when for when in frames if when > at), default=at) - 1
            else:
                at = max([when for when in frames if when < at + 300], default=at) + 1
            found.append((at, match[1], on))
        return found

    def play(self) -> Iterator[tuple[float, list[str], list[str]]]:
        """Yield each pass: ms, the lines logged and the slaves probed on, in order."""
        rig, heard = self.rig, -1.0
        cables = self.cables()
        passes = self.passes()[self.skipped :]
        # The recording may end in the middle of a pass.
        for number, at in enumerate(passes[:-1] if self.record["targets"] else passes):
            while cables and cables[0][0] < at:
                when, name, on = cables.pop(0)
                rig.now = self.start + int(when * MS)
                rig.carrier(name, on)
            rig.now = max(self.start + int(at * MS), rig.bond.deadline() or 0)
            mark = len(rig.world.done)
            if number == 0:
                rig.do(ev.BondOpened())
            rig.do(ev.Listened(tuple(self.sightings(heard, at))))
            heard = at
            sent = [
                action.slave for action in rig.world.done[mark:]
                if isinstance(action, ev.SendFrames) and action.what == "probe"
            ]  # fmt: skip
            lines = [line(log) for log in rig.world.logs if log.level < ev.Level.DEBUG]
            rig.world.logs.clear()
            yield at, lines, sent

    def recorded_pass(self, at: float) -> tuple[list[str], list[str]]:
        """What the driver logged and on which slaves it probed in the pass at this time."""
        lines = [
            text.removeprefix("bond0: ") for when, text in self.record["log"]
            if at <= when <= at + ONE_PASS_MS and MONITOR_LINE.search(text)
        ]  # fmt: skip
        sent = [self.names[slave] for when, slave in self.probes() if at <= when <= at + ONE_PASS_MS]
        return lines, list(dict.fromkeys(sent))

    def states(self) -> tuple[str, list[str]]:
        shot = self.rig.bond.snapshot()
        roles = [f"{slave.link.value} {'backup' if slave.backup else 'active'}" for slave in shot.slaves]
        return shot.active_slave or "", roles


def differences(number: str, phase: int) -> tuple[int, list[str]]:
    """How many passes were compared, and what was not the same."""
    replay, found, count = Replay(number, phase), list[str](), 0
    for at, lines, sent in replay.play():
        wanted_lines, wanted_sent = replay.recorded_pass(at)
        if count >= replay.untold and lines != wanted_lines:
            found.append(f"pass {count} at {at} ms logged {lines}, the driver {wanted_lines}")
        if sent != wanted_sent:
            found.append(f"pass {count} at {at} ms probed on {sent}, the driver on {wanted_sent}")
        count += 1
    return count, found


@pytest.mark.parametrize("number", RECORDS)
def test_recorded_passes_do_the_same(number: str) -> None:
    record = RECORDS[number]
    for phase in PHASES_MS:
        count, found = differences(number, phase)
        if not found:
            break
    assert not found
    assert not record["targets"] or count > 0.7 * record["frames"][-1][0] / 60


def test_recordings_that_are_not_compared_whole_are_few() -> None:
    assert (len(LATE), len(RACE)) == (2, 1)
    assert len(FIRST_PASS_LOST) <= 4
