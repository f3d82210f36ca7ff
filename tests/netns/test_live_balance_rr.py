"""balance-rr on two cables that go straight to a peer: how frames spread, and what a pull costs."""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.netns.world import Bond, Crossed, Seen, Sniffer, wait_until

pytestmark = pytest.mark.netns

HERE, THERE = "10.8.0.1", "10.8.0.2"
KIND = 0x88B5


@pytest.fixture(scope="module")
def world() -> Iterator[Crossed]:
    with Crossed(2) as world:
        yield world


def numbered(number: int) -> bytes:
    return bytes.fromhex("02005e005399") + bytes.fromhex("02005e005301") + struct.pack("!HI", KIND, number) + bytes(50)


def number(seen: Seen) -> int:
    return int(struct.unpack_from("!I", seen.frame, 14)[0])


def is_ours(seen: Seen) -> bool:
    return seen.kind == KIND


def send_numbered(world: Crossed, count: int, first: int = 0) -> None:
    """Send numbered frames out of the bond."""
    with world.host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind(("bond0", 0))
        for n in range(first, first + count):
            sock.send(numbered(n))


def spread(world: Crossed, count: int) -> tuple[list[int], list[int]]:
    """Send numbered frames; return which came out of eth1 and which out of eth2, in order."""
    with Sniffer(world.peer, "p1") as one, Sniffer(world.peer, "p2") as two:
        send_numbered(world, count)
        found: tuple[list[int], list[int]] = ([], [])

        def all_there() -> bool:
            for numbers, sniffer in zip(found, (one, two), strict=True):
                numbers += [number(seen) for seen in sniffer.take() if is_ours(seen)]
            return len(found[0]) + len(found[1]) >= count

        wait_until(all_there, what=f"{count} frames")
        return found


def test_frames_go_out_in_turn_starting_with_the_second_slave(world: Crossed) -> None:
    with world.bond("--mode", "balance-rr", addresses=False) as bond:
        world.host.ip("link", "set", "bond0", "addrgenmode", "none")
        one, two = spread(world, 200)
        # Each slave has every other frame, and together they have all, each once.
        assert sorted(one + two) == list(range(200))
        assert one == sorted(one)
        assert two == sorted(two)
        # The host's own stack may say something in between; each such frame shifts the turn once.
        first = set(one)
        assert sum((n in first) == (n + 1 in first) for n in range(199)) <= 4
        for nic in world.nics:
            assert bond.slave(nic)["linkinfo"]["info_slave_data"]["state"] == "ACTIVE"


@pytest.mark.parametrize("per_slave", [2, 5])
def test_packets_per_slave_makes_runs(world: Crossed, per_slave: int) -> None:
    with world.bond("-o", "mode=balance-rr", "-o", f"packets_per_slave={per_slave}", addresses=False):
        world.host.ip("link", "set", "bond0", "addrgenmode", "none")
        one, two = spread(world, 200)
        assert sorted(one + two) == list(range(200))
        assert len(one) == len(two) == 100
        # A run of so many on one slave, then as many on the other; the first may be begun already.
        owner = dict.fromkeys(one, 1) | dict.fromkeys(two, 2)
        changes = [n for n in range(1, 200) if owner[n] != owner[n - 1]]
        assert {later - earlier for earlier, later in itertools.pairwise(changes)} == {per_slave}


def test_packets_per_slave_changes_while_it_runs_and_0_is_random(world: Crossed) -> None:
    with world.bond("-o", "mode=balance-rr", addresses=False) as bond:
        world.host.ip("link", "set", "bond0", "addrgenmode", "none")
        bond.set("packets_per_slave=0")
        one, two = spread(world, 400)
        assert sorted(one + two) == list(range(400))
        assert 120 < len(one) < 280
        assert {n % 2 for n in one} == {n % 2 for n in two} == {0, 1}
        bond.set("packets_per_slave=1")
        one, two = spread(world, 100)
        assert len(one) == len(two) == 50


def both_ends(world: Crossed) -> tuple[Bond, Bond]:
    """Bonds of both ends with an address each."""
    world.peer.ip("link", "set", "p1", "up")
    world.peer.ip("link", "set", "p2", "up")
    far = ["up", "bond0", "p1", "p2", "-o", "mode=balance-rr", "--address", f"{THERE}/24"]
    near = ["up", "bond0", "eth1", "eth2", "-o", "mode=balance-rr", "--address", f"{HERE}/24"]
    world.ubond(*far, space=world.peer)
    world.ubond(*near)
    return Bond(world, "bond0"), Bond(world, "bond0", world.peer)


@pytest.fixture
def ends(world: Crossed) -> Iterator[tuple[Bond, Bond]]:
    try:
        yield both_ends(world)
    finally:
        world.ubond("down", "bond0", check=False)
        world.ubond("down", "bond0", space=world.peer, check=False)
        for nic in world.nics:
            world.plug(nic)


def test_both_slaves_receive_and_everything_comes_once(world: Crossed, ends: tuple[Bond, Bond]) -> None:
    before = {nic: world.host.counters(nic) for nic in world.nics}
    world.host.ping(THERE, count=100)
    world.peer.ping(HERE, count=100)
    for nic in world.nics:
        after = world.host.counters(nic)
        for way in ("rx", "tx"):
            assert after[way]["packets"] - before[nic][way]["packets"] > 80, f"{nic} {way}"


def test_pulling_one_of_two_slaves_loses_nothing_that_leaves(world: Crossed, ends: tuple[Bond, Bond]) -> None:
    """Frames leave all the time; the two cables together deliver every number that was handed over."""
    near, _ = ends
    kept_before = world.vanished(near)
    with Sniffer(world.peer, "p1") as one, Sniffer(world.peer, "p2") as two:
        sent = 0
        for cable in ("eth2", "eth1"):
            for step in range(60):
                send_numbered(world, 20, sent)
                sent += 20
                if step == 30:
                    # The far end goes down, but what it had received is there to be read.
                    world.pull(cable)
            near.wait_link(cable, "DOWN")
            assert world.host.carrier("bond0")
            world.plug(cable)
            near.wait_link(cable, "UP")
        kept = world.vanished(near) - kept_before
        found: list[int] = []

        def all_there() -> bool:
            found.extend(number(seen) for sniffer in (one, two) for seen in sniffer.take() if is_ours(seen))
            return len(found) >= sent - kept

        wait_until(all_there, what=f"{sent} frames")
        assert len(found) == len({*found} & {*range(sent)}), "each comes once"
        assert kept <= 60
        history = near.ask("history")["history"]
        assert all(entry["lost"] == 0 for entry in history)


def test_traffic_goes_on_over_one_slave_and_over_both_again(world: Crossed, ends: tuple[Bond, Bond]) -> None:
    near, far = ends
    world.pull("eth1")
    near.wait_link("eth1", "DOWN")
    far.wait_link("p1", "DOWN")
    world.host.ping(THERE, count=20)
    world.plug("eth1")
    near.wait_link("eth1", "UP")
    far.wait_link("p1", "UP")
    before = world.host.counters("eth1")["tx"]["packets"]
    world.host.ping(THERE, count=20)
    assert world.host.counters("eth1")["tx"]["packets"] - before >= 9


def test_all_down_and_one_back(world: Crossed, ends: tuple[Bond, Bond]) -> None:
    near, _ = ends
    world.pull("eth1")
    world.pull("eth2")
    wait_until(lambda: not world.host.carrier("bond0"), what="NO-CARRIER")
    world.plug("eth2")
    wait_until(lambda: world.host.carrier("bond0"), what="carrier again")
    wait_until(lambda: world.host.reaches(THERE), what="traffic over eth2")
    assert near.link_state("eth1") == "DOWN"
