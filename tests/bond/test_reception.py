"""What slaves must let in, from what the bond's device is asked to let in."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubond.bond.reception import MOST, SLOW_PROTOCOLS, Reception, needed, of_device, solicited_node_group

ALL_NODES = bytes.fromhex("333300000001")
GUEST = bytes.fromhex("020000000001")
ALL = Reception(promiscuous=True, all_multicast=True)


def groups(count: int) -> frozenset[bytes]:
    return frozenset(b"\x01\x00\x5e\x01" + number.to_bytes(2, "big") for number in range(count))


def test_addresses_are_told_apart_by_their_group_bit() -> None:
    assert of_device(1, 0, [ALL_NODES, GUEST]) == Reception(groups=frozenset({ALL_NODES}), unicast=frozenset({GUEST}))


@pytest.mark.parametrize(("promiscuity", "addresses", "expected"), [
    (0, [], False),
    (1, [], True),              # a bridge, or tcpdump
    (1, [GUEST], False),        # the kernel's own answer to a macvlan: a TAP cannot filter
    (2, [GUEST], True),         # and tcpdump beside it
])  # fmt: skip
def test_a_tap_that_is_promiscuous_only_for_its_further_macs_is_not(
    promiscuity: int, addresses: list[bytes], expected: bool
) -> None:
    assert of_device(promiscuity, 0, addresses).promiscuous is expected


def test_slaves_let_in_the_bonds_lists_and_slow_protocols() -> None:
    bond = Reception(groups=frozenset({ALL_NODES}), unicast=frozenset({GUEST}))
    assert needed(bond) == Reception(groups=frozenset({ALL_NODES, SLOW_PROTOCOLS}), unicast=frozenset({GUEST}))


def test_promiscuity_and_a_fixed_vlan_filter_let_everything_in() -> None:
    assert needed(Reception(promiscuous=True)) == ALL
    assert needed(Reception(), filters_vlans=True, vlans=True) == ALL
    assert not needed(Reception(), filters_vlans=True).promiscuous
    assert not needed(Reception(), vlans=True).promiscuous


def test_all_multicast_keeps_further_macs() -> None:
    bond = Reception(all_multicast=True, groups=groups(3), unicast=frozenset({GUEST}))
    assert needed(bond) == Reception(all_multicast=True, unicast=frozenset({GUEST}))


def test_too_many_groups_are_all_groups_and_too_many_macs_everything() -> None:
    assert len(needed(Reception(groups=groups(MOST - 1))).groups) == MOST
    assert needed(Reception(groups=groups(MOST))) == Reception(all_multicast=True)
    macs = frozenset(b"\x02" + group[1:] for group in groups(MOST + 1))
    assert needed(Reception(unicast=macs)) == ALL


def test_a_backup_hears_solicitations_for_the_targets() -> None:
    target = IPv6Address("fe80::12:3456:789a")
    assert solicited_node_group(target) == bytes.fromhex("3333ff56789a")
    assert solicited_node_group(target) in needed(Reception(), ns_targets=[target]).groups


@given(st.builds(Reception, st.booleans(), st.booleans(), st.frozensets(st.binary(min_size=6, max_size=6)),
                 st.frozensets(st.binary(min_size=6, max_size=6))), st.booleans(), st.booleans())  # fmt: skip
def test_nothing_that_the_bond_lets_in_is_kept_out(bond: Reception, filters: bool, vlans: bool) -> None:
    slave = needed(bond, filters_vlans=filters, vlans=vlans)
    assert slave.promiscuous or (not bond.promiscuous and bond.unicast <= slave.unicast)
    assert slave.all_multicast or (not bond.all_multicast and bond.groups <= slave.groups)
