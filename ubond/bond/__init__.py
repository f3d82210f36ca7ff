"""The study: all that decides.  No sockets, no clock, no threads."""

from ubond.bond.core import Bond
from ubond.bond.enslave import Mark, give_back, read_mark
from ubond.bond.events import Action, DoorError, Event, Held, SlaveFacts, UpperFacts
from ubond.bond.options import OPTIONS, Mode, Option, OptionError, Refused
from ubond.bond.snapshot import BondSnapshot, LinkState, SlaveSnapshot
from ubond.bond.spec import BondSpec, SlaveSpec, SpecError
from ubond.bond.table import Divert, Spread, TableSlave, TxTable

__all__ = [
    "OPTIONS",
    "Action",
    "Bond",
    "BondSnapshot",
    "BondSpec",
    "Divert",
    "DoorError",
    "Event",
    "Held",
    "LinkState",
    "Mark",
    "Mode",
    "Option",
    "OptionError",
    "Refused",
    "SlaveFacts",
    "SlaveSnapshot",
    "SlaveSpec",
    "SpecError",
    "Spread",
    "TableSlave",
    "TxTable",
    "UpperFacts",
    "give_back",
    "read_mark",
]
