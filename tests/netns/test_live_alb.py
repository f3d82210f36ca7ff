"""balance-alb: who sends to the bond is told different slaves' MACs, and told again when slaves fail."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.netns.world import HOST4, PEER4, Bond, Sniffer, Space, World, wait_until

pytestmark = pytest.mark.netns

CLIENTS = 4
ALB = ("--mode", "balance-alb")
SIZE = 1 << 20


def address(number: int) -> str:
    return f"{PEER4.rsplit('.', 1)[0]}.{100 + number}"


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[World, list[Space]]]:
    """A world with more peers on the switch."""
    with World(3) as world:
        clients = [world.add_space(f"c{number}") for number in range(CLIENTS)]
        for number, space in enumerate(clients):
            port = f"swc{number}"
            world.cable(space, "eth0", 400 + number, world.switch, port)
            world.switch.ip("link", "set", port, "master", "br0", "addrgenmode", "none", "up")
            space.ip("link", "set", "eth0", "addrgenmode", "none", "up")
            space.ip("addr", "add", f"{address(number)}/24", "dev", "eth0")
        yield world, clients


def asked(clients: list[Space]) -> None:
    """Have every client ask for the bond."""
    for space in clients:
        space.ip("neigh", "flush", "dev", "eth0")
        wait_until(lambda space=space: space.reaches(HOST4), what="the bond answers")


def told(clients: list[Space]) -> list[str | None]:
    """Under which MAC each client has the bond."""
    return [space.neighbour(HOST4) for space in clients]


def slaves_macs(world: World, bond: Bond) -> dict[str, str]:
    """The MACs of those slaves whose link is up."""
    up = [nic for nic in world.nics if bond.slave(nic)["linkinfo"]["info_slave_data"]["mii_status"] == "UP"]
    return {nic: world.host.mac(nic) for nic in up}


class Talk:
    """A TCP connection from a client to the host, over which blocks go there and back, compared, until it ends."""

    def __init__(self, world: World, client: Space) -> None:
        with world.host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((HOST4, 0))
            listener.listen(1)
            listener.settimeout(world.seconds(20))
            self._far = client.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._far.settimeout(world.seconds(20))
            self._far.connect(listener.getsockname())
            self._near, _ = listener.accept()
        self._near.settimeout(world.seconds(20))
        self.rounds, self.broken, self._ending = 0, "", False
        self._thread = threading.Thread(target=self._go_on)
        self._thread.start()

    def _go_on(self) -> None:
        block = bytes(range(251)) * 400
        try:
            while not self._ending:
                for one, other in ((self._far, self._near), (self._near, self._far)):
                    one.sendall(block)
                    got = b""
                    while len(got) < len(block):
                        piece = other.recv(1 << 18)
                        if not piece:
                            raise OSError("the connection has ended")
                        got += piece
                    if got != block:
                        raise OSError("other bytes came than were sent")
                self.rounds += 1
        except OSError as error:
            self.broken = str(error)

    def goes_on(self) -> None:
        count = self.rounds
        wait_until(lambda: self.broken or self.rounds > count + 5, 20, "TCP goes on")
        assert not self.broken

    def close(self) -> None:
        self._ending = True
        self._thread.join()
        for each in (self._far, self._near):
            each.close()


def test_clients_learn_different_slaves_and_traffic_comes_in_there(place: tuple[World, list[Space]]) -> None:
    world, clients = place
    with world.bond(*ALB) as bond:
        macs = slaves_macs(world, bond)
        assert len(set(macs.values())) == 3
        assert macs[str(bond.info["active_slave"])] == str(bond.mac)
        asked(clients)
        wait_until(lambda: set(told(clients)) == set(macs.values()), 10, "the clients have all three slaves")
        before = {nic: bond.counters(nic)["rx_frames"] for nic in macs}
        for space in clients:
            space.ping(HOST4, "-i", "0.002", count=200)
        grown = {nic: bond.counters(nic)["rx_frames"] - before[nic] for nic in macs}
        assert all(each >= 200 for each in grown.values()), grown
        assert bond.no_slave == 0


def test_clients_follow_when_slaves_fail_and_tcp_goes_on_both_ways(place: tuple[World, list[Space]]) -> None:
    world, clients = place
    with world.bond(*ALB) as bond:
        asked(clients)
        talks = [Talk(world, space) for space in clients]
        try:
            for _ in range(2):
                for nic in world.nics:
                    for talk in talks:
                        talk.goes_on()
                    world.pull(nic)
                    bond.wait_link(nic, "DOWN")
                    for talk in talks:
                        talk.goes_on()
                    left = set(slaves_macs(world, bond).values())
                    assert len(left) == 2
                    assert str(bond.mac) in left
                    wait_until(lambda left=left: set(told(clients)) <= left, 15, "nobody sends to the dead slave")
                    world.plug(nic)
                    bond.wait_link(nic, "UP")
            everybody = set(slaves_macs(world, bond).values())
            wait_until(lambda: set(told(clients)) == everybody, 15, "the returned slave has clients again")
            for talk in talks:
                talk.goes_on()
        finally:
            for talk in talks:
                talk.close()


def test_the_active_slave_changes_and_its_clients_with_it(place: tuple[World, list[Space]]) -> None:
    world, clients = place
    with world.bond(*ALB) as bond:
        asked(clients)
        talk = Talk(world, clients[0])
        try:
            for nic in ("eth2", "eth3", "eth1"):
                bond.set(f"active_slave={nic}")
                talk.goes_on()
                assert world.host.mac(nic) == str(bond.mac)
                macs = set(slaves_macs(world, bond).values())
                wait_until(lambda macs=macs: set(told(clients)) <= macs, 10, "MACs that there are")
                for space in clients:
                    assert space.reaches(HOST4)
        finally:
            talk.close()


def test_the_hosts_own_requests_are_answered_and_leave_clients_where_they_were(
    place: tuple[World, list[Space]],
) -> None:
    world, clients = place
    with world.bond(*ALB) as bond, Sniffer(world.peer, "eth0") as sniffer:
        asked(clients)
        wait_until(lambda: len(set(told(clients))) == 3, 10, "three slaves")
        world.host.ip("neigh", "flush", "dev", "bond0")
        for number in range(CLIENTS):
            wait_until(lambda number=number: world.host.reaches(address(number)), what="a client answers")
        requests = [seen.frame for seen in sniffer.take() if seen.kind == 0x0806 and seen.frame[20:22] == b"\0\1"]
        ours = [frame for frame in requests if bytes(frame[22:28]).hex(":") == str(bond.mac)]
        assert ours, "requests name the bond's MAC"
        macs = set(slaves_macs(world, bond).values())
        assert {bytes(frame[6:12]).hex(":") for frame in ours} <= macs
        wait_until(lambda: set(told(clients)) == macs, 15, "all are told again whom they had")


def test_clients_that_would_not_hear_an_update_so_soon_get_another(place: tuple[World, list[Space]]) -> None:
    """The host asks twice, so that the update after the first request is within Linux's second of the other one."""
    world, clients = place
    with world.bond(*ALB) as bond:
        asked(clients)
        wait_until(lambda: len(set(told(clients))) == 3, 10, "three slaves")
        world.host.ip("neigh", "flush", "dev", "bond0")
        for number in range(2):
            wait_until(lambda number=number: world.host.reaches(address(number)), what="a client answers")
            time.sleep(1.6)
        macs = set(slaves_macs(world, bond).values())
        wait_until(lambda: set(told(clients)) == macs, 15, "all are told again whom they had")
