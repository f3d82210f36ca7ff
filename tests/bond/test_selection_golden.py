"""Every recorded active-backup sequence, replayed against Bond on a pretend clock."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.bond.pretend import Rig, line, nic, recorded
from ubond.bond import OptionError
from ubond.bond import events as ev
from ubond.wire import MacAddr

RECORDS = recorded("selection")

COMPARED = ("active", "primary", "carrier", "mac", "order", "slaves")

#: Lines that the kernel leaves out when there are many (10 in 5 s): theirs may be missing, not ours.
RATE_LIMITED = re.compile(r"link status (down for|up, enabling|up again after|down again after)")
#: Another module's line.
FOREIGN = re.compile(r"8021q: ")

#: Steps whose lines come in another order, and why the reference allows it.
OTHER_ORDER = {
    # `ip link set up` held the configuration lock, so the first pass was repeated a tick later
    # (monitoring, section 1): the second slave's one tick of updelay was over in the same commit.
    ("A32", 2),
}


class Replay:
    """One recorded bond.  Its random addresses are the recorded ones."""

    def __init__(self, record: dict[str, Any], strict: bool) -> None:
        self.record = record
        self.step: dict[str, Any] = record["steps"][0]
        nics = [
            nic(name, number, mac=MacAddr.parse(slave["mac"]), speed=slave["speed"],
                duplex=int(slave["duplex"] == "full"), permanent=None)
            for number, (name, slave) in enumerate(record["slaves"].items(), 1)
        ]  # fmt: skip
        keeps_mac = record["bond_mac"] is not None and record["options"]["fail_over_mac"] != "none"
        random = MacAddr.parse(self.step["mac"] if keeps_mac else "02:99:99:99:99:99")
        self.rig = Rig(*nics, strict=strict, mac=random, random_mac=self.random_mac)
        self.cables = {each.facts.name: [True, True] for each in nics}  # carrier, administratively up
        for name, value in record["options"].items():
            if name not in ("updelay", "downdelay"):
                self.rig.set(**{name: value})
        for name in ("updelay", "downdelay"):
            self.rig.set(**{name: record["options"][name]})
        if record["bond_mac"]:
            self.rig.world.bond_mac = MacAddr.parse(record["bond_mac"])
            self.rig.do(ev.BondMacChanged(self.rig.world.bond_mac))
        self.rig.world.logs.clear()

    def random_mac(self) -> MacAddr:
        if not self.step["order"]:
            return MacAddr.parse(self.step["mac"])
        return MacAddr.parse(self.step["slaves"][self.step["ev"][1]][2])

    def play(self, step: dict[str, Any]) -> str:
        """Do what the step says and let it settle; returns the result's name."""
        self.step = step
        rig, (verb, *args) = self.rig, step["ev"]
        try:
            match verb:
                case "bond_up":
                    rig.do(ev.BondOpened())
                case "bond_down":
                    rig.do(ev.BondClosed())
                case "enslave":
                    self.cables[args[0]][1] = True
                    rig.world.change(args[0], up=False, carrier=self.cables[args[0]][0])
                    rig.enslave(args[0])
                case "release":
                    rig.release(args[0])
                case "carrier":
                    self.cable(args[0], 0, bool(args[1]))
                case "slave_admin":
                    self.cable(args[0], 1, bool(args[1]))
                case "speed":
                    duplex = int(args[2] == "full")
                    rig.world.change(args[0], speed=args[1], duplex=duplex)
                    rig.do(ev.SpeedRead(args[0], args[1], duplex))
                case "prio":
                    rig.do(ev.OptionWritten("prio", str(args[1]), slave=args[0]))
                case "flap":
                    self.flap(*args)
                case "bond_mac":
                    rig.world.bond_mac = MacAddr.parse(args[0])
                    rig.do(ev.BondMacChanged(MacAddr.parse(args[0])))
                case _:
                    rig.do(ev.OptionWritten(verb, str(args[0])))
        except OptionError as error:
            rig.world.logs += [ev.Log(ev.Level.ERROR, text) for text in error.lines]
            result = {22: "EINVAL", 1: "EPERM"}[error.errno]
        else:
            result = "ok"
        options = self.rig.bond.snapshot().options
        rig.run(max(int(options["updelay"]), int(options["downdelay"])) + 4 * int(options["miimon"]) + 30)
        return result

    def cable(self, name: str, which: int, on: bool) -> None:
        self.cables[name][which] = on
        if self.enslaved(name):
            self.rig.carrier(name, all(self.cables[name]))

    def enslaved(self, name: str) -> bool:
        return any(slave.name == name for slave in self.rig.bond.snapshot().slaves)

    def flap(self, name: str, off: int, downdelay: int) -> None:
        before = self.rig.bond.snapshot().options["downdelay"]
        self.rig.set(downdelay=downdelay)
        self.cable(name, 0, False)
        self.rig.run(off)
        self.cable(name, 0, True)
        self.rig.run(downdelay + 100)
        self.rig.set(downdelay=before)

    def state(self) -> dict[str, Any]:
        """The bond and its world in the recording's own form."""
        shot, world = self.rig.bond.snapshot(), self.rig.world
        rows: dict[str, list[Any]] = {
            name: ["-", "-", str(each.facts.mac), None] for name, each in world.nics.items()
        }
        for slave in shot.slaves:
            role = "backup" if slave.backup else "active"
            assert slave.mac == world.nics[slave.name].facts.mac
            rows[slave.name] = [slave.link.value, role, str(slave.mac), slave.failures]
        assert shot.mac == world.bond_mac
        if shot.up:
            assert world.carrier is shot.carrier
        return {
            "active": shot.active_slave or "",
            "primary": shot.primary or "",
            "carrier": int(shot.carrier) if shot.up else None,
            "mac": str(shot.mac) if shot.slaves or self.record["bond_mac"] else self.step["mac"],
            "order": [slave.name for slave in shot.slaves],
            "slaves": rows,
        }

    def log(self) -> list[str]:
        lines = [line(log) for log in self.rig.world.logs if log.level < ev.Level.DEBUG]
        self.rig.world.logs.clear()
        return lines


def compared(lines: list[str]) -> list[str]:
    """The lines that must be equal: all but those the kernel may drop and those of others."""
    plain = [text.removeprefix("bond0: ") for text in lines if not FOREIGN.search(text)]
    return [text for text in plain if not RATE_LIMITED.search(text)]


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "ours"])
@pytest.mark.parametrize("record", RECORDS, ids=[record["seq"] for record in RECORDS])
def test_recorded_sequence_settles_in_the_same_states(record: dict[str, Any], strict: bool) -> None:
    replay = Replay(record, strict)
    for number, step in enumerate(record["steps"]):
        where = f"step {number}: {step['ev']}"
        assert (where, replay.play(step)) == (where, step["res"])
        assert (where, replay.state()) == (where, {key: step[key] for key in COMPARED})


@pytest.mark.parametrize("record", RECORDS, ids=[record["seq"] for record in RECORDS])
def test_recorded_sequence_logs_the_same_lines(record: dict[str, Any]) -> None:
    replay = Replay(record, strict=True)
    for number, step in enumerate(record["steps"]):
        replay.play(step)
        where = f"step {number}: {step['ev']}"
        ours = replay.log()
        lines, wanted = compared(ours), compared(step["log"])
        if (record["seq"], number) in OTHER_ORDER:
            assert lines != wanted, "no longer a difference"
            lines, wanted = sorted(lines), sorted(wanted)
        assert (where, lines) == (where, wanted)
        dropped = {text.removeprefix("bond0: ") for text in step["log"]} - set(ours)
        assert not {text for text in dropped if RATE_LIMITED.search(text) and "again after" not in text}


def test_released_slaves_get_their_own_addresses_back() -> None:
    for record in RECORDS:
        replay = Replay(record, strict=True)
        for step in record["steps"]:
            replay.play(step)
        for slave in replay.rig.bond.snapshot().slaves:
            replay.step = {"order": [], "mac": "02:99:99:99:99:98"}
            replay.rig.release(slave.name)
        after = {name: str(each.facts.mac) for name, each in replay.rig.world.nics.items()}
        assert (record["seq"], after) == (record["seq"], record["macs_after_delete"])
