"""What tests ask of a world: a ping answered late is not lost, one that is not answered or answered twice fails."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from tests.netns.world import HOST4, PEER4, Space, World, WorldError, unanswered

pytestmark = pytest.mark.netns

_ECHO_REQUEST, _ETH_IP = 8, 0x0800


class Answerer:
    """Answers pings where the kernel does not: each as often as `times` says (else once), `late` ones 0.1 s later."""

    def __init__(self, space: Space, *, late: tuple[int, ...] = (), times: dict[int, int] | None = None) -> None:
        self._sock = space.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._sock.bind(("eth0", _ETH_IP))
        self._sock.settimeout(0.05)
        self._late, self._times = late, times or {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._answer)

    def __enter__(self) -> Answerer:
        self._thread.start()
        return self

    def __exit__(self, *why: object) -> None:
        self._over.set()
        self._thread.join()
        self._sock.close()

    def _answer(self) -> None:
        while not self._over.is_set():
            try:
                frame = self._sock.recv(2048)
            except TimeoutError:
                continue
            if frame[23] != socket.IPPROTO_ICMP or frame[34] != _ECHO_REQUEST:
                continue
            number = int.from_bytes(frame[40:42])
            if number in self._late:
                time.sleep(0.1)
            # The type falls by 8 in the upper byte, so the sum of the complements grows by as much (RFC 1624).
            checksum = int.from_bytes(frame[36:38]) + 0x0800
            checksum = (checksum & 0xFFFF) + (checksum >> 16)
            answer = (frame[6:12] + frame[:6] + frame[12:26] + frame[30:34] + frame[26:30]
                      + struct.pack("!BBH", 0, 0, checksum) + frame[38:])  # fmt: skip
            for _ in range(self._times.get(number, 1)):
                self._sock.send(answer)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(1) as world:
        world.host.ip("addr", "add", f"{HOST4}/24", "dev", "eth1")
        world.host.ping(PEER4)
        world.peer.run("sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1")
        yield world


def test_pings_that_are_answered_late_are_answered(world: World) -> None:
    with Answerer(world.peer, late=(2, 3)):
        world.host.ping(PEER4, count=3)


@pytest.mark.parametrize(("times", "lost"), [({2: 0}, 1), ({1: 0, 3: 0}, 2), ({2: 2}, 0)], ids=str)
def test_a_ping_that_is_lost_or_answered_twice_fails(world: World, times: dict[int, int], lost: int) -> None:
    with Answerer(world.peer, times=times):
        assert unanswered(world.host.ping(PEER4, count=3, check=False), 3) == lost
        with pytest.raises(WorldError, match=f"ping {PEER4}"):
            world.host.ping(PEER4, count=3)
