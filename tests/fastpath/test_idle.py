"""What the watch tells control of, so that control need not wake to see: frames, and groups that nobody reports."""

from __future__ import annotations

import select

from tests.fastpath.bed import BOND, VNET, frame
from tests.fastpath.test_forwarding import wait_for
from ubond.datapath import Datapath, FramesPassed, GroupsReported

MS = 1_000_000


def news_within(datapath, seconds):
    return datapath.news() if select.select([datapath.news_fd], [], [], seconds)[0] else []


def frames_told(b, seconds=2.0):
    return [type(one) for one in news_within(b.datapath, seconds)] == [FramesPassed]


def test_the_next_frame_of_either_way_is_told_once_when_asked_for(bed):
    b = bed(2)
    b.datapath.set_interval(5 * MS)
    news_within(b.datapath, 0.1)     # of the slaves' links
    b.send(frame())
    assert not news_within(b.datapath, 0.1)
    for send in (lambda: b.send(frame()), lambda: b.wires[0].send(VNET + frame(dst=BOND)),
                 lambda: b.wires[1].send(VNET + frame(dst=BOND))):  # fmt: skip
        b.datapath.ask_for_frames()
        assert not news_within(b.datapath, 0.1), "without a frame"
        send()
        assert frames_told(b)
        send()
        assert not news_within(b.datapath, 0.1), "asked for one"


def test_frames_between_two_polls_are_told_at_the_next(bed):
    b = bed(1)
    b.datapath.set_interval(0)
    b.datapath.ask_for_frames()
    b.send(frame())
    assert not news_within(b.datapath, 0.1)
    b.datapath.set_interval(5 * MS)
    wait_for(lambda: FramesPassed in [type(one) for one in news_within(b.datapath, 0.1)], "the news")


def test_another_text_of_the_list_of_groups_is_told(tmp_path):
    with open(tmp_path / "dev_mcast", "w+b", buffering=0) as groups:
        groups.write(b"1 lo 1 0 01005e000001\n" * 1000)
        datapath = Datapath([], -1, 1, groups.fileno())
        assert not datapath.sees_unannounced
        datapath.set_interval(5 * MS)
        assert datapath.sees_unannounced
        datapath.start()
        try:
            assert [type(one) for one in news_within(datapath, 2)] == [GroupsReported]
            assert not news_within(datapath, 0.1)
            groups.write(b"2 eth0 1 0 01005e000002\n")
            assert [type(one) for one in news_within(datapath, 10)] == [GroupsReported]
        finally:
            datapath.stop()
