"""The recorded life of a bond in each mode, played: /proc text after every step.

`tests/test_status.py` writes recorded states down; here the bond gets there by itself.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bond.pretend import Rig, nic
from ubond import status
from ubond.bond import events as ev
from ubond.bond.options import IMPLEMENTED_MODES, When, find
from ubond.wire import MacAddr

Row = dict[str, Any]
ROWS = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden/proc.json.gz").read_bytes()))["rows"]
SLAVES = ("eth0", "eth1")


def lives() -> list[list[Row]]:
    """The rows of each bond from its making on."""
    found: list[list[Row]] = []
    for row in ROWS:
        if row.get("state") == "no slaves, down":
            found.append([])
        if row.get("mode") in map(str, IMPLEMENTED_MODES):
            found[-1].append(row)
    return [life for life in found if life]


def cables(eth0: bool | None, eth1: bool | None) -> Callable[[Rig], None]:
    def change(rig: Rig) -> None:
        for name, on in zip(SLAVES, (eth0, eth1), strict=True):
            if on is not None:
                rig.carrier(name, on)

    return change


def enslave_all(rig: Rig, row: Row) -> None:
    for name, (speed, duplex) in zip(SLAVES, row["set"]["speeds"], strict=False):
        address = MacAddr.parse(row["set"]["macs"][name])
        rig.world.change(name, speed=speed, duplex=duplex, mac=address, permanent=address)
    if "fail_over_mac" in row["state"]:
        rig.set(fail_over_mac=row["state"].split()[-2])
    rig.enslave(*SLAVES)


def go_back(rig: Rig) -> None:
    rig.set(downdelay=0)
    rig.run(5000)
    rig.carrier("eth1", True)


STEPS: dict[str, Callable[[Rig], None]] = {
    "no slaves, up": lambda rig: rig.do(ev.BondOpened()) and None,
    "eth0 down": cables(False, None),
    "all down": cables(None, False),
    "all up again": cables(True, True),
    "primary down": cables(None, False),
    "primary up again": cables(None, True),
    "eth1 going down": cables(None, False),
    "eth1 going back": go_back,
    "eth0 released": lambda rig: rig.release("eth0"),
    "eth0 enslaved again": lambda rig: rig.enslave("eth0"),
    "renamed to bnd7, down": lambda rig: rig.do(ev.BondClosed()) and None,
}


def play(rig: Rig, row: Row) -> None:
    state, written = row["state"], row.get("set") or {}
    if state.startswith("all up") and "speeds" in written:
        enslave_all(rig, row)
    elif state in STEPS:
        STEPS[state](rig)
    elif state == "arp monitor, ns targets":
        rig.set(ns_ip6_target=",".join(row["link"][0]["linkinfo"]["info_data"]["ns_ip6_target"]))
    else:
        down = any(find(name).when is When.DOWN for name in written)   # the recorder put it down for them
        if down:
            rig.do(ev.BondClosed())
        for name, (value, result) in written.items():
            assert result == "ok"
            rig.set(**{name: value})
        if state == "mode options":
            rig.set(miimon=row["sysfs"]["miimon"].strip())  # as here
        if down:
            rig.do(ev.BondOpened())
    if state == "several options":
        rig.set(updelay=row["sysfs"]["updelay"].strip())    # put back by the recorder, which did not write that down
    rig.run(100 if "going" in state else 4000)


def compared(text: str) -> list[str]:
    """All lines but the version; with the ARP monitor those that do not hang on when it was read."""
    lines = text.splitlines()[1:]
    if not any(line.startswith("ARP Polling") for line in lines):
        return lines
    return [line for line in lines if not line.startswith(("MII Status", "Currently Active", "Link Failure"))]


@pytest.mark.parametrize("life", lives(), ids=[f"{life[0]['mode']}-{len(life)}" for life in lives()])
def test_a_recorded_life_reads_as_it_did(life: list[Row]) -> None:
    rig = Rig(*(nic(name, number) for number, name in enumerate(SLAVES, 1)), strict=True)
    rig.set(mode=life[0]["mode"], miimon=life[0]["set"]["miimon"])
    for row in life:
        if row["state"] != "no slaves, down":
            play(rig, row)
        text = status.proc(rig.bond.snapshot(), "0")
        assert (row["state"], compared(text)) == (row["state"], compared(row["proc"]))
        if row["mode"] in ("balance-tlb", "balance-alb") and "link" in row and rig.bond.snapshot().slaves:
            recorded = [str(link["address"]) for link in row["link"]]
            ours = [str(each.facts.mac) for each in rig.world.nics.values()]
            assert (row["state"], recorded) == (row["state"], [str(rig.bond.snapshot().mac), *ours])
