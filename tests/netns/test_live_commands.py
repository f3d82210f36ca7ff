"""Every command of `ubond`, each as a process of its own, against a bond that runs."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.world import (
    ADDRESSES,
    HOST4,
    HOST6,
    PEER4,
    Bond,
    World,
    assert_as_before,
    inside,
    wait_until,
)
from ubond import paths

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(4) as world:
        yield world


# ── up, down ─────────────────────────────────────────────────────────────────────────


def test_up_says_which_defaults_it_took_and_down_leaves_no_trace(world: World) -> None:
    before = world.picture()
    done = world.ubond("up", "bond0", "eth1", "eth2", *ADDRESSES, "--gateway", PEER4)
    assert done.stdout == "using mode=active-backup miimon=100\n"
    assert world.unexpected(done.stderr) == ""
    assert f"{HOST4}/24" in world.host.ip("addr", "show", "dev", "bond0")
    assert f"{HOST6}/64" in world.host.ip("addr", "show", "dev", "bond0")
    assert f"default via {PEER4} dev bond0" in world.host.ip("route")
    assert world.host.link("eth1")["ifalias"].startswith("slave of bond0 (ubond) mac=")
    world.host.ping(PEER4)
    done = world.ubond("down", "bond0")
    assert (done.stdout, done.stderr) == ("", "")
    assert_as_before(before, world.picture)


@pytest.mark.needs("a link at once")
def test_a_slave_that_has_carrier_and_lacks_the_running_flag_does_not_begin_with_a_failure(world: World) -> None:
    # The kernel sets the flag when it comes to it, up to a second after the carrier; for a dormant link it never does.
    world.host.ip("link", "set", "eth2", "down", "mode", "dormant")
    try:
        world.ubond("up", "bond0", "eth1", "--miimon", "20")
        world.ubond("add", "bond0", "eth2")
        time.sleep(0.1)     # some polls of the monitor
        said = world.ubond("history", "bond0", "--log").stdout
    finally:
        world.ubond("down", "bond0", check=False)
        world.host.ip("link", "set", "eth2", "mode", "default")
        world.host.ip("link", "set", "eth2", "up")
    assert "eth2): Enslaving as a backup interface with an up link" in said
    assert "definitely down" not in said


def test_frames_flow_when_up_returns(world: World) -> None:
    for _ in range(3):
        world.ubond("up", "bond0", "eth1", "eth2", *ADDRESSES)
        try:
            world.host.ping(PEER4, wait="0.5")
        finally:
            world.ubond("down", "bond0")


def test_down_and_up_follow_each_other_at_once(world: World) -> None:
    for _ in range(4):
        world.ubond("up", "bond0", "eth1", "eth2")
        world.ubond("down", "bond0")
    assert "bond0" not in world.host.links()


def test_foreground_logs_and_ends_cleanly_at_sigterm_and_sigint(world: World) -> None:
    before = world.picture()
    for number in (signal.SIGTERM, signal.SIGINT):
        process = world.start_ubond("up", "bond0", "eth1", "eth2", "--foreground", *ADDRESSES)
        try:
            wait_until(lambda: world.host.reaches(PEER4), what="traffic")
            process.send_signal(number)
            _, err = process.communicate(timeout=world.seconds(15))
        finally:
            process.kill()
        assert process.returncode == 0
        assert "bond0: (slave eth1): making interface the new active one" in err
        assert "bond0: (slave eth2): Releasing backup interface" in err
        assert_as_before(before, world.picture)


def test_foreground_tells_the_service_manager_when_frames_flow(world: World, tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(world.seconds(15))
        process = world.host.start(
            "env", f"NOTIFY_SOCKET={tmp_path / 'notify'}", sys.executable, "-m", "ubond", "up", "bond0", "eth1", "eth2",
            "--foreground", *ADDRESSES,
        )  # fmt: skip
        try:
            assert manager.recv(100) == b"READY=1"
            world.host.ping(PEER4)
        finally:
            process.terminate()
            process.communicate(timeout=world.seconds(15))
        assert process.returncode == 0


def test_sigterm_takes_a_bond_in_the_background_down_cleanly(world: World) -> None:
    before = world.picture()
    world.ubond("up", "bond0", "eth1", "eth2")
    os.kill(Bond(world, "bond0").pid, signal.SIGTERM)
    wait_until(lambda: "bond0" not in world.host.links(), what="the bond is gone")
    assert_as_before(before, world.picture)


def test_two_bonds_in_one_namespace_do_not_disturb_each_other(world: World) -> None:
    before = world.picture()
    world.ubond("up", "bond0", "eth1", "eth2", *ADDRESSES)
    world.ubond("up", "bond1", "eth3", "eth4", "--address", "10.9.0.3/32")
    try:
        assert world.ubond("list").stdout.split() == ["bond0", "bond1"]
        assert [entry["bond"] for entry in json.loads(world.ubond("list", "--json").stdout)] == ["bond0", "bond1"]
        world.pull("eth1")
        world.pull("eth4")
        Bond(world, "bond0").wait_active("eth2")
        assert Bond(world, "bond1").active == "eth3"
        world.host.ping(PEER4)
        both = world.ubond("status").stdout
        assert "==> bond0 <==" in both
        assert "==> bond1 <==" in both
        world.ubond("down", "bond1")
        assert world.ubond("list").stdout == "bond0\n"
        world.host.ping(PEER4)
    finally:
        world.ubond("down", "bond1", check=False)
        world.ubond("down", "bond0")
        for nic in ("eth1", "eth4"):
            world.plug(nic)
    assert_as_before(before, world.picture)


def test_two_bonds_of_one_name_in_two_namespaces(world: World) -> None:
    """The peer has its own bond0, of the same name as the host's."""
    other = world.add_space("other")
    for number in (1, 2):
        world.cable(other, f"eth{number}", 500 + number, world.switch, f"swo{number}")
        world.switch.ip("link", "set", f"swo{number}", "master", "br0", "addrgenmode", "none", "up")
        other.ip("link", "set", f"eth{number}", "up")
    world.ubond("up", "bond0", "eth1", "eth2", *ADDRESSES)
    world.ubond("up", "bond0", "eth1", "eth2", "--address", "10.9.0.9/24", space=other)
    try:
        here, there = Bond(world, "bond0"), Bond(world, "bond0", other)
        assert here.pid != there.pid
        wait_until(lambda: other.reaches(HOST4), what="bond to bond")
        world.host.ping("10.9.0.9", count=5)
        there.set("active_slave=eth2")
        assert (here.active, there.active) == ("eth1", "eth2")
        world.ubond("down", "bond0", space=other)
        world.host.ping(PEER4)
        assert here.active == "eth1"
    finally:
        world.ubond("down", "bond0", space=other, check=False)
        world.ubond("down", "bond0", check=False)


# ── status, list ─────────────────────────────────────────────────────────────────────

PROC = """\
Ethernet Channel Bonding Driver: v{version}

Bonding Mode: fault-tolerance (active-backup)
Primary Slave: eth2 (primary_reselect always)
Currently Active Slave: eth2
MII Status: up
MII Polling Interval (ms): 50
Up Delay (ms): 200
Down Delay (ms): 100
Peer Notification Delay (ms): 0

Slave Interface: eth1
MII Status: up
Speed: {speed}
Duplex: {duplex}
Link Failure Count: {failures[eth1]}
Permanent HW addr: {eth1}
Slave queue ID: 0

Slave Interface: eth2
MII Status: up
Speed: {speed}
Duplex: {duplex}
Link Failure Count: {failures[eth2]}
Permanent HW addr: {eth2}
Slave queue ID: 0
"""


def speed_of(world: World, nic: str) -> tuple[str, str]:
    """Speed and duplex as the driver's text has them, out of what ethtool says."""
    said = world.host.run("ethtool", nic).stdout
    found = re.search(r"Speed: (?:(\d+)Mb/s|Unknown!)", said)
    assert found
    return f"{found[1]} Mbps" if found[1] else "Unknown", "full" if "Duplex: Full" in said else "Unknown"


def test_status_in_its_three_forms(world: World) -> None:
    from ubond import __version__

    own = {nic: world.host.mac(nic) for nic in ("eth1", "eth2")}
    with world.bond(
        "eth1", "eth2", "--primary=eth2", "--miimon=50", "--updelay=200", "--downdelay=100ms", "-o", "eth1.prio=7"
    ) as bond:
        wait_until(lambda: bond.active == "eth2" and bond.link_state("eth1") == "UP", what="both up")
        speed, duplex = speed_of(world, "eth1")
        failures = dict.fromkeys(own, 0)
        if not world.can("a link at once"):  # it may have come and gone once before it stays
            failures = {nic: bond.slave(nic)["linkinfo"]["info_slave_data"]["link_failure_count"] for nic in own}
        expected = PROC.format(version=__version__, speed=speed, duplex=duplex, failures=failures, **own)
        assert world.ubond("status", "bond0").stdout == expected
        assert world.ubond("status").stdout == expected
        assert world.ubond("status", "bond0", "--format", "proc").stdout == expected
        # Programs read the same where the runtime directory is, without asking the daemon.
        with inside(world.host.name):
            path = paths.proc_path("bond0")
        wait_until(lambda: path.read_text() == expected, what="the file says the same")
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

        top, *slaves = json.loads(world.ubond("status", "bond0", "--json").stdout)
        kernel = world.host.link("bond0")
        for key in ("ifname", "mtu", "operstate", "address", "link_type"):
            assert top[key] == kernel[key]
        assert {"UP", "LOWER_UP"} <= set(top["flags"]) & set(kernel["flags"])
        info = top["linkinfo"]["info_data"]
        assert top["linkinfo"]["info_kind"] == "bond"
        assert (info["mode"], info["active_slave"], info["primary"]) == ("active-backup", "eth2", "eth2")
        assert (info["miimon"], info["updelay"], info["downdelay"]) == (50, 200, 100)
        for nic, link in zip(("eth1", "eth2"), slaves, strict=True):
            assert link["ifname"] == nic
            assert link["ifindex"] == world.host.link(nic)["ifindex"]
            assert link["linkinfo"]["info_slave_data"]["perm_hwaddr"] == own[nic]
            assert link["ubond"]["gate"] == "clsact"
        assert [link["linkinfo"]["info_slave_data"]["state"] for link in slaves] == ["BACKUP", "ACTIVE"]
        assert slaves[0]["linkinfo"]["info_slave_data"]["prio"] == 7
        assert json.loads(world.ubond("status", "--format", "json").stdout)[0]["ifname"] == "bond0"

        table = world.ubond("status", "bond0", "--format", "table").stdout
        assert "bond0: carrier up, active-backup, active slave eth2, primary eth2 (always)" in table
        assert [line.split()[:3] for line in table.splitlines() if line.startswith("eth")][:2] == [
            ["eth1", "backup", "up"],
            ["eth2", "active", "up"],
        ]


def test_list_is_empty_without_bonds(world: World) -> None:
    assert world.ubond("list").stdout == ""
    assert json.loads(world.ubond("list", "--json").stdout) == []


# ── add, remove ──────────────────────────────────────────────────────────────────────


def test_slaves_are_added_and_removed(world: World) -> None:
    before = world.picture()
    with world.bond("eth1", "eth2") as bond:
        world.ubond("add", "bond0", "eth3", "eth4")
        assert bond.slaves == ["eth1", "eth2", "eth3", "eth4"]
        assert world.host.mac("eth4") == str(bond.mac)
        bond.set("active_slave=eth4")
        world.host.ping(PEER4)
        world.ubond("remove", "bond0", "eth4", "eth2")
        assert bond.slaves == ["eth1", "eth3"]
        assert bond.active in ("eth1", "eth3")
        world.host.ping(PEER4)
        # Without slaves there is no carrier; with one again there is.
        world.ubond("remove", "bond0", "eth1", "eth3")
        assert bond.slaves == []
        wait_until(lambda: not world.host.carrier("bond0"), what="no carrier without slaves")
        world.ubond("add", "bond0", "eth2")
        wait_until(lambda: world.host.reaches(PEER4), what="traffic through the new slave")
    assert_as_before(before, world.picture)


# ── set ──────────────────────────────────────────────────────────────────────────────

#: option=value as written, and the text that sysfs would then show.
SETTINGS = [
    ("miimon=50", "miimon", "50"),
    ("miimon=100ms", "miimon", "100"),
    ("updelay=300", "updelay", "300"),
    ("downdelay=2s", "downdelay", "2000"),
    ("downdelay=0", "downdelay", "0"),
    ("updelay=250", "updelay", "200"),  # whole passes, rounded down
    ("updelay=0", "updelay", "0"),
    ("peer_notif_delay=500", "peer_notif_delay", "500"),
    ("peer_notify_delay=0", "peer_notif_delay", "0"),
    ("use_carrier=1", "use_carrier", "1"),
    ("primary=eth2", "primary", "eth2"),
    ("primary_reselect=failure", "primary_reselect", "failure 2"),
    ("primary_reselect=1", "primary_reselect", "better 1"),
    ("active_slave=eth1", "active_slave", "eth1"),
    ("num_grat_arp=5", "num_grat_arp", "5"),
    ("num_unsol_na=2", "num_unsol_na", "2"),
    ("resend_igmp=4", "resend_igmp", "4"),
    ("all_slaves_active=1", "all_slaves_active", "1"),
    ("all_slaves_active=off", "all_slaves_active", "0"),
    ("lp_interval=3", "lp_interval", "3"),
    ("min_links=1", "min_links", "1"),
    ("xmit_hash_policy=layer2+3", "xmit_hash_policy", "layer2+3 2"),
    ("busy_poll=50", "busy_poll", "50"),
    ("arp_missed_max=3", "arp_missed_max", "3"),
    ("arp_all_targets=all", "arp_all_targets", "all 1"),
    ("eth2.queue_id=2", "queue_id", "eth1:0 eth2:2"),
    ("queue_id=eth2:0", "queue_id", "eth1:0 eth2:0"),
    ("fail_over_mac=active", "fail_over_mac", "active 1"),
    ("fail_over_mac=none", "fail_over_mac", "none 0"),
    ("mode=balance-rr", "mode", "balance-rr 0"),
    ("packets_per_slave=3", "packets_per_slave", "3"),
    ("mode=1", "mode", "active-backup 1"),
]


def test_every_option_that_may_change_changes_while_it_runs(world: World) -> None:
    with world.bond("eth1", "eth2") as bond:
        for written, option, shown in SETTINGS:
            done = world.ubond("set", "bond0", written, check=False)
            if written == "eth2.queue_id=2" and not world.can("CAP_BPF"):
                assert done.returncode != 0
                assert "queue_id needs CAP_BPF" in done.stderr
                continue
            assert done.returncode == 0, f"{written}: {done.stderr}"
            assert bond.option(option) == shown, written
            if written == "updelay=250":
                assert "is not a multiple of miimon" in done.stdout
        wait_until(lambda: world.host.reaches(PEER4), what="traffic after all that")
        bond.set("eth1.prio=-5", "eth2.prio=2147483647")
        assert [link["linkinfo"]["info_slave_data"]["prio"] for link in bond.links()[1:]] == [-5, 2147483647]


def test_set_keeps_what_came_before_a_refused_option(world: World) -> None:
    with world.bond("eth1", "eth2") as bond:
        done = world.ubond("set", "bond0", "miimon=200", "primary_reselect=perhaps", "resend_igmp=9", check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "primary_reselect: invalid value (perhaps)" in done.stderr
        assert bond.option("miimon") == "200"
        assert bond.option("resend_igmp") == "1"


# ── monitor, history ─────────────────────────────────────────────────────────────────


class Lines:
    """The lines that a process prints, read as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._fd = process.stdout.fileno()
        self._partial = ""
        self.lines: list[str] = []

    def read(self, seconds: float = 0.0) -> list[str]:
        """All lines so far; waits so long for more."""
        while select.select([self._fd], [], [], seconds)[0] and (data := os.read(self._fd, 65536)):
            *whole, self._partial = (self._partial + data.decode()).split("\n")
            self.lines += whole
            seconds = 0.0
        return self.lines

    def until(self, text: str, seconds: float = 10) -> str:
        """The first line that has this text."""

        def found() -> str | None:
            return next((line for line in self.read(0.05) if text in line), None)

        return str(wait_until(found, seconds, f"a line with {text!r}"))


@pytest.mark.parametrize("named", [True, False])
def test_monitor_prints_what_happens_until_the_bond_ends(world: World, named: bool) -> None:
    bonds = ["bond0"] if named else []
    with world.bond("eth1", "eth2") as bond:
        plain = world.start_ubond("monitor", *bonds)
        asjson = world.start_ubond("monitor", *bonds, "--json")
        said, told = Lines(plain), Lines(asjson)
        try:
            # Nothing tells when a listener is there, so the active slave moves until both have said so.
            def both_speak() -> bool:
                bond.set(f"active_slave={'eth2' if bond.active == 'eth1' else 'eth1'}")
                return bool(said.read() and told.read())

            wait_until(both_speak, what="both listeners print")
            bond.set("active_slave=eth1")
            world.pull("eth1")
            bond.wait_active("eth2")
            assert "eth1 -> eth2: link of eth1 went down" in said.until("link of eth1 went down")
            said.until("bond0: (slave eth2): making interface the new active one")
            event = json.loads(told.until("link of eth1 went down"))
            assert (event["kind"], event["from"], event["to"]) == ("active", "eth1", "eth2")
            world.ubond("down", "bond0")
            for process in (plain, asjson):
                assert process.wait(world.seconds(10)) == 0
        finally:
            for process in (plain, asjson):
                process.kill()
                process.communicate()


def test_monitor_ends_quietly_when_interrupted(world: World) -> None:
    with world.bond("eth1", "eth2") as bond:
        process = world.start_ubond("monitor", "bond0")
        said = Lines(process)

        def speaks() -> bool:
            bond.set(f"active_slave={'eth2' if bond.active == 'eth1' else 'eth1'}")
            return bool(said.read())

        wait_until(speaks, what="the listener prints")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=world.seconds(10))
        assert process.returncode in (0, 130, -signal.SIGINT)
        assert err == ""


def test_history_tells_when_why_from_to_lost_and_silence(world: World) -> None:
    with world.bond("eth1", "eth2") as bond:
        assert "no failover" in world.ubond("history", "bond0").stdout or bond.ask("history")["history"]
        ping = world.host.start("ping", "-n", "-i", "0.005", "-c", "1000", PEER4)
        try:
            wait_until(lambda: world.host.counters("eth1")["tx"]["packets"] > 20, what="ping runs")
            world.pull("eth1")
            bond.wait_active("eth2")
            wait_until(lambda: world.host.counters("eth2")["tx"]["packets"] > 20, what="ping goes on")
        finally:
            ping.kill()
            ping.communicate()
        wait_until(lambda: bond.ask("history")["history"][-1]["silence_ns"], what="the silence is known")
        entry = json.loads(world.ubond("history", "bond0", "--json").stdout)[-1]
        assert (entry["from"], entry["to"], entry["lost"]) == ("eth1", "eth2", 0)
        # How long is for bench/: a machine may stand still meanwhile. It is in ns, and not since the bond began.
        assert 1e3 < entry["silence_ns"] < world.seconds(20) * 1e9
        assert "link of eth1 went down" in entry["why"]
        assert abs(entry["time"] - time.time()) < 60
        last = world.ubond("history", "bond0").stdout.splitlines()[-1].split()
        assert last[2:5] == ["eth1", "eth2", "0"]
        log = world.ubond("history", "bond0", "--log").stdout
        assert "bond0: (slave eth1): link status definitely down, disabling slave" in log
        assert "bond0: (slave eth2): making interface the new active one" in log


# ── ifup, ifdown ─────────────────────────────────────────────────────────────────────


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / "etc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_ifup_and_ifdown_read_the_distributions_files(world: World, tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "modprobe.conf": "alias bond0 bonding\noptions bond0 mode=active-backup miimon=50 primary=eth2\n",
            "sysconfig/network-scripts/ifcfg-bond0": (
                f"DEVICE=bond0\nBOOTPROTO=none\nONBOOT=yes\nIPADDR={HOST4}\nNETMASK=255.255.255.0\n"
                "BROADCAST=10.9.0.255\nSHOESIZE=44\n"
            ),
            "sysconfig/network-scripts/ifcfg-eth1": "DEVICE=eth1\nBOOTPROTO=none\nMASTER=bond0\nSLAVE=yes\n",
            "sysconfig/network-scripts/ifcfg-eth2": 'DEVICE="eth2"\nBOOTPROTO=none\nMASTER=bond0\nSLAVE=yes\n',
        },
    )
    before = world.picture()
    done = world.ubond("ifup", "bond0", "--root", str(tmp_path))
    try:
        bond = Bond(world, "bond0")
        assert (bond.slaves, bond.active) == (["eth1", "eth2"], "eth2")
        assert bond.option("miimon") == "50"
        shown = world.host.ip("addr", "show", "dev", "bond0")
        assert f"inet {HOST4}/24 brd 10.9.0.255" in shown
        world.host.ping(PEER4)
        assert "ifcfg-bond0:7" in done.stderr
        assert "SHOESIZE" in done.stderr
    finally:
        world.ubond("ifdown", "bond0", "--root", str(tmp_path))
    assert_as_before(before, world.picture)


def test_ifup_refuses_a_value_that_it_cannot_read_with_file_and_line(world: World, tmp_path: Path) -> None:
    scripts = "sysconfig/network-scripts"
    write(
        tmp_path,
        {
            f"{scripts}/ifcfg-bond0": 'DEVICE=bond0\nBONDING_OPTS="mode=fancy miimon=100"\n',
            f"{scripts}/ifcfg-eth1": "DEVICE=eth1\nMASTER=bond0\nSLAVE=yes\n",
        },
    )
    before = world.picture()
    done = world.ubond("ifup", "bond0", "--root", str(tmp_path), check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "ifcfg-bond0:2" in done.stderr
    assert "fancy" in done.stderr
    assert_as_before(before, world.picture)
