"""What frames prove: the worker's comparison against its readable twin, on generated frames and on sockets."""

from __future__ import annotations

import time
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from tests.fastpath.bed import BOND, PEER, Bed, frame
from ubond import _fastpath
from ubond.bond.evidence import Form, Watch, see
from ubond.wire import (
    ALL_NODES,
    Arp,
    Ethernet,
    MacAddr,
    arp_request,
    encode_arp,
    encode_ethernet,
    neighbour_solicitation,
    solicited_node,
    unsolicited_na,
)

TARGETS4 = (b"\x0a\0\0\x01", b"\x0a\0\0\x02")
TARGETS6 = (bytes.fromhex("20010db8" + "00" * 11 + "01"), bytes.fromhex("fe80" + "00" * 13 + "02"))
OURS4, OURS6 = (bytes(4), b"\x0a\0\0\x63"), (bytes.fromhex("20010db8" + "00" * 11 + "63"),)
OTHER = bytes.fromhex("020000000077")
WATCH = Watch(TARGETS4, TARGETS6, OURS4, OURS6, (BOND, PEER))

addresses4 = st.sampled_from([*TARGETS4, *OURS4, b"\x0a\0\0\x07"])
addresses6 = st.sampled_from([*TARGETS6, *OURS6, bytes(16), ALL_NODES, *map(solicited_node, TARGETS6), b"\xfd" * 16])
macs = st.sampled_from([BOND, PEER, OTHER, b"\xff" * 6, b"\x33\x33\xff\0\0\x01"])
tags = st.sampled_from([(), ((0x8100, 100),), ((0x88A8, 5), (0x8100, 100))])


@st.composite
def arps(draw: st.DrawFn) -> bytes:
    arp = Arp(draw(st.sampled_from([1, 2, 9])), MacAddr(PEER), draw(addresses4), MacAddr(BOND), draw(addresses4))
    return encode_arp(arp, MacAddr(draw(macs)), draw(tags))


@st.composite
def discoveries(draw: st.DrawFn) -> bytes:
    kind, hops = draw(st.sampled_from([133, 135, 136])), draw(st.sampled_from([255, 64]))
    ip = bytes((0x60, 0, 0, 0, 0, 24, 58, hops)) + draw(addresses6) + draw(addresses6) + bytes((kind,)) + bytes(23)
    return encode_ethernet(Ethernet(MacAddr(draw(macs)), MacAddr(PEER), 0x86DD, ip, draw(tags)))


def cut(whole: bytes, cuts: tuple[int, int, int]) -> bytes:
    """The frame with one byte changed, and cut short."""
    at, value, length = cuts
    changed = bytearray(whole)
    if at < len(changed):
        changed[at] = value
    return bytes(changed[: max(14, length)])


frames = st.one_of(
    arps(), discoveries(), st.binary(min_size=14, max_size=100),
    st.builds(cut, st.one_of(arps(), discoveries()),
              st.tuples(st.integers(0, 90), st.integers(0, 255), st.integers(14, 100))),
)  # fmt: skip


@given(frames, st.integers(0, 1))
def test_the_worker_sees_what_its_twin_sees(packet: bytes, slave: int) -> None:
    wanted = {(int(form), slot) for form, slot in see(packet, WATCH, slave) if form is not Form.ANY}
    fields = (WATCH.targets4, WATCH.targets6, WATCH.ours4, WATCH.ours6, WATCH.macs)
    assert set(_fastpath.frame_shows(packet, fields, slave)) == wanted


def reply(sender: bytes, target: bytes, dst: bytes = BOND) -> bytes:
    return encode_arp(Arp(2, MacAddr(PEER), sender, MacAddr(BOND), target), MacAddr(dst))


def test_each_form_has_an_example() -> None:
    mac = MacAddr(BOND)
    shown = {
        "reply": (reply(TARGETS4[1], OURS4[1]), {(Form.ARP, 0), (Form.ANSWER, 1), (Form.REPLY, 1)}),
        "own": (arp_request(mac, OURS4[1], TARGETS4[0]), {(Form.ARP, 0), (Form.OWN, 0)}),
        "own6": (neighbour_solicitation(mac, OURS6[0], TARGETS6[0]), {(Form.ND, 0), (Form.OWN, 0)}),
        "na": (unsolicited_na(mac, TARGETS6[1]), {(Form.ND, 0), (Form.ANSWER, 1), (Form.REPLY, 1)}),
        "gratuitous": (arp_request(mac, TARGETS4[0], TARGETS4[0]), {(Form.ARP, 0)}),
        "another host's": (reply(TARGETS4[0], OURS4[1], OTHER), {(Form.ARP, 0)}),
    }
    for name, (packet, forms) in shown.items():
        assert (name, {(f, s) for f, s in see(packet, WATCH, 0) if f}) == (name, forms)


def test_stamps_are_kept_per_slave_and_told_once(bed: Callable[..., Bed]) -> None:
    bed2 = bed(2)
    bed2.publish(0, watch=WATCH)
    bed2.wires[1].send(bytes(10) + frame(1))
    bed2.wires[1].send(bytes(10) + reply(TARGETS4[0], OURS4[1], PEER))
    found: set[tuple[str, Form, int]] = set()
    end = time.monotonic() + 5
    while ("s1", Form.REPLY, 0) not in found:
        assert time.monotonic() < end, found
        found |= {(each.slave, each.form, each.slot) for each in bed2.datapath.heard()}
    assert found == {("s1", form, 0) for form in (Form.ANY, Form.ARP, Form.ANSWER, Form.REPLY)}
    assert bed2.datapath.heard() == ()
