"""The gates of a slave: its own stack neither receives what arrives nor sends by itself.

A slave's frames belong to the bond, but its stack still sees everything that arrives (a ping
is answered twice) and still speaks (IPv6 reports from a backup pull the switch's entry over).
Packet sockets see arriving frames before any of the hooks used here, so the bond itself goes on
receiving.  Link-local protocols (LLDP, 802.1X, ...) pass: they belong to the link.

There are three kinds, because kernels lack one or the other:

| kind | what it is | egress |
|---|---|---|
| `clsact` | classic BPF on a clsact qdisc | closed |
| `nft` | netdev chains with policy drop | closed since Linux 5.16 |
| `bridge` | a private bridge whose only port is disabled | open |

What they leave behind is recognized by its name or handle, so whoever opens a gate, this process or
one after a crash, need not know which kind closed it.
"""

from __future__ import annotations

import errno
from typing import Protocol

from ubond.bond.events import DoorError
from ubond.gate_bridge import Bridge, bridge_name
from ubond.gate_clsact import GATE_MARK as GATE_MARK
from ubond.gate_clsact import Clsact
from ubond.gate_nft import Nft
from ubond.rtnl import Requests


class Gate(Protocol):
    """One kind of gate."""

    async def close(self, interface: str, index: int) -> str:
        """Close the interface; return what this is called in `status`.  On failure nothing is left."""

    async def open(self, interface: str, index: int) -> None:
        """Remove what `close` made, here or in a process before; no failure if there is nothing."""

    async def present(self, interface: str, index: int) -> bool:
        """Whether the interface is closed by this kind."""


class Gates:
    """Closes and opens the gates of one interface after another."""

    def __init__(self, requests: Requests) -> None:
        self._nft, self._bridge = Nft(), Bridge(requests)
        #: What is closed: index -> kind, empty where another process closed it.
        self.closed: dict[int, str] = {}
        #: In the order in which they are tried.
        self._kinds: dict[str, Gate] = {"clsact": Clsact(requests), "nft": self._nft, "bridge": self._bridge}

    async def close(self, interface: str, index: int, kind: str = "auto") -> str:
        """Close an interface with this kind, or with the first that can be had; return its name.

        DoorError (ENOTSUP for `auto`) when none can, and nothing is left behind.
        """
        refused = []
        for name, gate in self._kinds.items():
            if kind not in ("auto", name):
                continue
            try:
                said = await gate.close(interface, index)
            except DoorError as error:
                if kind != "auto":
                    raise
                refused.append(f"{name}: {error.detail or str(error).removeprefix(f'{interface}: ')}")
            else:
                self.closed[index] = name
                return said
        text = f"no gate can be closed, so the interface's own stack would answer too ({'; '.join(refused)})"
        raise DoorError("close gates", errno.ENOTSUP, interface, text)

    async def open(self, interface: str, index: int) -> None:
        """Remove what is ours: of every kind, where it is not known which closed the interface.

        The first failure is raised when all have been tried.
        """
        failures = []
        known = self.closed.pop(index, "")
        for name, gate in self._kinds.items():
            if known not in ("", name):
                continue
            try:
                await gate.open(interface, index)
            except DoorError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    async def present(self, interface: str, index: int) -> bool:
        """Whether the interface is closed; somebody may have removed its gate."""
        for gate in self._kinds.values():
            if await gate.present(interface, index):
                return True
        return False

    async def forget(self, index: int) -> None:
        """Remove what outlives an interface that is gone: a table, a bridge."""
        self.closed.pop(index, None)
        await self._nft.forget(index)
        await self._bridge.forget(index)


def is_gate_of(index: int, device: str) -> bool:
    """Whether a device of this name is there for the gate of an interface."""
    return device == bridge_name(index)


def closes_egress(gate: str) -> bool:
    """Whether the slave's own stack is kept from sending by a gate that `close` called so."""
    return "ingress only" not in gate
