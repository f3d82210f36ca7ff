"""Tables and the readable twins of the worker's choices, against the recordings."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bond.pretend import Rig, opened, recorded
from ubond.bond import events as ev
from ubond.bond.hashing import HashPolicy
from ubond.bond.modes import accepts, by_hash, copies, is_igmp, next_able, round_robin
from ubond.bond.options import IMPLEMENTED_MODES
from ubond.bond.table import Spread, TableSlave, TxTable

RR = recorded("rr")
MODES = {str(mode) for mode in IMPLEMENTED_MODES}
RX = [row for row in recorded("rx") if row["mode"] in MODES]

PLAIN = bytes.fromhex("02000000000a02000000000b0800") + bytes([0x45, *[0] * 8, 17, *[0] * 10])
IGMP = PLAIN[:23] + b"\x02" + PLAIN[24:]


def table_of(rig: Rig) -> TxTable:
    assert rig.world.table is not None
    return rig.world.table


@pytest.mark.parametrize("row", RR, ids=[f"row{number}" for number in range(len(RR))])
def test_round_robin_chooses_what_was_recorded(row: dict[str, Any]) -> None:
    names = [f"s{number}" for number in range(row["slaves"])]
    rig = opened(*names, strict=True, mode="balance-rr", miimon=20)
    rig.set(packets_per_slave=row["packets_per_slave"])
    if row.get("down") is not None:
        rig.carrier(f"s{row['down']}", False)
    rig.run(100)
    igmp = row.get("igmp", "." * len(row["seq"]))
    changes = {number: (name, value) for number, name, value in row.get("changes", [])}
    links = {number: text.split() for number, text in row.get("events", [])}
    counter, chosen = 0, []
    for number, drawn in enumerate(row["seq"]):
        if number in changes:
            rig.set(**{changes[number][0]: changes[number][1]})
        if number in links:
            rig.carrier(links[number][0], links[number][1] == "up")
            rig.run(100)
        if row["packets_per_slave"] == 0 and igmp[number] == ".":
            counter = drawn  # a random slave: the recording says what was drawn
        index, counter = round_robin(table_of(rig), counter, IGMP if igmp[number] == "I" else PLAIN)
        chosen.append(index)
    assert chosen == row["seq"]


def test_the_counter_wraps_at_32_bits() -> None:
    rows = (TableSlave("a", True, True), TableSlave("b", True, True))
    table = TxTable(Spread.ROUND_ROBIN, rows)
    assert round_robin(table, 0xFFFFFFFF, PLAIN) == (0, 0)


def test_round_robin_without_a_usable_slave_drops() -> None:
    table = TxTable(Spread.ROUND_ROBIN, (TableSlave("a", False, True),))
    assert round_robin(table, 0, PLAIN)[0] is None
    assert round_robin(table, 0, IGMP)[0] is None
    assert round_robin(TxTable(Spread.ROUND_ROBIN, ()), 5, PLAIN) == (None, 5)
    assert next_able((), 0) is None


def test_igmp_is_told_from_other_frames_of_any_length() -> None:
    assert is_igmp(IGMP)
    assert not any(is_igmp(IGMP[:length]) for length in range(24))
    assert not is_igmp(PLAIN)


def destination(table: TxTable, slave: int, kind: str) -> bytes:
    """Whom a recorded frame names."""
    if "the bond MAC" in kind:
        return table.address
    if "of this slave" in kind:
        return table.slaves[slave].mac
    return bytes.fromhex("020000005555" if "another MAC" in kind else "ffffffffffff")


@pytest.mark.parametrize("row", RX, ids=[f"{r['mode']}-{r['all_slaves_active']}-{r['variant']}" for r in RX])
def test_frames_reach_the_bond_where_they_did_when_recorded(row: dict[str, Any]) -> None:
    given = row["all_slaves_active"]
    rig = opened(*row["slaves"], strict=True, mode=row["mode"], miimon=20, all_slaves_active=given)
    if row["variant"] == "s2 waiting out updelay":
        rig.set(updelay=10_000)
        rig.carrier("s2", False)
        rig.run(100)
        rig.carrier("s2", True)
        rig.run(100)
    shown = {s.name: {"mii": s.link.value, "state": "backup" if s.backup else "active"}
             for s in rig.bond.snapshot().slaves}  # fmt: skip
    assert shown == {name: {"mii": s["mii"], "state": s["state"]} for name, s in row["slaves"].items()}
    indices = {name: number for number, name in enumerate(row["slaves"])}
    for frame in row["frames"]:
        table, slave = table_of(rig), indices[frame["slave"]]
        reached = accepts(table, slave, destination(table, slave, frame["kind"]) + PLAIN[6:])
        # In balance-alb what is for somebody else is shown to the driver's bond, which drops it for that.
        shown = frame["bond"] is not None and (not table.adaptive or frame["bond"] != "otherhost" or reached)
        assert (frame["slave"], frame["kind"], reached) == (frame["slave"], frame["kind"], shown)
        assert frame["bond"] != "otherhost" or slave != table.active or reached


def test_the_table_of_active_backup_names_sender_and_heirs() -> None:
    rig = opened("a", "b", "c", miimon=100)
    rig.set(prio="c:5")
    table = table_of(rig)
    assert (table.spread, table.active, table.succession) == (Spread.SINGLE, 2, (0, 1))
    assert [row.receives for row in table.slaves] == [False, False, True]
    assert (table.takeover, table.hold) == (True, False)
    assert table.address == bytes(rig.bond.snapshot().mac)


def test_the_table_of_balance_xor_names_the_policy() -> None:
    rig = opened("a", "b", mode="balance-xor")
    table = table_of(rig)
    assert (table.spread, table.policy, table.hold, table.succession) == (Spread.HASH, 0, False, ())
    rig.set(xmit_hash_policy="layer3+4")
    assert table_of(rig).policy == HashPolicy.LAYER34
    frames = [PLAIN[:5] + bytes([number]) + PLAIN[6:] for number in range(8)]
    assert {by_hash(table, frame) for frame in frames} == {0, 1}


def test_the_choice_of_balance_xor_is_among_those_that_can_transmit() -> None:
    rig = opened("a", "b", "c", mode="balance-xor")
    rig.carrier("b", False)
    frames = [PLAIN[:5] + bytes([number]) + PLAIN[6:] for number in range(8)]
    assert {by_hash(table_of(rig), frame) for frame in frames} == {0, 2}
    rig.carrier("a", False)
    rig.carrier("c", False)
    assert by_hash(table_of(rig), PLAIN) is None


def test_broadcast_copies_to_all_that_can_transmit_in_enslave_order() -> None:
    rig = opened("a", "b", "c", mode="broadcast")
    table = table_of(rig)
    assert (table.spread, copies(table)) == (Spread.BROADCAST, [0, 1, 2])
    rig.carrier("b", False)
    assert copies(table_of(rig)) == [0, 2]


def test_a_slave_without_carrier_is_no_heir() -> None:
    rig = opened("a", "b", "c", miimon=100, downdelay=1000)
    rig.carrier("b", False)
    assert table_of(rig).succession == (2,)


def test_a_strict_bond_forbids_the_worker_to_take_over() -> None:
    assert not table_of(opened("a", "b", strict=True)).takeover


def test_hold_is_set_where_a_mac_must_move_first() -> None:
    assert table_of(opened("a", "b", fail_over_mac="follow")).hold
    assert not table_of(opened("a", "b", mode="balance-rr", fail_over_mac="follow")).hold


def test_queue_ids_and_packets_per_slave_reach_the_table() -> None:
    rig = opened("a", "b", mode="balance-rr", packets_per_slave=7)
    rig.do(ev.OptionWritten("queue_id", "3", slave="b"))
    table = table_of(rig)
    assert (table.packets_per_slave, [row.queue_id for row in table.slaves]) == (7, [0, 3])


def test_a_table_is_published_only_when_it_differs() -> None:
    rig = opened("a", "b")
    assert not [action for action in rig.carrier("a", True) if isinstance(action, ev.PublishTable)]
    rig.set(resend_igmp=3)
    before = len(rig.world.done)
    rig.set(primary_reselect="better")
    assert not [action for action in rig.world.done[before:] if isinstance(action, ev.PublishTable)]
