"""Every recorded option write in every mode but 802.3ad, against a strict bond."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.bond.pretend import Rig, line, nic, recorded
from ubond.bond import OPTIONS, Refused
from ubond.bond import events as ev
from ubond.bond.options import IMPLEMENTED_MODES, USES_PRIMARY, Mode, apply_order

LINES = recorded("errors")
BASELINE, ROWS = LINES[0]["baseline"], LINES[1:]
MODES = {str(mode): mode for mode in sorted(IMPLEMENTED_MODES)}
INTERFACES = {"s0": 1, "s1": 2, "s2": 3, "upif": 4, "inbr": 5, "br7": 6, "lo": 7, "vl5": 8}

Row = dict[str, Any]

#: What is not compared, and why.  Each rule must exclude something.
EXCLUDED: dict[str, Callable[[Row], bool]] = {
    "a list without signs replaces the targets, as by netlink": lambda row: (
        row["option"] == "arp_ip_target" and re.fullmatch(r"[0-9.]*", row["write"]) is not None
    ),
    "802.3ad is not part of this version": lambda row: (
        row["option"] == "mode" and row["result"] == "ok" and row["value"] == "802.3ad 4"
    ),
    "use_carrier 0 is refused since 6.18": lambda row: (
        row["option"] == "use_carrier" and row["value"] == "0"
    ),
    "ad_select actor_port_prio exists since 6.18": lambda row: (
        row["option"] == "ad_select" and row["state"] != "up, two slaves"
        and row["write"] in ("3", "actor_port_prio")
    ),
    "which interfaces exist is not known to the study": lambda row: (
        any("does not exist!" in text for _, text in row.get("log", []))
    ),
    "VLAN interfaces and their lower device are the kernel's own": lambda row: "vl5" in row["write"],
    "of `12 34` one debug line shows all of the text, ours the number that was read": lambda row: (
        row["option"] == "arp_missed_max" and row["write"] == "12 34" and row["result"] == "ok"
    ),
    "loopback is refused as such here, before its being up": lambda row: (
        row["option"] == "slaves" and row["write"] == "+lo"
    ),
}  # fmt: skip

#: Options that sysfs shows empty outside 802.3ad, whatever is stored.
HIDDEN = ("ad_actor_sys_prio", "ad_actor_system", "ad_user_port_key")

WRITES = [row for row in ROWS if row.get("mode") in MODES and "option" in row]
COMPARED = [row for row in WRITES if not any(rule(row) for rule in EXCLUDED.values())]


def rig_in(mode: str, state: str) -> Rig:
    """A strict bond in a recorded baseline state."""
    rig = Rig(*(nic(name, number) for name, number in INTERFACES.items()), strict=True, mac_set=True)
    rig.world.change("lo", loopback=True, up=True)
    rig.world.change("upif", up=True)
    rig.world.change("inbr", master=99, master_kind="bridge")
    rig.world.change("br7", kind="bridge", carrier=False)
    rig.set(mode=mode, miimon=100)
    if state.endswith("two slaves"):
        rig.enslave("s0", "s1")
    if state.startswith("up"):
        rig.do(ev.BondOpened())
    rig.run(500)
    rig.world.logs.clear()
    return rig


def sysfs(rig: Rig) -> dict[str, str]:
    """Every option in the form in which the recording shows it."""
    shot = rig.bond.snapshot()
    values = {name: OPTIONS[name].text(value) for name, value in shot.options.items()}
    values["num_grat_arp"] = values["num_unsol_na"]
    if shot.mode not in USES_PRIMARY:
        values["active_slave"] = values["primary"] = ""
    values["lacp_active"] = f"{OPTIONS['lacp_active'].values[1]} {values['lacp_active']}"
    values |= dict.fromkeys(HIDDEN, "")
    return values


def write(rig: Rig, row: Row) -> tuple[str, list[list[Any]]]:
    """Write the option; the errno's name or `ok`, and the lines logged as [level, text]."""
    name, text = row["option"], row["write"]
    try:
        if name == "slaves" and text[:1] == "+" and text[1:].strip():
            slave = text[1:].split()[0]
            facts = ev.SlaveFacts("bond0", 100, rig.world.bond_mac, 1500, True, True, is_master=True)
            facts = rig.world.nics[slave].facts if slave != "bond0" else facts
            rig.do(ev.EnslaveRequested(facts))
        else:
            rig.do(ev.OptionWritten(name, text))
    except Refused as refused:
        return errno.errorcode[refused.errno], [[3, text] for text in refused.lines]
    return "ok", [[int(log.level), line(log)] for log in rig.world.logs]


def lines(log: list[list[Any]], row: Row) -> list[list[Any]]:
    """The recorded lines that are ours to say."""
    plain = [[level, text.removeprefix("bond0: ")] for level, text in log]
    if row["option"] == "slaves":
        # By sysfs the driver adds the misleading line of the errno; as events they have no such line.
        plain = [each for each in plain if not each[1].startswith("option slaves: unable to set because")]
        plain = [each for each in plain if each[0] != 7]
    if row["option"] == "queue_id":
        plain = [[3, text] for _, text in plain]  # the driver hides its only line at debug level
    return plain


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("option", sorted({row["option"] for row in WRITES}))
def test_recorded_writes_have_the_recorded_results(mode: str, option: str) -> None:
    for row in COMPARED:
        if (row["mode"], row["option"]) != (mode, option):
            continue
        rig = rig_in(mode, row["state"])
        before = sysfs(rig)
        baseline = BASELINE[f"{mode}; {row['state']}"]
        assert {name: before[name] for name in baseline} == baseline
        where = (row["state"], option, row["write"])
        result, log = write(rig, row)
        assert (*where, result) == (*where, row["result"])
        assert (*where, log) == (*where, lines(row.get("log", []), row))
        after = sysfs(rig)
        changed = {name: after[name] for name in baseline if after[name] != before[name]}
        assert (*where, after[option]) == (*where, row["value"])
        changed.pop(option, None)
        assert (*where, changed) == (*where, row.get("also", {}))


def test_each_exclusion_excludes_something_and_little_is_excluded() -> None:
    for reason, rule in EXCLUDED.items():
        assert any(rule(row) for row in WRITES), reason
    assert len(COMPARED) > 0.85 * len(WRITES)
    assert len(COMPARED) > 4500


def playable(row: Row) -> bool:
    """Whether a sequence stays within the modes and monitors of this version."""
    return row["sequence"].split(",")[0] in MODES and not any(
        step["option"] == "mode" and step["value"].split()[0] not in MODES
        for step in row["steps"]
    )


SEQUENCES = [row for row in ROWS if "sequence" in row and playable(row)]


def test_some_sequences_are_played() -> None:
    assert len(SEQUENCES) >= 3


@pytest.mark.parametrize("row", SEQUENCES, ids=[row["steps"][0]["option"] for row in SEQUENCES])
def test_recorded_sequences_of_writes(row: Row) -> None:
    mode = row["sequence"].split(",")[0]
    rig = rig_in(mode, "down, empty")
    for step in row["steps"]:
        rig.world.logs.clear()
        result, log = write(rig, step)
        where = (row["sequence"], step["option"], step["write"])
        assert (*where, result, log) == (*where, step["result"], lines(step.get("log", []), step))
        assert (*where, sysfs(rig)[step["option"]]) == (*where, step["value"])


# ── several options in one request ───────────────────────────────────────────────────

REQUESTS = [row for row in ROWS if "netlink" in row and row["mode"] in MODES]

#: What is not compared of them, and why.
EXCLUDED_REQUESTS: dict[str, Callable[[Row], bool]] = {
    "netlink alone looks at two options of one request together": lambda row: (
        row["netlink"].startswith("miimon 50 + arp_")
    ),
    "of a list that is refused nothing is taken here, by netlink what stands before the bad address": lambda row: (
        row["netlink"].startswith("arp_ip_target") and row["result"] == "EINVAL"
    ),
    "what the ARP monitor finds out afterwards takes time": lambda row: (
        "arp_interval" in row["changed"] and "active_slave" in row["changed"]
    ),
    "what the recorder wrote is not what it said": lambda row: row["netlink"] == "ns_ip6_target same twice",
    "indices are netlink's; we have names": lambda row: "9999" in row["netlink"],
    "attributes are netlink's": lambda row: row["netlink"] == "unknown attribute 60",
    "netlink checks the number before the driver does": lambda row: row["result"] == "ERANGE",
    "use_carrier 0 is refused since 6.18": lambda row: row["netlink"] == "use_carrier 0",
    "ad_select actor_port_prio exists since 6.18": lambda row: (
        row["netlink"] == "ad_select 3" and not row["state"].startswith("up")
    ),
    "enslaving is compared by the option slaves": lambda row: row["netlink"].startswith("set master"),
}  # fmt: skip


def request(rig: Rig, text: str) -> tuple[str, str | None]:
    """Write the options of `miimon 50 + resend_igmp 3` or `slave s1 prio 3` as one request; result and extack."""
    parts: dict[str, ev.OptionWritten] = {}
    for part in text.split(" + "):
        found = re.fullmatch(r"(?:slave (\S+) )?(\S+) (\S+)", part)
        assert found, part
        slave, name, value = found.groups()
        value = "" if value == "empty" or (name in ("primary", "active_slave") and value == "0") else value
        parts[name] = ev.OptionWritten(name, value, slave)
    for name in apply_order(parts):
        try:
            rig.do(parts[name])
        except Refused as refused:
            rig.world.logs += [ev.Log(ev.Level.ERROR, line) for line in refused.lines]
            return errno.errorcode[refused.errno], refused.extack
    return "ok", None


@pytest.mark.parametrize("mode", MODES)
def test_recorded_requests_have_the_recorded_results(mode: str) -> None:
    compared = 0
    for row in REQUESTS:
        if row["mode"] != mode or any(rule(row) for rule in EXCLUDED_REQUESTS.values()):
            continue
        rig = rig_in(mode, row["state"])
        before = sysfs(rig)
        where = (row["state"], row["netlink"])
        assert (*where, *request(rig, row["netlink"])) == (*where, row["result"], row["extack"])
        after = sysfs(rig)
        baseline = BASELINE[f"{mode}; {row['state']}"]
        changed = {name: after[name] for name in baseline if after[name] != before[name]}
        assert (*where, changed) == (*where, row["changed"])
        compared += 1
    assert compared > 90
    for reason, rule in EXCLUDED_REQUESTS.items():
        assert any(rule(row) for row in REQUESTS), reason


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode not in IMPLEMENTED_MODES])
def test_modes_of_later_versions_are_refused_in_one_line(mode: Mode) -> None:
    rig = Rig()
    with pytest.raises(Refused, match=f"{mode} is not part of this version") as refused:
        rig.set(mode=int(mode))
    assert refused.value.errno == errno.EOPNOTSUPP
    assert len(refused.value.lines) == 1
