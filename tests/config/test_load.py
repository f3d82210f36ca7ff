"""Whole trees: the article's machine, the shared example from each reader, both readers together."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path

import pytest
from trees import SAMPLES, brief, load, plant, refusal, slave

from ubond.bond.spec import BondSpec, SlaveSpec
from ubond.config import ConfigError, bonds, load_article
from ubond.wire import MacAddr

EXAMPLE = BondSpec(
    "bond0",
    (SlaveSpec("eth1"), SlaveSpec("eth2")),
    {
        "mode": "active-backup", "miimon": "100", "updelay": "200", "downdelay": "200",
        "primary": "eth1", "primary_reselect": "failure", "num_unsol_na": "2",
    },
    addresses=(IPv4Interface("192.0.2.10/24"),),
    mtu=1500,
)  # fmt: skip


@pytest.mark.parametrize("sample", ["modprobe", "ifcfg"])
def test_the_shared_example_is_the_same_bond_from_each_reader(sample: str) -> None:
    assert load_article(SAMPLES / sample, "bond0") == (EXAMPLE, [])


def test_the_articles_machine_comes_up_with_its_address_and_a_note_on_its_mode() -> None:
    spec, notes = load_article(SAMPLES / "article", "bond0")
    assert spec == BondSpec(
        "bond0",
        (SlaveSpec("eth0"), SlaveSpec("eth1")),
        {"mode": "balance-rr", "miimon": "100"},
        addresses=(IPv4Interface("192.0.2.10/24"),),
        broadcast=IPv4Address("192.0.2.255"),
    )
    assert [brief(note) for note in notes] == [
        "modprobe.conf:4: 'options' inside a line read as a line of its own",
        "modprobe.conf:4: mode=balanced_rr read as balance-rr: the driver has no mode balanced_rr",
        "ifcfg-bond0:8: TYPE=Ethernet ignored: bond0 is set up as a bond",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "alias bond0 bonding options bond0 miimon=100 mode=active-backup",
        "options bond0 miimon=100 mode=active-backup alias bond0 bonding",
        "alias bond0 bonding\noptions bond0 miimon=100 mode=1\n",
        "alias bond0 bonding\noptions bond0 miimon=100\noptions bond0 mode=active-backup",
        "alias bond0 bonding\noptions bond0 mi\\\nimon=100 \\\n mode=active-backup",
        "  alias bond0 bonding # the bond\n#options bond0 mode=0\noptions bonding mode=1 miimon=100",
        "alias bond* bonding\noptions bond0 -o bond0 mode=1 miimon=100",
    ],
)
def test_modprobe_lines_of_all_shapes_say_the_same(tmp_path: Path, text: str) -> None:
    spec, _ = load(tmp_path, {"modprobe.conf": text})
    assert spec.options["miimon"] == "100"
    assert spec.options["mode"] in ("1", "active-backup")


def test_a_rich_tree_is_read_to_the_last_key() -> None:
    spec, notes = load_article(SAMPLES / "rich", "bond0")
    assert spec == BondSpec(
        "bond0",
        (
            SlaveSpec("eth2", {"queue_id": "2", "prio": "-2"}),
            SlaveSpec("eth10", {"queue_id": "10", "prio": "-10"}),
            SlaveSpec("p1p1"),
        ),
        {
            "mode": "active-backup", "miimon": "100", "use_carrier": "1", "resend_igmp": "1",
            "num_unsol_na": "2", "fail_over_mac": "1",
        },
        addresses=(
            IPv4Interface("192.0.2.10/24"), IPv4Interface("198.51.100.7/25"), IPv4Interface("203.0.113.6/28"),
            IPv4Interface("203.0.113.5/28"), IPv6Interface("2001:db8::10/64"),
            IPv6Interface("2001:db8:1::10/48"), IPv6Interface("2001:db8:2::10/64"),
        ),
        broadcast=IPv4Address("192.0.2.127"),
        gateways=(IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")),
        mac=MacAddr.parse("02:00:00:00:00:aa"),
        mtu=9000,
    )  # fmt: skip
    assert sorted((Path(note.file).name, note.line) for note in notes) == [
        ("10-bonding.conf", 2),  # max_bonds
        ("10-bonding.conf", 2),  # tx_queues
        ("10-bonding.conf", 5),  # num_grat_arp gives way to BONDING_OPTS
        ("10-bonding.conf", 5),  # lacp_rate
        ("10-bonding.conf", 5),  # peer_notif_delay is no parameter
        ("10-bonding.conf", 5),  # resend_igmp out of range
        ("ifcfg-bond0", 8),  # an unknown option
        ("ifcfg-bond0", 8),  # a word without a value
        ("ifcfg-bond0", 17),  # BROADCAST
        ("ifcfg-bond0", 18),  # NETWORK
        ("ifcfg-bond0", 26),  # USERCTL
        ("ifcfg-bond0", 27),  # DNS1
        ("ifcfg-bond0", 28),  # DOMAIN, with a command that is not run
        ("ifcfg-bond0", 29),  # a sourced file
        ("ifcfg-bond0.7", 0),
        ("ifcfg-bond0:1", 0),
        ("ifcfg-eth3", 2),  # MASTER without SLAVE
        ("ifcfg-uplink", 3),  # HWADDR
        ("ifcfg-uplink", 5),  # ETHTOOL_OPTS
        ("old-style", 0),
        ("route-bond0", 0),
    ]


def test_a_bond_without_a_file_of_its_own_has_no_address() -> None:
    spec, notes = load_article(SAMPLES / "rich", "bond1")
    assert spec == BondSpec(
        "bond1",
        (SlaveSpec("eth4"),),
        {"miimon": "100", "use_carrier": "1", "mode": "0", "packets_per_slave": "8"},
    )
    texts = [brief(note) for note in notes]
    assert "ifcfg-bond1:0: no ifcfg file describes bond1: it gets no address" in texts
    assert "ifcfg-eth4:4: BOND_PORT_PRIO=5 ignored: it means nothing in mode balance-rr" in texts
    assert any(text.startswith("10-bonding.conf:8: 'install bond1") for text in texts)


@pytest.mark.parametrize(
    ("sample", "names"), [("article", ["bond0"]), ("rich", ["bond0", "bond1"]), ("none", [])]
)
def test_bonds_are_found_wherever_they_are_named(sample: str, names: list[str]) -> None:
    assert bonds(SAMPLES / sample) == names


def test_bonds_are_listed_in_natural_order_and_each_once(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            "a.conf": "alias bond10 bonding\nalias bond2 bonding\nalias bond* bonding\nalias eth0 e1000\n",
            "ifcfg-bond2": "DEVICE=bond2\nBONDING_OPTS=mode=1\n",
            "ifcfg-eth0": slave("eth0", "team"),
            "ifcfg-x": "DEVICE=uplink\nTYPE=Bond\n",
            "ifcfg-y": "DEVICE=spare\nBONDING_MASTER=yes\n",
        },
    )
    assert bonds(tmp_path) == ["bond2", "bond10", "spare", "team", "uplink"]


def test_bonding_opts_win_over_modprobe_and_say_so_where_they_differ(tmp_path: Path) -> None:
    spec, notes = load(
        tmp_path,
        {
            "a.conf": "alias bond0 bonding\noptions bond0 mode=0 miimon=100 updelay=200\n",
            "ifcfg-bond0": "DEVICE=bond0\nBONDING_OPTS='mode=active-backup miimon=100'\n",
        },
    )
    assert spec.options == {"mode": "active-backup", "miimon": "100", "updelay": "200"}
    ((place, text),) = [note.split(" gives way to ") for note in notes]
    assert place == "a.conf:2: mode=0"
    assert text.startswith("active-backup (")
    assert text.endswith("ifcfg-bond0:2)")


def test_a_number_and_its_name_do_not_differ(tmp_path: Path) -> None:
    files = {
        "a.conf": "alias bond0 bonding\noptions bond0 mode=1 miimon=100 num_grat_arp=3\n",
        "ifcfg-bond0": "DEVICE=bond0\nBONDING_OPTS='mode=active-backup num_unsol_na=3'\n",
    }
    assert load(tmp_path, files)[1] == []


def test_a_bond_that_nobody_knows_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"ifcfg-bond7: .*no file describes it.*bonds found: bond0, bond1"):
        load_article(SAMPLES / "rich", "bond7")
    with pytest.raises(ConfigError, match=r"bonds found: none"):
        load_article(SAMPLES / "none", "bond0")


@pytest.mark.parametrize("name", ["", "../bond0", "bond%d", "a-name-of-17-chars"])
def test_a_name_that_no_interface_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="interface name"):
        load_article(SAMPLES / "article", name)


# ── what the settings amount to ──────────────────────────────────────────────────────


def opts(text: str) -> dict[str, str]:
    return {"ifcfg-bond0": f"DEVICE=bond0\nBONDING_OPTS='{text}'\n"}


def test_without_a_monitor_and_a_mode_our_defaults_stay_and_are_named(tmp_path: Path) -> None:
    spec, notes = load(tmp_path, {"ifcfg-bond0": "DEVICE=bond0\nTYPE=Bond\n"})
    assert spec.options == {}
    assert notes == [
        "ifcfg-bond0:0: no mode is set: active-backup is used, where the driver would use balance-rr",
        "ifcfg-bond0:0: no link monitor is set: miimon=100 is used, so that a lost link is noticed",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("miimon=0", ["ifcfg-bond0:2: miimon=0: this bond will not notice a lost link"]),
        ("miimon=5", ["ifcfg-bond0:2: miimon=5 is unusual: the unit is milliseconds"]),
        ("miimon=6000", ["ifcfg-bond0:2: miimon=6000 is unusual: the unit is milliseconds"]),
        ("miimon=0 updelay=50", [
            "ifcfg-bond0:2: miimon=0: this bond will not notice a lost link",
            "ifcfg-bond0:2: updelay=50 has no effect without miimon",
        ]),
        ("miimon=100 downdelay=250", [
            "ifcfg-bond0:2: downdelay (250) is not a multiple of miimon (100), downdelay rounded to 200 ms",
        ]),
        ("miimon=100 primary=eth9", [
            "ifcfg-bond0:2: primary=eth9 is not a slave of this bond: there is none yet",
        ]),
        ("miimon=100 arp_interval=0 lacp_rate=slow", []),
        ("miimon=100 primary=eth2 active_slave=eth1 fail_over_mac=follow", []),
    ],
)  # fmt: skip
def test_surprises_are_noted(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert load(tmp_path, opts(f"mode=1 {text}"))[1] == expected


@pytest.mark.parametrize(
    ("text", "dropped", "note"),
    [
        ("primary=eth1", "primary", "primary=eth1 ignored: it means nothing in mode balance-rr"),
        (
            "active_slave=eth1",
            "active_slave",
            "active_slave=eth1 ignored: it means nothing in mode balance-rr",
        ),
    ],
)
def test_an_option_without_meaning_in_the_mode_is_left_out(
    tmp_path: Path, text: str, dropped: str, note: str
) -> None:
    spec, notes = load(tmp_path, opts(f"mode=balance-rr miimon=100 {text}"))
    assert dropped not in spec.options
    assert notes == [f"ifcfg-bond0:2: {note}"]


@pytest.mark.parametrize(
    ("text", "option", "why"),
    [
        ("mode=802.3ad", "mode", "802.3ad is not part of this version (can: balance-rr, active-backup, balance-xor, "
                                 "broadcast, balance-tlb, balance-alb)"),
        ("mode=4", "mode", "802.3ad is not part of this version"),
        ("mode=Active-Backup", "mode", "invalid value 'Active-Backup' (may be: balance-rr, active-backup"),
        ("miimon=fast", "miimon", "invalid value 'fast'"),
        ("num_grat_arp=256", "num_grat_arp", "may be: 0 - 255"),
        ("arp_interval=soon", "arp_interval", "invalid value 'soon'"),
        ("mode=1 lacp_rate=fast", "lacp_rate", "mode 802.3ad is not part of this version"),
        ("mode=1 active_slave=eth9", "active_slave", "eth9 is not a slave of this bond"),
        ("queue_id=eth1:2", "queue_id", "belongs to the slaves"),
        ("slaves=+eth1", "slaves", "belongs to the slaves"),
        ("miimon=" + "9" * 5000, "miimon", "invalid value"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name_and_line(
    tmp_path: Path, text: str, option: str, why: str
) -> None:
    file, line, name, said = refusal(tmp_path, opts(text))
    assert (file, line, name) == ("ifcfg-bond0", 2, option)
    assert why in said
