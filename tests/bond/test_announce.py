"""What is announced at a change of the active slave: each rule, and against a recorded Linux bond."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from ubond.bond.announce import membership_reports, peer_notification
from ubond.bond.events import UpperFacts
from ubond.wire import (
    ETH_ARP,
    ETH_RARP,
    IS_EXCLUDE,
    MacAddr,
    WireError,
    decode_arp,
    decode_ethernet,
    decode_membership_report,
    decode_na,
    is_link_local,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "notify.jsonl.gz"


def ip(text: str) -> bytes:
    return (IPv6Address if ":" in text else IPv4Address)(text).packed


MAC = MacAddr.parse("02:00:00:00:00:0a")
BOND = UpperFacts(
    "bond0", MAC, addresses4=(ip("192.0.2.10"), ip("198.51.100.7")), addresses6=(ip("2001:db8::a"),)
)
VLAN = UpperFacts("bond0.10", MAC, tags=((0x8100, 10),), addresses4=(ip("203.0.113.5"),))


def test_every_address_of_every_upper_is_announced_in_its_own_vlan() -> None:
    first, second, advert, tagged = peer_notification([BOND, VLAN])
    assert [decode_arp(frame).sender_ip for frame in (first, second)] == list(BOND.addresses4)
    assert decode_na(advert).target == BOND.addresses6[0]
    assert decode_ethernet(tagged).tags == VLAN.tags
    assert decode_arp(tagged).sender_ip == VLAN.addresses4[0]


def test_an_upper_without_addresses_sends_a_rarp_instead() -> None:
    bare = UpperFacts("bond0", MAC, groups4=(ip("239.1.1.1"),))
    (frame,) = peer_notification([bare])
    assert decode_ethernet(frame).ethertype == ETH_RARP
    assert decode_arp(frame).sender_mac == decode_arp(frame).target_mac == MAC


@pytest.mark.parametrize("family", ["addresses4", "addresses6"])
def test_one_address_of_either_family_needs_no_rarp(family: str) -> None:
    other = {"addresses4": "addresses6", "addresses6": "addresses4"}[family]
    upper = UpperFacts("bond0", MAC, addresses4=BOND.addresses4[:1], addresses6=BOND.addresses6)
    (frame,) = peer_notification([replace(upper, **{other: ()})])  # type: ignore[arg-type]
    assert decode_ethernet(frame).ethertype != ETH_RARP


def test_a_bridge_of_the_same_mac_on_the_bond_does_not_repeat_a_frame() -> None:
    bare = UpperFacts("bond0", MAC)
    assert len(peer_notification([bare, replace(bare, name="br0")])) == 1
    other = replace(bare, name="br0", mac=MacAddr.parse("02:00:00:00:00:0b"))
    assert len(peer_notification([bare, other])) == 2


def test_nobody_to_tell_is_no_frame() -> None:
    assert peer_notification([]) == membership_reports([]) == ()
    assert membership_reports([BOND]) == ()


def test_a_router_advertises_itself_as_one() -> None:
    frames = peer_notification([replace(BOND, addresses4=(), router=True)])
    assert [decode_na(frame).router for frame in frames] == [True]


def test_reports_speak_the_version_of_the_querier_and_stay_in_their_vlan() -> None:
    upper = replace(VLAN, groups4=(ip("239.1.1.1"), ip("239.1.1.2")), groups6=(ip("ff05::1"),))
    new = [decode_membership_report(frame) for frame in membership_reports([upper])]
    assert [(report.version, len(report.records)) for report in new] == [(3, 2), (2, 1)]
    old = membership_reports([replace(upper, igmp_version=1, mld_version=1)])
    assert [decode_membership_report(frame).version for frame in old] == [1, 1, 1]
    assert {decode_ethernet(frame).tags for frame in old} == {VLAN.tags}


def test_reports_come_from_an_address_that_the_standards_allow() -> None:
    addresses6 = (ip("2001:db8::a"), ip("fe80::a"))
    upper = replace(BOND, addresses6=addresses6, groups4=(ip("239.1.1.1"),), groups6=(ip("ff05::1"),))
    sources = [decode_membership_report(frame).src for frame in membership_reports([upper])]
    assert sources == [ip("192.0.2.10"), ip("fe80::a")]
    bare = membership_reports([replace(upper, addresses4=(), addresses6=())])
    assert [decode_membership_report(frame).src for frame in bare] == [bytes(4), bytes(16)]


# ── against the recordings ───────────────────────────────────────────────────────────

LINES = gzip.decompress(GOLDEN.read_bytes()).splitlines()
RECORDS: list[dict[str, Any]] = [json.loads(line) for line in LINES]
#: ALB learning frames (type 0x9000): balance-tlb and balance-alb, which make no announcements.
LEARNING = 0x9000


def uppers_of(record: dict[str, Any], mac: str) -> list[UpperFacts]:
    """The recorded bond, and the VLAN above it where there is one, with `mac`."""
    uppers = []
    for name, texts in record["addresses"].items():
        if name == "groups":
            continue
        tags = ((0x8100, int(name.split()[1])),) if name.startswith("vlan ") else ()
        four = tuple(ip(text) for text in texts if ":" not in text)
        six = [ip(text) for text in texts if ":" in text]
        groups = record["addresses"].get("groups", [])
        six += link_local_of(record) if groups else []
        groups6 = tuple(ip(group) for group in groups if ":" in group)
        solicited = tuple(ip("ff02::1:ff00:0")[:13] + address[13:] for address in six)
        groups4 = tuple(ip(group) for group in groups if ":" not in group)
        groups6 += solicited
        uppers.append(UpperFacts(name, MacAddr.parse(mac), tags, four, tuple(six), groups4, groups6))
    return uppers


def link_local_of(record: dict[str, Any]) -> list[bytes]:
    """The link-local address that the bond gave itself: not in `addresses`, but in what it sent."""
    sent = [bytes.fromhex(frame) for event in record["events"] for _, _, frame in event["frames"]]
    sources = {frame[22:38] for frame in sent if decode_ethernet(frame).ethertype == 0x86DD}
    return sorted(filter(is_link_local, sources))


def recorded(kind: str) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[bytes]]]:
    """Each recorded event, with its frames of this kind in order, repetitions left out."""
    for record in RECORDS:
        for event in record["events"]:
            frames = [bytes.fromhex(frame) for _, _, frame in event["frames"]]
            yield record, event, list(dict.fromkeys(frame for frame in frames if kind_of(frame) == kind))


def kind_of(frame: bytes) -> str:
    """`announcement`, `report`, `join` (a change of the stack's own membership) or `learning`."""
    ethertype = decode_ethernet(frame).ethertype
    if ethertype == LEARNING:
        return "learning"
    if ethertype == ETH_ARP:
        return "announcement"
    try:
        records = decode_membership_report(frame).records
    except WireError:
        assert decode_na(frame).override
        return "announcement"
    return "report" if all(record.kind == IS_EXCLUDE for record in records) else "join"


def test_every_recorded_announcement_is_made_byte_for_byte() -> None:
    compared = 0
    for record, event, frames in recorded("announcement"):
        if frames:
            ours = peer_notification(uppers_of(record, event["bond_mac"]))
            assert frames == list(ours), (record["setup"], event["event"])
            compared += len(frames)
    assert compared > 50


def test_every_recorded_report_is_made_byte_for_byte() -> None:
    compared = 0
    for record, event, frames in recorded("report"):
        if frames:
            ours = membership_reports(uppers_of(record, event["bond_mac"]))
            assert frames == list(ours), (record["setup"], event["event"])
            compared += len(frames)
    assert compared > 20


def test_the_recordings_hold_nothing_else_but_learning_frames_and_the_stacks_own_joins() -> None:
    events = [event for record in RECORDS for event in record["events"]]
    kinds = {kind_of(bytes.fromhex(frame)) for event in events for _, _, frame in event["frames"]}
    assert kinds == {"announcement", "report", "join", "learning"}
    for record, _, frames in recorded("learning"):
        assert not frames or record["options"]["mode"] in ("balance-tlb", "balance-alb")


def test_where_linux_says_nothing_for_want_of_an_address_we_send_a_rarp() -> None:
    """The one named difference: an upper without addresses announces its MAC."""
    bare = [record for record in RECORDS if record["setup"] == "none"]
    assert bare
    for record in bare:
        assert not any(event["frames"] for event in record["events"])
        mac = MacAddr.parse(record["start"]["bond_mac"])
        assert [decode_arp(frame).op for frame in peer_notification([UpperFacts("bond0", mac)])] == [3]
