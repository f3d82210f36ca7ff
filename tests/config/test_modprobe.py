"""modprobe's files: which lines are for a bond, and the module's own checks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import load, plant, refusal, slave

from ubond.config import ConfigError, load_article

ALIAS = "alias bond0 bonding\n"


def options(root: Path, text: str) -> tuple[dict[str, str], list[str]]:
    files = {"modprobe.conf": f"{ALIAS}options bond0 mode=1 {text}\n", "ifcfg-bond0": "DEVICE=bond0\n"}
    spec, notes = load(root, files)
    return {name: value for name, value in spec.options.items() if name != "mode"}, notes


@pytest.mark.parametrize(
    ("text", "kept", "note"),
    [
        ("resend_igmp=256", {"resend_igmp": "1"}, "resend_igmp module parameter (256) is not in range"),
        ("num_grat_arp=-1", {"num_unsol_na": "1"}, "num_grat_arp module parameter (-1) is not in range"),
        ("updelay=-5", {"updelay": "0"}, "so it was reset to 0"),
        ("packets_per_slave=70000", {}, "so it was reset to 1"),
        ("lp_interval=0", {"lp_interval": "1"}, "so it was reset to 1"),
        ("all_slaves_active=2", {"all_slaves_active": "0"}, "so it was reset to 0"),
        ("lacp_rate=nonsense", {}, "lacp_rate=nonsense ignored: irrelevant in mode active-backup"),
        ("ad_select=1", {}, "ad_select=1 ignored: irrelevant in mode active-backup"),
        ("xmit_hash_policy=1", {}, "xmit_hash_policy=1 ignored: irrelevant in mode active-backup"),
        ("arp_interval=100 arp_ip_target=192.0.2.1", {}, "miimon and the ARP monitor exclude each other"),
        ("tlb_dynamic_lb=0", {}, "tlb_dynamic_lb=0 ignored: not a parameter of the bonding module"),
        ("active_slave=eth1", {}, "active_slave=eth1 ignored: not a parameter of the bonding module"),
        ("nonsense=1", {}, "nonsense=1 ignored: not a parameter of the bonding module"),
        ("max_bonds=3", {}, "max_bonds=3 ignored"),
        ("verbose", {}, "'verbose' ignored: not an option with a value"),
        ("-o bond7", {}, "'-o bond7' ignored: the bond is bond0"),
    ],
)
def test_parameters_are_checked_as_the_module_does(
    tmp_path: Path, text: str, kept: dict[str, str], note: str
) -> None:
    found, notes = options(tmp_path, f"miimon=100 {text}")
    assert found == {"miimon": "100", **kept}
    assert all(line.startswith("modprobe.conf:2: ") for line in notes)
    assert note in notes[0]


@pytest.mark.parametrize(
    ("text", "value"), [("0x64", "100"), ("0144", "100"), ("+100", "100"), ('"100"', "100")]
)
def test_numbers_are_read_as_the_module_reads_them(tmp_path: Path, text: str, value: str) -> None:
    assert options(tmp_path, f"miimon={text}") == ({"miimon": value}, [])


def test_a_negative_miimon_leaves_our_default_in_place(tmp_path: Path) -> None:
    found, notes = options(tmp_path, "miimon=-1")
    assert found == {}
    assert notes[0] == "modprobe.conf:2: miimon module parameter (-1) is not in range, so it is ignored"
    assert "miimon=100 is used" in notes[1]


@pytest.mark.parametrize(
    ("text", "option", "why"),
    [
        ("miimon=100ms", "miimon", "must be an integer"),
        ("miimon=08", "miimon", "must be an integer"),
        ("miimon=99999999999", "miimon", "must be an integer"),
        ("use_carrier=2", "use_carrier", "may be: off, on"),
        ("primary_reselect=sometimes", "primary_reselect", "may be: always, better, failure"),
        ("fail_over_mac=3", "fail_over_mac", "may be: none, active, follow"),
        ("arp_validate=most", "arp_validate", "may be: none, active"),
    ],
)
def test_what_keeps_the_module_from_loading_is_refused(
    tmp_path: Path, text: str, option: str, why: str
) -> None:
    file, line, name, said = refusal(tmp_path, {"x.conf": f"{ALIAS}\n\noptions bond0 mode=1 \\\n  {text}\n"})
    assert (file, line, name) == ("x.conf", 5, option)
    assert why in said


def test_a_bonds_own_options_win_over_the_general_ones_wherever_they_stand(tmp_path: Path) -> None:
    text = f"{ALIAS}options bond0 mode=1 miimon=100\noptions bonding mode=0 updelay=100\n"
    spec, notes = load(tmp_path, {"modprobe.conf": text, "ifcfg-bond0": "DEVICE=bond0\n"})
    assert spec.options == {"mode": "1", "miimon": "100", "updelay": "100"}
    assert [note.split(" gives")[0] for note in notes] == ["modprobe.conf:3: mode=0"]


def test_files_are_read_in_order_of_their_names_and_the_later_holds(tmp_path: Path) -> None:
    files = {
        "modprobe.conf": f"{ALIAS}options bond0 mode=1 miimon=10\n",
        "a.conf": "options bond0 miimon=30\n",
        "b.conf": "options bond0 miimon=20\n",
        "c": "options bonding miimon=1\n",
        "ifcfg-bond0": "DEVICE=bond0\n",
    }
    spec, notes = load(tmp_path, files)
    assert spec.options["miimon"] == "20"
    assert [note.split(" gives")[0] for note in notes] == [
        "c:0: not read: its name does not end in .conf",
        "modprobe.conf:2: miimon=10",
        "a.conf:1: miimon=30",
    ]


def test_options_without_an_alias_and_of_other_modules_are_not_for_the_bond(tmp_path: Path) -> None:
    text = "alias bond1 bonding\noptions bond0 mode=0\noptions bond1 mode=0\noptions e1000 mode=0\n"
    ours = "DEVICE=bond0\nBONDING_OPTS='mode=1 miimon=100'\n"
    spec, notes = load(tmp_path, {"a.conf": text, "ifcfg-bond0": ours})
    assert spec.options == {"mode": "1", "miimon": "100"}
    assert notes == ["a.conf:2: options bond0 ignored: there is no 'alias bond0 bonding'"]


def test_other_lines_are_named_when_they_concern_the_bond_or_nobody_knows_them(tmp_path: Path) -> None:
    text = (
        f"{ALIAS}options bond0 mode=1 miimon=100\ninstall bond0 /sbin/modprobe options bonding mode=0\n"
        "blacklist bonding\nblacklist floppy\ninclude /etc/other.conf\noption bond0 mode=0\n"
        "alias eth0 e1000\nalias bond0 bonding again\n"
    )
    _, notes = load(tmp_path, {"modprobe.conf": text, "ifcfg-bond0": "DEVICE=bond0\n"})
    assert [note.split(" ignored")[0] for note in notes] == [
        "modprobe.conf:3: 'install bond0 /sbin/modprobe'",
        "modprobe.conf:4: 'blacklist bonding'",
        "modprobe.conf:6: 'include /etc/other.conf'",
        "modprobe.conf:7: 'option bond0 mode=0'",
        "modprobe.conf:9: 'again'",
    ]


WORDS = ["alias", "options", "bond0", "bonding", "mode=1", "miimon=100", "-o", "#", "\\\n", "\n", "=", "a="]
lines = st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=20).map(" ".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(lines)
def test_no_text_is_anything_but_read_or_refused(tmp_path: Path, text: str) -> None:
    plant(tmp_path, {"ifcfg-eth1": slave("eth1")})
    (tmp_path / "etc/modprobe.conf").write_bytes(text.encode(errors="surrogatepass"))
    try:
        said: list[object] = [*load_article(tmp_path, "bond0")[1]]
    except ConfigError as error:
        said = [error]
    assert all(str(one).isprintable() for one in said)
