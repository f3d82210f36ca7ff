"""`make demo`: an old article about bonding two NICs, walked through on a kernel without the module.

The article needed four files, a reboot and two real NICs.  This needs a laboratory in network
namespaces and the same four files.  Every line behind a prompt is a command that is run now,
and what follows it is what it printed.  Exits 1 if a promise was not kept.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ubond.lab import (
    HOST_IP,
    NICS,
    PEER_IP,
    Lab,
    LabError,
    become_root,
    ending_on_signals,
    wait_until,
)

FILES = {
    "etc/modprobe.conf": """\
alias bond0 bonding
options bond0 miimon=100 mode=active-backup
""",
    "etc/sysconfig/network-scripts/ifcfg-bond0": f"""\
DEVICE=bond0
IPADDR={HOST_IP}
NETMASK=255.255.255.0
BROADCAST=192.0.2.255
BOOTPROTO=none
ONBOOT=yes
USERCTL=no
""",
    **{
        f"etc/sysconfig/network-scripts/ifcfg-{nic}": f"""\
DEVICE={nic}
MASTER=bond0
SLAVE=yes
BOOTPROTO=none
ONBOOT=yes
USERCTL=no
"""
        for nic in NICS
    },
}
TRAFFIC = str(Path(__file__).with_name("demo_traffic.py"))
RATE = 2000
#: Echo requests: how many, how far apart, and before which the cable goes.
PINGS, INTERVAL, PULL_AT = 14, 0.2, 5
#: Where the laboratory is handled from: none of its namespaces.
OUTSIDE = "outside"


class BrokenPromise(Exception):
    """The demonstration saw something that ubond promises not to do."""


# ── what it looks like ───────────────────────────────────────────────────────────────

_COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if _COLOUR else text


def _heading(number: int, text: str) -> None:
    print("\n" + _paint("1;36", f"{number}. {text}") + "\n", flush=True)


def _say(text: str) -> None:
    print(_paint("2", text), flush=True)


def _prompt(place: str, command: Sequence[str]) -> None:
    print(_paint("1;32", f"{place}# ") + _paint("1", shlex.join(command)), flush=True)


def _output(text: str) -> None:
    for line in text.splitlines():
        print(f"  {line}".rstrip(), flush=True)


# ── the walk ─────────────────────────────────────────────────────────────────────────


class Walk:
    """The demonstration in one lab, station by station."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._root = lab.directory / "root"
        self._broken: list[str] = []

    def run(self) -> None:
        """All stations; BrokenPromise at the end if one of the promises was not kept."""
        self._wires()
        self._files()
        own = {nic: self._mac("host", nic) for nic in NICS}
        self._ifup()
        mac, known = self._mac("host", "bond0"), self._peer_knows()
        self._ping_through_a_pull()
        self._what_stayed(mac, known)
        self._plug_back()
        self._measure()
        self._ifdown(own)
        if self._broken:
            raise BrokenPromise("; ".join(self._broken))

    def _wires(self) -> None:
        _heading(1, "A host with two NICs, a switch, and a peer behind it")
        _say("Three network namespaces joined by veth pairs; this machine's own interfaces are not touched.\n")
        self._show("host", "ip", "-brief", "link")

    def _files(self) -> None:
        _heading(2, "The article's files")
        _say("Two lines for the module that this kernel need not have, and one file for each interface.\n")
        for path, text in FILES.items():
            file = self._root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            self._show("host", "cat", path)

    def _ifup(self) -> None:
        _heading(3, "The bond comes up from those files")
        self._show("host", "ubond", "ifup", "bond0", "--root", ".")
        self._show("host", "ip", "addr", "show", "bond0")
        for nic in NICS:
            self._show("host", "ip", "-brief", "link", "show", nic)
        _say("\nOne MAC on all three: the first slave's.\n")
        self._show("host", "ubond", "status", "bond0")
        status = self._status()
        self._promise(status["info_data"]["active_slave"] == "eth1", "eth1 is not the active slave")

    def _ping_through_a_pull(self) -> None:
        _heading(4, "A ping, and the active slave's cable is pulled under it")
        command = ["ping", "-c", str(PINGS), "-i", str(INTERVAL), PEER_IP]
        _prompt("host", command)
        ping = self._lab.start("host", *command)
        assert ping.stdout is not None
        text = ""
        for line in ping.stdout:
            text += line
            _output(line)
            if f"icmp_seq={PULL_AT} " in line:
                self._show(OUTSIDE, "ubond", "lab", "pull", "eth1", self._lab.plan.name)
        ping.wait(30)
        lost = re.search(r"([\d.]+)% packet loss", text)
        self._promise(lost is not None and float(lost[1]) == 0, "a ping was not answered")
        self._promise("DUP!" not in text, "a ping was answered twice")

    def _what_stayed(self, mac: str, known: str) -> None:
        _heading(5, "What happened, and what the peer noticed")
        self._show("host", "ubond", "history", "bond0", "--log")
        self._show("host", "ubond", "status", "bond0")
        self._show("host", "ip", "-brief", "link", "show", "bond0")
        self._show("peer", "ip", "neigh", "show", HOST_IP)
        _say("\nThe bond kept its MAC, so the peer's ARP table still holds.")
        self._promise(self._status()["info_data"]["active_slave"] == "eth2", "eth2 did not take over")
        self._promise(self._mac("host", "bond0") == mac, "the bond's MAC changed")
        self._promise(self._peer_knows() == known == mac, "the peer knows another MAC than before")

    def _plug_back(self) -> None:
        _heading(6, "The cable is plugged in again")
        self._show(OUTSIDE, "ubond", "lab", "plug", "eth1", self._lab.plan.name)
        wait_until(lambda: self._slave_state("eth1") == ("BACKUP", "UP"), 5, "eth1 as a backup")
        self._show("host", "ubond", "status", "bond0", "--format", "table")
        _say("\neth1 is a backup now: without a primary nobody changes what works.")

    def _measure(self) -> None:
        _heading(7, "Measured")
        _say(f"{RATE} numbered datagrams a second each way, and the active slave's cable is pulled once more.\n")
        flows = {"leaving": ("host", "peer", PEER_IP, 5201), "entering": ("peer", "host", HOST_IP, 5202)}
        running = {}
        for way, (sender, receiver, ip, port) in flows.items():
            counting = self._lab.start(receiver, sys.executable, TRAFFIC, "receive", str(port))
            assert counting.stdout is not None
            counting.stdout.readline()
            sending = self._lab.start(sender, sys.executable, TRAFFIC, "send", ip, str(port), str(RATE))
            running[way] = (sending, counting)
        time.sleep(1)
        self._show(OUTSIDE, "ubond", "lab", "pull", "eth2", self._lab.plan.name)
        time.sleep(1)
        for way, (sending, counting) in running.items():
            sent, got = _end(sending), _end(counting)
            lost = int(sent["sent"] - got["received"])
            print(
                f"  {way:9}{sent['sent']:6} sent {lost:4} lost {got['duplicated']:3} duplicated "
                f"{got['reordered']:3} reordered   longest silence {got['silence_ms']:.1f} ms",
                flush=True,
            )
            self._promise(sent["rate"] > 0.95 * RATE, "the demonstration's own sender fell behind")
            self._promise(got["duplicated"] == 0, f"frames {way} the bond came twice")
            self._promise(way == "entering" or lost == 0, f"{lost} frames leaving the bond were lost")
        print()
        self._show("host", "ubond", "history", "bond0")
        _say(
            "\nWhat leaves the bond after the link is gone takes the other slave. What enters it follows when\n"
            "the switch has learned the new port from the bond's announcement; until then nobody can help."
        )

    def _ifdown(self, own: dict[str, str]) -> None:
        _heading(8, "Down, without a trace")
        self._show("host", "ubond", "ifdown", "bond0", "--root", ".")
        self._show("host", "ip", "-brief", "link")
        for nic, mac in own.items():
            self._promise(self._mac("host", nic) == mac, f"{nic} did not get its own MAC back")

    # ── its tools ────────────────────────────────────────────────────────────────────

    def _show(self, place: str, *command: str) -> None:
        """Run a command in a place, its prompt before it and its output after it; it must succeed."""
        _prompt(place, command)
        inside = list(command) if place == OUTSIDE else self._lab.command(place, *command)
        done = subprocess.run(
            inside,
            cwd=self._root if self._root.exists() else None,
            env=self._lab.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
        )
        _output(done.stdout)
        if done.returncode:
            raise BrokenPromise(f"{shlex.join(command)} ended with {done.returncode}")

    def _promise(self, kept: bool, otherwise: str) -> None:
        if not kept:
            self._broken.append(otherwise)

    def _mac(self, place: str, nic: str) -> str:
        return str(json.loads(self._lab.ip(place, "-j", "link", "show", "dev", nic))[0]["address"])

    def _peer_knows(self) -> str:
        """The MAC at which the peer's ARP table has the host, after a packet each way."""
        self._lab.exec("peer", "ping", "-c", "1", "-W", "1", HOST_IP)
        return str(json.loads(self._lab.ip("peer", "-j", "neigh", "show", HOST_IP))[0]["lladdr"])

    def _links(self) -> list[dict[str, Any]]:
        found = json.loads(self._lab.exec("host", "ubond", "status", "bond0", "--json").stdout)
        return list(found)

    def _status(self) -> dict[str, Any]:
        return dict(self._links()[0]["linkinfo"])

    def _slave_state(self, nic: str) -> tuple[str, str]:
        link = next(one for one in self._links() if one["ifname"] == nic)["linkinfo"]["info_slave_data"]
        return link["state"], link["mii_status"]


def _end(process: subprocess.Popen[str]) -> dict[str, float]:
    process.terminate()
    out, err = process.communicate(timeout=10)
    if process.returncode or not out.strip():
        raise BrokenPromise(f"the demonstration's traffic failed: {err.strip()[-200:]}")
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def main() -> int:
    """Run the demonstration; 0 if every promise was kept."""
    start = time.monotonic()
    try:
        become_root([], "ubond.demo")
        with ending_on_signals(), Lab(f"demo-{os.getpid()}") as lab:
            Walk(lab).run()
    except BrokenPromise as broken:
        print(_paint("1;31", f"\nFAILED: {broken}"), file=sys.stderr)
        return 1
    except LabError as error:
        print(f"ubond demo: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130
    print(_paint("1;32", f"\nEvery promise kept, in {time.monotonic() - start:.0f} s."))
    print("Play with a bond yourself: README.md, or `sudo .venv/bin/ubond lab up`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
