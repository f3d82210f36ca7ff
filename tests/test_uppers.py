"""Who stands on a bond, and what /proc tells of groups: pure, on pictures written here."""

from __future__ import annotations

import socket
from pathlib import Path

from ubond.uppers import (
    IFA_F_DADFAILED,
    IFA_F_OPTIMISTIC,
    IFA_F_TENTATIVE,
    Address,
    Link,
    _proc,
    read_igmp,
    read_igmp6,
    read_igmp_versions,
    stacked,
)
from ubond.wire import MacAddr

UP = 0x1
IGMP = """Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter
1\tlo        :     1      V3
\t\t\t\t010000E0     1 0:00000000\t\t0
7\tbond0     :     2      V2
\t\t\t\t030201EF     1 0:00000000\t\t0
\t\t\t\t010000E0     1 0:00000000\t\t0
12\tbr-0123456789ab:     1      V3
\t\t\t\t010000E0     1 0:00000000\t\t0
"""
IGMP6 = """1    lo              ff020000000000000000000000000001     1 0000000C 0
1    lo              ff010000000000000000000000000001     1 00000008 0
7    bond0           ff0200000000000000000001ff000001     1 00000004 0
7    bond0           ff150000000000000000000000000077     1 00000004 0
7    bond0           ff020000000000000000000000000001     1 0000000C 0
"""


def picture(*links: Link) -> dict[int, Link]:
    return {link.index: link for link in links}


def link(index: int, name: str, kind: str = "", *, lower: int = 0, master: int = 0, vlan: tuple[int, int] | None = None,
         up: bool = True) -> Link:  # fmt: skip
    return Link(index, name, UP if up else 0, MacAddr(bytes([2, 0, 0, 0, 0, index])), 1500, master, lower, kind, vlan)


def found(links: dict[int, Link], bond: int = 7) -> dict[str, tuple[tuple[int, int], ...]]:
    return {upper.name: tags for upper, tags in stacked(links, bond)}


def test_vlan_tags_are_named_from_the_outside_in() -> None:
    links = picture(
        link(9, "q", "vlan", lower=8, vlan=(0x8100, 20)),
        link(8, "s", "vlan", lower=7, vlan=(0x88A8, 10)),
        link(7, "bond0", "tun"),
        link(10, "mv", "macvlan", lower=9),
    )
    tags = ((0x88A8, 10), (0x8100, 20))
    assert found(links) == {"bond0": (), "s": tags[:1], "q": tags, "mv": tags}


def test_a_bridge_over_a_vlan_speaks_with_that_tag() -> None:
    links = picture(
        link(7, "bond0", "tun"),
        link(8, "bond0.5", "vlan", lower=7, master=9, vlan=(0x8100, 5)),
        link(9, "br0", "bridge"),
        link(10, "br0.6", "vlan", lower=9, vlan=(0x8100, 6)),
    )
    assert found(links)["br0.6"] == ((0x8100, 5), (0x8100, 6))


def test_what_is_down_and_what_stands_on_it_is_left_out() -> None:
    links = picture(
        link(7, "bond0", "tun"),
        link(8, "off", "vlan", lower=7, vlan=(0x8100, 5), up=False),
        link(9, "on", "macvlan", lower=8),
    )
    assert found(links) == {"bond0": ()}
    assert found(picture(link(7, "bond0", up=False))) == {}
    assert found({}) == {}


def test_peers_routers_and_other_masters_are_not_uppers() -> None:
    links = picture(
        link(7, "bond0", "veth", master=20), link(8, "peer", "veth", lower=7), link(20, "red", "vrf"),
        link(9, "tunnel", "vxlan", lower=7),
    )  # fmt: skip
    assert found(links) == {"bond0": ()}


def test_a_circle_ends() -> None:
    links = picture(link(7, "bond0", master=8), link(8, "br0", "bridge"), link(9, "mv", "macvlan", lower=8, master=8))
    assert found(links) == {"bond0": (), "br0": (), "mv": ()}


def test_tentative_and_failed_addresses_are_not_usable() -> None:
    def usable(flags: int) -> bool:
        return Address(7, bytes(16), 64, flags, 0).usable

    assert [usable(0), usable(IFA_F_TENTATIVE), usable(IFA_F_DADFAILED)] == [True, False, False]
    assert usable(IFA_F_TENTATIVE | IFA_F_OPTIMISTIC)


def test_groups_are_read_without_those_that_nobody_reports() -> None:
    assert read_igmp(IGMP) == {1: (), 7: (socket.inet_aton("239.1.2.3"),), 12: ()}
    assert read_igmp_versions(IGMP) == {1: 3, 7: 2, 12: 3}
    pton = lambda text: socket.inet_pton(socket.AF_INET6, text)  # noqa: E731
    assert read_igmp6(IGMP6) == {7: (pton("ff02::1:ff00:1"), pton("ff15::77"))}


def test_a_kernel_without_multicast_has_no_groups() -> None:
    assert (read_igmp(""), read_igmp6(""), read_igmp_versions("")) == ({}, {}, {})


def test_a_name_that_is_no_text_hides_nobodys_groups(tmp_path: Path) -> None:
    """The kernel takes any bytes but a few: some are no UTF-8, and some end a word or a line for Python."""
    for name in (b"\xff\xfe", "a\u2028b".encode(), b"a\x1cb", b"a\x85b", b"\x01"):
        table = tmp_path / "igmp"
        table.write_bytes(IGMP.encode().replace(b"br-0123456789ab", name))
        assert read_igmp(_proc(str(table))) == read_igmp(IGMP)
        assert read_igmp_versions(_proc(str(table))) == read_igmp_versions(IGMP)
        table.write_bytes(IGMP6.encode().replace(b"lo   ", name))
        assert read_igmp6(_proc(str(table))) == read_igmp6(IGMP6)
