"""What is kept of the kernel's announcements before they are decoded."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl import RTM_NEWLINK, RTM_NEWNEIGH
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from ubond.netlink import _link
from ubond.rtnl import ANNOUNCED, _of_interest, link_message

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


@given(st.binary(max_size=200), st.sampled_from([RTM_NEWLINK, RTM_NEWNEIGH]))
def test_whatever_comes_is_read_to_its_end(tail: bytes, kind: int) -> None:
    head = (16 + len(tail)).to_bytes(4, "little") + kind.to_bytes(2, "little") + bytes(10)
    assert len(_of_interest(head + tail)) <= len(head + tail) + 3
