"""A daemon may die between any two actions: its successor brings in line what it had decided and what is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.bond.pretend import Rig, nic, opened
from ubond.bond import events as ev
from ubond.bond.core import Bond, Memory
from ubond.bond.document import freeze, thaw
from ubond.bond.events import Action


class Died(Exception):
    pass


def dying_at(number: int) -> Callable[[Action], int]:
    """For `World.fails`: the process is dead before it performs this action."""
    left = number

    def fails(action: Action) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise Died
        return 0

    return fails


def succeed(rig: Rig, written: Any) -> None:
    """Go on with what was written down, in a world that is as the dead one left it."""
    world, state = rig.world, rig.bond.memory().state
    world.fails = lambda action: 0
    rig.bond = Bond.remembering(thaw(Memory, json.loads(json.dumps(written)), random_mac=state.random_mac))
    macs = {name: nic.facts.mac for name, nic in world.nics.items()}
    ports = tuple(name for name, nic in world.nics.items() if nic.port)
    rig.do(ev.Resumed(tuple(world.journal.values()), world.bond_mac, macs, ports))


def fail_over(rig: Rig) -> None:
    rig.carrier("a", False)


def release(rig: Rig) -> None:
    rig.release("a")


def enslave(rig: Rig) -> None:
    rig.enslave("c")


def change_policy(rig: Rig) -> None:
    rig.set(fail_over_mac="none")


DEEDS = [(deed, kept) for deed in (fail_over, enslave, change_policy) for kept in ("before", "after")]


@pytest.mark.parametrize(("deed", "kept"), [*DEEDS, (release, "after")])
@pytest.mark.parametrize("policy", ["none", "active", "follow"])
def test_whenever_it_died_all_is_as_its_successor_says(policy: str, deed: Callable[[Rig], None], kept: str) -> None:
    """`kept`: the document that is read is of before the deed was decided, or after; a release is always told."""
    died = 0
    while True:
        rig = opened("a", "b", fail_over_mac=policy, miimon=100)
        rig.world.nics["c"] = nic("c", 3)
        written = freeze(rig.bond.memory())
        rig.world.fails = dying_at(died)
        try:
            deed(rig)
        except Died:
            died += 1
        else:
            break
        succeed(rig, written if kept == "before" else freeze(rig.bond.memory()))
        for name, each in rig.world.nics.items():  # what the watch and a look read
            rig.do(ev.CarrierChanged(name, each.facts.carrier, "poll"))
            rig.do(ev.SlaveChecked(each.facts, each.gates))
        rig.run(1000)
        assert_as_it_says(rig)
    assert died > 0


def assert_as_it_says(rig: Rig) -> None:
    seen, world = rig.bond.snapshot(), rig.world
    slaves = {slave.name: slave for slave in seen.slaves}
    assert world.bond_mac == seen.mac
    assert {name: world.nics[name].facts.mac for name in slaves} == {name: one.mac for name, one in slaves.items()}
    assert {name for name, each in world.nics.items() if each.port} == slaves.keys()
    assert rig.sender is not None
    assert rig.sender == seen.active_slave
    assert slaves[rig.sender].mac == seen.mac, "the sender has the bond's MAC"
    assert world.table is not None
    assert {slave.port for slave in world.table.slaves} <= slaves.keys()
    if seen.options["fail_over_mac"] != 0:
        assert len({slave.mac for slave in slaves.values()}) == len(slaves)


def test_journal_and_document_that_differ_are_made_one() -> None:
    rig = opened("a", "b", fail_over_mac="follow", miimon=100)
    written = freeze(rig.bond.memory())
    rig.carrier("a", False)
    both = {name: set(held.ours) for name, held in rig.world.journal.items()}
    succeed(rig, written)
    assert {name: set(held.ours) for name, held in rig.world.journal.items()} == both, "nothing is forgotten"
    del rig.world.journal["b"]
    succeed(rig, freeze(rig.bond.memory()))
    assert set(rig.world.journal["b"].ours) == both["b"]


def test_after_an_end_with_nothing_under_way_nothing_is_set() -> None:
    rig = opened("a", "b", fail_over_mac="follow", miimon=100)
    rig.run(2000)
    mark = len(rig.world.done)
    succeed(rig, freeze(rig.bond.memory()))
    assert {type(action) for action in rig.world.done[mark:]} == {ev.PublishTable, ev.SetBondCarrier}


def test_the_bonds_mac_that_somebody_else_has_set_is_not_put_back() -> None:
    rig = opened("a", "b", miimon=100)
    wish = nic("x", 77).facts.mac
    rig.world.bond_mac = wish
    succeed(rig, freeze(rig.bond.memory()))
    assert rig.world.bond_mac == wish
    rig.do(ev.BondMacChanged(wish))
    assert {each.facts.mac for each in rig.world.nics.values()} == {wish}
