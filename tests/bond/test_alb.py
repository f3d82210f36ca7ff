"""balance-alb: which client is told which slave's MAC, and what happens to that when slaves come and go."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.bond.pretend import Rig, mac, nic, opened, recorded
from ubond.bond import Bond
from ubond.bond import events as ev
from ubond.bond.clients import ARP, PAUSE
from ubond.bond.core import Memory
from ubond.bond.document import freeze, thaw
from ubond.bond.modes import accepts
from ubond.bond.table import Divert, Spread
from ubond.wire import (
    ARP_REPLY,
    ARP_REQUEST,
    BROADCAST,
    Arp,
    MacAddr,
    Tags,
    decode_arp,
    decode_ethernet,
    encode_arp,
    learning_frame,
)

MS = 1_000_000
OWN = bytes((10, 0, 0, 1))
NOBODY = MacAddr(bytes(6))
RECORDED = [row for row in recorded("notify") if row["options"]["mode"] == "balance-alb"]


def client(number: int) -> tuple[bytes, MacAddr]:
    return bytes((10, 0, 0, number)), MacAddr(bytes((2, 0, 0, 9, 0, number)))


def alb(*names: str, **options: object) -> Rig:
    return opened(*names, mode="balance-alb", **options)


def macs(rig: Rig) -> dict[str, MacAddr]:
    return {name: each.facts.mac for name, each in rig.world.nics.items()}


def arps(done: list[ev.Action]) -> list[tuple[str, MacAddr, Arp, MacAddr]]:
    """(slave, Ethernet source, ARP, Ethernet destination) of what was sent to balance reception."""
    sent = [action for action in done if isinstance(action, ev.SendFrames) and action.what == ARP]
    frames = [(action.slave, frame) for action in sent for frame in action.frames]
    return [(slave, (e := decode_ethernet(frame)).src, decode_arp(frame), e.dst) for slave, frame in frames]


def reply(rig: Rig, number: int, tags: Tags = ()) -> tuple[str, MacAddr, Arp, MacAddr]:
    """The host answers a client."""
    ip, theirs = client(number)
    ours = rig.bond.snapshot().mac
    return arps(rig.do(ev.ArpSeen("", encode_arp(Arp(ARP_REPLY, ours, OWN, theirs, ip), theirs, tags))))[0]


def request(rig: Rig, number: int) -> tuple[str, MacAddr, Arp, MacAddr]:
    ip, _ = client(number)
    ours = rig.bond.snapshot().mac
    found = arps(rig.do(ev.ArpSeen("", encode_arp(Arp(ARP_REQUEST, ours, OWN, NOBODY, ip)))))
    return found[0]


def told(rig: Rig, ms: int) -> list[tuple[int, str]]:
    """(client, slave) of the updates of so many ms, a pair of frames counted once."""
    found = arps(rig.run(ms))
    macs_now = macs(rig)
    for slave, source, arp, dst in found:
        assert arp.op == ARP_REPLY
        assert arp.sender_ip == OWN
        assert source == arp.sender_mac == macs_now[slave]
        assert dst == arp.target_mac
    each = [(arp.target_ip[3], slave) for slave, _, arp, _ in found]
    assert each[::2] == each[1::2], "each is told twice"
    return each[::2]


# ── who gets whom ────────────────────────────────────────────────────────────────────


def test_replies_give_clients_the_slaves_in_turn_and_keep_to_them() -> None:
    rig = alb("a", "b", "c")
    first = [reply(rig, number) for number in range(10, 16)]
    assert [slave for slave, *_ in first] == ["a", "b", "c", "a", "b", "c"]
    for slave, source, arp, dst in first:
        assert source == arp.sender_mac == macs(rig)[slave]
        assert (arp.sender_ip, arp.target_mac, arp.target_ip) == (OWN, dst, bytes((10, 0, 0, dst[5])))
    assert [reply(rig, number) for number in range(10, 16)] == first


def test_a_request_leaves_on_the_clients_slave_but_names_the_bonds_mac() -> None:
    rig = alb("a", "b")
    request(rig, 10)
    slave, source, arp, dst = request(rig, 11)
    assert (slave, source, dst) == ("b", macs(rig)["b"], BROADCAST)
    assert (arp.op, arp.sender_mac) == (ARP_REQUEST, rig.bond.snapshot().mac)
    ip, theirs = client(11)
    heard = Arp(ARP_REPLY, theirs, ip, macs(rig)["b"], OWN)
    rig.do(ev.ArpSeen("b", encode_arp(heard, macs(rig)["b"])))
    assert told(rig, PAUSE // MS + 50) == [(11, "b")], "the answer says where it is, so it is told whom it has"
    assert told(rig, 10_000) == []


def test_a_request_is_followed_by_updates_for_those_whom_it_led_astray() -> None:
    rig = alb("a", "b")
    for number in (10, 11, 12, 13):
        reply(rig, number)
    told(rig, 5_000)
    request(rig, 99)
    assert told(rig, 2_000) == []
    assert told(rig, 200) == [(11, "b"), (13, "b")]
    assert told(rig, 10_000) == []


def test_an_update_that_may_come_too_soon_after_a_request_is_followed_by_another() -> None:
    rig = alb("a", "b")
    for number in (10, 11, 12, 13):
        reply(rig, number)
    told(rig, 5_000)
    request(rig, 99)
    assert told(rig, 1_500) == []
    request(rig, 98)    # from here on Linux believes no other MAC for a second
    assert told(rig, 700) == [(11, "b"), (13, "b")]
    assert told(rig, 1_900) == []
    assert told(rig, 200) == [(11, "b"), (13, "b")]
    assert told(rig, 10_000) == []


def test_the_fastest_slaves_are_given_out() -> None:
    rig = Rig(nic("a", 1, speed=100), nic("b", 2, speed=1000), nic("c", 3, speed=1000))
    rig.set(mode="balance-alb")
    rig.do(ev.BondOpened())
    rig.enslave("a", "b", "c")
    assert [reply(rig, number)[0] for number in range(10, 14)] == ["b", "c", "b", "c"]


def test_two_clients_in_one_slot_the_older_is_moved_to_the_active_slave_and_told() -> None:
    rig = alb("a", "b")
    reply(rig, 10)
    assert reply(rig, 7)[0] == "b"
    other = bytes((10, 0, 7, 0))
    theirs = client(70)[1]
    frame = encode_arp(Arp(ARP_REPLY, rig.bond.snapshot().mac, OWN, theirs, other), theirs)
    found = arps(rig.do(ev.ArpSeen("", frame)))
    assert [(arp.target_ip, slave) for slave, _, arp, _ in found] == [(client(7)[0], "a")] * 2 + [(other, "a")]


def test_vlans_of_the_bonds_mac_are_balanced_in_their_own_vlan() -> None:
    rig = alb("a", "b")
    reply(rig, 10, ((0x8100, 5),))
    reply(rig, 11, ((0x8100, 5),))
    rig.carrier("b", False)
    sent = [frame for action in rig.run(3000) if isinstance(action, ev.SendFrames) and action.what == ARP
            for frame in action.frames]  # fmt: skip
    assert sent
    assert all(decode_ethernet(frame).tags == ((0x8100, 5),) for frame in sent)


@pytest.mark.parametrize(
    "arp",
    [
        Arp(ARP_REPLY, mac(77), OWN, client(10)[1], client(10)[0]),  # a guest behind a bridge
        Arp(ARP_REQUEST, mac(1), bytes(4), NOBODY, OWN),  # is this address free?
        Arp(3, mac(1), bytes(4), mac(1), bytes(4)),  # RARP
    ],
)
def test_what_does_not_speak_for_the_host_goes_untouched_through_the_active_slave(arp: Arp) -> None:
    rig = alb("a", "b")
    reply(rig, 9)
    frame = encode_arp(arp)
    assert [a for a in rig.do(ev.ArpSeen("", frame)) if isinstance(a, ev.SendFrames)] == [
        ev.SendFrames("a", (frame,), ARP)
    ]


@pytest.mark.parametrize("frame", [b"", bytes(13), bytes(60), bytes.fromhex("ff" * 12 + "0806" + "00" * 20)])
@pytest.mark.parametrize("slave", ["", "a", "gone"])
def test_nonsense_is_sent_as_it_is_and_never_taken_in(frame: bytes, slave: str) -> None:
    rig = alb("a", "b")
    rig.do(ev.ArpSeen(slave, frame))
    assert rig.bond.memory().state.clients.slots == {}


def test_without_a_slave_or_in_another_mode_nothing_is_remembered() -> None:
    rig = alb("a")
    rig.carrier("a", False)
    ip, theirs = client(10)
    frame = encode_arp(Arp(ARP_REPLY, mac(1), OWN, theirs, ip), theirs)
    assert arps(rig.do(ev.ArpSeen("", frame))) == []
    rig.carrier("a", True)
    reply(rig, 10)
    rig.set(mode="balance-tlb")
    assert rig.bond.memory().state.clients.slots == {}
    rig.do(ev.ArpSeen("", frame))
    assert rig.bond.memory().state.clients.slots == {}


# ── when something changes ───────────────────────────────────────────────────────────


def test_clients_of_a_failed_slave_get_others_and_are_told_in_four_rounds() -> None:
    rig = alb("a", "b", "c")
    for number in (10, 11, 12, 13, 14):
        reply(rig, number)
    told(rig, 5_000)
    mark = len(rig.world.done)
    rig.carrier("b", False)
    lost = learning_frame(macs(rig)["b"])
    sent = [(a.slave, lost in a.frames) for a in rig.world.done[mark:] if isinstance(a, ev.SendFrames)]
    assert ("a", True) in sent, "the switch sends what is for the dead slave to the active one"
    first = [(arp.target_ip[3], slave) for slave, _, arp, _ in arps(rig.world.done[mark:])][::2]
    assert {number for number, _ in first} == {11, 14}
    assert {slave for _, slave in first} <= {"a", "c"}
    assert told(rig, 3 * PAUSE // MS + 100) == first * 3
    assert told(rig, 10_000) == []


def test_a_change_of_the_active_slave_swaps_macs_and_tells_the_clients_of_both() -> None:
    rig = alb("a", "b", "c")
    for number in (10, 11, 12):
        reply(rig, number)
    told(rig, 5_000)
    mark = len(rig.world.done)
    rig.set(active_slave="b")
    assert macs(rig) == {"a": mac(2), "b": mac(1), "c": mac(3)}
    now = [(arp.target_ip[3], slave, arp.sender_mac) for slave, _, arp, _ in arps(rig.world.done[mark:])][::2]
    assert now == [(10, "a", mac(2)), (11, "b", mac(1))]
    assert len(told(rig, 10_000)) == 6


def test_a_slave_that_comes_gets_its_share_of_clients() -> None:
    rig = alb("a", "b")
    rig.carrier("b", False)
    assert {reply(rig, number)[0] for number in range(10, 16)} == {"a"}
    told(rig, 5_000)
    rig.carrier("b", True)
    rig.run(PAUSE // MS + 200)
    assert [reply(rig, number)[0] for number in range(10, 16)].count("b") == 3


def test_a_released_slaves_clients_are_told_and_its_mac_is_not_taught_elsewhere() -> None:
    rig = alb("a", "b", "c")
    for number in (10, 11, 12):
        reply(rig, number)
    told(rig, 5_000)
    mark = len(rig.world.done)
    rig.release("b")
    done = rig.world.done[mark:]
    assert [arp.target_ip[3] for _, _, arp, _ in arps(done)] == [11, 11]
    assert not any(learning_frame(mac(2)) in a.frames for a in done if isinstance(a, ev.SendFrames))


def test_a_bonds_new_mac_is_told_to_the_clients_of_the_active_slave() -> None:
    rig = alb("a", "b")
    reply(rig, 10)
    reply(rig, 11)
    told(rig, 5_000)
    mark = len(rig.world.done)
    rig.world.bond_mac = mac(40)
    rig.do(ev.BondMacChanged(mac(40)))
    assert [(arp.target_ip[3], arp.sender_mac) for _, _, arp, _ in arps(rig.world.done[mark:])] == [(10, mac(40))] * 2


def test_the_mode_is_left_and_its_clients_are_told_the_bonds_mac() -> None:
    rig = alb("a", "b")
    reply(rig, 10)
    reply(rig, 11)
    told(rig, 5_000)
    mark = len(rig.world.done)
    rig.set(mode="active-backup")
    found = [(arp.target_ip[3], slave, arp.sender_mac) for slave, _, arp, _ in arps(rig.world.done[mark:])]
    assert found[::2] == [(10, "a", mac(1)), (11, "a", mac(1))]
    rig.set(mode="balance-alb")
    assert rig.bond.memory().state.clients.slots == {}


def test_another_host_that_has_taken_our_address_ends_its_clients() -> None:
    rig = alb("a", "b")
    reply(rig, 10)
    _, theirs = client(66)
    assert len(rig.bond.memory().state.clients.slots) == 1
    rig.do(ev.ArpSeen("a", encode_arp(Arp(ARP_REQUEST, mac(1), OWN, NOBODY, OWN))))  # ours, come round
    assert len(rig.bond.memory().state.clients.slots) == 1
    rig.do(ev.ArpSeen("a", encode_arp(Arp(ARP_REQUEST, theirs, OWN, NOBODY, OWN))))
    assert rig.bond.memory().state.clients.slots == {}


def test_the_clients_outlive_the_process() -> None:
    rig = alb("a", "b")
    for number in (10, 11, 12):
        reply(rig, number)
    state = rig.bond.memory().state
    text = json.dumps(freeze(rig.bond.memory()))
    memory = thaw(Memory, json.loads(text), random_mac=state.random_mac)
    again = Bond.remembering(memory).memory().state
    assert freeze(again.clients) == freeze(state.clients)
    assert all(each.slave in again.slaves for each in again.clients.slots.values())
    assert list(again.clients.slots) == list(state.clients.slots)


@pytest.mark.parametrize("row", RECORDED, ids=[row["setup"] for row in RECORDED])
def test_a_failover_moves_macs_and_teaches_as_recorded(row: dict[str, Any]) -> None:
    event = row["events"][0]
    assert event["event"] == "carrier of s0 off"
    rig = Rig(*(nic(name, number) for number, name in enumerate(row["perm"], 1)), strict=True)
    for name, address in row["perm"].items():
        own = MacAddr.parse(address)
        rig.world.change(name, mac=own, permanent=own)
    rig.set(mode="balance-alb", miimon=20)
    rig.enslave(*row["perm"])
    rig.do(ev.BondOpened())
    rig.run(5_500)
    mark = len(rig.world.done)
    rig.carrier("s0", False)
    rig.run(1_000)
    sent = [action for action in rig.world.done[mark:] if isinstance(action, ev.SendFrames)]
    found = [[action.slave, frame.hex()] for action in sent for frame in action.frames]
    assert found[: len(event["frames"])] == [[slave, frame] for _, slave, frame in event["frames"]]
    assert str(rig.bond.snapshot().mac) == event["bond_mac"]
    assert {name: str(each) for name, each in macs(rig).items()} == event["slave_macs"]


# ── the table ────────────────────────────────────────────────────────────────────────


def test_the_table_diverts_arp_and_each_slave_receives_its_own() -> None:
    rig = alb("a", "b", "c")
    rig.carrier("c", False)
    table = rig.world.table
    assert table is not None
    assert (table.spread, table.adaptive, table.divert) == (Spread.LOAD, True, Divert.ARP)
    to = {name: bytes(each) + mac(9) + b"\x08\x00" + bytes(46) for name, each in macs(rig).items()}
    to["other"] = bytes(mac(55)) + mac(9) + b"\x08\x00" + bytes(46)
    to["all"] = BROADCAST + mac(9) + b"\x08\x00" + bytes(46)
    reached = {name: [accepts(table, slave, frame) for slave in range(3)] for name, frame in to.items()}
    assert reached == {
        "a": [True, False, False],
        "b": [False, True, False],
        "c": [True, False, True],   # the active one hears for who cannot transmit
        "other": [True, False, False],
        "all": [True, False, False],
    }
