"""ifcfg files: addresses, slaves, and what is said of the rest."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest
from trees import SCRIPTS, load, plant, refusal, slave

from ubond.bond.spec import BondSpec
from ubond.config import load_article

HEAD = "DEVICE=bond0\nBONDING_OPTS='mode=1 miimon=100'\n"


def bond(root: Path, text: str) -> tuple[BondSpec, list[str]]:
    return load(root, {"ifcfg-bond0": HEAD + text})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IPADDR=192.0.2.1\nPREFIX=28", ["192.0.2.1/28"]),
        ("IPADDR=192.0.2.1\nNETMASK=255.255.255.240", ["192.0.2.1/28"]),
        ("IPADDR0=192.0.2.1\nPREFIX0=28\nIPADDR1=192.0.2.2\nPREFIX1=32", ["192.0.2.1/28", "192.0.2.2/32"]),
        (
            "IPADDR10=192.0.2.10\nPREFIX10=24\nIPADDR9=192.0.2.9\nPREFIX9=24",
            ["192.0.2.9/24", "192.0.2.10/24"],
        ),
        ("IPADDR=192.0.2.1\nPREFIX=24\nIPADDR0=192.0.2.1\nPREFIX0=24", ["192.0.2.1/24"]),
        ("IPADDR=192.0.2.1\nPREFIX=0", ["192.0.2.1/0"]),
        ("IPADDR=''\nPREFIX=24", []),
    ],
)
def test_each_address_takes_the_length_of_its_number(tmp_path: Path, text: str, expected: list[str]) -> None:
    spec, notes = bond(tmp_path, text)
    assert spec.addresses == tuple(map(IPv4Interface, expected))
    assert notes == []


@pytest.mark.parametrize(("address", "length"), [("10.0.0.1", 8), ("172.16.0.1", 16), ("192.0.2.1", 24)])
def test_an_address_alone_gets_the_length_of_its_class_and_a_note(
    tmp_path: Path, address: str, length: int
) -> None:
    spec, notes = bond(tmp_path, f"IPADDR={address}")
    assert spec.addresses == (IPv4Interface(f"{address}/{length}"),)
    assert notes == [f"ifcfg-bond0:3: IPADDR={address} has no PREFIX or NETMASK: /{length}, by its class"]


def test_a_prefix_goes_before_a_netmask_that_differs(tmp_path: Path) -> None:
    spec, notes = bond(tmp_path, "IPADDR=192.0.2.1\nPREFIX=24\nNETMASK=255.255.0.0")
    assert spec.addresses == (IPv4Interface("192.0.2.1/24"),)
    assert notes == ["ifcfg-bond0:5: NETMASK=255.255.0.0 ignored: PREFIX=24 goes before it"]


def test_broadcast_is_taken_as_written_and_network_only_compared(tmp_path: Path) -> None:
    spec, notes = bond(tmp_path, "IPADDR=192.0.2.1\nPREFIX=24\nBROADCAST=192.0.2.255\nNETWORK=192.0.2.0")
    assert (spec.broadcast, notes) == (IPv4Address("192.0.2.255"), [])
    spec, notes = bond(tmp_path, "BROADCAST=192.0.2.255")
    assert (spec.broadcast, notes) == (
        None,
        ["ifcfg-bond0:3: BROADCAST=192.0.2.255 ignored: there is no IPADDR"],
    )


@pytest.mark.parametrize(
    ("text", "gateways", "note"),
    [
        ("GATEWAY=192.0.2.254", (IPv4Address("192.0.2.254"),), None),
        ("GATEWAY=192.0.2.254\nDEFROUTE=no", (), "ifcfg-bond0:6: GATEWAY=192.0.2.254 ignored: DEFROUTE=no"),
        (
            "GATEWAY=203.0.113.1",
            (IPv4Address("203.0.113.1"),),
            "ifcfg-bond0:5: GATEWAY=203.0.113.1 is in no network",
        ),
    ],
)
def test_gateways(tmp_path: Path, text: str, gateways: tuple[IPv4Address, ...], note: str | None) -> None:
    spec, notes = bond(tmp_path, f"IPADDR=192.0.2.1\nPREFIX=24\n{text}")
    assert spec.gateways == gateways
    assert [line.startswith(note or "") for line in notes] == [True] * (note is not None)


@pytest.mark.parametrize("how", ["dhcp", "BOOTP"])
def test_dhcp_is_not_run_and_the_note_says_what_to_do(tmp_path: Path, how: str) -> None:
    _, (note,) = bond(tmp_path, f"BOOTPROTO={how}")
    assert note.startswith("ifcfg-bond0:3: ")
    assert "ubond runs no DHCP client" in note
    assert "dhclient bond0" in note


@pytest.mark.parametrize(
    "text",
    ["BOOTPROTO=none", "BOOTPROTO=static", "ONBOOT=yes", "ONBOOT=no", "USERCTL=no", "NAME=x",
     "NM_CONTROLLED=no", "TYPE=Bond", "TYPE=Bonding", "BONDING_MASTER=yes", "BONDING_MASTER=TRUE",
     "MTU=", "MACADDR=''"],
)  # fmt: skip
def test_the_usual_company_needs_no_note(tmp_path: Path, text: str) -> None:
    assert bond(tmp_path, text)[1] == []


@pytest.mark.parametrize(
    "text", ["PEERDNS=no", "BRIDGE=br0", "LINKDELAY=5", "HWADDR=02:0:0:0:0:1", "mtu=9000"]
)
def test_a_key_that_means_nothing_here_is_named(tmp_path: Path, text: str) -> None:
    assert bond(tmp_path, text)[1] == [
        f"ifcfg-bond0:3: {text} ignored: it has no meaning for a bond of ubond"
    ]


def test_a_command_in_a_value_nobody_needs_is_shown_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    _, notes = bond(tmp_path, f"DOMAIN=$(touch {mark})\n`touch {mark}`\ntouch {mark}\n")
    assert len(notes) == 3
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "option", "why"),
    [
        ("IPADDR=192.0.2.300", "IPADDR", "'192.0.2.300' is not an IPv4 address"),
        ("IPADDR=192.0.2.1\nPREFIX=33", "PREFIX", "is not a prefix length"),
        ("IPADDR=192.0.2.1\nNETMASK=255.0.255.0", "NETMASK", "is not a netmask"),
        ("IPADDR3=x\nPREFIX3=24", "IPADDR3", "is not an IPv4 address"),
        ("IPV6ADDR=192.0.2.1", "IPV6ADDR", "is not an IPv6 address"),
        ("GATEWAY=router", "GATEWAY", "is not an IPv4 address"),
        ("MTU=67", "MTU", "is not an MTU (68 - 65521)"),
        ("MTU=1_500", "MTU", "is not an MTU"),
        ("MACADDR=01:00:00:00:00:01", "MACADDR", "is not a MAC address that an interface can have"),
        ("MACADDR=random", "MACADDR", "is not a MAC address"),
        ("USERCTL=maybe", "USERCTL", "invalid value 'maybe' (may be: yes, no)"),
        ("TYPE=Bridge", "TYPE", "Bridge is not a bond"),
        ("BONDING_MASTER=yes\nTYPE=Ethernet", "TYPE", "Ethernet is not a bond"),
        ("IPADDR=$ADDRESS", "IPADDR", "'$ADDRESS' needs a shell, which is not run"),
        ('MTU="`cat /etc/mtu`"', "MTU", "needs a shell"),
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused_by_key(
    tmp_path: Path, text: str, option: str, why: str
) -> None:
    file, line, name, said = refusal(tmp_path, {"ifcfg-bond0": HEAD + text})
    assert (file, name) == ("ifcfg-bond0", option)
    assert line == 3 + [part.split("=")[0] for part in text.split("\n")].index(option)
    assert why in said


def test_the_line_within_bonding_opts_is_the_options_own(tmp_path: Path) -> None:
    text = 'DEVICE=bond0\nBONDING_OPTS="mode=1 \\\n  miimon=100\n  updelay=soon"\n'
    assert refusal(tmp_path, {"ifcfg-bond0": text})[:3] == ("ifcfg-bond0", 4, "updelay")


def test_the_last_assignment_of_a_key_holds_and_the_first_is_named(tmp_path: Path) -> None:
    spec, notes = bond(tmp_path, "MTU=1400\nMTU=9000\nMTU=9000")
    assert (spec.mtu, notes) == (9000, ["ifcfg-bond0:3: MTU gives way to the one in line 4"])


# ── slaves ───────────────────────────────────────────────────────────────────────────


def test_slaves_stand_in_natural_order_of_their_names(tmp_path: Path) -> None:
    files = {f"ifcfg-{n}": slave(name) for n, name in enumerate(["eth10", "eth2", "eth1", "ens3"])}
    spec, _ = load(tmp_path, {"ifcfg-bond0": HEAD, **files})
    assert [one.name for one in spec.slaves] == ["ens3", "eth1", "eth2", "eth10"]


def test_slaves_of_other_bonds_and_backup_copies_are_left_alone(tmp_path: Path) -> None:
    files = {
        "ifcfg-eth1": slave("eth1"),
        "ifcfg-eth2": slave("eth2", "bond01"),
        "ifcfg-eth3.bak": slave("eth3"),
        "ifcfg-eth4~": slave("eth4"),
        "ifcfg-eth5.rpmsave": slave("eth5"),
    }
    spec, notes = load(tmp_path, {"ifcfg-bond0": HEAD, **files})
    assert ([one.name for one in spec.slaves], notes) == (["eth1"], [])


def test_files_of_other_interfaces_cannot_break_the_bond(tmp_path: Path) -> None:
    files = {
        "ifcfg-eth1": slave("eth1"),
        "ifcfg-wlan0": "if true; then DEVICE='wlan0",
        "ifcfg-bond01": "DEVICE=$(broken",
        "ifcfg-eth9": slave("eth9", "bond1", "BOND_PORT_PRIO=nonsense\n"),
    }
    spec, notes = load(tmp_path, {"ifcfg-bond0": HEAD, **files})
    assert ([one.name for one in spec.slaves], notes) == (["eth1"], [])


@pytest.mark.parametrize(
    ("more", "note"),
    [
        (
            "BOOTPROTO=dhcp\n",
            "ifcfg-eth1:4: BOOTPROTO=dhcp ignored: the bond has the address, not its slaves",
        ),
        ("IPADDR=192.0.2.1\n", "ifcfg-eth1:4: IPADDR=192.0.2.1 ignored: it has no meaning for a slave"),
        ("HWADDR=02:00:00:00:00:01\n", "ifcfg-eth1:4: HWADDR is not compared: eth1 is taken by its name"),
        ("TYPE=Vlan\n", "ifcfg-eth1:4: TYPE=Vlan ignored: a slave is an Ethernet interface"),
        ("MTU=$(x)\n", "ifcfg-eth1:4: MTU=$(x) ignored: it has no meaning for a slave"),
    ],
)
def test_what_means_nothing_on_a_slave_is_named(tmp_path: Path, more: str, note: str) -> None:
    assert load(tmp_path, {"ifcfg-bond0": HEAD, "ifcfg-eth1": slave("eth1", more=more)})[1] == [note]


def test_a_slave_without_device_is_known_by_its_file(tmp_path: Path) -> None:
    spec, notes = load(tmp_path, {"ifcfg-bond0": HEAD, "ifcfg-eth1": "MASTER=bond0\nSLAVE=yes\n"})
    assert [one.name for one in spec.slaves] == ["eth1"]
    assert notes == ["ifcfg-eth1:0: no DEVICE: taken for eth1 by the name of the file"]


def test_a_bond_without_slaves_is_read_with_a_note(tmp_path: Path) -> None:
    plant(tmp_path, {"ifcfg-bond0": HEAD})
    spec, notes = load_article(tmp_path, "bond0")
    assert spec.slaves == ()
    assert [note.text for note in notes] == [
        "no interface has MASTER=bond0 and SLAVE=yes: bond0 has no slaves"
    ]


@pytest.mark.parametrize(
    ("files", "option", "why"),
    [
        (
            {"ifcfg-eth1": slave("eth1", more="BOND_PORT_QUEUE_ID=65536\n")},
            "BOND_PORT_QUEUE_ID",
            "out of range (0 -",
        ),
        ({"ifcfg-eth1": slave("eth1", more="BOND_PORT_PRIO=high\n")}, "BOND_PORT_PRIO", "is not a number"),
        ({"ifcfg-eth1": slave("eth/1")}, "DEVICE", "cannot be an interface name"),
        ({"ifcfg-a": slave("eth1"), "ifcfg-b": slave("eth1")}, "DEVICE", "is described in"),
        ({"ifcfg-eth1": slave("eth1"), "ifcfg-c": "DEVICE=bond0\n"}, "DEVICE", "is described in"),
        ({"ifcfg-bond0": HEAD + "MASTER=bond0\nSLAVE=yes\n"}, "", "cannot be a slave of itself"),
    ],
)
def test_a_slave_that_cannot_be_is_refused(
    tmp_path: Path, files: dict[str, str], option: str, why: str
) -> None:
    _, _, name, said = refusal(tmp_path, {"ifcfg-bond0": HEAD, **files})
    assert name == option
    assert why in said


def test_bytes_that_are_no_text_are_a_bad_value_like_any_other(tmp_path: Path) -> None:
    path = plant(tmp_path, {"ifcfg-bond0": HEAD}) / SCRIPTS / "ifcfg-bond0"
    path.write_bytes(HEAD.encode() + b"IPADDR=\xff\r\n")
    assert refusal(tmp_path, {})[:3] == ("ifcfg-bond0", 3, "IPADDR")


def test_a_file_of_the_bonds_name_for_another_device_is_named(tmp_path: Path) -> None:
    _, notes = load(
        tmp_path, {"ifcfg-bond0": "DEVICE=bond7\n", "a.conf": "options bonding mode=1 miimon=100\n"}
    )
    assert notes == [
        "ifcfg-bond0:0: not for bond0: it says DEVICE=bond7",
        "ifcfg-bond0:0: no ifcfg file describes bond0: it gets no address",
    ]
