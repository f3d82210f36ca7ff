"""One engine after another on the same descriptors: nothing in between is lost, doubled, reordered or forgotten."""

from __future__ import annotations

import threading

from tests.fastpath.bed import BOND, PEER, VNET, frame, number
from tests.fastpath.test_forwarding import arrivals, quiet, wait_for
from ubond.bond.evidence import Watch
from ubond.bond.table import Spread


def test_frames_each_way_go_on_without_loss_in_order(bed):
    b = bed(2)
    total, turns = 3000, 20
    out, back = [], []

    def send(sock, packets):
        for i in range(packets):
            sock.send(VNET + frame(i, dst=BOND if sock is b.wires[0] else PEER))

    def read(sock, found):
        while len(found) < total:
            found.append(number(sock.recv(70000)))

    threads = [
        threading.Thread(target=send, args=(b.tap, total)), threading.Thread(target=send, args=(b.wires[0], total)),
        threading.Thread(target=read, args=(b.wires[0], out)), threading.Thread(target=read, args=(b.tap, back)),
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for turn in range(turns):
        wait_for(lambda turn=turn: min(len(out), len(back)) >= total * turn // (turns + 1), "frames each way")
        b.succeed()
    for thread in threads:
        thread.join(20)
    assert out == back == list(range(total))
    counters = b.datapath.counters()["s0"]
    assert (counters["tx_frames"], counters["rx_frames"]) == (total, total)
    assert b.datapath.totals()["tap_frames"] == total


def test_the_old_one_can_go_on_after_all(bed):
    b = bed(2)
    for i in range(10):
        b.datapath.pause()
        b.send(frame(i))
        assert quiet(b.wires[0], 0.02)
        b.datapath.resume()
        assert number(arrivals(b.wires, 1)[0][1]) == i


def test_frames_that_wait_for_a_full_ring_are_sent_by_the_next_in_order(bed):
    b = bed(1, ring=8192)
    for _ in range(200):
        sent, before = 0, b.datapath.counters()["s0"]["tx_congested"]
        while not b.datapath._engine.waiting():
            b.send(frame(sent, size=1000))
            sent += 1
            assert sent < 1000
        memory, got = b.succeed(), []
        while len(got) + b.datapath.counters()["s0"]["tx_congested"] - before < sent and not quiet(b.wires[0], 0.5):
            got.append(number(b.wires[0].recv(70000)))
        assert got == sorted(set(got))
        waited = [number(packet) for packet, copied in memory.ports["s0"].waiting if not copied]
        assert waited == sorted(waited)
        if set(got) & set(waited):
            return  # else all of them were dropped, here or there, before this reader came
    raise AssertionError("no frame that waited was ever sent")


def test_the_turn_goes_on(bed):
    b = bed(3)
    b.publish(0, spread=Spread.ROUND_ROBIN)
    order = []
    for i in range(30):
        if i % 7 == 3:
            b.succeed()
        b.send(frame(i))
        order.append(arrivals(b.wires, 1)[0][0])
    assert order == [(order[0] + i) % 3 for i in range(30)]


def test_what_was_seen_goes_over(bed):
    b = bed(1)
    peer4, ours4 = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])
    b.publish(watch=Watch((peer4,), (), (ours4,), (), (BOND,)))
    guest = bytes.fromhex("020000000177")
    reply = bytes.fromhex("0001080006040002") + PEER + peer4 + BOND + ours4
    b.wires[0].send(VNET + (BOND + PEER + b"\x08\x06" + reply).ljust(60, b"\0"))
    b.tap.recv(70000)
    b.send(frame(1, src=guest))
    arrivals(b.wires, 1)
    seen = b.datapath.heard()
    assert seen, "an answer of the target"
    before, times = b.datapath.counters(), b.datapath.times("s0")
    b.succeed()
    assert b.datapath.seen_macs() == [guest]
    assert b.datapath.counters() == before
    assert b.datapath.times("s0")[1:] == times[1:]
    assert b.datapath.heard() == (), "it has been told already"
    b.wires[0].send(VNET + (BOND + PEER + b"\x08\x06" + reply).ljust(60, b"\0"))
    b.tap.recv(70000)
    b.succeed()
    assert {(one.form, one.slot) for one in b.datapath.heard()} == {(one.form, one.slot) for one in seen}
