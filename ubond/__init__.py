"""ubond: network bonding in userspace, for kernels without the bonding module.

The deciding part is a library of its own: `Bond` takes events and returns actions, without
sockets, clock or threads.

    from ubond import Bond, events
    bond = Bond("bond0", mac=..., random_mac=...)
    actions = bond.handle(events.BondOpened(), now)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ubond.bond import events
    from ubond.bond.core import Bond
    from ubond.bond.events import DoorError
    from ubond.bond.options import OPTIONS, OptionError, Refused
    from ubond.bond.spec import BondSpec, SlaveSpec, SpecError
    from ubond.config import ConfigError
    from ubond.wire import MacAddr

__version__ = "0.1.0"

__all__ = [
    "OPTIONS",
    "Bond",
    "BondSpec",
    "ConfigError",
    "DoorError",
    "MacAddr",
    "OptionError",
    "Refused",
    "SlaveSpec",
    "SpecError",
    "__version__",
    "events",
]

_HOMES = {
    "Bond": "ubond.bond.core",
    "BondSpec": "ubond.bond.spec",
    "ConfigError": "ubond.config",
    "DoorError": "ubond.bond.events",
    "MacAddr": "ubond.wire",
    "OPTIONS": "ubond.bond.options",
    "OptionError": "ubond.bond.options",
    "Refused": "ubond.bond.options",
    "SlaveSpec": "ubond.bond.spec",
    "SpecError": "ubond.bond.spec",
}


def __getattr__(name: str) -> Any:
    # On first use: `ubond status` imports this package and should not pay for the study.
    from importlib import import_module

    if name == "events":
        return import_module("ubond.bond.events")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ubond' has no attribute {name!r}")
