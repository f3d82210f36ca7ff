"""Two workers of one bond: each its own queue and sockets, one table, one opinion of what is dead."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.fastpath.bed import BOND, VNET, frame, number
from tests.fastpath.test_forwarding import SO_DETACH_FILTER, arrivals, quiet, wait_for
from ubond.bond.table import Divert, Spread, TableSlave, TxTable
from ubond.datapath import Datapath, DeadLink


def test_each_worker_serves_its_queue_and_its_sockets(bed):
    b = bed(2, workers=2)
    for i in range(100):
        b.send(frame(i), queue=i % 2)
        b.wire(0, i % 2).send(VNET + frame(i, dst=BOND))
        b.wire(1, i % 2).send(VNET + frame(i, dst=BOND))
    for worker in range(2):
        mine = list(range(worker, 100, 2))
        assert [number(b.wire(0, worker).recv(2048)) for _ in mine] == mine
        assert [number(b.taps[worker].recv(2048)) for _ in mine] == mine
    shares = b.datapath.shares()
    wait_for(lambda: b.datapath.counters()["s1"]["rx_ignored"] == 100, "ignored on the backup")
    assert [one["tap_frames"] for one in shares] == [50, 50]
    counters = b.datapath.counters()["s0"]
    assert (counters["tx_frames"], counters["rx_frames"], b.datapath.totals()["tap_frames"]) == (100, 100, 100)
    assert [one["rx_ignored"] for one in b.datapath.shares()] == [50, 50]


def test_workers_that_look_before_they_sleep_serve_both_ways_and_do_sleep(bed):
    b = bed(2, workers=2)
    b.datapath.set_busy_poll(1_000_000)
    states = [Path(f"/proc/self/task/{thread.native_id}/stat") for thread in b.datapath._working]
    for i in range(200):
        b.send(frame(i), queue=i % 2)
        assert number(b.wire(0, i % 2).recv(2048)) == i     # each in its own turn of the loop
        b.wire(0, i % 2).send(VNET + frame(i, dst=BOND))
        assert number(b.taps[i % 2].recv(2048)) == i
    for state in states:
        wait_for(lambda at=state: at.read_text().rpartition(")")[2].split()[0] == "S", "a worker that sleeps")
    b.publish(1)        # a kick wakes them
    b.datapath.set_busy_poll(0)
    b.send(frame(7))
    assert number(b.wire(1, 0).recv(2048)) == 7


def test_what_one_worker_finds_dead_the_other_does_not_use_either(bed):
    b = bed(3, ring=8192, workers=2)
    b.datapath.news()
    b.datapath._engine.rename_port(0, "no-such-nic")
    sent = 0
    while not (taken := b.datapath.stand_in()):
        # Until its ring is full, or for one more if we look too early; none has the number of a later frame.
        b.send(frame(100 + sent, size=1000), queue=0)
        sent += 1
        wait_for(lambda: b.datapath.totals()["tap_frames"] == sent, "taken")  # noqa: B023
        assert sent < 100
    assert taken == "s1"
    # The other has sent nothing and received nothing, and follows.
    for worker in (1, 0):
        told = b.wire(1, worker)
        told.send(VNET + frame(7, dst=BOND))
        assert number(b.taps[worker].recv(2048)) == 7
        b.wire(0, worker).send(VNET + frame(8, dst=BOND))
        assert quiet(b.taps[worker])
        b.send(frame(9), queue=worker)
        while number(got := told.recv(70000)) != 9:
            assert len(got) > 1000, "what waited for the dead one comes first"
    assert [(one.slave, one.stand_in) for one in b.datapath.news() if isinstance(one, DeadLink)] == [("s0", "s1")]
    # A new table is a new opinion.
    b.publish(0)
    wait_for(lambda: b.datapath.stand_in() is None, "the table holds")
    b.wire(0, 1).send(VNET + frame(10, dst=BOND))
    assert number(b.taps[1].recv(2048)) == 10


def test_balance_rr_takes_turns_over_all_workers(bed):
    b = bed(3, workers=2)
    b.publish(0, spread=Spread.ROUND_ROBIN)
    order = []
    for i in range(60):
        queue = (0, 1, 1, 0, 1)[i % 5]
        b.send(frame(i), queue=queue)
        order.append(arrivals([b.wire(slave, queue) for slave in range(3)], 1)[0][0])
    assert order == [(order[0] + i) % 3 for i in range(60)]


@pytest.mark.parametrize("spread", [Spread.HASH, Spread.BROADCAST])
def test_modes_that_send_everywhere_do_so_from_each_worker(bed, spread):
    b = bed(2, workers=2)
    b.publish(None, spread=spread)
    copies = 2 if spread is Spread.BROADCAST else 1
    for i in range(50):
        b.send(frame(i), queue=i % 2)
        got = arrivals([b.wire(slave, i % 2) for slave in range(2)], copies)
        assert [number(packet) for _, packet in got] == [i] * copies
        assert len({wire for wire, _ in got}) == copies


def test_a_diverted_frame_is_seen_once_whichever_worker_had_it(bed):
    b = bed(2, workers=2, divert=Divert.SLOW)
    for i in range(40):
        b.wire(i % 2, i // 2 % 2).send(VNET + frame(i, dst=bytes.fromhex("0180c2000002"), kind=0x8809))
    got = []
    wait_for(lambda: got.extend(b.datapath.diverted()) or len(got) >= 40, "forty diverted frames")
    assert sorted((slave, number(VNET + bytes(one))) for _, slave, one in got) == sorted(
        (f"s{i % 2}", i) for i in range(40)
    )
    assert not b.datapath.diverted()
    assert quiet(b.taps[0])
    assert quiet(b.taps[1])


def test_groups_are_reported_by_whichever_worker_sees_it(bed):
    b = bed(1, workers=2)
    report = bytes.fromhex("01005e000016") + BOND[:6] + bytes.fromhex("080046c00028000040000102") + bytes(28)
    for queue in (0, 1):
        b.datapath.news()
        b.datapath.expect_reports()
        b.send(report, queue=queue)
        found = []
        wait_for(lambda found=found: found.extend(b.datapath.news()) or found, "told")
        assert len(found) == 1


def test_sockets_are_free_when_both_workers_have_passed(bed):
    b = bed(2, workers=2)
    alone = (TableSlave("s1", True, True),)
    total = 20 * 200
    for turn in range(20):
        b.publish(0)
        for i in range(200):
            for worker in range(2):
                b.wire(0, worker).send(VNET + frame(200 * turn + i, dst=BOND))
        b.datapath.publish(TxTable(Spread.SINGLE, alone, 0, address=BOND))
        asyncio.run(b.datapath.remove("s0"))
        for _, theirs in b._slaves[0][:2]:
            theirs.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        b.add(0)
    got: list[list[int]] = [[], []]
    for queue, packet in arrivals(b.taps, 2 * total - b.datapath.released().get("rx_left", 0)):
        got[queue].append(number(packet))
    assert all(one == sorted(set(one)) for one in got)
    assert sum(map(len, got)) == b.datapath.released()["rx_frames"] >= total


def test_what_waits_with_a_worker_waits_with_the_same_one_after_an_upgrade(bed):
    b = bed(1, ring=8192, workers=2)
    for _ in range(200):
        sent, before = 0, b.datapath.counters()["s0"]["tx_congested"]
        while not b.datapath._engine.waiting():
            b.send(frame(sent, size=1000), queue=1)
            sent += 1
            assert sent < 1000
        memory, got, wire = b.succeed(), [], b.wire(0, 1)
        while len(got) + b.datapath.counters()["s0"]["tx_congested"] - before < sent and not quiet(wire, 0.5):
            got.append(number(wire.recv(70000)))
        assert got == sorted(set(got))
        assert quiet(b.wire(0, 0), 0)
        known = memory.ports["s0"]
        assert set(known.waiting_at) <= {1}
        if set(got) & {number(packet) for packet, _ in known.waiting}:
            return  # else all of them were dropped, here or there, before this reader came
    raise AssertionError("no frame that waited was ever sent")


def test_a_number_of_workers_that_cannot_be_is_refused():
    for workers in (0, 17):
        with pytest.raises(ValueError, match="workers"):
            Datapath([], 0, workers)
