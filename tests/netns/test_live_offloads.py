"""Offloads follow the slaves: what one of them cannot send is not offered, read back at slave and bond alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.netns.test_live_traffic import features, tcp, udp_echo
from tests.netns.world import HOST4, HOST6, PEER4, PEER6, Space, World, wait_until
from ubond.service import LOOK_EVERY, LOOK_LAST

pytestmark = [pytest.mark.netns, pytest.mark.needs("segmentation")]

SIZE = 2 << 20


def switch(feature: str) -> Callable[[Space, str, bool], None]:
    def switch(space: Space, nic: str, on: bool) -> None:
        space.run("ethtool", "-K", nic, feature, "on" if on else "off")

    return switch


def bound(space: Space, nic: str, whole: bool) -> None:
    space.ip("link", "set", nic, "gso_max_size", "65536" if whole else "16384")


def reads(*names: str) -> Callable[[Space, str], bool]:
    def reads(space: Space, interface: str) -> bool:
        """Whether all of these are on; where they differ the answer is neither, and a test fails."""
        found = features(space, interface)
        (state,) = {found[name] for name in names}
        return state == "on"

    return reads


def is_whole(space: Space, interface: str) -> bool:
    size = space.link(interface)["gso_max_size"]
    assert size in (16384, 65536)
    return bool(size == 65536)


@dataclass(frozen=True)
class Limit:
    """Something a NIC may lack: how to take it and give it back, and how to read it at any interface."""

    set: Callable[[Space, str, bool], None]
    read: Callable[[Space, str], bool]


LIMITS = {
    "tso": Limit(switch("tso"), reads("tx-tcp-segmentation", "tx-tcp6-segmentation")),
    "tx": Limit(switch("tx"), reads("tx-checksumming")),
    "uso": Limit(switch("tx-udp-segmentation"), reads("tx-udp-segmentation")),
    "gso_max_size": Limit(bound, is_whole),
}


def both_ways(world: World, *, size: int = SIZE) -> None:
    """TCP and UDP, also in frames beyond the MTU, from either side."""
    for sender, receiver, addresses in (
        (world.host, world.peer, (PEER4, PEER6)),
        (world.peer, world.host, (HOST4, HOST6)),
    ):
        for address in addresses:
            tcp(sender, receiver, address, size)
            udp_echo(sender, receiver, address, [1200, 1472, 20_000])
            udp_echo(sender, receiver, address, [1200 * 20], segment=1200)


@pytest.mark.parametrize("where", [("eth1",), ("eth2",), ("eth1", "eth2")], ids="+".join)
@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_of_a_slave_is_the_bonds_from_enslaving_through_a_failover_to_its_end(
    name: str, where: tuple[str, ...]
) -> None:
    limit = LIMITS[name]
    with World(2) as world:
        host = world.host

        def offered() -> bool:
            return limit.read(host, "bond0")

        for nic in where:
            limit.set(host, nic, False)
        with world.bond() as bond:
            wait_until(lambda: host.reaches(PEER6), what="IPv6")
            assert [limit.read(host, nic) for nic in world.nics] == [nic not in where for nic in world.nics]
            assert not offered()
            both_ways(world)

            # Through the other slave, and a stream that is under way when the cable is pulled.
            first = str(bond.active)
            other = "eth2" if first == "eth1" else "eth1"
            failures: list[BaseException] = []
            streams = [
                threading.Thread(target=_noting, args=(failures, tcp, *ends, 32 << 20))
                for ends in ((host, world.peer, PEER4), (world.peer, host, HOST4))
            ]
            for stream in streams:
                stream.start()
            world.pull(first)
            bond.wait_active(other)
            for stream in streams:
                stream.join()
            assert not failures
            both_ways(world)
            world.plug(first)

            # While it runs: offered when the last slave can do it, and not when one cannot.
            for nic in where:
                assert not offered()
                limit.set(host, nic, True)
            wait_until(offered, what=f"{name} is offered again")
            both_ways(world, size=1 << 18)
            limit.set(host, where[0], False)
            wait_until(lambda: not offered(), what=f"{name} is not offered any longer")
            both_ways(world, size=1 << 18)

            # A slave that leaves takes its limits along.
            world.ubond("remove", bond.name, where[0])
            wait_until(offered, what=f"{name} is offered without the slave that lacks it")
            assert not limit.read(host, where[0])


def _noting(failures: list[BaseException], call: Callable[..., None], *words: Any) -> None:
    try:
        call(*words)
    except BaseException as error:      # told by the test itself
        failures.append(error)


def test_a_bond_at_rest_follows_a_bound_that_nothing_tells_of() -> None:
    """The kernel announces no other `gso_max_size`, and it is no feature: it shows by what a slave cannot send."""
    with World(2) as world, world.bond() as bond:
        bond.wait_active("eth1")
        world.host.ping(PEER4)
        time.sleep(2 * LOOK_EVERY + LOOK_LAST + 1)  # then nobody looks by himself any more
        bound(world.host, "eth1", False)

        def follows() -> bool:
            tcp(world.host, world.peer, PEER4, SIZE)
            return not is_whole(world.host, "bond0")

        wait_until(follows, 20, "the bond offers no more than the slave can send")
        both_ways(world)
