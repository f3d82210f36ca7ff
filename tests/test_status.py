"""What `status` shows against what the driver showed, byte for byte.

Every recorded row holds the same bond in four forms.  The snapshot is built from two of
them (options from sysfs, slaves from proc) and all four must come back.
"""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ubond import status
from ubond.bond.events import DUPLEX_FULL, DUPLEX_HALF, DUPLEX_UNKNOWN, SPEED_UNKNOWN
from ubond.bond.options import OPTIONS, Kind, Mode
from ubond.bond.snapshot import BondSnapshot, LinkState, SlaveSnapshot
from ubond.status import Report
from ubond.wire import MacAddr

GOLDEN = json.loads(gzip.decompress((Path(__file__).parent / "golden/proc.json.gz").read_bytes()))
VERSION = "0.0.test"
#: 802.3ad shows aggregators, which a snapshot does not have yet.
ROWS = [row for row in GOLDEN["rows"] if row.get("mode", "802.3ad") != "802.3ad" and "sysfs" in row]
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['mode']}: {row['state']}")


def options_of(row: dict[str, Any]) -> dict[str, int | str]:
    """The options as a snapshot has them, from the sysfs files (and ip, for what has no file)."""
    data = row["link"][0]["linkinfo"]["info_data"]
    found: dict[str, int | str] = {name: option.default for name, option in OPTIONS.items()}
    for name, option in OPTIONS.items():
        text = row["sysfs"].get(name, "").rstrip("\n")
        if option.kind in (Kind.SLAVE, Kind.LIST, Kind.MAC):
            found[name] = text
        elif text and option.kind is not Kind.PER_SLAVE:
            found[name] = int(text.split()[-1])
    found["ns_ip6_target"] = " ".join(data.get("ns_ip6_target", []))
    return found


def slaves_of(row: dict[str, Any]) -> tuple[SlaveSnapshot, ...]:
    """The slaves, from their blocks in proc, their sysfs files and `ip link`."""
    devices = {device["ifname"]: device for device in row["link"]}
    blocks = re.findall(r"^Slave Interface: (.+)\n(?:.+\n)*?Speed: (.+)\nDuplex: (.+)\n", row["proc"], re.M)
    return tuple(slave_of(devices[name], row["slave_sysfs"][name], speed, duplex) for name, speed, duplex in blocks)


def slave_of(device: dict[str, Any], files: dict[str, str], speed: str, duplex: str) -> SlaveSnapshot:
    return SlaveSnapshot(
        name=device["ifname"],
        index=7,
        link=LinkState(files["mii_status"].strip()),
        backup=files["state"] == "backup\n",
        speed=SPEED_UNKNOWN if speed == "Unknown" else int(speed.split()[0]),
        duplex={"full": DUPLEX_FULL, "half": DUPLEX_HALF, "Unknown": DUPLEX_UNKNOWN}[duplex],
        failures=int(files["link_failure_count"]),
        permanent=MacAddr.parse(files["perm_hwaddr"]),
        mac=MacAddr.parse(device["address"]),
        mtu=device["mtu"],
        queue_id=int(files["queue_id"]),
        prio=device["linkinfo"]["info_slave_data"]["prio"],
    )


def snapshot_of(row: dict[str, Any]) -> BondSnapshot:
    bond, options = row["link"][0], options_of(row)
    return BondSnapshot(
        name=bond["ifname"],
        mode=Mode(int(options["mode"])),
        options=options,
        up="UP" in bond["flags"],
        carrier=row["sysfs"]["mii_status"] == "up\n",
        mac=MacAddr.parse(bond["address"]),
        mtu=bond["mtu"],
        primary=row["sysfs"]["primary"].strip() or None,
        active_slave=row["sysfs"]["active_slave"].strip() or None,
        stand_in=None,
        slaves=slaves_of(row),
    )


def test_the_recordings_hold_every_state_of_both_modes() -> None:
    modes = [row["mode"] for row in ROWS]
    assert modes.count("balance-rr") == 17
    assert modes.count("active-backup") == 46


@every_row
def test_proc_text_is_the_drivers_but_for_the_version(row: dict[str, Any]) -> None:
    first, _, rest = status.proc(snapshot_of(row), VERSION).partition("\n")
    assert first == f"Ethernet Channel Bonding Driver: v{VERSION}"
    assert rest == row["proc"].partition("\n")[2]


@every_row
def test_sysfs_files_are_the_drivers(row: dict[str, Any]) -> None:
    bond = snapshot_of(row)
    assert status.sysfs(bond) == row["sysfs"]
    assert {slave.name: status.slave_sysfs(slave) for slave in bond.slaves} == row["slave_sysfs"]


@every_row
def test_json_has_the_keys_order_and_types_of_ip_link(row: dict[str, Any]) -> None:
    recorded, *devices = row["link"]
    bond, *slaves = status.links(Report(as_ip_saw_it(row), VERSION))
    assert written(bond["linkinfo"]) == written(recorded["linkinfo"])
    # UNKNOWN: read before the kernel had looked at the new device's carrier.
    early = {"operstate", "flags"} if recorded["operstate"] == "UNKNOWN" else set()
    for key in bond.keys() - {"ubond"} - early:
        assert bond[key] == recorded[key], key
    enslaved = {device["ifname"]: device for device in devices if "master" in device}
    assert len(slaves) == len(enslaved)
    for slave in slaves:
        device = enslaved[slave["ifname"]]
        assert slave["linkinfo"]["info_slave_kind"] == device["linkinfo"]["info_slave_kind"]
        assert written(slave["linkinfo"]["info_slave_data"]) == written(device["linkinfo"]["info_slave_data"])
        for key in ("mtu", "master", "link_type", "address"):
            assert slave[key] == device[key]


def as_ip_saw_it(row: dict[str, Any]) -> BondSnapshot:
    """The snapshot with the slaves' states of `ip link`: under the ARP monitor they changed between two reads."""
    seen = {device["ifname"]: device["linkinfo"].get("info_slave_data", {}) for device in row["link"]}
    bond = snapshot_of(row)
    slaves = tuple(
        replace(
            slave,
            link=LinkState(seen[slave.name]["mii_status"].lower().replace("_", " ")),
            backup=seen[slave.name]["state"] == "BACKUP",
            failures=seen[slave.name]["link_failure_count"],
        )
        for slave in bond.slaves
    )
    return replace(bond, slaves=slaves)


def written(value: Any) -> str:
    """As text, so that the order of keys and 1 beside true count."""
    return json.dumps(value)


def bond0(**changes: Any) -> BondSnapshot:
    """active-backup with two slaves, eth1 active, from the recordings, and then changed."""
    row = next(row for row in ROWS if row["mode"] == "active-backup" and row["state"] == "primary")
    return replace(snapshot_of(row), **changes)


def test_what_only_ubond_knows_stands_under_one_key() -> None:
    report = Report(bond0(stand_in="eth0"), VERSION, {"uptime": 5}, {"eth1": {"gate": "clsact"}})
    bond, eth0, eth1 = status.links(report)
    assert bond["ubond"]["version"] == VERSION
    assert bond["ubond"]["uptime"] == 5
    assert bond["ubond"]["stand_in"] == "eth0"
    assert bond["ubond"]["options"]["primary_reselect"] == "always 0"
    assert eth0["ubond"]["stand_in"] is True
    assert eth1["ubond"]["gate"] == "clsact"


def test_flags_tell_up_and_carrier_apart() -> None:
    def flags(up: bool, carrier: bool) -> set[str]:
        return set(status.links(Report(bond0(up=up, carrier=carrier), VERSION))[0]["flags"])

    assert {"UP", "LOWER_UP"} <= flags(True, True)
    assert "NO-CARRIER" in flags(True, False)
    assert "UP" not in flags(False, False)


def test_table_shows_slaves_in_columns_and_only_counters_that_count() -> None:
    counters = {"counters": {"no_slave": 3, "tx_refused": 0}}
    text = status.table(Report(bond0(), VERSION, {"uptime": 3725, **counters}, {"eth1": {"gate": "clsact"}}))
    lines = text.splitlines()
    assert lines[0].startswith("bond0: carrier up, active-backup, active slave eth1, primary eth1 (always)")
    assert "running for 1h 2m" in lines[1]
    title = next(line for line in lines if line.startswith("SLAVE"))
    eth1 = next(line for line in lines if line.startswith("eth1"))
    for column, cell in (("ROLE", "active"), ("SPEED", "25000 Mb/s"), ("GATE", "clsact")):
        assert eth1[title.index(column) :].startswith(cell)
    assert re.search(r"^bond0 +no_slave +3$", text, re.M)
    assert "tx_refused" not in text


def test_table_says_what_is_not_as_it_should_be() -> None:
    extra = {"shortcomings": ["eth1: receive buffer refused"]}
    text = status.table(Report(bond0(monitored=False, stand_in="eth0", active_slave=None), VERSION, extra))
    assert "active slave none" in text
    assert "eth0 sends meanwhile" in text
    assert "no link monitor" in text
    assert "eth1: receive buffer refused" in text


def test_table_of_a_bond_without_slaves_that_is_down() -> None:
    text = status.table(Report(bond0(slaves=(), up=False), VERSION))
    assert "administratively down" in text
    assert "no slaves" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (60, "1m 0s"), (3600, "1h 0m"), (200_000, "2d 7h")]
)
def test_duration_names_the_two_largest_units(seconds: int, text: str) -> None:
    assert status.duration(seconds) == text
