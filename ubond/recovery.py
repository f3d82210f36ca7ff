"""Giving back what a dead daemon held: by its journal, or by what the interfaces' alias tells.

The same undo as at a release (`bond.enslave.give_back`), performed by whoever comes next.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Container

from ubond import paths
from ubond.bond.enslave import give_back, held_by_mark, is_same_interface
from ubond.bond.events import DoorError, Held, SlaveFacts
from ubond.bond.options import Refused
from ubond.doors import SlaveDoors
from ubond.journal import Journal
from ubond.managers import Managers
from ubond.netlink import Netlink

log = logging.getLogger("ubond")


async def give_back_all(
    netlink: Netlink, journal: Journal, bond: str, but: Container[int] = frozenset()
) -> int:
    """Give back everything that this bond's journal holds; return how many interfaces that were.

    `but`: indices of interfaces that the bond still has.  What the kernel refuses stays in the
    journal, for the next attempt.
    """
    given = 0
    doors = SlaveDoors(netlink, journal, bond)
    for held in journal.load():
        if held.index in but:
            continue
        facts = await _facts_now(netlink, held.slave, held.index)
        if facts is None:
            await netlink.forget_gates(held.index)
            journal.forget(held.slave)
            continue
        given += 1
        for failure in await doors.perform_all(give_back(held, facts)):
            log.warning("%s: (slave %s): could not be given back whole: %s", bond, held.slave, failure)
        for note in doors.notes:
            log.info("%s: (slave %s): %s", bond, held.slave, note.text)
        doors.notes.clear()
    return given


async def _facts_now(netlink: Netlink, name: str, index: int) -> SlaveFacts | None:
    """The interface that was taken, under whatever name it has now; None if it is there no more."""
    link = netlink.link(index)
    try:
        return await netlink.facts(link.name if link is not None else name)
    except DoorError as error:
        if error.errno != errno.ENODEV:
            raise
        return None


async def recover(bond: str, managers: Managers | None = None) -> int:
    """Give back what the journal of a bond without a daemon holds; return how many interfaces."""
    netlink = Netlink()
    await netlink.open()
    try:
        return await give_back_all(netlink, Journal(paths.runtime_dir(), bond), bond)
    finally:
        await netlink.close()
        (managers or Managers(bond)).forget()
        paths.sweep(bond)


async def restore(interfaces: list[str]) -> int:
    """Give these interfaces back what a bond took from them; return how many needed it.

    Refused for a slave of a bond that runs.
    """
    netlink = Netlink()
    await netlink.open()
    try:
        return sum([await _restore_one(netlink, name) for name in interfaces])
    finally:
        await netlink.close()
        for bond in paths.left_behind():
            if not Journal(paths.runtime_dir(), bond).load():
                Managers(bond).forget()
                paths.sweep(bond)


async def _restore_one(netlink: Netlink, name: str) -> bool:
    facts = await netlink.facts(name)
    marked = held_by_mark(facts)
    if marked is not None and paths.running(marked[0]):
        bond = marked[0]
        raise Refused(errno.EBUSY, [f"{name} is a slave of {bond}, which runs: ubond remove {bond} {name}"])
    known = _in_a_journal(facts) or marked
    if known is None:
        return False
    bond, held = known
    doors = SlaveDoors(netlink, Journal(paths.runtime_dir(), bond), bond)
    if failures := await doors.perform_all(give_back(held, facts)):
        raise failures[0]
    return True


def _in_a_journal(facts: SlaveFacts) -> tuple[str, Held] | None:
    """The dead bond that holds this interface, and what it held.

    Its alias need not say so: the daemon may have died before it was set, or after it was given back.
    """
    for bond in paths.left_behind():
        for held in Journal(paths.runtime_dir(), bond).load():
            if is_same_interface(held, facts):
                return bond, held
    return None
