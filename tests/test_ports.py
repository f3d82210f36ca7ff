"""A slave's memberships: what is new first, and all groups where the kernel has no room.

The socket is a pretend one, because the real kernel finds room for as many as one will wait for; what it
does with them is in tests/netns/test_live_reception.py.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any, cast

import pytest

from ubond.bond.events import DoorError
from ubond.bond.reception import Reception
from ubond.ports import Port

ADD, DROP = 1, 2
GROUP, PROMISC, ALL, UNICAST = range(4)


class Socket:
    """Memberships as packet(7) has them; `room`: for so many addresses."""

    def __init__(self, room: int = 1000) -> None:
        self.room, self.dead = room, False
        self.held: set[tuple[int, bytes]] = set()
        self.calls: list[tuple[int, int]] = []

    def setsockopt(self, level: int, option: int, request: bytes) -> None:
        index, kind, length, address = struct.unpack("iHH8s", request)
        assert (level, index) == (263, 7)
        key = kind, address[:length]
        self.calls.append((option, kind))
        if option == DROP:
            self.held.remove(key)
            return
        assert key not in self.held, "the kernel would count it twice"
        full = sum(kind in (GROUP, UNICAST) for kind, _ in self.held) >= self.room
        if self.dead or (kind in (GROUP, UNICAST) and full):
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        self.held.add(key)


def port(sock: Socket) -> Port:
    return Port("eth1", 7, cast(Any, sock), cast(Any, None))


def groups(*numbers: int) -> frozenset[bytes]:
    return frozenset(b"\x01\x00\x5e\x00\x00" + bytes([number]) for number in numbers)


def test_only_the_difference_is_asked_for_and_what_is_new_comes_first() -> None:
    sock = Socket()
    slave = port(sock)
    assert slave.let_in(Reception(groups=groups(1, 2), unicast=frozenset({b"\x02" + bytes(5)}))) is None
    sock.calls.clear()
    assert slave.let_in(Reception(groups=groups(2, 3))) is None
    assert sock.calls == [(ADD, GROUP), (DROP, GROUP), (DROP, UNICAST)]
    assert sock.held == {(GROUP, group) for group in groups(2, 3)}
    sock.calls.clear()
    assert slave.let_in(Reception(groups=groups(2, 3))) is None
    assert sock.calls == []


def test_promiscuity_replaces_lists_without_a_gap() -> None:
    sock = Socket()
    slave = port(sock)
    slave.let_in(Reception(groups=groups(1)))
    slave.let_in(Reception(promiscuous=True, all_multicast=True))
    assert sock.held == {(PROMISC, b""), (ALL, b"")}
    assert sock.calls[-1] == (DROP, GROUP)
    slave.let_in(Reception(groups=groups(1)))
    assert sock.held == {(GROUP, *groups(1))}


def test_no_room_for_groups_is_all_groups_told_once_and_over_when_there_is_room() -> None:
    sock = Socket(room=2)
    slave = port(sock)
    slave.let_in(Reception(groups=groups(1, 2)))
    told = slave.let_in(Reception(groups=groups(1, 2, 3)))
    assert told is not None
    assert "takes all groups instead" in told
    assert slave.overfull == told
    assert sock.held == {(ALL, b"")}
    assert slave.let_in(Reception(groups=groups(1, 2, 3))) is None
    assert slave.let_in(Reception(groups=groups(1, 2, 3, 4))) is None
    assert sock.held == {(ALL, b"")}
    assert slave.let_in(Reception(groups=groups(1))) is None
    assert (sock.held, slave.overfull) == ({(GROUP, *groups(1))}, "")


def test_no_room_for_further_macs_is_promiscuity() -> None:
    sock = Socket(room=0)
    port(sock).let_in(Reception(unicast=frozenset({b"\x02" + bytes(5)})))
    assert sock.held == {(PROMISC, b""), (ALL, b"")}


def test_a_socket_that_takes_nothing_is_an_error_and_keeps_what_it_holds() -> None:
    sock = Socket()
    slave = port(sock)
    slave.let_in(Reception(groups=groups(1)))
    sock.dead = True
    with pytest.raises(DoorError, match="PACKET_ADD_MEMBERSHIP"):
        slave.let_in(Reception(groups=groups(1, 2)))
    assert slave.holds == Reception(groups=groups(1))
    sock.dead = False
    slave.let_in(Reception(groups=groups(1, 2)))
    assert sock.held == {(GROUP, group) for group in groups(1, 2)}
