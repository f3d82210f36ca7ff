"""What is kept of the kernel's announcements before they are decoded, and how its answers are read."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink import NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.rtnl import RTM_NEWLINK, RTM_NEWNEIGH
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from ubond.bond.events import DoorError
from ubond.netlink import _link
from ubond.rtnl import ANNOUNCED, Requests, _of_interest, _split, link_message

READ = {
    "IFNAME": "eth1", "ADDRESS": "02:00:00:00:00:01", "MTU": 1508, "MASTER": 7, "LINK": 3, "IFALIAS": "slave of bond0",
    "CARRIER_CHANGES": 5, "LINKINFO": {"attrs": [("IFLA_INFO_KIND", "veth")]},
}  # fmt: skip
PASSED_OVER = {"TXQLEN": 1000, "NUM_TX_QUEUES": 1, "QDISC": "noqueue", "GROUP": 0, "OPERSTATE": "UP"}


def announcement(**attributes: Any) -> bytes:
    message = link_message(4, **attributes)
    message["header"]["type"] = RTM_NEWLINK
    message.encode()
    return bytes(message.data) + bytes(-len(message.data) % 4)


def decoded(data: bytes) -> list[Any]:
    return list(MarshalRtnl().parse(data))


@settings(deadline=None)
@given(st.permutations([*READ, *PASSED_OVER]))
def test_a_thinned_link_reads_as_the_whole_one(order: list[str]) -> None:
    both = {**READ, **PASSED_OVER}
    whole = announcement(**{name: both[name] for name in order})
    thin = _of_interest(whole + whole)
    assert len(thin) < 2 * len(whole)
    first, second = decoded(thin)
    assert _link(first) == _link(second) == _link(decoded(whole)[0])
    assert {name for name, _ in first["attrs"]} == {f"IFLA_{name}" for name in READ}


def test_every_attribute_that_is_kept_has_a_number() -> None:
    assert set(ANNOUNCED) <= {name for name, _ in ifinfmsg.nla_map}


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([RTM_NEWLINK, RTM_NEWNEIGH]))
def test_whatever_comes_is_read_to_its_end(tail: bytes, kind: int) -> None:
    head = (16 + len(tail)).to_bytes(4, "little") + kind.to_bytes(2, "little") + bytes(10)
    assert len(_of_interest(head + tail)) <= len(head + tail) + 3


# ── answers ──────────────────────────────────────────────────────────────────────────


def message(kind: int, body: bytes, flags: int = 0, sequence: int = 9) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body + bytes(-len(body) % 4)


ASKED = struct.pack("=IHHII", 40, 16, 5, 9, 0)
WORDS = struct.pack("=HH", 4 + 6, 1) + b"no no\0" + bytes(2)


@pytest.mark.parametrize(
    ("body", "flags", "told"),
    [
        (struct.pack("=i", 0) + ASKED, 0x100, None),
        (struct.pack("=i", -errno.EBUSY) + ASKED, 0x100, (errno.EBUSY, os.strerror(errno.EBUSY))),
        (struct.pack("=i", -errno.EBUSY) + ASKED + WORDS, 0x300, (errno.EBUSY, "no no")),
        # A kernel that sends back all of what was asked.
        (struct.pack("=i", -errno.EBUSY) + ASKED + bytes(24) + WORDS, 0x200, (errno.EBUSY, "no no")),
    ],
)
def test_what_a_refusal_says(body: bytes, flags: int, told: tuple[int, str] | None) -> None:
    done, answer = _split(message(NLMSG_DONE, struct.pack("=i", 0)) + message(NLMSG_ERROR, body, flags))
    error = answer.error()
    assert (error and (error.errno, error.strerror)) == told
    assert done.ends(9)
    assert answer.ends(9)
    assert not answer.ends(8)
    assert done.error() is None


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_whatever_comes_is_taken_apart(data: bytes) -> None:
    for answer in _split(data):
        assert len(answer.data) >= 16
        answer.error()
        assert isinstance(answer.index, int)


def kernel(*answers: bytes) -> tuple[Requests, socket.socket]:
    """Requests whose kernel says these things, whatever it is asked."""
    requests = Requests()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    requests._orders = requests._dumps = ours
    for answer in answers:
        theirs.send(answer)
    return requests, theirs


def test_late_answers_to_something_else_are_passed_over() -> None:
    link = bytearray(announcement(IFNAME="eth1"))
    struct.pack_into("=I", link, 8, 1)
    late = message(NLMSG_ERROR, struct.pack("=i", -errno.EBUSY) + ASKED, sequence=77)
    requests, theirs = kernel(late, bytes(link))
    with requests._orders, theirs:
        found = asyncio.run(requests.ask("RTM_GETLINK", 18, link_message(4)))
    assert found.get_attr("IFLA_IFNAME") == "eth1"


def test_a_dump_that_changed_meanwhile_is_taken_again_and_only_what_is_wanted_is_decoded() -> None:
    def one(index: int, sequence: int, flags: int = 2) -> bytes:
        made = bytearray(announcement(IFNAME=f"eth{index}"))
        struct.pack_into("=HI", made, 6, flags, sequence)
        struct.pack_into("=i", made, 20, index)
        return bytes(made)

    def end(sequence: int) -> bytes:
        return message(NLMSG_DONE, bytes(4), 2, sequence)

    requests, theirs = kernel(one(3, 1) + one(4, 1, 2 | 0x10), end(1), one(3, 2) + one(4, 2), end(2))
    with requests._orders, theirs:
        (found,) = asyncio.run(requests.dump("RTM_GETLINK", 18, link_message(), index=4))
    assert found.get_attr("IFLA_IFNAME") == "eth4"


def test_the_first_refusal_of_several_is_told_with_its_call() -> None:
    acks = [message(NLMSG_ERROR, struct.pack("=i", -number) + ASKED, 0x100, sequence)
            for sequence, number in ((1, 0), (2, errno.EEXIST), (3, errno.ENOENT))]  # fmt: skip
    requests, theirs = kernel(acks[0] + acks[1], acks[2])
    with requests._orders, theirs, pytest.raises(DoorError) as error:
        asyncio.run(requests.tell_together(*((call, 16, link_message(4), 0) for call in "abc"), interface="eth1"))
    assert (error.value.call, error.value.errno, error.value.interface) == ("b", errno.EEXIST, "eth1")


@pytest.mark.parametrize("raw", [b"eth1", "b\u00fcro".encode(), b"e\xff2", b"\xff\xfe", b"a\x1cb"])
def test_names_and_aliases_of_any_bytes_are_texts_here_and_those_bytes_there(raw: bytes) -> None:
    message = link_message(7, IFNAME=raw, IFALIAS=raw)
    message["header"]["type"] = RTM_NEWLINK
    message.encode()
    (read,) = MarshalRtnl().parse(bytes(message.data))
    link = _link(read)
    assert isinstance(link.name, str)
    assert link.name == link.alias
    again = link_message(7, IFNAME=link.name, IFALIAS=link.alias)
    again["header"]["type"] = RTM_NEWLINK
    again.encode()
    assert bytes(again.data) == bytes(message.data)
