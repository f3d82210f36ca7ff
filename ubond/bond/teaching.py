"""Learning packets: what tells the switch behind which port which MAC is, where all slaves send.

A switch learns from what it is sent.  A slave that has nothing to send is forgotten, and after a
change of the active slave the bond's MAC is behind another port, so each slave says every
`lp_interval` seconds who it is.  Frames of Ethernet's configuration test protocol, to the sender itself, that
nobody has to answer.

Source: bonding.rst, lp_interval, balance-tlb, balance-alb; recordings of Linux 6.1.
"""

from __future__ import annotations

from collections.abc import Iterator

from ubond.bond import modes
from ubond.bond.events import SendFrames
from ubond.bond.slave import Slave
from ubond.bond.state import State
from ubond.bond.transaction import Transaction
from ubond.wire import learning_frame

LEARNING = "learning packets"
SECOND = 1_000_000_000


def deadline(state: State) -> int | None:
    """When the next round is due (ns), None where nobody is taught."""
    if state.taught is None:
        return None
    return state.taught + state.settings.number("lp_interval") * SECOND


def run(state: State, out: Transaction) -> None:
    """Begin or end the rounds as the mode asks for, and do one that is due."""
    if not (modes.rules(state).balances and state.up):
        state.taught = None
        return
    if state.taught is None:
        state.taught = out.now
    due = deadline(state)
    if due is not None and out.now >= due:
        state.taught = out.now
        for slave in state.slaves:
            teach(state, slave, out)


def teach(state: State, slave: Slave, out: Transaction) -> None:
    """Have a slave that can transmit say who it is."""
    if slave.can_transmit:
        out.frames.append(SendFrames(slave.name, tuple(dict.fromkeys(_frames(state, slave))), LEARNING))


def _frames(state: State, slave: Slave) -> Iterator[bytes]:
    """The sender speaks for the bond and all that stands on it, the others for themselves in each VLAN."""
    sends = slave is state.sender
    yield learning_frame(state.mac if sends else slave.mac)
    for upper in state.uppers:
        if sends:
            yield learning_frame(upper.mac, upper.tags)
        elif upper.mac == state.mac:
            yield learning_frame(slave.mac, upper.tags)
