"""The doors of a bond, with nothing behind them."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

from ubond.bond.events import ClosePort, Level, Log, SetSlaveMac
from ubond.doors import Doors, SlaveDoors
from ubond.ports import Port
from ubond.wire import MacAddr


def test_a_slave_that_the_doors_have_is_one_that_the_datapath_knows() -> None:
    """Whoever asks while a slave is released (`history`, say) looks here first."""

    async def story() -> None:
        known = {"eth1"}

        async def remove(slave: str) -> None:
            known.remove(slave)

        fake: Any = SimpleNamespace(name="bond0", remove=remove)
        doors = Doors(fake, 1, fake, fake, fake, fake, bypass=True)
        doors.bond_is_there = False
        pair = socket.socketpair()
        doors.ports["eth1"] = Port("eth1", 1, *pair)
        await doors._filtering.acquire()        # a slave's memberships are being set
        closing = asyncio.ensure_future(doors.perform(ClosePort("eth1")))
        for _ in range(5):
            await asyncio.sleep(0)
            assert known >= doors.ports.keys()
        doors._filtering.release()
        await closing
        assert not doors.ports
        assert not known

    asyncio.run(story())


def test_a_nic_that_had_to_go_down_for_its_mac_is_something_to_say() -> None:
    async def story() -> None:
        wanted_down = {"eth1": False, "eth2": True}

        async def set_mac(slave: str, mac: MacAddr) -> bool:
            return wanted_down[slave]

        fake: Any = SimpleNamespace(set_mac=set_mac)
        doors = SlaveDoors(fake, fake, "bond0")
        for slave in wanted_down:
            await doors.perform(SetSlaveMac(slave, MacAddr(bytes(6))))
        text = "its driver changes the MAC only while it is down: down and up again"
        assert doors.notes == [Log(Level.WARNING, text, "eth2")]

    asyncio.run(story())
